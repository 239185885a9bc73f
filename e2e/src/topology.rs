//! The lab's network as data: who is on which link, with which addresses, and which pods a node has.

mod families;
mod ways;

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};

pub use families::Families;
pub use ways::SECOND_ROUTER;

/// The router's namespace: no cluster member, and it knows no pod CIDR.
pub const ROUTER: &str = "router";
/// The namespace of the bridges: nodes on one link reach each other without the router.
pub const SWITCH: &str = "switch";
/// The namespace that stands for everything outside.
pub const INTERNET: &str = "internet";

/// Nodes, links and pods.
#[derive(Clone, Debug)]
pub struct Topology {
    /// The router's way out.
    pub uplink: Uplink,
    /// The networks that the nodes are on.
    pub links: Vec<Link>,
    /// Routers beside the first one: no node's default route leads to them until somebody changes that.
    pub further_routers: Vec<FurtherRouter>,
    /// The cluster's nodes.
    pub nodes: Vec<Node>,
    /// What the pod CIDRs are parts of.
    pub cluster_pod_cidrs: Vec<IpNet>,
}

/// The router's eth0 and what is at its other end, which is also the router's default gateway.
#[derive(Clone, Debug)]
pub struct Uplink {
    /// The router's addresses.
    pub router: Vec<IpNet>,
    /// The addresses at the other end.
    pub internet: Vec<IpNet>,
}

/// A network with a bridge of its own and the router on it.
#[derive(Clone, Debug)]
pub struct Link {
    /// Its name, which is also the bridge's.
    pub name: String,
    /// The router's interface on it.
    pub router_interface: String,
    /// The router's addresses on it: the default gateways of its nodes.
    pub router_addresses: Vec<IpNet>,
}

/// A router with an interface on each of some links: eth1, eth2, …
#[derive(Clone, Debug)]
pub struct FurtherRouter {
    /// The name, also of its namespace.
    pub name: String,
    /// Its interfaces.
    pub attachments: Vec<Attachment>,
}

/// An interface's place on a link.
#[derive(Clone, Debug)]
pub struct Attachment {
    /// The link.
    pub link: String,
    /// The interface's addresses.
    pub addresses: Vec<IpNet>,
}

/// A node: eth0 on one link, default route to the router.
#[derive(Clone, Debug)]
pub struct Node {
    /// The name, also of the Kubernetes Node.
    pub name: String,
    /// The link that its eth0 is on.
    pub link: String,
    /// The addresses of eth0; the first one is the node's InternalIP. One that does not have the router in its prefix reaches it by a
    /// route of its own, as on a cloud's machines.
    pub addresses: Vec<IpNet>,
    /// Further interfaces: eth1, eth2, …
    pub further: Vec<Attachment>,
    /// spec.podCIDRs.
    pub pod_cidrs: Vec<IpNet>,
    /// Its pods.
    pub pods: Vec<Pod>,
}

/// A pod: a namespace behind a veth, addressed as the CNI plugin ptp does.
#[derive(Clone, Debug)]
pub struct Pod {
    /// The name, also of the veth's end on the node.
    pub name: String,
    /// Its addresses, out of the node's pod CIDRs.
    pub addresses: Vec<IpAddr>,
}

impl Topology {
    /// The story's network: k8s-ctr and k8s-w1 on one link, k8s-w0 on another, a router between them.
    pub fn seed(pods_per_node: u8) -> Self {
        let mut topology = Self {
            uplink: Uplink {
                router: vec![net4([203, 0, 113, 2], 24)],
                internet: vec![net4([203, 0, 113, 1], 24)],
            },
            links: vec![
                Link::new("link1", "eth1", net4([192, 168, 10, 200], 24)),
                Link::new("link2", "eth2", net4([192, 168, 20, 200], 24)),
            ],
            further_routers: Vec::new(),
            nodes: Vec::new(),
            cluster_pod_cidrs: vec![net4([172, 20, 0, 0], 16)],
        };
        for (name, link, address) in [
            ("k8s-ctr", "link1", net4([192, 168, 10, 100], 24)),
            ("k8s-w1", "link1", net4([192, 168, 10, 101], 24)),
            ("k8s-w0", "link2", net4([192, 168, 20, 100], 24)),
        ] {
            topology.add_node(name, link, address, pods_per_node);
        }
        topology
    }

