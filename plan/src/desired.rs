//! What one node's kernel should hold, with a reason for each item.

mod cover;
mod devices;
mod links;
mod peer_routes;
mod reason;
mod stand_in;
mod sysctls;
mod ways;

pub(crate) use cover::uncovering;
pub use devices::devices;
pub(crate) use devices::is_open;
pub(crate) use links::covered;
pub use links::{LocalLink, local_links};
pub use reason::{Note, Reason};
pub use sysctls::sysctls_to_read;
pub(crate) use sysctls::{IPV6_FORWARDING, against_bypass, has_strict_reverse_path};
pub(crate) use ways::Ways;

use crate::datapath::DatapathOptions;
use crate::kernel::{Item, KernelState, MacAddress, Observed, OnDevice};
use crate::lane::Lane;
use crate::masquerade::{MasqueradeOptions, masquerade};
use crate::membership::Membership;
use crate::pair::{NodeAddress, Refusal};
use crate::policy::Applied;
use crate::probes::{Doubt, ProbeKey, Proofs, Target};
use ipnet::IpNet;
use peer_routes::Router;
use serde::{Deserialize, Serialize};
use stand_in::without_programs as stand_in_without_programs;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// What this node has been told of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Assignment {
    /// Its name.
    pub name: String,
    /// Its own addresses, in the order of its Node object. The first one names its tunnel devices' link-layer address.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// Its pod CIDRs.
    #[serde(default, rename = "podCIDRs")]
    pub pod_cidrs: Vec<IpNet>,
    /// What the whole cluster's pods are numbered from, where that is known beyond the nodes' own pod CIDRs.
    #[serde(default, rename = "clusterPodCIDRs")]
    pub cluster_pod_cidrs: Vec<IpNet>,
    /// Destinations that pods reach with their own address; none: the cluster's pod CIDRs.
    #[serde(default, rename = "nativeRoutingCIDRs")]
    pub native_routing_cidrs: Vec<IpNet>,
    /// What the policy says of the others.
    #[serde(default)]
    pub masquerade: MasqueradeOptions,
    /// The policy that governs it.
    #[serde(default)]
    pub policy: Option<Applied>,
    /// The policy's MTU in bytes; 0: what the underlay leaves.
    #[serde(default)]
    pub mtu: u32,
    /// The lanes on which it is to receive.
    #[serde(default)]
    pub receive_on: BTreeSet<Lane>,
    /// The policy's options of the datapath.
    #[serde(default)]
    pub datapath: DatapathOptions,
}

/// What this node has been told of another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Peer {
    /// Its addresses with their on-link prefixes, in the order of its Node object.
    #[serde(default)]
    pub addresses: Vec<NodeAddress>,
    /// Its pod CIDRs, at most one router address a family: the first one's.
    #[serde(default, rename = "podCIDRs")]
    pub pod_cidrs: Vec<IpNet>,
    /// The MTU of its underlay device in bytes.
    #[serde(default)]
    pub mtu: Option<u32>,
    /// The lanes on which it receives.
    #[serde(default)]
    pub receives_on: BTreeSet<Lane>,
    /// The policy that governs it.
    #[serde(default)]
    pub policy: Option<Applied>,
    /// What its programs know probes by; none: they answer none.
    #[serde(default)]
    pub probe_key: Option<ProbeKey>,
}

impl Peer {
    /// Its part of what a node knows of the others; `name` is its node's.
    pub fn membership(&self, name: &str) -> Membership {
        let addresses = self.addresses.iter().map(|address| address.address);
        Membership::of(name, addresses, self.pod_cidrs.iter().copied())
    }
}

/// How a peer is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerLane {
    /// The lane that both nodes' policies ask for.
    pub wanted: Result<Lane, Refusal>,
    /// The lane that packets take now.
    pub used: Result<Lane, Refusal>,
    /// Why packets do not take the lane that is wanted, while they take another.
    pub waits_for: Option<Refusal>,
    /// The pod CIDRs that this lane does not reach, though it reaches others of the peer's.
    pub refused: BTreeMap<IpNet, Refusal>,
    /// What speaks against the lane that packets take now. They take it all the same: nothing better is known.
    pub doubt: Option<Doubt>,
    /// What is to be probed: the lane that packets take now, and the one that they are to take.
    pub probed: Vec<Target>,
}

