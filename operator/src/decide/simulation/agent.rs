//! An agent that only moves lanes, by the plan's own functions.

use crate::world::known_lanes;
use podlane_crds::RoutingNodeSpec;
use podlane_plan::desired::Peer;
use podlane_plan::lane::Lane;
use podlane_plan::pair::{End, NodeAddress, Refusal, lane};
use podlane_plan::protocol::choose;
use std::collections::{BTreeMap, BTreeSet};

/// An agent's step.
#[derive(Clone, Copy, Debug)]
pub(in crate::decide) enum Step {
    SeeSpec,
    SeePeers,
    Act,
    Answer,
}

impl Step {
    pub(in crate::decide) const ALL: [Self; 4] = [Self::SeeSpec, Self::SeePeers, Self::Act, Self::Answer];
}

/// One node's agent, and its kernel.
#[derive(Clone, Debug, Default)]
pub(super) struct Agent {
    pub(super) spec: RoutingNodeSpec,
    pub(super) generation: i64,
    pub(super) peers: BTreeMap<String, Peer>,
    pub(super) open: BTreeSet<Lane>,
    pub(super) used: BTreeMap<String, Result<Lane, Refusal>>,
    pub(super) acted_on: i64,
}

impl Agent {
    pub(super) fn act(&mut self) {
        let mine = self.spec.assignment("me").expect("a spec that makes sense");
        let addresses: Vec<_> = mine
            .addresses
            .iter()
            .map(|address| NodeAddress {
                address: *address,
                prefix_length: Some(24),
            })
            .collect();
        let here = End {
            addresses: &addresses,
            policy: mine.policy.as_ref(),
        };
        let may_open = known_lanes(&self.spec.receive_on);
        let mut used = BTreeMap::new();
        for (name, peer) in &self.peers {
            let there = End {
                addresses: &peer.addresses,
                policy: peer.policy.as_ref(),
            };
            let current = self.used.get(name).and_then(|lane| lane.clone().ok());
            let open: BTreeSet<Lane> = may_open.union(&self.open).copied().collect();
            used.insert(
                name.clone(),
                choose(lane(&here, &there), current, &open, &peer.receives_on),
            );
        }
        self.used = used;
        self.open = may_open;
        self.acted_on = self.generation;
    }
}
