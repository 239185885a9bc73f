//! What each node is told: the spec of its RoutingNode.

use super::govern::{Governed, Rule};
use super::{Listed, PodCidrs};
use crate::world::{World, known_lanes};
use ipnet::IpNet;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use podlane_crds::{AppliedPolicy, RoutingNodeSpec};
use podlane_plan::cluster::{Admission, Node};
use podlane_plan::datapath::DatapathOptions;
use podlane_plan::lane::Lane;
use podlane_plan::masquerade::MasqueradeOptions;
use podlane_plan::policy::Applied;
use podlane_plan::protocol::{self, Progress};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// How long all nodes have to have been doing what they are told before a lane is closed that nobody uses any more. A node that
/// has answered its own RoutingNode may have yet to see the slice that was written with it, and may move to a lane for the
/// moment between the two.
pub const LINGER: SignedDuration = SignedDuration::from_secs(2);

/// Addresses in a RoutingNode or a slice, at most: as the CRDs say.
const ADDRESSES: usize = 16;
/// Pod CIDRs in a RoutingNode or a slice, at most: as the CRDs say.
const POD_CIDRS: usize = 64;

/// What the nodes are told.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// For each node in its place; None: its RoutingNode cannot be read, and never could, so it is left alone.
    pub(super) specs: Vec<Option<RoutingNodeSpec>>,
    /// For each node in its place, the lanes that the others may be told that it receives on.
    pub(super) publishable: Vec<BTreeSet<Lane>>,
    /// The lanes on which a node that a policy governs may come to receive.
    pub(super) wanted: BTreeSet<Lane>,
    /// Whether every node that answers has answered what it is told now.
    pub(super) is_settled: bool,
    /// When lanes that nobody uses can be closed.
    pub(super) closes_at: Option<Timestamp>,
}

/// Finds what every node is told.
pub(super) fn tell(
    world: &World,
    pod_cidrs: PodCidrs<'_>,
    governed: &Governed<'_>,
    listed: &Listed<'_>,
    now: Timestamp,
) -> Told {
    let nodes = world.nodes.all();
    let PodCidrs {
        allocation,
        admission,
    } = pod_cidrs;
    let has_share = |node: &Node| allocation.pod_cidrs.contains_key(&node.name);
    let routed = Routed::of(admission);
    let cluster_pod_cidrs = texts(&world.settings.cluster_pod_cidrs);
    let mut applied: Vec<Applied> = Vec::new();
    let mut by_policy: BTreeMap<&str, RoutingNodeSpec> = BTreeMap::new();
    let mut specs = Vec::with_capacity(nodes.len());
    for (node, rule) in nodes.iter().zip(&governed.rules) {
        let record = world.routing_nodes.get(&node.name);
        let before = record.and_then(|record| record.spec.as_ref());
        if record.is_some_and(|record| record.unreadable.is_some()) {
            specs.push(before.cloned());
            continue;
        }
        let mut spec = match rule {
            Rule::Policy(policy) => by_policy
                .entry(&policy.applied.rank.name)
                .or_insert_with(|| RoutingNodeSpec {
                    policy: Some(AppliedPolicy::from(&policy.applied)),
                    policy_generation: Some(policy.generation),
                    mtu: policy.mtu,
                    native_routing_cidrs: texts(&policy.native_routing_cidrs),
                    masquerade: (policy.masquerade != MasqueradeOptions::default())
                        .then(|| policy.masquerade.into()),
                    datapath: (policy.datapath != DatapathOptions::default()).then(|| policy.datapath.into()),
                    ..RoutingNodeSpec::default()
                })
                .clone(),
            Rule::Kept => before.map_or_else(RoutingNodeSpec::default, |before| RoutingNodeSpec {
                policy: before.policy.clone(),
                policy_generation: before.policy_generation,
                mtu: before.mtu,
                native_routing_cidrs: before.native_routing_cidrs.clone(),
                masquerade: before.masquerade,
                datapath: before.datapath,
                ..RoutingNodeSpec::default()
            }),
            Rule::Nothing => RoutingNodeSpec::default(),
        };
        spec.cluster_pod_cidrs.clone_from(&cluster_pod_cidrs);
        // A node that lacks addresses or pod CIDRs, and has no share of a pool, keeps those that it was told.
        spec.addresses = match before {
            Some(before) if node.addresses.is_empty() => before.addresses.clone(),
            _ => node
                .addresses
                .iter()
                .take(ADDRESSES)
                .map(IpAddr::to_string)
                .collect(),
        };
        spec.pod_cidrs = match (before, admission.pod_cidrs.get(&node.name)) {
            (Some(before), _) if node.pod_cidrs.is_empty() && !has_share(node) => {
                routed.free(&before.pod_cidrs)
            }
            (_, admitted) => {
                admitted.map_or_else(Vec::new, |cidrs| texts(&cidrs[..cidrs.len().min(POD_CIDRS)]))
            }
        };
        specs.push(Some(spec));
    }
    for spec in specs.iter().flatten() {
        // Nearly all nodes go by one of a few policies.
        if let Some(policy) = &spec.policy
            && !applied.iter().any(|known| is_same(known, policy))
        {
            applied.push(Applied::from(policy));
        }
    }
    let wanted = protocol::wanted(applied.first(), &applied);
    receive_on(world, listed, specs, wanted, now)
}

/// Whether it is that policy, without making a copy of it.
fn is_same(known: &Applied, policy: &AppliedPolicy) -> bool {
    known.rank.name == policy.name && *known == Applied::from(policy)
}

