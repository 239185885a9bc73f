//! Which policy governs a node.

use crate::datapath::DatapathOptions;
use crate::lane::Tunnel;
use crate::masquerade::MasqueradeOptions;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How a node's pods are reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RoutingMode {
    /// Unwrapped.
    Native,
    /// Wrapped, between node addresses.
    Tunnel,
}

/// What becomes of a peer that native routing cannot reach directly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OffLinkPeers {
    /// Its packets are refused with ICMP unreachable.
    Refuse,
    /// Its packets are wrapped.
    Tunnel,
    /// The underlay's gateways know the pod CIDRs: its packets go there as they are.
    Underlay,
}

/// The part of a policy from which the lane between two nodes follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Routing {
    /// Native or tunnel.
    pub routing_mode: RoutingMode,
    /// Native: whether peers on the same link are reached directly. Where not, they count as off-link.
    pub auto_direct_node_routes: bool,
    /// Native: the peers behind a gateway.
    pub off_link_peers: OffLinkPeers,
    /// The tunnel, where one is used.
    pub tunnel: Tunnel,
}

impl Routing {
    /// The tunnel that this policy may use.
    pub fn tunnel_in_use(&self) -> Option<Tunnel> {
        (self.routing_mode == RoutingMode::Tunnel || self.off_link_peers == OffLinkPeers::Tunnel)
            .then_some(self.tunnel)
    }
}

/// A policy's place among others: the higher priority goes first, then the older policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rank {
    /// `spec.priority`.
    #[serde(default)]
    pub priority: i32,
    /// `metadata.creationTimestamp`, in seconds since 1970 (that is its resolution in Kubernetes).
    #[serde(default)]
    pub created: i64,
    /// `metadata.name`: settles nothing between policies on one node, but makes every order total.
    pub name: String,
}

impl Rank {
    /// What decides; two policies that are equal here are of equal rank.
    const fn weight(&self) -> (std::cmp::Reverse<i32>, i64) {
        (std::cmp::Reverse(self.priority), self.created)
    }
}

impl PartialOrd for Rank {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Rank {
    /// Better first.
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.weight(), &self.name).cmp(&(other.weight(), &other.name))
    }
}

/// A policy as it applies to a node, and as peers are told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// Its place among policies: where two nodes' policies name different tunnels, the better one's is used.
    #[serde(flatten)]
    pub rank: Rank,
    /// What it says.
    #[serde(flatten)]
    pub routing: Routing,
}

/// A policy as its user wrote it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Policy {
    /// What it says to a node.
    #[serde(flatten)]
    pub applied: Applied,
    /// Its generation, raised by the API server at each change of its spec.
    #[serde(default)]
    pub generation: i64,
    /// Which nodes it selects.
    #[serde(default)]
    pub node_selector: Selector,
    /// The largest packet on a lane, in bytes; 0: what the underlay leaves.
    #[serde(default)]
    pub mtu: u32,
    /// Destinations that are not masqueraded; empty: the cluster's pod CIDRs.
    #[serde(default, rename = "nativeRoutingCIDRs")]
    pub native_routing_cidrs: Vec<IpNet>,
    /// Whether other destinations' packets are.
    #[serde(default)]
    pub masquerade: MasqueradeOptions,
    /// Its options of the datapath.
    #[serde(default)]
    pub datapath: DatapathOptions,
}

/// A label selector, as in metav1.LabelSelector: all of its parts must match, and an empty one matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Selector {
    /// Labels with the value that each must have.
    #[serde(default)]
    pub match_labels: BTreeMap<String, String>,
    /// Further requirements.
    #[serde(default)]
    pub match_expressions: Vec<Requirement>,
}

/// One requirement of a [`Selector`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requirement {
    /// The label's key.
    pub key: String,
    /// How values compare.
    pub operator: Operator,
    /// The values, for In and NotIn.
    #[serde(default)]
    pub values: Vec<String>,
}

/// How a [`Requirement`] compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operator {
    /// The label is there with one of the values.
    In,
    /// The label is absent or has none of the values.
    NotIn,
    /// The label is there.
    Exists,
    /// The label is absent.
    DoesNotExist,
}

impl Selector {
    /// Whether it selects something with these labels.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.match_labels
            .iter()
            .all(|(key, value)| labels.get(key) == Some(value))
            && self.match_expressions.iter().all(|requirement| {
                let value = labels.get(&requirement.key);
                let listed = value.is_some_and(|value| requirement.values.contains(value));
                match requirement.operator {
                    Operator::In => listed,
                    Operator::NotIn => !listed,
                    Operator::Exists => value.is_some(),
                    Operator::DoesNotExist => value.is_none(),
                }
            })
    }
}

