//! The lanes that everything is shown over.

use podlane_e2e::story::{geneve, native_and_vxlan, vxlan};
use serde_json::{Value, json};

use crate::servers::Sizes;

/// The lanes between nodes, and who carries packets there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Over {
    Vxlan,
    Geneve,
    /// Native on the link, VXLAN across the router.
    Native,
    /// The same without the leased bypass.
    ThroughTheStack,
    /// The kernel's own driver, without programs.
    Kernel,
}

impl Over {
    pub(crate) fn spec(self) -> Value {
        let mut spec = match self {
            Self::Vxlan | Self::Kernel => vxlan(),
            Self::Geneve => geneve(),
            Self::Native | Self::ThroughTheStack => native_and_vxlan(),
        };
        if self == Self::ThroughTheStack {
            spec["datapath"] = json!({"bypass": "Off"});
        }
        spec
    }

    /// How much is sent both ways. What a node learns of the path's MTU from another node's port, which leads into a lane, its kernel's drivers
    /// believe of the tunnel's outer packets, too (`skb_tunnel_check_pmtu`): it becomes smaller and smaller so, and is none of Podlane's.
    pub(crate) fn sizes(self) -> Sizes {
        if self == Self::Kernel {
            Sizes::SMALL
        } else {
            Sizes::LARGE
        }
    }

    pub(crate) fn bypasses(self) -> bool {
        matches!(self, Self::Vxlan | Self::Geneve | Self::Native)
    }

    /// Whether nodes of one link reach each other's pods natively.
    pub(crate) fn is_native(self) -> bool {
        matches!(self, Self::Native | Self::ThroughTheStack)
    }

    /// How the metrics call the lane to [`Self::remote`].
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Vxlan | Self::Kernel => "lane=\"vxlan",
            Self::Geneve => "lane=\"geneve",
            Self::Native | Self::ThroughTheStack => "lane=\"native",
        }
    }

    /// The pod at the other end of the lane from k8s-ctr, and its node.
    pub(crate) fn remote(self) -> (&'static str, &'static str) {
        if self.is_native() {
            ("pod-w1-1", "k8s-w1")
        } else {
            ("pod-w0-1", "k8s-w0")
        }
    }

    /// A pod of the third node.
    pub(crate) fn third(self) -> &'static str {
        if self.is_native() { "pod-w0-2" } else { "pod-w1-2" }
    }
}
