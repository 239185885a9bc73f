//! What the underlay's device is.

use podlane_test_namespaces::{Elsewhere, ip};

/// The kind of the devices `eth0` and, at the far end, `eth0-end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Underlay {
    /// The two ends of a cable.
    Veth,
    /// A VLAN each on the two ends of a cable (802.1Q).
    Vlan,
    /// A bond each of two cables, of which one is in use (active-backup).
    Bond,
}

/// The link-layer addresses of the node and of the far end.
const MACS: [&str; 2] = ["02:00:00:00:00:01", "02:00:00:00:00:02"];

impl Underlay {
    /// Makes the devices, one in the calling thread's namespace, one at the far end.
    pub(crate) fn make(self, far: &Elsewhere) {
        match self {
            Self::Veth => {
                ip(&format!(
                    "link add eth0 address {} type veth peer name eth0-end address {} netns {}",
                    MACS[0],
                    MACS[1],
                    far.tid()
                ));
            }
            Self::Vlan => {
                cable("cable0", far);
                ip(&format!(
                    "link add link cable0 name eth0 address {} type vlan id 5",
                    MACS[0]
                ));
                far.ip(&format!(
                    "link add link cable0-end name eth0-end address {} type vlan id 5",
                    MACS[1]
                ));
            }
            Self::Bond => {
                ip("link add eth0 type bond mode active-backup miimon 10");
                far.ip("link add eth0-end type bond mode active-backup miimon 10");
                for name in ["cable0", "cable1"] {
                    cable(name, far);
                    // A device joins while it is down.
                    ip(&format!("link set {name} down master eth0"));
                    far.ip(&format!("link set {name}-end down master eth0-end"));
                }
                ip(&format!("link set eth0 address {}", MACS[0]));
                far.ip(&format!("link set eth0-end address {}", MACS[1]));
            }
        }
        ip("link set eth0 addrgenmode none up");
        far.ip("link set eth0-end addrgenmode none up");
    }
}

/// A cable to the far end, up.
fn cable(name: &str, far: &Elsewhere) {
    ip(&format!(
        "link add {name} type veth peer name {name}-end netns {}",
        far.tid()
    ));
    ip(&format!("link set {name} addrgenmode none up"));
    far.ip(&format!("link set {name}-end addrgenmode none up"));
}