    /// Adds a node with the next free /24 of 172.20.0.0/16 and that many pods: .10, .11, …
    pub fn add_node(&mut self, name: &str, link: &str, address: IpNet, pods: u8) -> &mut Node {
        let taken = |octet: u8| {
            self.nodes
                .iter()
                .flat_map(|node| &node.pod_cidrs)
                .any(|cidr| *cidr == net4([172, 20, octet, 0], 24))
        };
        let octet = (0..=u8::MAX).find(|&octet| !taken(octet)).unwrap_or(u8::MAX);
        let short = name.strip_prefix("k8s-").unwrap_or(name);
        let pods = (0..pods)
            .map(|index| Pod {
                name: format!("pod-{short}-{}", u16::from(index) + 1),
                addresses: vec![IpAddr::V4(Ipv4Addr::new(172, 20, octet, 10 + index))],
            })
            .collect();
        self.nodes.push(Node {
            name: name.to_owned(),
            link: link.to_owned(),
            addresses: vec![address],
            further: Vec::new(),
            pod_cidrs: vec![net4([172, 20, octet, 0], 24)],
            pods,
        });
        let last = self.nodes.len() - 1;
        &mut self.nodes[last]
    }

    /// The node of this name.
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| node.name == name)
    }

    /// The pod of this name, with its node.
    pub fn pod(&self, name: &str) -> Option<(&Node, &Pod)> {
        self.nodes
            .iter()
            .flat_map(|node| node.pods.iter().map(move |pod| (node, pod)))
            .find(|(_, pod)| pod.name == name)
    }

    /// The link that a node is on.
    pub fn link_of(&self, node: &Node) -> Option<&Link> {
        self.links.iter().find(|link| link.name == node.link)
    }

    /// The names of all namespaces that this takes.
    pub fn namespaces(&self) -> Vec<&str> {
        let nodes = self.nodes.iter().flat_map(|node| {
            std::iter::once(node.name.as_str()).chain(node.pods.iter().map(|pod| pod.name.as_str()))
        });
        let further = self.further_routers.iter().map(|router| router.name.as_str());
        [INTERNET, ROUTER, SWITCH]
            .into_iter()
            .chain(further)
            .chain(nodes)
            .collect()
    }
}

impl Link {
    /// A link with one address of the router's on it.
    pub fn new(name: &str, router_interface: &str, router_address: IpNet) -> Self {
        Self {
            name: name.to_owned(),
            router_interface: router_interface.to_owned(),
            router_addresses: vec![router_address],
        }
    }
}

impl Node {
    /// Its InternalIP.
    pub fn internal_ip(&self) -> Option<IpAddr> {
        self.addresses.first().map(IpNet::addr)
    }

    /// The addresses of all its interfaces, eth0's first.
    pub fn all_addresses(&self) -> impl Iterator<Item = IpNet> {
        let further = self.further.iter().flat_map(|attachment| &attachment.addresses);
        self.addresses.iter().chain(further).copied()
    }

    /// The node's own address in each of its pod CIDRs, the first one after the network's own: the pods' gateway.
    pub fn pod_gateways(&self) -> impl Iterator<Item = IpAddr> {
        self.pod_cidrs.iter().filter_map(|cidr| match cidr {
            IpNet::V4(network) => network.hosts().next().map(IpAddr::V4),
            // The network's own address is every router's (RFC 4291, section 2.6.1), and ipnet counts it in.
            IpNet::V6(network) => network.hosts().nth(1).map(IpAddr::V6),
        })
    }
}

impl Pod {
    /// Its first address.
    pub fn address(&self) -> Option<IpAddr> {
        self.addresses.first().copied()
    }

    /// Its address of a family.
    pub fn address_of(&self, six: bool) -> Option<IpAddr> {
        self.addresses
            .iter()
            .copied()
            .find(|address| address.is_ipv6() == six)
    }
}

fn net4(octets: [u8; 4], prefix: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::from(octets), prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seed_has_the_storys_addresses() {
        let topology = Topology::seed(2);
        let lines: Vec<String> = topology
            .nodes
            .iter()
            .map(|node| {
                let pods: Vec<String> = node
                    .pods
                    .iter()
                    .map(|pod| format!("{} {}", pod.name, pod.addresses[0]))
                    .collect();
                format!(
                    "{} {} {} {}",
                    node.name,
                    node.addresses[0],
                    node.pod_cidrs[0],
                    pods.join(" ")
                )
            })
            .collect();
        assert_eq!(
            lines,
            [
                "k8s-ctr 192.168.10.100/24 172.20.0.0/24 pod-ctr-1 172.20.0.10 pod-ctr-2 172.20.0.11",
                "k8s-w1 192.168.10.101/24 172.20.1.0/24 pod-w1-1 172.20.1.10 pod-w1-2 172.20.1.11",
                "k8s-w0 192.168.20.100/24 172.20.2.0/24 pod-w0-1 172.20.2.10 pod-w0-2 172.20.2.11",
            ]
        );
        assert_eq!(
            topology
                .node("k8s-w0")
                .unwrap()
                .pod_gateways()
                .next()
                .unwrap()
                .to_string(),
            "172.20.2.1"
        );
    }
}
