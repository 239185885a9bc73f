//! Which nodes and pod CIDRs can be routed at all: what no single Node object shows.

use crate::pool::{Allocation, Family};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

/// A node as its Node object describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// `metadata.creationTimestamp`, in seconds since 1970.
    pub created: i64,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its addresses of type InternalIP, in their order.
    pub addresses: Vec<IpAddr>,
    /// Its pod CIDRs, host bits zero.
    pub pod_cidrs: Vec<IpNet>,
    /// Addresses and pod CIDRs that are none, as they were written.
    pub unreadable: Vec<String>,
}

/// What is wrong with a node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Problem {
    /// No address of type InternalIP.
    NoAddress,
    /// No pod CIDR.
    NoPodCidr,
    /// No block is left of the pool that it would have one of.
    PoolEmpty {
        /// The pool's family.
        family: Family,
        /// The pool's networks.
        pool: String,
    },
    /// Something that should be an address or a CIDR and is none.
    Unreadable(String),
    /// A pod CIDR of an older node has addresses in common with this node's.
    Overlap {
        /// This node's pod CIDR, which is not routed.
        cidr: IpNet,
        /// The older node, which keeps its own.
        with: String,
        /// The older node's pod CIDR.
        with_cidr: IpNet,
    },
    /// A pod CIDR has a node's address within: routing it would cut that node off.
    CoversNode {
        /// This node's pod CIDR, which is not routed.
        cidr: IpNet,
        /// The node whose address it covers.
        node: String,
        /// That address.
        address: IpAddr,
    },
}

impl Problem {
    /// A reason as metav1.Condition wants one.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::NoAddress => "NoInternalIP",
            Self::NoPodCidr => "NoPodCIDR",
            Self::PoolEmpty { .. } => "PodCIDRPoolEmpty",
            Self::Unreadable(_) => "Unreadable",
            Self::Overlap { .. } => "PodCIDROverlap",
            Self::CoversNode { .. } => "PodCIDRCoversNode",
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoAddress => f.write_str("has no address of type InternalIP: set the kubelet's --node-ip"),
            Self::NoPodCidr => f.write_str(
                "has no pod CIDR: let the controller manager hand them out (--allocate-node-cidrs), set spec.podCIDR, or give \
                 Podlane a pool (clusterPoolIPv4PodCIDRList)",
            ),
            Self::PoolEmpty { family, pool } => write!(
                f,
                "has no {family} pod CIDR, because no block is left in {pool}: add a network to \
                 clusterPool{family}PodCIDRList, or delete the Nodes that are gone"
            ),
            Self::Unreadable(text) => write!(f, "has {text:?}, which is no address or CIDR: it is left out"),
            Self::Overlap { cidr, with, with_cidr } => write!(
                f,
                "has the pod CIDR {cidr}, which overlaps {with_cidr} of the older node {with}: it is not routed; give one of \
                 them another pod CIDR"
            ),
            Self::CoversNode { cidr, node, address } => write!(
                f,
                "has the pod CIDR {cidr}, which covers the address {address} of node {node}: it is not routed; give the node \
                 a pod CIDR outside the underlay's networks"
            ),
        }
    }
}

/// What of the nodes can be routed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Admission {
    /// Per node, the pod CIDRs that are routed; every node is listed.
    pub pod_cidrs: BTreeMap<String, Vec<IpNet>>,
    /// Per node, what is wrong; nodes without a problem are not listed.
    pub problems: BTreeMap<String, BTreeSet<Problem>>,
}

/// The first and the last address of a network, as numbers that compare within a family.
pub(crate) fn bounds(cidr: &IpNet) -> (u128, u128) {
    (number(&cidr.network()), number(&cidr.broadcast()))
}

/// An address as a number that compares within its family.
pub(crate) fn number(address: &IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(*address)),
        IpAddr::V6(address) => u128::from(*address),
    }
}

/// Disjoint networks of one family, by their first address.
#[derive(Default)]
pub(crate) struct Disjoint<'a>(BTreeMap<u128, (u128, IpNet, &'a str)>);

impl<'a> Disjoint<'a> {
    /// Adds a network, or tells whose it overlaps.
    pub(crate) fn insert(&mut self, cidr: IpNet, owner: &'a str) -> Result<(), (IpNet, &'a str)> {
        let (first, last) = bounds(&cidr);
        match self.last_within(first, last) {
            Some((_, other, with)) => Err((*other, with)),
            None => {
                self.0.insert(first, (last, cidr, owner));
                Ok(())
            }
        }
    }

    /// Where the last network ends that has an address within these bounds.
    pub(crate) fn end_of_last_within(&self, first: u128, last: u128) -> Option<u128> {
        self.last_within(first, last).map(|(end, ..)| *end)
    }

    fn last_within(&self, first: u128, last: u128) -> Option<&(u128, IpNet, &'a str)> {
        // The networks are disjoint, so of those that begin at or before `last` only the nearest can reach `first`.
        let (_, nearest) = self.0.range(..=last).next_back()?;
        (nearest.0 >= first).then_some(nearest)
    }
}

