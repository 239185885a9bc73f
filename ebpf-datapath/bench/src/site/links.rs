//! The links of a site, as lines for `ip -batch`.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::{BRIDGE, ETH0, Family, Node, POD_MTU, POD_VETH, PodNetwork, ROUTER_INTERFACES, UNDERLAY_MTU};

pub(super) fn router_addresses(index: u8) -> (Ipv4Addr, Ipv6Addr) {
    let subnet = [10, 20][usize::from(index)];
    (
        Ipv4Addr::new(192, 168, subnet, 200),
        Ipv6Addr::new(0xfd00, 0, 0, subnet.into(), 0, 0, 0, 0x200),
    )
}

pub(super) fn router_lines(nodes: &[Node; 2]) -> Vec<String> {
    let mut lines = vec!["link set lo up".to_owned()];
    for (interface, node) in ROUTER_INTERFACES.iter().zip(nodes) {
        let peer = node.namespace.name();
        lines.push(format!(
            "link add {interface} mtu {UNDERLAY_MTU} type veth peer name {ETH0} mtu {UNDERLAY_MTU} netns {peer}"
        ));
        lines.push(format!("address add {}/24 dev {interface}", node.gateway.0));
        lines.push(format!("address add {}/64 dev {interface} nodad", node.gateway.1));
        lines.push(format!("link set {interface} up"));
    }
    lines
}

pub(super) fn node_lines(node: &Node, pods: PodNetwork) -> Vec<String> {
    let identity = &node.identity;
    let mut lines = vec![
        "link set lo up".to_owned(),
        format!("address add {}/24 dev {ETH0}", identity.address()),
        format!("address add {}/64 dev {ETH0} nodad", identity.address_v6()),
        format!("link set {ETH0} up"),
        format!("route add default via {}", node.gateway.0),
        format!("route add default via {}", node.gateway.1),
        format!(
            "link add {POD_VETH} mtu {POD_MTU} type veth peer name {ETH0} mtu {POD_MTU} netns {}",
            node.pod.name()
        ),
    ];
    if pods == PodNetwork::Bridge {
        lines.push(format!(
            "link add {BRIDGE} mtu {POD_MTU} type bridge mcast_snooping 0"
        ));
        lines.push(format!("link set {POD_VETH} master {BRIDGE}"));
    }
    let owner = gateway_owner(pods);
    for family in Family::ALL {
        let length = match pods {
            PodNetwork::PointToPoint => family.bits(),
            PodNetwork::Bridge => family.pod_cidr_bits(),
        };
        let nodad = if family == Family::Ipv6 { " nodad" } else { "" };
        let router = identity.router_address(family);
        lines.push(format!("address add {router}/{length} dev {owner}{nodad}"));
    }
    lines.push(format!("link set {POD_VETH} up"));
    match pods {
        PodNetwork::Bridge => lines.push(format!("link set {BRIDGE} up")),
        PodNetwork::PointToPoint => {
            for family in Family::ALL {
                let scope = if family == Family::Ipv4 { " scope host" } else { "" };
                let pod = identity.pod_address(family);
                lines.push(format!("route add {pod}/{} dev {POD_VETH}{scope}", family.bits()));
            }
        }
    }
    lines
}

/// The interface of a node that has its router address, and by which its pods are reached.
fn gateway_owner(pods: PodNetwork) -> &'static str {
    match pods {
        PodNetwork::PointToPoint => POD_VETH,
        PodNetwork::Bridge => BRIDGE,
    }
}

pub(super) fn pod_lines(node: &Node, pods: PodNetwork) -> Vec<String> {
    let mut lines = vec!["link set lo up".to_owned(), format!("link set {ETH0} up")];
    for family in Family::ALL {
        let (pod, gateway) = (
            node.identity.pod_address(family),
            node.identity.router_address(family),
        );
        let nodad = if family == Family::Ipv6 { " nodad" } else { "" };
        let length = match pods {
            PodNetwork::PointToPoint => family.bits(),
            PodNetwork::Bridge => family.pod_cidr_bits(),
        };
        lines.push(format!("address add {pod}/{length} dev {ETH0}{nodad}"));
        if pods == PodNetwork::PointToPoint {
            lines.push(format!("route add {gateway}/{} dev {ETH0}", family.bits()));
        }
        lines.push(format!("route add default via {gateway}"));
    }
    lines
}