impl PeerLane {
    /// Whether the peer is reached as both policies ask.
    pub fn is_as_wanted(&self) -> bool {
        self.used.is_ok() && self.used == self.wanted && self.refused.is_empty() && self.doubt.is_none()
    }
}

/// The outcome of planning for one node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// What the kernel should hold.
    pub state: KernelState,
    /// Why, for the items that no single peer asks for; [`Desired::reason`] tells it for every item.
    reasons: BTreeMap<Item, Reason>,
    /// How each peer is reached.
    pub peers: BTreeMap<String, PeerLane>,
    /// The lanes on which this node receives now.
    pub receives_on: BTreeSet<Lane>,
    /// What else is worth saying.
    pub notes: BTreeSet<Note>,
}

impl Desired {
    /// The lanes that packets take now, over all peers.
    pub fn sends_on(&self) -> BTreeSet<Lane> {
        sends_on(&self.peers)
    }

    /// Why an item is declared; none where it is not. `told` is what the plan was made from: with thousands of peers it is
    /// cheaper to look their reasons up when they are asked for.
    pub fn reason(&self, item: &Item, told: &BTreeMap<String, Peer>) -> Option<Reason> {
        if let Some(reason) = self.reasons.get(item) {
            return Some(reason.clone());
        }
        let holds = |peer: &Peer| match item {
            Item::Route(key) => peer.pod_cidrs.contains(&key.destination),
            Item::Neighbour(on) => peer
                .pod_cidrs
                .iter()
                .any(|cidr| inner_gateway(peer, cidr) == Some(on.address)),
            _ => false,
        };
        let declared = match item {
            Item::Route(key) => self.state.routes.contains_key(key),
            Item::Neighbour(on) => self.state.neighbours.contains_key(on),
            _ => false,
        };
        let (name, _) = told.iter().filter(|_| declared).find(|(_, peer)| holds(peer))?;
        let lane = self.peers.get(name)?;
        let refusal = match item {
            Item::Route(key) => lane
                .used
                .as_ref()
                .err()
                .or_else(|| lane.refused.get(&key.destination)),
            _ => None,
        };
        Some(match refusal {
            None => Reason::Lane { peer: name.clone() },
            Some(refusal) => Reason::Refused {
                peer: name.clone(),
                reason: refusal.reason(),
            },
        })
    }

    fn declare<T>(&mut self, item: Item, reason: Reason, put: impl FnOnce(&mut KernelState) -> T) {
        put(&mut self.state);
        self.reasons.insert(item, reason);
    }
}

/// The first address of a pod CIDR: the node's router address for its pods and, as the source of what the node itself sends,
/// for its peers. For a CIDR of one address, that one.
pub fn router_address(pod_cidr: &IpNet) -> IpAddr {
    pod_cidr
        .hosts()
        .next()
        .map_or(pod_cidr.network(), |first| match pod_cidr {
            // ipnet counts an IPv6 network's own address among its hosts; that one is the subnet-router anycast address
            // (RFC 4291, section 2.6.1).
            IpNet::V6(network) if network.prefix_len() < 127 && first == IpAddr::V6(network.network()) => {
                IpAddr::V6((u128::from(network.network()) + 1).into())
            }
            _ => first,
        })
}

/// The router address of the first of these pod CIDRs that has the family.
fn router_address_of(pod_cidrs: &[IpNet], like: &IpNet) -> Option<IpAddr> {
    pod_cidrs
        .iter()
        .find(|own| own.addr().is_ipv6() == like.addr().is_ipv6())
        .map(router_address)
}

/// The next hop of a peer's packets on the inner side of a tunnel. On IPv4 the peer's router address. On IPv6 the link-local address of
/// its tunnel devices, for the kernel refuses any other that a route of another device holds (`ip6_route_check_nh_onlink` in
/// net/ipv6/route.c), and the router address is within the very pod CIDR whose route is to be replaced.
fn inner_gateway(peer: &Peer, cidr: &IpNet) -> Option<IpAddr> {
    if cidr.addr().is_ipv4() {
        return router_address_of(&peer.pod_cidrs, cidr);
    }
    let first = peer.addresses.first()?;
    Some(MacAddress::of_node(&first.address).link_local().into())
}

