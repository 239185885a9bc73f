//! The picture of the cluster that decisions are made from: what the API server holds, reduced to what matters.
//!
//! Invariant: a record never goes back in time. The answers to the operator's own writes are put in like what the watches
//! bring, so that the next decision is made from what was written and not from what has yet to come back.

mod names;
mod nodes;
mod policies;
mod routing_nodes;
mod slices;

pub use names::{Names, Texts};
pub use nodes::Nodes;
pub use policies::{Fault, PolicyRecord, ROLLOUT_STOPPED};
pub use routing_nodes::{NodeRecord, Proving, Report, Trouble, ends_by_itself, known_lanes};
pub use slices::SliceRecord;

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use podlane_crds::Undecodable;
use podlane_plan::lane::Lane;
use podlane_plan::machine::Unfit;
use podlane_plan::pool::Pools;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// What the operator was told on its command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// What the whole cluster's pods are numbered from.
    pub cluster_pod_cidrs: Vec<IpNet>,
    /// What nodes without pod CIDRs are given blocks of.
    pub pools: Pools,
    /// Peers in one slice, at most.
    pub slice_capacity: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            cluster_pod_cidrs: Vec::new(),
            pools: Pools::default(),
            slice_capacity: podlane_plan::slices::CAPACITY,
        }
    }
}

/// The kinds of object that the picture is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Nodes.
    Node,
    /// What users declare.
    RoutingPolicy,
    /// What nodes are told, and what they answer.
    RoutingNode,
    /// What nodes are told of each other.
    PeerSlice,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::Node,
        Self::RoutingPolicy,
        Self::RoutingNode,
        Self::PeerSlice,
    ];
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// How the operator came to see an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// In a list: what it says goes, even after etcd was restored from a backup.
    List,
    /// As a change, or in the answer to a write: what is older than what is known is left out.
    Change,
}

/// The picture.
#[derive(Debug, Default)]
pub struct World {
    /// What the operator was told on its command line.
    pub settings: Settings,
    /// All Nodes.
    pub nodes: Nodes,
    /// All RoutingPolicies.
    pub policies: BTreeMap<String, PolicyRecord>,
    /// All RoutingNodes.
    pub routing_nodes: BTreeMap<String, NodeRecord>,
    /// All PeerSlices.
    pub slices: BTreeMap<String, SliceRecord>,
    /// Nodes' names, numbered.
    pub names: Names,
    /// Since when every node has been doing what it was told, and sending on the same lanes: see [`crate::decide::LINGER`].
    pub settled_since: Option<Timestamp>,
    /// How the rollout of agents stands.
    pub rollout: Rollout,
    /// The lanes that were in use when it was last decided.
    in_use: BTreeSet<Lane>,
    decided_since: BTreeMap<String, (Identity, Timestamp)>,
    texts: Texts,
    listed: BTreeSet<Kind>,
}

/// How the rollout of agents stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Rollout {
    /// Whoever leads has yet to look: what policies say of it stays.
    #[default]
    Unknown,
    /// It goes on, or is over.
    Goes,
    /// It has stopped.
    Stopped(StoppedRollout),
}

/// A rollout of agents that has stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoppedRollout {
    /// The node where it has; None: at none in particular.
    pub node: Option<String>,
    /// Why, in a sentence.
    pub why: String,
    /// How many other agents are left to be replaced.
    pub left: usize,
}

/// What putting an object into the picture came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Whether anything that matters is different now.
    pub matters: bool,
    /// Why the object cannot be read.
    pub unreadable: Option<Undecodable>,
}

