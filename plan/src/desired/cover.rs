//! What lies under the lanes: `unreachable` routes over every pod address of the cluster, at the worst metric, so that a
//! packet which no lane takes (a peer yet unknown, a pod of this node that is gone, a device deleted a moment ago) is
//! refused and never follows the default route.

use super::{Assignment, Desired, Note, Peer, Reason};
use crate::kernel::{COVER_METRIC, Item, Observed, Route, RouteKey, UnderlayAddress};
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Declares the covers: the fewest networks that hold the cluster's, the peers' and the node's own pod CIDRs, and nothing else.
pub(super) fn declare(
    plan: &mut Desired,
    assignment: &Assignment,
    peers: &BTreeMap<String, Peer>,
    observed: &Observed,
) {
    let mut networks: Vec<IpNet> = Vec::new();
    for cidr in &assignment.cluster_pod_cidrs {
        match node_address_within(cidr, assignment, peers, observed) {
            Some(address) => {
                plan.notes.insert(Note::CoverSkipped { cidr: *cidr, address });
            }
            None => networks.push(*cidr),
        }
    }
    networks.extend(&assignment.pod_cidrs);
    networks.extend(peers.values().flat_map(|peer| &peer.pod_cidrs));
    for destination in IpNet::aggregate(&networks) {
        let key = RouteKey {
            destination,
            metric: COVER_METRIC,
        };
        plan.declare(Item::Route(key), Reason::Cover, |state| {
            state.routes.insert(key, Route::UNREACHABLE)
        });
    }
}

/// The cluster's pod CIDRs that cover no node's address.
pub(crate) fn uncovering<'a>(
    assignment: &'a Assignment,
    peers: &'a BTreeMap<String, Peer>,
    observed: &'a Observed,
) -> impl Iterator<Item = &'a IpNet> {
    let cidrs = assignment.cluster_pod_cidrs.iter();
    cidrs.filter(|cidr| node_address_within(cidr, assignment, peers, observed).is_none())
}

/// A node's address that this network would make unreachable. Addresses on this node's own pod side do not count: they are
/// out of its pod CIDRs, or of those that it had before and that pods still running were connected with.
fn node_address_within(
    cidr: &IpNet,
    assignment: &Assignment,
    peers: &BTreeMap<String, Peer>,
    observed: &Observed,
) -> Option<IpAddr> {
    let own = assignment.addresses.iter().copied();
    let of_peers = peers
        .values()
        .flat_map(|peer| peer.addresses.iter().map(|address| address.address));
    let of_devices = observed
        .underlay
        .iter()
        .filter(|on| !is_pods_gateway(on, cidr, observed))
        .map(|on| on.address.addr())
        .filter(|address| !assignment.pod_cidrs.iter().any(|own| own.contains(address)));
    own.chain(of_peers)
        .chain(of_devices)
        .find(|address| cidr.contains(address))
}

/// Whether an address is what the CNI plugin ptp gives the node's end of a pod's veth: alone in its prefix, on a device by which a single
/// address of the same network is on the link.
fn is_pods_gateway(on: &UnderlayAddress, cidr: &IpNet, observed: &Observed) -> bool {
    let is_single = |net: &IpNet| net.prefix_len() == net.max_prefix_len();
    is_single(&on.address)
        && observed.foreign_routes.iter().any(|route| {
            is_single(&route.destination)
                && cidr.contains(&route.destination)
                && route
                    .next_hops
                    .iter()
                    .any(|hop| hop.gateway.is_none() && hop.device == on.device)
        })
}
