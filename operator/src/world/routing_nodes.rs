//! RoutingNodes: what each node was told, and what it answers.

use super::{Change, Identity, Names, Source, Texts, World};
use crate::seen::Seen;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt;
use podlane_crds::reason::{MOVING, OPENING};
use podlane_crds::{
    ConditionType, Encapsulation, RoutingNode, RoutingNodeSpec, RoutingNodeStatus, UnderlayLink,
};
use podlane_plan::lane::Lane;
use podlane_plan::membership::Membership;
use podlane_plan::pair::Refusal;
use podlane_plan::probes::{Doubt, ProbeKey};
use std::collections::BTreeSet;
use std::sync::Arc;

/// A RoutingNode.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeRecord {
    /// Which version.
    pub identity: Identity,
    /// The number of its name.
    pub number: u32,
    /// The `metadata.uid` of the Node that owns it.
    pub owner: Option<String>,
    /// What the node was told: in the last version that could be read. None: no such version has been seen.
    pub spec: Option<RoutingNodeSpec>,
    /// The first generation that tells the node all that it is told now, except perhaps to close lanes: a node that has answered
    /// it is not behind.
    pub told_since: i64,
    /// What the node's agent answers; None: nothing yet.
    pub report: Option<Report>,
    /// The condition that the operator has set.
    pub accepted: Option<Condition>,
    /// Why the present version cannot be read.
    pub unreadable: Option<String>,
}

/// What a node's agent answers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// The generation that it speaks of.
    pub observed_generation: i64,
    /// Whether the node is as declared.
    pub is_ready: bool,
    /// Why not, in a word and in a sentence.
    pub not_ready: (Arc<str>, Arc<str>),
    /// A change is being carried out.
    pub is_progressing: bool,
    /// Where the node's addresses stand.
    pub underlay: Vec<UnderlayLink>,
    /// The lanes on which it receives.
    pub receives_on: BTreeSet<Lane>,
    /// The lanes on which it sends, and those as which they arrive elsewhere.
    pub sends_on: BTreeSet<Lane>,
    /// What peers need to probe it.
    pub probe_key: Option<ProbeKey>,
    /// Whether its pods are connected, in a word and in a sentence; None: it is another network plugin that connects them.
    pub pod_network: Option<(bool, Arc<str>, Arc<str>)>,
    /// How many peers it has been told of.
    pub peers: u32,
    /// Which, with what addresses and pod CIDRs; none: its agent is of a version that does not say.
    pub membership: Option<Membership>,
    /// The very agent that writes this; none: it is in no pod.
    pub instance: Option<Box<str>>,
    /// Whether eBPF programs encapsulate there, or why the kernel's drivers do; None: nothing is known of that.
    pub programs: Option<Result<(), Arc<str>>>,
    /// How far it is with proving its lanes; none: it has none to prove, or no programs that could.
    pub proving: Option<Proving>,
    /// The peers that are not reached as declared.
    pub troubles: Vec<Trouble>,
}

/// How far an agent is with proving its lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proving {
    /// Lanes of which something is known.
    pub probed: u32,
    /// Lanes that carry full-size packets both ways.
    pub answering: u32,
}

impl Proving {
    fn of(status: &RoutingNodeStatus) -> Option<Self> {
        let counts = status.counts?;
        let has_programs = status
            .datapath
            .as_ref()
            .is_some_and(|datapath| datapath.encapsulation == Encapsulation::Ebpf);
        if !has_programs || counts.total <= counts.refused {
            return None;
        }
        let probes = status.probes.unwrap_or_default();
        Some(Self {
            probed: probes.probed,
            answering: probes.answering,
        })
    }

    /// Whether all that it probes do, but for so many that need not. Which it probes is bounded: in a large cluster a few of its lanes.
    pub const fn is_done_but_for(self, excused: u32) -> bool {
        self.probed > 0 && self.answering.saturating_add(excused) >= self.probed
    }
}

/// A peer that is not reached as declared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// The number of the peer's name.
    pub peer: u32,
    /// Whether that ends by itself.
    pub passes: bool,
    /// Why, in a word.
    pub reason: Arc<str>,
    /// Why, in a sentence.
    pub message: Arc<str>,
}

