//! Podlane's layer 1: routes that carry their encapsulation into one flow-based device (docs/decisions/0001).

use anyhow::Result;

use super::{Installed, Way, Wire};
use crate::site::{Family, POD_MTU, Site};

const DEVICE: &str = "podlane_vxlan";
const PORT: u16 = 8472;

/// The kernel lane, with VXLAN.
pub(super) struct KernelLane;

impl Way for KernelLane {
    fn name(&self) -> &'static str {
        "podlane-1-vxlan"
    }

    fn title(&self) -> &'static str {
        "Podlane layer 1, vxlan"
    }

    fn description(&self) -> &'static str {
        "the kernel lane: a peer is a route with `encap ip` into one collect-metadata VXLAN device, and a permanent neighbour"
    }

    fn wire(&self) -> Wire {
        Wire::Udp(PORT)
    }

    fn set_up(&self, site: &Site) -> Result<Box<dyn Installed>> {
        for node in &site.nodes {
            let own = &node.identity;
            let mut lines = vec![
                format!(
                    "link add {DEVICE} address {} type vxlan external dstport {PORT} nolearning",
                    own.tunnel_mac()
                ),
                // The routes have an MTU of their own; the device's only must not be less.
                format!("link set {DEVICE} arp off mtu {POD_MTU} up"),
                format!("address add {}/32 dev {DEVICE}", own.router_address(Family::Ipv4)),
                format!(
                    "address add {}/128 dev {DEVICE} nodad",
                    own.router_address(Family::Ipv6)
                ),
            ];
            for peer in &node.peers {
                for family in Family::ALL {
                    let (gateway, mac) = (peer.router_address(family), peer.tunnel_mac());
                    lines.push(format!(
                        "neigh add {gateway} lladdr {mac} dev {DEVICE} nud permanent"
                    ));
                    lines.push(format!(
                        "route add {} encap ip id 1 src {} dst {} ttl 64 via {gateway} dev {DEVICE} onlink src {} mtu {POD_MTU}",
                        peer.pod_cidr(family),
                        own.address(),
                        peer.address(),
                        own.router_address(family),
                    ));
                }
            }
            node.namespace.ip_batch(&lines)?;
        }
        Ok(Box::new(Installation))
    }
}

struct Installation;

impl Installed for Installation {
    fn tear_down(self: Box<Self>, site: &Site) -> Result<()> {
        for node in &site.nodes {
            // Addresses, routes and neighbours go with it.
            node.namespace.ip(&["link", "delete", DEVICE])?;
        }
        Ok(())
    }
}