/// Adds on which lanes each node is to receive: what is wanted, and what is open and may still be used.
///
/// [`protocol::tell`] holds the rules; here is found how far all nodes have come.
fn receive_on(
    world: &World,
    listed: &Listed<'_>,
    mut specs: Vec<Option<RoutingNodeSpec>>,
    wanted: BTreeSet<Lane>,
    now: Timestamp,
) -> Told {
    let nodes = world.nodes.all();
    let records = || {
        nodes
            .iter()
            .map(|node| world.routing_nodes.get(&node.name))
            .zip(&specs)
    };
    // A node that has yet to learn what it is told now may be about to move to a lane that it was told before.
    let is_settled = records().all(|(record, spec)| {
        let (Some(record), Some(spec)) = (record, spec) else {
            return record.is_none();
        };
        let is_told = record.unreadable.is_none()
            && record.spec.as_ref().is_some_and(|before| {
                (&before.policy, before.policy_generation) == (&spec.policy, spec.policy_generation)
            });
        is_told
            && record
                .report
                .as_ref()
                .is_none_or(|report| report.observed_generation == record.identity.generation)
    });
    let closes_at = world.settled_since.unwrap_or(now) + LINGER;
    let progress = Progress {
        is_settled,
        has_lingered: closes_at <= now,
    };
    let in_use = world.in_use();

    let nothing = BTreeSet::new();
    let mut publishable = Vec::with_capacity(nodes.len());
    let mut is_closing = false;
    for (node, spec) in nodes.iter().zip(&mut specs) {
        let record = world.routing_nodes.get(&node.name);
        let told = record.and_then(|record| record.spec.as_ref());
        let before = told.map(|told| known_lanes(&told.receive_on)).unwrap_or_default();
        let Some(spec) = spec
            .as_mut()
            .filter(|_| record.is_none_or(|record| record.unreadable.is_none()))
        else {
            publishable.push(before);
            continue;
        };
        let wanted = if spec.policy.is_some() { &wanted } else { &nothing };
        let listed = listed.get(node.name.as_str());
        let listed = listed
            .map(|peer| known_lanes(&peer.receives_on))
            .unwrap_or_default();
        let told = protocol::tell(wanted, &before, &in_use, &listed, progress);
        is_closing |= told.is_closing;
        spec.receive_on = told.receive_on.iter().map(Lane::to_string).collect();
        publishable.push(told.publishable);
    }
    Told {
        specs,
        publishable,
        wanted,
        is_settled,
        closes_at: (is_closing && is_settled && !progress.has_lingered).then_some(closes_at),
    }
}

fn texts(cidrs: &[IpNet]) -> Vec<String> {
    cidrs.iter().map(IpNet::to_string).collect()
}

/// All pod CIDRs that are routed: disjoint, in order.
struct Routed(Vec<(IpAddr, IpAddr)>);

impl Routed {
    fn of(admission: &Admission) -> Self {
        let mut bounds: Vec<_> = admission
            .pod_cidrs
            .values()
            .flatten()
            .map(|cidr| (cidr.network(), cidr.broadcast()))
            .collect();
        bounds.sort_unstable();
        Self(bounds)
    }

    /// Those of a node's former pod CIDRs that have not become another's.
    fn free(&self, cidrs: &[String]) -> Vec<String> {
        let is_free = |text: &&String| {
            text.parse::<IpNet>().is_ok_and(|cidr| {
                let before = self.0.partition_point(|(first, _)| *first <= cidr.broadcast());
                before
                    .checked_sub(1)
                    .is_none_or(|last| self.0[last].1 < cidr.network())
            })
        };
        cidrs.iter().filter(is_free).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::simulation::Cluster;
    use serde_json::json;

    #[test]
    fn a_node_that_loses_its_pod_cidr_keeps_it_until_another_has_it() {
        let mut cluster = Cluster::of_three();
        cluster.policy("default", 1, json!({"routingMode": "native"}));
        cluster.settle();
        let cidrs = |cluster: &Cluster, name: &str| cluster.routing_node(name)["spec"]["podCIDRs"].clone();
        cluster.node("k8s-w0", 3, &[], &[]);
        cluster.settle();
        assert_eq!(cidrs(&cluster, "k8s-w0"), json!(["172.20.2.0/24"]));
        assert_eq!(
            cluster.routing_node("k8s-w0")["spec"]["addresses"],
            json!(["192.168.20.100"])
        );
        let entry = cluster.slice_entry("k8s-w0").expect("listed");
        assert_eq!(entry["podCIDRs"], json!(["172.20.2.0/24"]));
        assert_eq!(
            cluster.accepted("k8s-w0"),
            ("False".into(), "NoInternalIP".into())
        );

        cluster.node("k8s-w9", 9, &["192.168.20.109"], &["172.20.2.0/24"]);
        cluster.settle();
        assert_eq!(cidrs(&cluster, "k8s-w0"), json!([]));
        assert_eq!(cidrs(&cluster, "k8s-w9"), json!(["172.20.2.0/24"]));
    }

    #[test]
    fn a_routing_node_that_cannot_be_read_is_left_alone() {
        let mut cluster = Cluster::of_three();
        cluster.policy("default", 1, json!({"routingMode": "native"}));
        cluster.settle();
        cluster.edit("RoutingNode", "k8s-w1", |object| {
            object["spec"]["mtu"] = json!("large")
        });
        cluster.policy("default", 1, json!({"routingMode": "tunnel"}));
        cluster.settle();
        assert_eq!(cluster.routing_node("k8s-w1")["spec"]["mtu"], json!("large"));
        assert_eq!(
            cluster.routing_node("k8s-w0")["spec"]["policy"]["routingMode"],
            json!("tunnel")
        );
        assert!(cluster.slice_entry("k8s-w1").is_some());
        let (_, reason, message) = cluster.condition("default", "Ready");
        assert_eq!(reason, "Unreadable", "{message}");
    }
}