/// Sorts out what of the nodes can be routed, with what they were given out of pools. Of two nodes with overlapping pod CIDRs
/// the older keeps its own (then the one whose name sorts first).
pub fn admit(nodes: &[Node], allocation: &Allocation) -> Admission {
    let mut addresses: [BTreeMap<u128, (&str, IpAddr)>; 2] = Default::default();
    for node in nodes {
        for address in &node.addresses {
            let entry = addresses[usize::from(address.is_ipv6())]
                .entry(number(address))
                .or_insert((&node.name, *address));
            // Two nodes with one address: name the same one whatever the order.
            entry.0 = entry.0.min(&node.name);
        }
    }
    let mut by_age: Vec<&Node> = nodes.iter().collect();
    by_age.sort_by(|a, b| (a.created, &a.name).cmp(&(b.created, &b.name)));

    let mut admission = Admission::default();
    let mut taken: [Disjoint; 2] = Default::default();
    for node in by_age {
        let mut problems: BTreeSet<Problem> =
            node.unreadable.iter().cloned().map(Problem::Unreadable).collect();
        if node.addresses.is_empty() {
            problems.insert(Problem::NoAddress);
        }
        let pod_cidrs = allocation.pod_cidrs_of(node);
        let exhausted = allocation.exhausted.get(&node.name);
        if pod_cidrs.is_empty() && exhausted.is_none() {
            problems.insert(Problem::NoPodCidr);
        }
        problems.extend(
            exhausted
                .into_iter()
                .flatten()
                .map(|(family, pool)| Problem::PoolEmpty {
                    family: *family,
                    pool: pool.clone(),
                }),
        );
        let routed = admission.pod_cidrs.entry(node.name.clone()).or_default();
        for cidr in pod_cidrs {
            let cidr = cidr.trunc();
            let family = usize::from(cidr.addr().is_ipv6());
            let (first, last) = bounds(&cidr);
            if let Some((_, (covered, address))) = addresses[family].range(first..=last).next() {
                problems.insert(Problem::CoversNode {
                    cidr,
                    node: (*covered).to_owned(),
                    address: *address,
                });
                continue;
            }
            match taken[family].insert(cidr, &node.name) {
                Ok(()) => routed.push(cidr),
                Err((with_cidr, with)) => {
                    problems.insert(Problem::Overlap {
                        cidr,
                        with: with.to_owned(),
                        with_cidr,
                    });
                }
            }
        }
        if !problems.is_empty() {
            admission.problems.insert(node.name.clone(), problems);
        }
    }
    admission
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, created: i64, address: &str, pod_cidrs: &[&str]) -> Node {
        Node {
            name: name.to_owned(),
            created,
            addresses: vec![address.parse().expect("an address")],
            pod_cidrs: pod_cidrs
                .iter()
                .map(|cidr| cidr.parse().expect("a CIDR"))
                .collect(),
            ..Node::default()
        }
    }

    fn problems(admission: &Admission, name: &str) -> Vec<&'static str> {
        admission
            .problems
            .get(name)
            .into_iter()
            .flatten()
            .map(Problem::reason)
            .collect()
    }

    #[test]
    fn the_older_of_two_overlapping_nodes_keeps_its_pod_cidr() {
        let mut nodes = vec![
            node("b", 20, "192.168.0.2", &["172.20.0.0/23"]),
            node("a", 30, "192.168.0.1", &["172.20.1.0/24", "fd00:1::/64"]),
            node("c", 40, "192.168.0.3", &["172.20.2.0/24"]),
        ];
        let admission = admit(&nodes, &Allocation::default());
        assert_eq!(problems(&admission, "a"), ["PodCIDROverlap"]);
        assert_eq!(
            admission.pod_cidrs["a"],
            ["fd00:1::/64".parse::<IpNet>().expect("a CIDR")]
        );
        assert!(problems(&admission, "b").is_empty() && problems(&admission, "c").is_empty());
        nodes.reverse();
        assert_eq!(admit(&nodes, &Allocation::default()), admission);
    }

    #[test]
    fn a_wide_network_added_late_is_caught_by_the_narrow_ones_within() {
        let nodes = [
            node("narrow", 1, "192.168.0.1", &["172.20.7.0/24"]),
            node("before", 1, "192.168.0.3", &["172.20.0.0/24"]),
            node("wide", 2, "192.168.0.2", &["172.20.0.0/16"]),
        ];
        assert_eq!(
            problems(&admit(&nodes, &Allocation::default()), "wide"),
            ["PodCIDROverlap"]
        );
    }

    #[test]
    fn a_pod_cidr_over_a_nodes_address_is_not_routed() {
        let nodes = [
            node("good", 1, "192.168.10.100", &["172.20.0.0/24"]),
            node("bad", 2, "192.168.20.100", &["192.168.10.0/24"]),
        ];
        let admission = admit(&nodes, &Allocation::default());
        assert_eq!(problems(&admission, "bad"), ["PodCIDRCoversNode"]);
        assert!(admission.pod_cidrs["bad"].is_empty());
        assert!(problems(&admission, "good").is_empty());
    }

    #[test]
    fn what_a_node_lacks_is_named() {
        let nodes = [Node {
            name: "bare".to_owned(),
            unreadable: vec!["10.0.0/8".to_owned()],
            ..Node::default()
        }];
        assert_eq!(
            problems(&admit(&nodes, &Allocation::default()), "bare"),
            ["NoInternalIP", "NoPodCIDR", "Unreadable"]
        );
    }
}
