//! An agent that only moves lanes, by the plan's own functions.

use crate::world::known_lanes;
use podlane_crds::RoutingNodeSpec;
use podlane_plan::desired::Peer;
use podlane_plan::lane::Lane;
use podlane_plan::membership::Membership;
use podlane_plan::pair::{End, NodeAddress, Refusal, lane};
use podlane_plan::probes::{ProbeKey, Prober, Target};
use podlane_plan::protocol::choose;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

/// An agent's step.
#[derive(Clone, Copy, Debug)]
pub(in crate::decide) enum Step {
    SeeSpec,
    SeePeers,
    Act,
    Probe,
    Answer,
}

impl Step {
    pub(in crate::decide) const ALL: [Self; 5] = [
        Self::SeeSpec,
        Self::SeePeers,
        Self::Act,
        Self::Probe,
        Self::Answer,
    ];
}

/// One node's agent, and its kernel.
#[derive(Clone, Debug)]
pub(super) struct Agent {
    pub(super) spec: RoutingNodeSpec,
    pub(super) generation: i64,
    pub(super) peers: BTreeMap<String, Peer>,
    pub(super) open: BTreeSet<Lane>,
    pub(super) used: BTreeMap<String, Result<Lane, Refusal>>,
    /// The peers that those were chosen for.
    pub(super) membership: Membership,
    /// Peers that are not reached as wanted, and why.
    pub(super) troubles: BTreeMap<String, Refusal>,
    pub(super) acted_on: i64,
    /// Whether all slices have been listed.
    pub(super) has_listed: bool,
    /// What its programs know probes by; none: they are not loaded.
    pub(super) key: Option<ProbeKey>,
    pub(super) prober: Prober,
}

impl Agent {
    pub(super) fn new(number: u8) -> Self {
        Self {
            spec: RoutingNodeSpec::default(),
            generation: 0,
            peers: BTreeMap::new(),
            open: BTreeSet::new(),
            used: BTreeMap::new(),
            membership: Membership::default(),
            troubles: BTreeMap::new(),
            acted_on: 0,
            has_listed: false,
            key: Some(ProbeKey([number; 16])),
            prober: Prober::new(u64::from(number)),
        }
    }

    pub(super) fn act(&mut self, now: Duration) {
        // One that has not read everything once leaves the kernel as its predecessor did.
        if self.generation == 0 || !self.has_listed {
            return;
        }
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
            pod_cidrs: &mine.pod_cidrs,
            policy: mine.policy.as_ref(),
        };
        let may_open = known_lanes(&self.spec.receive_on);
        let mut used = BTreeMap::new();
        let mut troubles = BTreeMap::new();
        let mut targets: BTreeMap<&str, Vec<Target>> = BTreeMap::new();
        for (name, peer) in &self.peers {
            let there = End {
                addresses: &peer.addresses,
                pod_cidrs: &peer.pod_cidrs,
                policy: peer.policy.as_ref(),
            };
            let current = self.used.get(name).and_then(|lane| lane.clone().ok());
            let open: BTreeSet<Lane> = may_open.union(&self.open).copied().collect();
            let wanted = lane(&here, &there);
            let key = peer.probe_key.filter(|_| self.key.is_some());
            let doubt = |lane: &Lane| key.and_then(|_| self.prober.proofs().doubt(name, *lane));
            let speaks_against = wanted.as_ref().ok().and_then(doubt);
            let choose = |current| choose(wanted.clone(), current, &open, &peer.receives_on, speaks_against);
            let chosen = choose(current);
            let in_use = chosen.as_ref().ok().copied();
            let trouble = match in_use {
                Some(lane) if wanted == Ok(lane) => {
                    let doubt = doubt(&lane).filter(|doubt| !doubt.passes());
                    doubt.map(|why| Refusal::NotProved { lane, why })
                }
                // Being moved is no trouble.
                Some(_) => choose(None).err().filter(|why| !why.passes()),
                None => chosen.clone().err(),
            };
            troubles.extend(trouble.map(|why| (name.clone(), why)));
            if let Some(key) = key {
                let is_open = |lane: &Lane| {
                    peer.receives_on.contains(&lane.arrives_as())
                        && (lane.tunnel().is_none() || open.contains(lane))
                };
                let to_come = wanted.ok().filter(|lane| Some(*lane) != in_use && is_open(lane));
                let lanes = in_use.into_iter().chain(to_come);
                targets.insert(
                    name,
                    lanes
                        .map(|lane| target(lane, Some(lane) == in_use, key))
                        .collect(),
                );
            }
            used.insert(name.clone(), chosen);
        }
        let targets = targets.iter().map(|(name, targets)| (*name, targets.as_slice()));
        self.prober.aim("me", targets, now);
        let peers = self.peers.iter();
        self.membership = peers.map(|(name, peer)| peer.membership(name)).collect();
        self.used = used;
        self.troubles = troubles;
        self.open = may_open;
        self.acted_on = self.generation;
    }
}

fn target(lane: Lane, in_use: bool, key: ProbeKey) -> Target {
    Target {
        lane,
        in_use,
        key,
        source: Ipv4Addr::new(172, 20, 0, 1).into(),
        destination: Ipv4Addr::new(172, 20, 1, 1).into(),
        length: 1450,
        outer: None,
        device: "eth0".into(),
        next_hop: Ipv4Addr::new(192, 168, 10, 200).into(),
    }
}
