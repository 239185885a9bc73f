//! Who the peers are, which way leads to them, and how their pods' packets may come.

use super::{DatapathPeer, NativeLane, Owner, Way};
use crate::desired::{Assignment, Desired, Note, Peer, Ways, covered};
use crate::kernel::{Observed, RouteKey, RouteTarget, lane_metric};
use crate::lane::{Lane, Tunnel};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

/// What the programs know of the peers.
#[derive(Default)]
pub(super) struct Known {
    pub(super) peers: BTreeMap<IpAddr, DatapathPeer>,
    pub(super) networks: BTreeMap<IpNet, Owner>,
    /// The underlay devices by which they are reached.
    pub(super) devices: BTreeSet<String>,
}

pub(super) fn known(
    assignment: &Assignment,
    peers: &BTreeMap<String, Peer>,
    observed: &Observed,
    desired: &Desired,
    ways: &Ways<'_>,
    received: &Arc<BTreeSet<Tunnel>>,
    notes: &mut BTreeSet<Note>,
) -> Known {
    let mut known = Known::default();
    for (name, peer) in peers.iter().filter(|(name, _)| **name != assignment.name) {
        // One that covers this node's own link is refused as a whole, and its check would cut off the link.
        let mut pod_cidrs = peer.pod_cidrs.clone();
        pod_cidrs.retain(|cidr| covered(cidr, &observed.underlay).is_none());
        pod_cidrs.sort_unstable();
        pod_cidrs.dedup();
        let ends = ways.tunnel_ends(peer).filter(|(_, outer)| {
            let Some(other) = known.peers.get(outer) else {
                return true;
            };
            notes.insert(Note::SameAddress {
                peer: name.clone(),
                other: other.name.clone(),
                address: *outer,
            });
            false
        });
        let outer = ends.map(|(_, outer)| outer);
        for cidr in &pod_cidrs {
            let native = native_lane(assignment, peer, name, cidr, observed, desired, ways);
            add_device(
                &mut known.devices,
                native.as_ref().map(|lane| lane.device.as_str()),
            );
            known
                .networks
                .entry(*cidr)
                .or_insert(Owner::Peer { outer, native });
        }
        let Some((source, outer)) = ends else { continue };
        let hops = ways.next_hops(&outer);
        for hop in hops {
            add_device(&mut known.devices, Some(&hop.device));
        }
        let told = DatapathPeer {
            name: name.clone(),
            source,
            tunnels: Arc::clone(received),
            mtu: ways.tunnel_mtu(peer, &source, &outer),
            way: hops.first().map(|first| Way {
                device: first.device.clone(),
                next_hop: first.gateway.unwrap_or(outer),
                several: hops.len() > 1,
            }),
            pod_cidrs,
        };
        known.peers.insert(outer, told);
    }
    known
}

fn add_device(devices: &mut BTreeSet<String>, device: Option<&str>) {
    if let Some(device) = device.filter(|device| !devices.contains(*device)) {
        devices.insert(device.to_owned());
    }
}

/// The native lane with a peer's pods: where packets take it, and where the peer may send on it though they do not, or not any more.
///
/// A peer on the link may as long as the lane is open; its frames then bear its own link-layer address. Through gateways only those may
/// come for which a policy, or a lane in use, or what the node is told says so, for nothing else can be checked of them.
fn native_lane(
    assignment: &Assignment,
    peer: &Peer,
    name: &str,
    cidr: &IpNet,
    observed: &Observed,
    desired: &Desired,
    ways: &Ways<'_>,
) -> Option<NativeLane> {
    let key = RouteKey {
        destination: *cidr,
        metric: lane_metric(cidr),
    };
    let planned = desired.state.routes.get(&key);
    let used = planned.filter(|route| matches!(route.target, RouteTarget::Via { .. }));
    let told = |lane: Lane| assignment.receive_on.contains(&lane);

    let sends_from = ways.on_link_from(peer, cidr);
    let is_behind_gateway = sends_from.is_some_and(|theirs| ways.behind_gateway(&theirs));
    let by_gateways = || {
        let in_use = desired
            .peers
            .get(name)
            .is_some_and(|lane| lane.used == Ok(Lane::Underlay));
        in_use || ways.lane_given(peer, false) == Ok(Lane::Underlay)
    };
    let may_come = told(Lane::Underlay) || (told(Lane::Native) && (sends_from.is_some() || by_gateways()));
    if used.is_none() && !may_come {
        return None;
    }
    let direct = || {
        let is_direct = sends_from.is_some() && !is_behind_gateway;
        is_direct
            .then(|| ways.route(peer, cidr, Lane::Native).ok())
            .flatten()
    };
    // The kernel's own way also leads to one on the link that has not reported it yet.
    let route = used
        .cloned()
        .or_else(direct)
        .or_else(|| ways.route(peer, cidr, Lane::Underlay).ok())?;
    let RouteTarget::Via {
        gateway: next_hop,
        device,
    } = route.target
    else {
        return None;
    };
    let device_mtu = || {
        let mtus = observed.underlay.iter().filter(|on| on.device == device);
        let all = observed.underlay.iter().map(|on| on.mtu);
        mtus.map(|on| on.mtu).next().or_else(|| all.min())
    };
    Some(NativeLane {
        mtu: route.mtu.or_else(device_mtu)?,
        // Where this node and the peer choose different ones of several common links, its link-layer address is not known.
        on_link: !is_behind_gateway && sends_from == Some(next_hop),
        next_hop,
        device,
    })
}
