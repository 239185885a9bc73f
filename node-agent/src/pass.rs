//! One pass: read the kernel, plan, tell the kernel, read again until nothing is left to do.

use crate::datapath::Datapath;
use crate::kernel::{Failure, Kernel, Observation, TransportError};
use crate::retries::Retries;
use podlane_datapath::Cause;
use podlane_plan::datapath::{self, Datapath as Planned};
use podlane_plan::desired::{
    Assignment, Desired, Peer, covers, desired, devices, local_links, sysctls_to_read,
};
use podlane_plan::diff::{self, Operation, diff, open_devices};
use podlane_plan::kernel::{Item, KernelState, Route, RouteTarget, UnderlayAddress};
use podlane_plan::lane::{Lane, Tunnel};
use podlane_plan::membership::Membership;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

/// How often a pass looks again after it has changed something. Once is the rule; twice where a device was made, which the plan
/// finds open only when it has read it. Where more would be needed somebody works against us, and the next pass goes on.
const ROUNDS: usize = 4;

/// An operation without effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfinished {
    /// What was to be done.
    pub what: String,
    /// Why it was not.
    pub why: String,
}

/// How a pass went.
#[derive(Debug, Default)]
pub struct Outcome {
    /// What the kernel should hold, and how peers are reached.
    pub desired: Desired,
    /// The peers that this was planned for.
    pub membership: Membership,
    /// The node's addresses on its devices.
    pub underlay: Vec<UnderlayAddress>,
    /// What could not be done. Devices that cannot be opened are among the plan's notes instead.
    pub unfinished: Vec<Unfinished>,
    /// Whether the kernel held what is desired when it was last read.
    pub settled: bool,
    /// Whether it held all routes then, those that refuse among them: no packet for the cluster's pods follows another's route.
    pub routed: bool,
    /// The lanes on which the kernel sends: those that are desired, and until it is settled those of the routes it held too. A
    /// receiver closes a lane on the word of its senders, so this must never be only what was meant to be.
    pub sends_on: BTreeSet<Lane>,
    /// Operations carried out.
    pub applied: usize,
    /// Indices of our devices.
    pub devices: BTreeSet<u32>,
    /// What the programs were told; none: they are not loaded.
    pub datapath: Option<Planned>,
    /// What of it has no place in their maps.
    pub without_place: Vec<Unfinished>,
}

/// A pass over this node.
pub struct Pass<'a> {
    kernel: &'a mut Kernel,
    datapath: &'a mut Datapath,
    retries: &'a mut Retries,
    assignment: &'a Assignment,
    peers: &'a BTreeMap<String, Peer>,
    applied: usize,
    /// What the programs could not be told, and why.
    untold: Vec<Unfinished>,
    /// What of that has no place in their maps.
    without_place: Vec<Unfinished>,
    /// Refused in this pass, or before it and not yet due.
    refused: BTreeMap<String, String>,
}

impl<'a> Pass<'a> {
    /// Prepares a pass.
    pub fn new(
        kernel: &'a mut Kernel,
        datapath: &'a mut Datapath,
        retries: &'a mut Retries,
        assignment: &'a Assignment,
        peers: &'a BTreeMap<String, Peer>,
    ) -> Self {
        Self {
            kernel,
            datapath,
            retries,
            assignment,
            peers,
            applied: 0,
            untold: Vec::new(),
            without_place: Vec::new(),
            refused: BTreeMap::new(),
        }
    }