/// Whether what has this reason ends by itself, once all agents have done their part. Two reasons are the agents' own: a lane is
/// being opened, or moved to.
pub fn ends_by_itself(reason: &str) -> bool {
    let not_proved = Refusal::NotProved {
        lane: Lane::Native,
        why: Doubt::Untried,
    };
    [
        Refusal::NotReported,
        Refusal::NotReceiving(Lane::Native),
        not_proved,
    ]
    .iter()
    .any(|refusal| refusal.passes() && refusal.reason() == reason)
        || matches!(reason, OPENING | MOVING)
}

/// The lanes among these texts that this version knows.
pub fn known_lanes(texts: &[String]) -> BTreeSet<Lane> {
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}

impl Report {
    fn of(status: &RoutingNodeStatus, names: &mut Names, texts: &mut Texts) -> Option<Self> {
        let observed_generation = status.observed_generation?;
        let condition = |kind: ConditionType| {
            let kind = kind.to_string();
            status
                .conditions
                .iter()
                .find(move |condition| condition.type_ == kind)
        };
        let ready = condition(ConditionType::Ready);
        let is_ready = ready.is_some_and(|ready| ready.status == "True");
        let mut share = |text: &str| texts.share(text);
        let not_ready = match ready {
            Some(ready) if !is_ready => (share(&ready.reason), share(&ready.message)),
            _ => Default::default(),
        };
        Some(Self {
            observed_generation,
            is_ready,
            not_ready,
            is_progressing: condition(ConditionType::Progressing)
                .is_some_and(|progressing| progressing.status == "True"),
            underlay: status.underlay.clone(),
            receives_on: known_lanes(&status.receives_on),
            sends_on: known_lanes(&status.sends_on)
                .into_iter()
                .flat_map(|lane| [lane, lane.arrives_as()])
                .collect(),
            probe_key: status.probe_key.as_deref().and_then(|key| key.parse().ok()),
            pod_network: condition(ConditionType::PodNetwork)
                .map(|said| (said.status == "True", share(&said.reason), share(&said.message))),
            peers: status.counts.map_or(0, |counts| counts.total),
            membership: status.membership.as_ref().and_then(|text| text.parse().ok()),
            instance: status.agent_instance.as_deref().map(Box::from),
            programs: status
                .datapath
                .as_ref()
                .map(|datapath| match datapath.encapsulation {
                    Encapsulation::Ebpf => Ok(()),
                    Encapsulation::Kernel => Err(share(datapath.message.as_deref().unwrap_or_default())),
                }),
            proving: Proving::of(status),
            troubles: status
                .peers
                .iter()
                .filter_map(|peer| {
                    let reason = peer.reason.as_deref()?;
                    Some(Trouble {
                        peer: names.number(&peer.name),
                        passes: ends_by_itself(reason),
                        reason: share(reason),
                        message: share(peer.message.as_deref().unwrap_or_default()),
                    })
                })
                .collect(),
        })
    }
}

/// Whether the second tells a node nothing else than the first, or only to close lanes.
fn at_most_closes(before: &RoutingNodeSpec, after: &RoutingNodeSpec) -> bool {
    let narrowed = RoutingNodeSpec {
        receive_on: after.receive_on.clone(),
        ..before.clone()
    };
    narrowed == *after && known_lanes(&after.receive_on).is_subset(&known_lanes(&before.receive_on))
}

