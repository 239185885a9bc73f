//! Podlane's layers 2 and 3: its eBPF programs, loaded and told what they need by its own loader (docs/datapath.md).

mod bpffs;
mod declared;
mod evidence;
mod node;

use std::cell::RefCell;

use anyhow::Result;
use podlane_plan::lane::{Tunnel, TunnelProtocol};

use super::kernel_lane::{self, GENEVE, VXLAN};
use super::{Goal, Installed, Way, Wire, native};
use crate::condition::Condition;
use crate::figure::Figure;
use crate::site::{Node, Site};
use node::NodePrograms;

/// One of the layers on one of the lanes.
pub(super) struct Podlane {
    name: &'static str,
    title: &'static str,
    description: &'static str,
    /// The tunnel; none: the native lane.
    tunnel: Option<Tunnel>,
    /// Whether it is layer 3.
    bypass: bool,
    goals: &'static [Goal],
}

const AROUND_GOALS: &[Goal] = &[Goal {
    figure: Figure::Packets,
    condition: Condition::None,
    ratio: 0.92,
}];

const BYPASS_GOALS: &[Goal] = &[
    Goal {
        figure: Figure::Packets,
        condition: Condition::None,
        ratio: 1.10,
    },
    Goal {
        figure: Figure::RoundTripMedian,
        condition: Condition::None,
        ratio: 0.92,
    },
    Goal {
        figure: Figure::TcpOne,
        condition: Condition::None,
        ratio: 1.10,
    },
    Goal {
        figure: Figure::Packets,
        condition: Condition::KubeProxy,
        ratio: 1.40,
    },
];

impl Podlane {
    /// Layer 2 with VXLAN.
    pub(super) const AROUND_VXLAN: Self = Self {
        name: "podlane-2-vxlan",
        title: "Podlane layer 2, vxlan",
        description: "the kernel lane's routes, and eBPF that encapsulates at the tunnel device's egress and decapsulates at the \
                      underlay's ingress; every packet passes the node's stack",
        tunnel: Some(VXLAN),
        bypass: false,
        goals: AROUND_GOALS,
    };

    /// Layer 2 with GENEVE.
    pub(super) const AROUND_GENEVE: Self = Self {
        name: "podlane-2-geneve",
        title: "Podlane layer 2, geneve",
        description: "the same with GENEVE; where the kernel has no GENEVE driver, a VXLAN device stands in and the programs carry all",
        tunnel: Some(GENEVE),
        ..Self::AROUND_VXLAN
    };

    /// Layer 3 with VXLAN.
    pub(super) const BYPASS_VXLAN: Self = Self {
        name: "podlane-3-vxlan",
        title: "Podlane layer 3, vxlan",
        description: "layer 2, and a flow that the node's stack has let through within the last second skips it, from the pod's veth to \
                      the underlay and from the underlay into the pod",
        tunnel: Some(VXLAN),
        bypass: true,
        goals: BYPASS_GOALS,
    };

    /// Layer 3 with GENEVE.
    pub(super) const BYPASS_GENEVE: Self = Self {
        name: "podlane-3-geneve",
        title: "Podlane layer 3, geneve",
        description: "the same with GENEVE",
        tunnel: Some(GENEVE),
        ..Self::BYPASS_VXLAN
    };

    /// Layer 3 without encapsulation.
    pub(super) const BYPASS_NATIVE: Self = Self {
        name: "podlane-3-native",
        title: "Podlane layer 3, native",
        description: "the native lane's routes, and the same bypass without encapsulation; each plain packet's source is checked",
        tunnel: None,
        goals: &[],
        ..Self::BYPASS_VXLAN
    };
}

impl Way for Podlane {
    fn name(&self) -> &'static str {
        self.name
    }

    fn title(&self) -> &'static str {
        self.title
    }

    fn description(&self) -> &'static str {
        self.description
    }

    fn wire(&self) -> Wire {
        self.tunnel.map_or(Wire::Plain, |tunnel| Wire::Udp(tunnel.port))
    }

    fn goals(&self) -> &'static [Goal] {
        self.goals
    }

    fn set_up(&self, site: &Site) -> Result<Box<dyn Installed>> {
        let is_stand_in = match self.tunnel {
            Some(tunnel) => {
                let [one, other] = site.nodes.each_ref().map(|node| lay(node, tunnel));
                one? || other?
            }
            None => {
                native::change(site, "add")?;
                false
            }
        };
        let install = |node: &Node| {
            if self.bypass {
                // As the agent does: connection tracking does not see the packets that bypass it.
                node.namespace.set_parameters(&[
                    ("netfilter/nf_conntrack_tcp_be_liberal", "1"),
                    ("netfilter/nf_conntrack_tcp_ignore_invalid_rst", "1"),
                ])?;
            }
            let datapath = declared::datapath(node, self.tunnel, is_stand_in, self.bypass)?;
            NodePrograms::install(node, &datapath)
        };
        let [one, other] = site.nodes.each_ref().map(install);
        Ok(Box::new(Installation {
            tunnel: self.tunnel,
            bypass: self.bypass,
            nodes: [RefCell::new(one?), RefCell::new(other?)],
        }))
    }
}

/// The tunnel's device and the routes into it. Whether a VXLAN device stands in, since the kernel has no driver of the tunnel's own.
fn lay(node: &Node, tunnel: Tunnel) -> Result<bool> {
    let own = kernel_lane::add_device(node, tunnel, tunnel.protocol);
    let is_stand_in = own.is_err() && tunnel.protocol == TunnelProtocol::Geneve;
    if is_stand_in {
        kernel_lane::add_device(node, tunnel, TunnelProtocol::Vxlan)?;
    } else {
        own?;
    }
    kernel_lane::add_routes(node, tunnel)?;
    Ok(is_stand_in)
}

struct Installation {
    tunnel: Option<Tunnel>,
    bypass: bool,
    nodes: [RefCell<NodePrograms>; 2],
}

impl Installed for Installation {
    fn evidence(&self) -> Result<()> {
        for node in &self.nodes {
            let seen = node.borrow_mut().seen(self.tunnel)?;
            evidence::judge(&seen, self.bypass)?;
        }
        Ok(())
    }

    fn tear_down(self: Box<Self>, site: &Site) -> Result<()> {
        for (programs, node) in self.nodes.into_iter().zip(&site.nodes) {
            programs.into_inner().remove()?;
            if let Some(tunnel) = self.tunnel {
                kernel_lane::remove(node, tunnel)?;
            }
        }
        if self.tunnel.is_none() {
            native::change(site, "delete")?;
        }
        Ok(())
    }
}
