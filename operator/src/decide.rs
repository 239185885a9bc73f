//! What is to be written, given the picture of the cluster: a pure function of it and of the time.
//!
//! The whole cluster is decided anew each time, and only what differs from what the API server holds is written. In order:
//! `holdings` gives blocks of the pools to nodes, `govern` finds each node's policy, `tell` what each node is told, `slices` what the others are told of it,
//! `network` which Nodes' pods are connected, `readiness` what each node has come to, and `policy_status` what users are told.

mod accepted;
mod cover;
#[cfg(test)]
mod documented;
mod findings;
mod govern;
mod holdings;
mod network;
mod policy_status;
mod readiness;
mod roster;
#[cfg(test)]
mod simulation;
mod slices;
#[cfg(test)]
mod status_tests;
#[cfg(test)]
mod story_tests;
mod tell;
mod words;

pub use tell::LINGER;

use crate::world::World;
use crate::write::{Expected, What, Write};
use k8s_openapi::jiff::Timestamp;
use podlane_crds::PeerEntry;
use podlane_plan::cluster::{Admission, admit};
use podlane_plan::pool::Allocation;
use roster::Roster;
use std::collections::BTreeMap;

/// What follows from a picture of the cluster.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decision {
    /// What is to be written, in this order.
    pub writes: Vec<Write>,
    /// Whether every node is doing what it is told: lanes can be closed once that has lasted for [`LINGER`].
    pub is_settled: bool,
    /// When to decide again, though nothing happens until then.
    pub again_at: Option<Timestamp>,
}

/// What the nodes are told of each other now, by name.
type Listed<'a> = BTreeMap<&'a str, &'a PeerEntry>;

/// Who has which pod CIDRs.
#[derive(Clone, Copy)]
struct PodCidrs<'a> {
    /// What was given out of pools.
    allocation: &'a Allocation,
    /// What of all can be routed.
    admission: &'a Admission,
}

/// One pass' view: the picture, and what has been found out from it so far.
struct View<'a> {
    world: &'a World,
    admission: &'a Admission,
    governed: &'a govern::Governed<'a>,
    told: &'a tell::Told,
    listed: &'a Listed<'a>,
    roster: &'a Roster,
    now: Timestamp,
}

/// Decides for the whole cluster.
pub fn decide(world: &World, now: Timestamp) -> Decision {
    let listed = slices::listed(world);
    let allocation = holdings::allocation(world, &listed);
    let admission = admit(world.nodes.all(), &allocation);
    let governed = govern::govern(world);
    let pod_cidrs = PodCidrs {
        allocation: &allocation,
        admission: &admission,
    };
    let told = tell::tell(world, pod_cidrs, &governed, &listed, now);
    let roster = Roster::of(world, &told, &listed);
    let view = View {
        world,
        admission: &admission,
        governed: &governed,
        told: &told,
        listed: &listed,
        roster: &roster,
        now,
    };
    let mut writes = slices::writes(&view);
    let mut again_at = told.closes_at;
    for (name, record) in &world.policies {
        let (write, again) = policy_status::write(&view, name, record);
        writes.extend(write);
        again_at = again_at.into_iter().chain(again).min();
    }
    writes.extend(node_writes(&view));
    writes.extend(accepted::writes(&view));
    writes.extend(network::writes(&view));
    writes.sort_by_key(|write| write.what.turn());
    Decision {
        writes,
        is_settled: told.is_settled,
        again_at,
    }
}

/// RoutingNodes that have to be made, changed or deleted.
fn node_writes(view: &View<'_>) -> Vec<Write> {
    let world = view.world;
    let mut writes = Vec::new();
    let mut write = |name: &str, what| writes.push(Write::silent(name, what));
    for (place, node) in world.nodes.all().iter().enumerate() {
        let Some(spec) = &view.told.specs[place] else {
            continue;
        };
        let owner = world.nodes.uid(place);
        match world.routing_nodes.get(&node.name) {
            None => write(
                &node.name,
                What::CreateNode {
                    owner: owner.to_owned(),
                    spec: Box::new(spec.clone()),
                },
            ),
            Some(record) if record.unreadable.is_some() => {}
            Some(record) if record.spec.as_ref() != Some(spec) || record.owner.as_deref() != Some(owner) => {
                write(
                    &node.name,
                    What::UpdateNode {
                        expected: Expected::from(&record.identity),
                        owner: owner.to_owned(),
                        spec: Box::new(spec.clone()),
                    },
                )
            }
            Some(_) => {}
        }
    }
    for (name, record) in &world.routing_nodes {
        if world.nodes.place(name).is_err() {
            write(name, What::DeleteNode(Expected::from(&record.identity)));
        }
    }
    writes
}

impl From<&crate::world::Identity> for Expected {
    fn from(identity: &crate::world::Identity) -> Self {
        Self {
            uid: identity.uid.clone(),
            generation: identity.generation,
        }
    }
}
