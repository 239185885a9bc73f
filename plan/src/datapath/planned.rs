//! From what a node is told, what its kernel holds and what it should hold, to what its programs are told.

use super::{Attached, Datapath, Owner, networks, peers, tunnels};
use crate::desired::{
    Assignment, Desired, Note, Peer, Ways, against_bypass, has_strict_reverse_path, local_links, uncovering,
};
use crate::kernel::Observed;
use crate::lane::Lane;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Plans one node's programs, and what status should say of them.
///
/// `desired` is the plan of the kernel's own state, made from the same arguments. The result goes for both sides of that plan's operations:
/// it holds what is taken on every lane that is open, and what is sent on every lane that the kernel's routes use, before they are
/// changed and after. So the programs are told first, and the routes changed then.
///
/// What is taken does not follow from where packets go, nor from the policies as they are now: a peer may not have heard of them, and sends as
/// it did. [`Assignment::receive_on`] is what tells that nobody does any more ([`crate::protocol::tell`]). So every peer may use every
/// open tunnel; and while the native lane is open, every peer that is on the link may use it, from its own link-layer address.
pub fn datapath(
    assignment: &Assignment,
    peers: &BTreeMap<String, Peer>,
    observed: &Observed,
    desired: &Desired,
) -> (Datapath, BTreeSet<Note>) {
    let mut notes = BTreeSet::new();
    if assignment.policy.is_none() {
        return (Datapath::default(), notes);
    }
    let links = local_links(&assignment.addresses, &observed.underlay);
    let ways = Ways::new(assignment, &links, observed);
    let tunnels = tunnels::open(observed, desired, &mut notes);
    let received: Arc<BTreeSet<_>> = tunnels
        .keys()
        .filter(|tunnel| assignment.receive_on.contains(&Lane::Tunnel(**tunnel)))
        .copied()
        .collect::<BTreeSet<_>>()
        .into();
    let of_peers = peers::known(assignment, peers, observed, desired, &ways, &received, &mut notes);

    let mut underlay: BTreeSet<String> = links.iter().map(|link| link.device.clone()).collect();
    underlay.extend(of_peers.devices);
    underlay.retain(|device| !observed.ours.devices.contains_key(device));

    let leaving_plain = of_peers
        .networks
        .values()
        .any(|owner| matches!(owner, Owner::Peer { native: Some(_), .. }));

    let unassigned = uncovering(assignment, peers, observed).map(|cidr| (*cidr, Owner::Unassigned));
    let mut all: BTreeMap<_, _> = unassigned.collect();
    all.extend(of_peers.networks);
    let pods = networks::local(assignment, observed, &underlay);
    all.extend(pods.networks);
    notes.extend(
        pods.on_underlay
            .iter()
            .map(|device| Note::PodsOnUnderlay(device.clone())),
    );

    let mut bypass = assignment.datapath.bypass;
    for (parameter, value) in against_bypass(observed).filter(|_| assignment.datapath.bypass) {
        bypass = false;
        notes.insert(Note::NoBypass {
            parameter: parameter.to_owned(),
            value: value.to_owned(),
        });
    }
    let planned = Datapath {
        native: takes_plain(assignment),
        bypass,
        check_underlay: pods.on_underlay.is_empty(),
        enter_by_tunnel: underlay
            .iter()
            .any(|device| has_strict_reverse_path(device, observed)),
        dscp: assignment.datapath.dscp,
        local_pod_cidrs: assignment.pod_cidrs.iter().copied().collect(),
        peers: of_peers.peers,
        networks: all,
        attached: Attached {
            tunnels: tunnels.values().map(|tunnel| tunnel.device.clone()).collect(),
            underlay,
            leaving_plain,
            pods: pods
                .devices
                .into_iter()
                .map(|(device, is_single)| (device, is_single && bypass))
                .collect(),
        },
        tunnels,
    };
    (planned, notes)
}

/// Whether packets are taken as they are.
pub(super) fn takes_plain(assignment: &Assignment) -> bool {
    [Lane::Native, Lane::Underlay]
        .iter()
        .any(|lane| assignment.receive_on.contains(lane))
}
