//! A network with several ways from one node to another.

use super::{Attachment, FurtherRouter, Link, Topology, net4};

/// The namespace of the second router.
pub const SECOND_ROUTER: &str = "router2";

impl Topology {
    /// The seed's network with more ways in it:
    ///
    /// - k8s-ctr has eth1 on link2, beside k8s-w0;
    /// - k8s-w2 and k8s-w3 are on a third link and have their addresses as /32, with the router as an on-link gateway;
    /// - a second router is on all three links, .201 on each.
    pub fn with_many_ways(pods_per_node: u8) -> Self {
        let mut topology = Self::seed(pods_per_node);
        topology
            .links
            .push(Link::new("link3", "eth3", net4([192, 168, 30, 200], 24)));
        for (name, host) in [("k8s-w2", 100), ("k8s-w3", 101)] {
            topology.add_node(name, "link3", net4([192, 168, 30, host], 32), pods_per_node);
        }
        let attached = |link: &str, third: u8, host: u8| Attachment {
            link: link.to_owned(),
            addresses: vec![net4([192, 168, third, host], 24)],
        };
        topology.nodes[0].further.push(attached("link2", 20, 101));
        topology.further_routers.push(FurtherRouter {
            name: SECOND_ROUTER.to_owned(),
            attachments: vec![
                attached("link1", 10, 201),
                attached("link2", 20, 201),
                attached("link3", 30, 201),
            ],
        });
        topology
    }
}
