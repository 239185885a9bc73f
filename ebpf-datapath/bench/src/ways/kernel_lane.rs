//! Podlane's layer 1: routes that carry their encapsulation into one flow-based device (docs/decisions/0001).

use anyhow::Result;
use podlane_plan::lane::{Tunnel, TunnelProtocol};

use super::{Installed, Way, Wire};
use crate::site::{Family, Node, POD_MTU, Site};

/// The VXLAN tunnel of Podlane's ways.
pub(super) const VXLAN: Tunnel = Tunnel {
    protocol: TunnelProtocol::Vxlan,
    port: 8472,
    vni: 1,
};

/// The GENEVE tunnel of Podlane's ways.
pub(super) const GENEVE: Tunnel = Tunnel {
    protocol: TunnelProtocol::Geneve,
    port: 6081,
    vni: 1,
};

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
        Wire::Udp(VXLAN.port)
    }

    fn set_up(&self, site: &Site) -> Result<Box<dyn Installed>> {
        for node in &site.nodes {
            add_device(node, VXLAN, VXLAN.protocol)?;
            add_routes(node, VXLAN)?;
        }
        Ok(Box::new(Installation))
    }
}

struct Installation;

impl Installed for Installation {
    fn tear_down(self: Box<Self>, site: &Site) -> Result<()> {
        for node in &site.nodes {
            remove(node, VXLAN)?;
        }
        Ok(())
    }
}

/// Makes a tunnel's collect-metadata device, of a driver that need not be the tunnel's own protocol's.
pub(super) fn add_device(node: &Node, tunnel: Tunnel, driver: TunnelProtocol) -> Result<()> {
    let (device, own) = (tunnel.device(), &node.identity);
    let (driver, options) = match driver {
        TunnelProtocol::Vxlan => ("vxlan", " nolearning"),
        TunnelProtocol::Geneve => ("geneve", ""),
    };
    node.namespace.ip_batch(&[
        format!(
            "link add {device} address {} type {driver} external dstport {}{options}",
            own.tunnel_mac(),
            tunnel.port
        ),
        // The routes have an MTU of their own; the device's only must not be less.
        format!("link set {device} arp off mtu {POD_MTU} up"),
        format!("address add {}/32 dev {device}", own.router_address(Family::Ipv4)),
        format!(
            "address add {}/128 dev {device} nodad",
            own.router_address(Family::Ipv6)
        ),
    ])
}

/// A route and a permanent neighbour for every peer.
pub(super) fn add_routes(node: &Node, tunnel: Tunnel) -> Result<()> {
    let (device, own) = (tunnel.device(), &node.identity);
    let mut lines = Vec::new();
    for peer in &node.peers {
        for family in Family::ALL {
            let (gateway, mac) = (peer.router_address(family), peer.tunnel_mac());
            lines.push(format!(
                "neigh add {gateway} lladdr {mac} dev {device} nud permanent"
            ));
            lines.push(format!(
                "route add {} encap ip id {} src {} dst {} ttl 64 via {gateway} dev {device} onlink src {} mtu {POD_MTU}",
                peer.pod_cidr(family),
                tunnel.vni,
                own.address(),
                peer.address(),
                own.router_address(family),
            ));
        }
    }
    node.namespace.ip_batch(&lines)
}

/// Takes the device away; addresses, routes and neighbours go with it.
pub(super) fn remove(node: &Node, tunnel: Tunnel) -> Result<()> {
    node.namespace.ip(&["link", "delete", &tunnel.device()]).map(drop)
}