    /// Carries it out.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub fn run(mut self, now: Instant) -> Result<Outcome, TransportError> {
        let is_loaded = self.datapath.is_loaded(now);
        self.kernel.learn_programs(is_loaded);
        let mut rounds = 0;
        loop {
            rounds += 1;
            let before = self.applied;
            self.refused.clear();
            let (seen, unavailable) = self.open_devices(now)?;
            let proofs = self.datapath.proofs();
            let mut desired = desired(self.assignment, self.peers, &seen.observed, &unavailable, proofs);
            // Programs first: what they are told goes for the routes before and after.
            let planned = is_loaded.then(|| self.tell_programs(&mut desired, &seen));
            let left = diff(&desired.state, &seen.observed.ours);
            let settled = left.is_empty();
            let routed = !left
                .iter()
                .any(|operation| matches!(operation, Operation::AddRoute(..)));
            let told = self.applied;
            self.apply(left, &seen, now);
            if self.applied != told {
                self.datapath.end_stamps();
            }
            if self.applied == before || rounds == ROUNDS {
                self.datapath.aim(&self.assignment.name, &desired, now);
                return Ok(Outcome {
                    datapath: planned,
                    routed,
                    ..self.finish(desired, seen, settled, &unavailable)
                });
            }
        }
    }

    /// Makes the programs' maps and places as planned. Returns the plan.
    fn tell_programs(&mut self, desired: &mut Desired, seen: &Observation) -> Planned {
        let (mut planned, notes) = datapath::datapath(self.assignment, self.peers, &seen.observed, desired);
        desired.notes.extend(notes);
        // A flow is handed to a pod past the stack only where the kernel can do that.
        for (device, is_single) in &mut planned.attached.pods {
            *is_single &= seen.veths.contains(device);
        }
        let synced = self.datapath.sync(&planned);
        if !synced.told {
            // Where the programs do not know of a lane, they drop what comes in on it.
            let known = self.datapath.open_lanes();
            desired.receives_on.retain(|lane| known.contains(lane));
        }
        self.applied += synced.applied;
        self.untold.clear();
        self.without_place.clear();
        for unfinished in synced.failures {
            let is_full = unfinished.why.cause == Cause::Full;
            let unfinished = Unfinished {
                what: unfinished.what,
                why: unfinished.why.to_string(),
            };
            if is_full {
                self.without_place.push(unfinished.clone());
            }
            self.untold.push(unfinished);
        }
        planned
    }

    /// Opens the devices on which the node is to receive, and says which it cannot open, and why.
    fn open_devices(
        &mut self,
        now: Instant,
    ) -> Result<(Observation, BTreeMap<String, String>), TransportError> {
        let mut seen = self.observe()?;
        for (what, result) in self.kernel.remove_strays(std::mem::take(&mut seen.strays)) {
            match result {
                Ok(()) => {
                    tracing::info!(%what, "removed");
                    self.applied += 1;
                }
                Err(failure) => {
                    self.refused.insert(format!("delete {what}"), failure.words);
                }
            }
        }
        loop {
            let able = seen.observed.capabilities;
            let wanted = KernelState {
                devices: devices(self.assignment, &seen.observed),
                ..KernelState::default()
            };
            let operations = open_devices(&wanted, &seen.observed.ours);
            if operations.is_empty() {
                return Ok((seen, BTreeMap::new()));
            }
            let before = self.applied;
            // What comes in by the device is for pods, which may not be there: it must not leave by the default route.
            let under_lanes = covers(self.assignment, self.peers, &seen.observed);
            self.apply(diff::covers(&under_lanes, &seen.observed.ours), &seen, now);
            let unavailable = self
                .apply(operations, &seen, now)
                .into_iter()
                .filter_map(|(operation, why)| match operation.item() {
                    Item::Device(name) => Some((name, why)),
                    _ => None,
                })
                .collect();
            let learned = self.kernel.capabilities() != able;
            if self.applied != before || learned {
                seen = self.observe()?;
            }
            // A device that could not be made may be made with another driver: that there is none is learned only once.
            if !(learned && self.kernel.capabilities().programs) {
                return Ok((seen, unavailable));
            }
        }
    }

    fn observe(&mut self) -> Result<Observation, TransportError> {
        let addresses = &self.assignment.addresses;
        self.kernel.observe(|observed| {
            let links = local_links(addresses, &observed.underlay);
            // The node's own links, and those of gateways, by which peers may be reached.
            let hops = observed.foreign_routes.iter().flat_map(|route| &route.next_hops);
            let mut devices: BTreeSet<&str> = hops
                .filter(|hop| hop.gateway.is_some())
                .map(|hop| hop.device.as_str())
                .collect();
            devices.extend(links.iter().map(|link| link.device.as_str()));
            devices.extend(observed.ours.devices.keys().map(String::as_str));
            sysctls_to_read(devices)
        })
    }

    /// Carries out what is due, and returns what had no effect.
    fn apply(
        &mut self,
        operations: Vec<Operation>,
        seen: &Observation,
        now: Instant,
    ) -> Vec<(Operation, String)> {
        let (due, mut refused) = self.retries.due(operations, now);
        let results = self.kernel.apply(&due, &seen.observed);
        log(&due, &results);
        for (operation, result) in due.into_iter().zip(results) {
            match result {
                Ok(()) => self.applied += 1,
                Err(failure) => {
                    self.retries.refused(&operation, failure.words.clone(), now);
                    refused.push((operation, failure.words));
                }
            }
        }
        let named = refused
            .iter()
            .map(|(operation, why)| (operation.to_string(), why.clone()));
        self.refused.extend(named);
        refused
    }

    fn finish(
        self,
        desired: Desired,
        seen: Observation,
        settled: bool,
        unavailable: &BTreeMap<String, String>,
    ) -> Outcome {
        let refused = self.refused;
        self.retries.keep(|operation| refused.contains_key(operation));
        let mut sends_on = desired.sends_on();
        if !settled {
            sends_on.extend(held_lanes(&seen.observed.ours));
        }
        let said = |why: &String| unavailable.values().any(|said| said == why);
        let peers = self.peers.iter();
        Outcome {
            membership: peers
                .filter(|(name, _)| desired.peers.contains_key(*name))
                .map(|(name, peer)| peer.membership(name))
                .collect(),
            desired,
            underlay: seen.observed.underlay,
            settled,
            sends_on,
            unfinished: refused
                .into_iter()
                .filter(|(_, why)| !said(why))
                .map(|(what, why)| Unfinished { what, why })
                .chain(self.untold)
                .collect(),
            applied: self.applied,
            devices: seen.device_indices,
            datapath: None,
            without_place: self.without_place,
            routed: settled,
        }
    }
}

/// The lanes of the routes that a kernel holds. One without encapsulation may lead to the peer itself or to a gateway.
fn held_lanes(held: &KernelState) -> BTreeSet<Lane> {
    let lanes = |route: &Route| match &route.target {
        RouteTarget::Via { .. } => vec![Lane::Native, Lane::Underlay],
        RouteTarget::Encapsulated { vni, device, .. } => held
            .devices
            .get(device)
            .map(|device| {
                Lane::Tunnel(Tunnel {
                    protocol: device.protocol,
                    port: device.port,
                    vni: *vni,
                })
            })
            .into_iter()
            .collect(),
        RouteTarget::Unreachable => Vec::new(),
    };
    held.routes.values().flat_map(lanes).collect()
}

/// The log says what is done to the kernel: each operation where they are few.
fn log(operations: &[Operation], results: &[Result<(), Failure>]) {
    const FEW: usize = 16;
    let done = results.iter().filter(|result| result.is_ok()).count();
    for (operation, result) in operations.iter().zip(results) {
        match result {
            Ok(()) if done <= FEW => tracing::info!("{operation}"),
            Ok(()) => tracing::debug!("{operation}"),
            Err(failure) => tracing::debug!("{operation}: {failure}"),
        }
    }
    if done > FEW {
        tracing::info!(operations = done, "told the kernel");
    }
}