/// The outcome of looking for a node's policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolution<'a> {
    /// This one governs the node; the others, best first, select it too and give way.
    Governed {
        /// The policy.
        by: &'a Policy,
        /// Those that give way.
        over: Vec<&'a Policy>,
    },
    /// No policy selects the node.
    Unselected,
    /// Several policies select it and none is better: their names in order. The node keeps what it had.
    Tied(Vec<&'a str>),
}

/// Finds the policy that governs a node with these labels. The order of `policies` is of no matter.
pub fn resolve<'a>(
    policies: impl IntoIterator<Item = &'a Policy>,
    labels: &BTreeMap<String, String>,
) -> Resolution<'a> {
    let mut selecting: Vec<&Policy> = policies
        .into_iter()
        .filter(|policy| policy.node_selector.matches(labels))
        .collect();
    selecting.sort_by(|a, b| a.applied.rank.cmp(&b.applied.rank));
    let Some((first, others)) = selecting.split_first() else {
        return Resolution::Unselected;
    };
    let equal: Vec<_> = others
        .iter()
        .take_while(|other| other.applied.rank.weight() == first.applied.rank.weight())
        .map(|other| other.applied.rank.name.as_str())
        .collect();
    if equal.is_empty() {
        Resolution::Governed {
            by: first,
            over: others.to_vec(),
        }
    } else {
        Resolution::Tied(
            std::iter::once(first.applied.rank.name.as_str())
                .chain(equal)
                .collect(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lane::TunnelProtocol;

    fn policy(name: &str, priority: i32, created: i64, selector: Selector) -> Policy {
        Policy {
            applied: Applied {
                rank: Rank {
                    priority,
                    created,
                    name: name.to_owned(),
                },
                routing: Routing {
                    routing_mode: RoutingMode::Native,
                    auto_direct_node_routes: true,
                    off_link_peers: OffLinkPeers::Refuse,
                    tunnel: Tunnel {
                        protocol: TunnelProtocol::Vxlan,
                        port: 8472,
                        vni: 1,
                    },
                },
            },
            generation: 1,
            node_selector: selector,
            mtu: 0,
            native_routing_cidrs: Vec::new(),
            masquerade: MasqueradeOptions::default(),
            datapath: DatapathOptions::default(),
        }
    }

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    }

    fn governed_by(policies: &[Policy]) -> String {
        match resolve(policies, &BTreeMap::new()) {
            Resolution::Governed { by, .. } => by.applied.rank.name.clone(),
            Resolution::Unselected => "nobody".to_owned(),
            Resolution::Tied(names) => format!("tied {}", names.join(" ")),
        }
    }

    #[test]
    fn priority_goes_before_age_and_age_before_nothing() {
        let all = Selector::default();
        let old = policy("old", 0, 100, all.clone());
        let young = policy("young", 0, 200, all.clone());
        let important = policy("important", 5, 300, all.clone());
        let twin = policy("twin", 0, 100, all);
        assert_eq!(governed_by(&[]), "nobody");
        assert_eq!(governed_by(&[young.clone(), old.clone()]), "old");
        assert_eq!(governed_by(&[old.clone(), important.clone(), young]), "important");
        assert_eq!(governed_by(&[twin.clone(), old.clone()]), "tied old twin");
        // A tie below the best is nobody's trouble.
        assert_eq!(governed_by(&[twin, old, important]), "important");
    }

    #[test]
    fn selectors_match_as_kubernetes_does() {
        let requirement = |operator, values: &[&str]| Selector {
            match_expressions: vec![Requirement {
                key: "zone".to_owned(),
                operator,
                values: values.iter().map(|value| (*value).to_owned()).collect(),
            }],
            ..Selector::default()
        };
        let here = labels(&[("zone", "a")]);
        let nowhere = labels(&[]);
        for (selector, in_zone_a, without_label) in [
            (Selector::default(), true, true),
            (
                Selector {
                    match_labels: here.clone(),
                    ..Selector::default()
                },
                true,
                false,
            ),
            (
                Selector {
                    match_labels: labels(&[("zone", "b")]),
                    ..Selector::default()
                },
                false,
                false,
            ),
            (requirement(Operator::In, &["a", "b"]), true, false),
            (requirement(Operator::NotIn, &["a"]), false, true),
            (requirement(Operator::NotIn, &["b"]), true, true),
            (requirement(Operator::Exists, &[]), true, false),
            (requirement(Operator::DoesNotExist, &[]), false, true),
        ] {
            assert_eq!(selector.matches(&here), in_zone_a, "{selector:?}");
            assert_eq!(selector.matches(&nowhere), without_label, "{selector:?}");
        }
    }
}