impl World {
    /// An empty picture.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            ..Self::default()
        }
    }

    /// All objects of this kind have been seen at least once.
    pub fn is_listed(&mut self, kind: Kind) {
        self.listed.insert(kind);
    }

    /// Whether the picture is whole. Nothing is decided before: an object not seen yet would count as deleted.
    pub fn is_whole(&self) -> bool {
        Kind::ALL.iter().all(|kind| self.listed.contains(kind))
    }

    /// The kinds of which not all objects have been seen yet.
    pub fn unseen(&self) -> Vec<String> {
        let kinds = Kind::ALL.iter().filter(|kind| !self.listed.contains(kind));
        kinds.map(Kind::to_string).collect()
    }

    /// Why a node is to have no agent: its machine is unfit by what its kubelet says, and no agent has ever shown otherwise.
    pub fn unfit(&self, node: &str) -> Option<&Unfit> {
        let has_answered = |record: &NodeRecord| record.report.is_some();
        let is_proved = self.routing_nodes.get(node).is_some_and(has_answered);
        self.nodes.unfit().get(node).filter(|_| !is_proved)
    }

    /// The names of all those nodes.
    pub fn without_agents(&self) -> BTreeSet<String> {
        let names = self.nodes.unfit().keys();
        names.filter(|name| self.unfit(name).is_some()).cloned().collect()
    }

    /// Whether a policy says that the rollout of agents has stopped.
    pub fn says_that_rollout_has_stopped(&self) -> bool {
        self.policies
            .values()
            .any(PolicyRecord::says_that_rollout_has_stopped)
    }

    /// The lanes on which some node says that it sends.
    pub fn in_use(&self) -> BTreeSet<Lane> {
        self.routing_nodes
            .values()
            .filter_map(|record| record.report.as_ref())
            .flat_map(|report| report.sends_on.iter().copied())
            .collect()
    }

    /// Remembers what later decisions depend on: since when every node has been doing what it is told, and since when each policy
    /// has been what it is.
    pub fn note_decided(&mut self, is_settled: bool, now: Timestamp) {
        let in_use = self.in_use();
        // Who has just left a lane may have packets under way on it, however long all nodes have done what they were told.
        let since = self.settled_since.filter(|_| in_use == self.in_use);
        self.settled_since = is_settled.then(|| since.unwrap_or(now));
        self.in_use = in_use;
        let Self {
            policies,
            decided_since,
            ..
        } = self;
        decided_since.retain(|name, _| policies.contains_key(name));
        for (name, record) in policies {
            let known = decided_since.get(name).map(|(identity, _)| identity);
            let is_same = known.is_some_and(|known| {
                (&known.uid, known.generation) == (&record.identity.uid, record.identity.generation)
            });
            if !is_same {
                decided_since.insert(name.clone(), (record.identity.clone(), now));
            }
        }
    }

    /// Since when a policy has been what it is, as far as this process knows.
    pub fn decided_since(&self, policy: &str) -> Option<Timestamp> {
        let record = self.policies.get(policy)?;
        let (identity, since) = self.decided_since.get(policy)?;
        let is_same =
            (&identity.uid, identity.generation) == (&record.identity.uid, record.identity.generation);
        is_same.then_some(*since)
    }

    /// The names of all objects of a kind.
    pub fn names_of(&self, kind: Kind) -> BTreeSet<String> {
        match kind {
            Kind::Node => self.nodes.all().iter().map(|node| node.name.clone()).collect(),
            Kind::RoutingPolicy => self.policies.keys().cloned().collect(),
            Kind::RoutingNode => self.routing_nodes.keys().cloned().collect(),
            Kind::PeerSlice => self.slices.keys().cloned().collect(),
        }
    }

    /// An object is gone; with an identity, only that very object, and not a later one of its name. Says whether it was there.
    pub fn forget(&mut self, kind: Kind, name: &str, uid: Option<&str>) -> bool {
        fn from<R>(records: &mut BTreeMap<String, R>, name: &str, is: impl Fn(&R) -> bool) -> bool {
            records.get(name).is_some_and(is) && records.remove(name).is_some()
        }
        let is = |identity: &Identity| uid.is_none_or(|uid| uid == identity.uid);
        match kind {
            Kind::Node => self.nodes.remove(name, uid),
            Kind::RoutingPolicy => from(&mut self.policies, name, |record| is(&record.identity)),
            Kind::RoutingNode => from(&mut self.routing_nodes, name, |record| is(&record.identity)),
            Kind::PeerSlice => from(&mut self.slices, name, |record| is(&record.identity)),
        }
    }
}

/// Which object a record is of, and which version of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.generation`.
    pub generation: i64,
    /// `metadata.resourceVersion`: a number that grows (Kubernetes 1.35, KEP-5504; true of etcd ever since).
    pub resource_version: u64,
}

impl Identity {
    fn of(metadata: &ObjectMeta) -> Self {
        Self {
            uid: metadata.uid.clone().unwrap_or_default(),
            generation: metadata.generation.unwrap_or_default(),
            resource_version: metadata
                .resource_version
                .as_deref()
                .and_then(|version| version.parse().ok())
                .unwrap_or_default(),
        }
    }

    /// Whether this is an older version of the same object than `known`, or than what replaced it.
    fn is_outdated(&self, known: Option<&Self>, source: Source) -> bool {
        source == Source::Change && known.is_some_and(|known| self.resource_version < known.resource_version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn node(world: &mut World, version: u64, cidr: &str, source: Source) -> bool {
        let seen = serde_json::from_value(json!({
            "metadata": {"name": "a", "uid": "u", "resourceVersion": version.to_string()}, "spec": {"podCIDR": cidr},
        }))
        .expect("a node");
        world.see_node(seen, source).matters
    }

    #[test]
    fn nothing_is_whole_before_all_four_lists_are() {
        let mut world = World::default();
        for kind in Kind::ALL {
            assert!(!world.is_whole());
            world.is_listed(kind);
        }
        assert!(world.is_whole());
    }

    #[test]
    fn a_change_does_not_go_back_in_time_but_a_list_may() {
        let mut world = World::default();
        assert!(node(&mut world, 5, "172.20.0.0/24", Source::List));
        assert!(
            !node(&mut world, 6, "172.20.0.0/24", Source::Change),
            "a heartbeat"
        );
        assert!(!node(&mut world, 4, "172.20.9.0/24", Source::Change));
        assert!(node(&mut world, 3, "172.20.9.0/24", Source::List));
        assert!(!world.forget(Kind::Node, "a", Some("another")));
        assert!(world.forget(Kind::Node, "a", Some("u")));
    }
}