impl World {
    /// A RoutingNode was seen.
    pub fn see_routing_node(&mut self, seen: Seen<RoutingNode>, source: Source) -> Change {
        let name = seen.name_any();
        let identity = Identity::of(&seen.metadata);
        let known = self.routing_nodes.get(&name);
        if identity.is_outdated(known.map(|known| &known.identity), source) {
            return Change::default();
        }
        let before = known.filter(|known| known.identity.uid == identity.uid);
        let owner = seen
            .metadata
            .owner_references
            .iter()
            .flatten()
            .find(|owner| owner.kind == "Node" && owner.name == name)
            .map(|owner| owner.uid.clone());
        let number = self.names.number(&name);
        let (record, unreadable) = match seen.decoded {
            Ok(object) => {
                let status = object.status.unwrap_or_default();
                let told_since = before
                    .filter(|before| {
                        before.identity.generation == identity.generation
                            || before
                                .spec
                                .as_ref()
                                .is_some_and(|spec| at_most_closes(spec, &object.spec))
                    })
                    .map_or(identity.generation, |before| before.told_since);
                let accepted = ConditionType::Accepted.to_string();
                let record = NodeRecord {
                    number,
                    owner,
                    told_since,
                    report: Report::of(&status, &mut self.names, &mut self.texts),
                    accepted: status
                        .conditions
                        .into_iter()
                        .find(|condition| condition.type_ == accepted),
                    spec: Some(object.spec),
                    unreadable: None,
                    identity,
                };
                (record, None)
            }
            Err(why) => {
                let record = NodeRecord {
                    number,
                    owner,
                    told_since: before.map_or(identity.generation, |before| before.told_since),
                    report: before.and_then(|before| before.report.clone()),
                    accepted: before.and_then(|before| before.accepted.clone()),
                    spec: before.and_then(|before| before.spec.clone()),
                    unreadable: Some(why.why.clone()),
                    identity,
                };
                (record, Some(why))
            }
        };
        let matters = known.is_none_or(|known| {
            let mut record_as_known = known.identity.clone();
            record_as_known.resource_version = record.identity.resource_version;
            record_as_known != record.identity
                || (
                    &known.owner,
                    &known.spec,
                    &known.report,
                    &known.accepted,
                    &known.unreadable,
                ) != (
                    &record.owner,
                    &record.spec,
                    &record.report,
                    &record.accepted,
                    &record.unreadable,
                )
        });
        self.routing_nodes.insert(name, record);
        Change { matters, unreadable }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn see(world: &mut World, generation: i64, spec: Value, status: Value) -> NodeRecord {
        let seen = serde_json::from_value(json!({
            "metadata": {"name": "a", "uid": "u", "generation": generation, "resourceVersion": "1",
                "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "a", "uid": "n"}]},
            "spec": spec, "status": status,
        }))
        .expect("metadata");
        world.see_routing_node(seen, Source::List);
        world.routing_nodes["a"].clone()
    }

    #[test]
    fn a_node_that_is_only_told_to_close_a_lane_is_not_behind() {
        let mut world = World::default();
        let both = json!({"receiveOn": ["native", "vxlan:8472:1"], "mtu": 0});
        let one = json!({"receiveOn": ["native"], "mtu": 0});
        let told_since: Vec<_> = [
            (1, one.clone()),
            (2, both.clone()),
            (2, both.clone()),
            (3, one),
            (4, both),
        ]
        .into_iter()
        .map(|(generation, spec)| see(&mut world, generation, spec, json!({})).told_since)
        .collect();
        assert_eq!(told_since, [1, 2, 2, 2, 4]);
    }

    #[test]
    fn a_report_is_reduced_to_what_decisions_need() {
        let mut world = World::default();
        assert_eq!(see(&mut world, 1, json!({}), json!({})).report, None);
        let record = see(
            &mut world,
            1,
            json!({}),
            json!({"observedGeneration": 1, "sendsOn": ["underlay", "quic:1:1"], "receivesOn": ["native"],
                "peers": [{"name": "b", "lane": "native"},
                    {"name": "c", "lane": "refused", "reason": "OffLink", "message": "is off-link"}],
                "counts": {"total": 2},
                "conditions": [{"type": "Ready", "status": "False", "reason": "OffLink", "message": "c",
                    "lastTransitionTime": "2026-01-01T00:00:00Z"}]}),
        );
        assert_eq!(record.owner.as_deref(), Some("n"));
        let report = record.report.expect("a report");
        assert_eq!(report.sends_on, BTreeSet::from([Lane::Native, Lane::Underlay]));
        assert_eq!((report.peers, report.troubles.len()), (2, 1));
        assert_eq!(world.names.name(report.troubles[0].peer), "c");
        assert_eq!((&*report.not_ready.0, report.is_ready), ("OffLink", false));
        // What cannot be read leaves the last that could.
        let unreadable = see(&mut world, 2, json!({"mtu": "large"}), json!({}));
        assert!(unreadable.unreadable.is_some() && unreadable.spec == record.spec);
        assert_eq!(unreadable.report, Some(report));
    }
}