/// The `unreachable` routes under the lanes, which have to be there before the devices.
pub fn covers(assignment: &Assignment, peers: &BTreeMap<String, Peer>, observed: &Observed) -> KernelState {
    let mut plan = Desired::default();
    declare_covers(&mut plan, assignment, peers, observed);
    plan.state
}

fn declare_covers(
    plan: &mut Desired,
    assignment: &Assignment,
    peers: &BTreeMap<String, Peer>,
    observed: &Observed,
) {
    if assignment.policy.is_some() || peers.values().any(|peer| peer.policy.is_some()) {
        cover::declare(plan, assignment, peers, observed);
    }
}

/// Plans one node's kernel.
///
/// `unavailable` names the devices that could not be opened, with the reason. `observed` serves for what only the kernel
/// knows: which lane a peer is on now, which devices are open, and the way to a peer's address. `proofs` says which lanes have
/// been proved.
pub fn desired(
    assignment: &Assignment,
    peers: &BTreeMap<String, Peer>,
    observed: &Observed,
    unavailable: &BTreeMap<String, String>,
    proofs: &Proofs,
) -> Desired {
    let mut plan = Desired::default();
    let links = local_links(&assignment.addresses, &observed.underlay);
    for address in assignment
        .addresses
        .iter()
        .filter(|address| links.iter().all(|link| link.address != **address))
    {
        plan.notes.insert(Note::AddressNotFound(*address));
    }
    plan.receives_on = receives_on(assignment, observed);

    let router = Router::new(
        assignment,
        &links,
        peers,
        observed,
        unavailable,
        &plan.receives_on,
        proofs,
    );
    let mut routed = router.plan();
    let in_use = sends_on(&routed.lanes);

    let governed = assignment.policy.is_some();
    declare_covers(&mut plan, assignment, peers, observed);
    devices::declare(&mut plan, assignment, &links, observed, unavailable, &in_use);
    if governed {
        sysctls::declare(&mut plan, assignment, &links, observed, &routed);
        declare_neighbours(&mut plan, assignment, peers);
        declare_masquerade(&mut plan, assignment, peers, observed);
    }
    plan.state.routes.append(&mut routed.routes);
    plan.notes.append(&mut routed.notes);
    plan.peers = routed.lanes;
    plan
}

fn sends_on(peers: &BTreeMap<String, PeerLane>) -> BTreeSet<Lane> {
    let used = peers.values().filter_map(|peer| peer.used.as_ref().ok());
    used.copied().collect()
}

fn receives_on(assignment: &Assignment, observed: &Observed) -> BTreeSet<Lane> {
    let open = |lane: &&Lane| lane.tunnel().is_none_or(|tunnel| is_open(&tunnel, observed));
    assignment.receive_on.iter().filter(open).copied().collect()
}

fn declare_masquerade(
    plan: &mut Desired,
    assignment: &Assignment,
    peers: &BTreeMap<String, Peer>,
    observed: &Observed,
) {
    let Some(wanted) = masquerade(assignment, peers, observed) else {
        return;
    };
    if observed.foreign_table {
        plan.notes.insert(Note::ForeignTable);
        return;
    }
    plan.declare(Item::Masquerade, Reason::Masquerade, |state| {
        state.masquerade = Some(wanted);
    });
}

/// The peers' inner next hops on every tunnel device, in use or not: a peer's neighbour is there before the first packet is
/// sent to it, and after the last one, so that changing its lane is one route and nothing else.
fn declare_neighbours(plan: &mut Desired, assignment: &Assignment, peers: &BTreeMap<String, Peer>) {
    let devices: Vec<String> = plan.state.devices.keys().cloned().collect();
    let mut neighbours = Vec::with_capacity(peers.len() * devices.len());
    for (_, peer) in peers.iter().filter(|(name, _)| **name != assignment.name) {
        let Some(first) = peer.addresses.first() else {
            continue;
        };
        let mac = MacAddress::of_node(&first.address);
        let mut families = BTreeSet::new();
        for cidr in peer
            .pod_cidrs
            .iter()
            .filter(|cidr| families.insert(cidr.addr().is_ipv6()))
        {
            let Some(address) = inner_gateway(peer, cidr) else {
                continue;
            };
            for device in &devices {
                let device = device.clone();
                neighbours.push((OnDevice { address, device }, mac));
            }
        }
    }
    plan.state.neighbours = neighbours.into_iter().collect();
}
