//! What the maps should hold: a function of what is declared, of what they hold already, and of the devices' indices.

mod masks;

use crate::failure::{Cause, Failure};
use crate::kernel::Kernel;
use crate::synced::Unfinished;
use ipnet::IpNet;
use masks::{around4, around6, four4, four6};
use podlane_datapath_common::{
    Address, MAX_TUNNELS, Peer, PodNetwork, PodNetworkKind, Settings, Tunnel, headers, peer_flag,
    pod_network_flag, settings_flag, tunnel_flag,
};
use podlane_plan::datapath::{Datapath, DatapathPeer, Owner};
use podlane_plan::lane::{self, TunnelProtocol};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// A network's key in the trie: its prefix's length, an IPv4 prefix's with 96 more, and its address.
pub(crate) type NetworkKey = (u32, Address);

/// What is in the maps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Contents {
    pub(crate) settings: Settings,
    pub(crate) peers: BTreeMap<Address, Peer>,
    pub(crate) networks: BTreeMap<NetworkKey, PodNetwork>,
}

/// How much fits in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Capacity {
    pub(crate) peers: u32,
    pub(crate) networks: u32,
}

/// What the agent gives besides the plan.
pub(crate) struct Circumstances<'a> {
    pub(crate) kernel: Kernel,
    /// How long a stamp lets a flow bypass the stack, in jiffies.
    pub(crate) lease: u32,
    pub(crate) probe_key: Option<[u64; 2]>,
    pub(crate) capacity: Capacity,
    /// Indices of the devices that are there.
    pub(crate) interfaces: &'a BTreeMap<String, u32>,
}

// The plan says which tunnels have no place; it must count as the maps do.
const _: () = assert!(podlane_plan::datapath::MAX_TUNNELS == MAX_TUNNELS);

/// What the maps should hold. Peers and networks are made one by one as they are looked at: of thousands, what the maps hold already takes
/// enough memory.
pub(crate) struct Wanted<'a> {
    pub(crate) settings: Settings,
    datapath: &'a Datapath,
    slots: BTreeMap<lane::Tunnel, u32>,
    indices: BTreeMap<Address, u32>,
    /// By their keys.
    networks: Vec<(NetworkKey, &'a Owner)>,
    interfaces: &'a BTreeMap<String, u32>,
}

/// What the maps should hold, and what of the declared has no place in them. Whoever has an index or a slot keeps it.
pub(crate) fn wanted<'a>(
    datapath: &'a Datapath,
    held: &Contents,
    with: &Circumstances<'a>,
) -> (Wanted<'a>, Vec<Unfinished>) {
    let mut unfinished = Vec::new();
    let slots = slots(datapath, &held.settings, &mut unfinished);
    let wanted = Wanted {
        settings: settings(datapath, held.settings.generation, &slots, with),
        datapath,
        indices: indices(datapath, held, with.capacity.peers, &mut unfinished),
        networks: networks(datapath, held, with.capacity.networks, &mut unfinished),
        interfaces: with.interfaces,
        slots,
    };
    let missing: BTreeSet<&str> = wanted
        .devices()
        .filter(|name| !with.interfaces.contains_key(*name))
        .collect();
    unfinished.extend(missing.into_iter().map(|name| Unfinished {
        what: format!("device {name}"),
        why: Failure::no_device(name),
    }));
    (wanted, unfinished)
}

impl Wanted<'_> {
    pub(crate) fn peers(&self) -> impl Iterator<Item = (Address, Peer)> {
        self.indices.iter().filter_map(|(outer, index)| {
            let declared = self.declared(outer)?;
            Some((*outer, peer(declared, *index, &self.slots, self.interfaces)))
        })
    }

    pub(crate) fn has_peer(&self, outer: &Address) -> bool {
        self.indices.contains_key(outer)
    }

    pub(crate) fn networks(&self) -> impl Iterator<Item = (NetworkKey, PodNetwork)> {
        let networks = self.networks.iter();
        networks.map(|(key, owner)| (*key, pod_network(owner, &self.indices, self.interfaces)))
    }

    pub(crate) fn has_network(&self, key: &NetworkKey) -> bool {
        self.networks.binary_search_by_key(key, |(key, _)| *key).is_ok()
    }

    fn declared(&self, outer: &Address) -> Option<&DatapathPeer> {
        let outer = IpAddr::from(outer.octets());
        let peers = &self.datapath.peers;
        peers.get(&outer.to_canonical()).or_else(|| peers.get(&outer))
    }

    /// The devices that are named by what has a place.
    fn devices(&self) -> impl Iterator<Item = &str> {
        let tunnels = self.datapath.tunnels.iter();
        let tunnels = tunnels.filter(|(tunnel, _)| self.slots.contains_key(tunnel));
        let peers = self.indices.keys().filter_map(|outer| self.declared(outer));
        let networks = self.networks.iter().filter_map(|(_, owner)| match owner {
            Owner::Local { device } => device.as_deref(),
            Owner::Peer { native, .. } => Some(native.as_ref()?.device.as_str()),
            Owner::Unassigned => None,
        });
        tunnels
            .map(|(_, open)| open.device.as_str())
            .chain(peers.filter_map(|peer| Some(peer.way.as_ref()?.device.as_str())))
            .chain(networks)
    }
}

/// The tunnels' slots. A slot that another tunnel has at this moment is not given away in the same step: packets, peers and flows
/// still name it.
fn slots(
    datapath: &Datapath,
    held: &Settings,
    unfinished: &mut Vec<Unfinished>,
) -> BTreeMap<lane::Tunnel, u32> {
    let slot_of = |tunnel: &lane::Tunnel| held.tunnels.iter().position(|slot| is_in(tunnel, slot));
    let mut free = (0..MAX_TUNNELS).filter(|slot| held.tunnels[*slot].port == 0);
    let mut slots = BTreeMap::new();
    for tunnel in datapath.tunnels.keys() {
        match slot_of(tunnel).or_else(|| free.next()).and_then(|slot| u32::try_from(slot).ok()) {
            Some(slot) => {
                slots.insert(*tunnel, slot);
            }
            None => unfinished.push(Unfinished {
                what: format!("tunnel {}", lane::Lane::Tunnel(*tunnel)),
                why: Failure::new(
                    Cause::Full,
                    format!("{MAX_TUNNELS} tunnels are open, and no more can be: it opens when another one is closed"),
                ),
            }),
        }
    }
    slots
}

/// Whether a slot is this tunnel's.
fn is_in(tunnel: &lane::Tunnel, slot: &Tunnel) -> bool {
    let geneve = tunnel.protocol == TunnelProtocol::Geneve;
    slot.port == tunnel.port.to_be()
        && slot.vni == headers::vni_word(tunnel.vni)
        && (slot.flags & tunnel_flag::GENEVE != 0) == geneve
}

/// The peers' indices. New ones get those that no peer has at this moment, as long as there are such.
fn indices(
    datapath: &Datapath,
    held: &Contents,
    capacity: u32,
    unfinished: &mut Vec<Unfinished>,
) -> BTreeMap<Address, u32> {
    let mut indices: BTreeMap<Address, u32> = datapath
        .peers
        .keys()
        .filter_map(|outer| Some((address(*outer), held.peers.get(&address(*outer))?.index)))
        .filter(|(_, index)| *index < capacity)
        .collect();
    let staying: BTreeSet<u32> = indices.values().copied().collect();
    let leaving: BTreeSet<u32> = held
        .peers
        .values()
        .map(|peer| peer.index)
        .filter(|index| !staying.contains(index))
        .collect();
    let mut free = (0..capacity)
        .filter(|index| !staying.contains(index) && !leaving.contains(index))
        .chain(leaving.iter().copied().filter(|index| *index < capacity));
    let mut left_out = Vec::new();
    for (outer, peer) in &datapath.peers {
        if let Entry::Vacant(place) = indices.entry(address(*outer)) {
            match free.next() {
                Some(index) => {
                    place.insert(index);
                }
                None => left_out.push(peer.name.as_str()),
            }
        }
    }
    if let [first, ..] = left_out[..] {
        unfinished.push(Unfinished {
            what: format!("{} peers, {first} first", left_out.len()),
            why: Failure::new(
                Cause::Full,
                format!("there is place for {capacity} peers: the kernel's own tunnel devices carry the others' packets"),
            ),
        });
    }
    indices
}

/// The networks that have a place, by their keys: first those without which a packet might go wrong, then those that are in already.
fn networks<'a>(
    datapath: &'a Datapath,
    held: &Contents,
    capacity: u32,
    unfinished: &mut Vec<Unfinished>,
) -> Vec<(NetworkKey, &'a Owner)> {
    let mut networks: Vec<_> = datapath
        .networks
        .iter()
        .map(|(network, owner)| (network_key(network), owner))
        .collect();
    let capacity = capacity as usize;
    if networks.len() > capacity {
        networks.sort_by_key(|(key, owner)| {
            (
                matches!(owner, Owner::Peer { .. }),
                !held.networks.contains_key(key),
                *key,
            )
        });
        unfinished.push(Unfinished {
            what: format!("{} networks of pods", networks.len() - capacity),
            why: Failure::new(
                Cause::Full,
                format!("there is place for {capacity}: plain packets of the others are not checked, and nothing of theirs bypasses the stack"),
            ),
        });
        networks.truncate(capacity);
    }
    networks.sort_unstable_by_key(|(key, _)| *key);
    networks.dedup_by_key(|(key, _)| *key);
    networks
}

fn peer(
    declared: &DatapathPeer,
    index: u32,
    slots: &BTreeMap<lane::Tunnel, u32>,
    interfaces: &BTreeMap<String, u32>,
) -> Peer {
    let way = declared.way.as_ref();
    let (networks4, more4) = four4(&declared.pod_cidrs);
    let (networks6, more6) = four6(&declared.pod_cidrs);
    Peer {
        index,
        flags: flag(more4 || more6, peer_flag::MORE_NETWORKS)
            | flag(way.is_some_and(|way| way.several), peer_flag::SEVERAL_WAYS),
        tunnels: declared
            .tunnels
            .iter()
            .filter_map(|tunnel| slots.get(tunnel))
            .fold(0, |bits, slot| bits | 1 << slot),
        mtu: declared.mtu,
        source: address(declared.source),
        interface: way.map_or(0, |way| interface(&way.device, interfaces)),
        next_hop_family: way.map_or(0, |way| family(way.next_hop)),
        next_hop: way.map_or(Address::NONE, |way| address(way.next_hop)),
        networks4,
        networks6,
    }
}

/// The index of no peer: no counter has it.
const NO_INDEX: u32 = u32::MAX;

fn pod_network(
    owner: &Owner,
    indices: &BTreeMap<Address, u32>,
    interfaces: &BTreeMap<String, u32>,
) -> PodNetwork {
    let nobodys = PodNetwork {
        kind: PodNetworkKind::Unassigned as u32,
        flags: 0,
        peer: NO_INDEX,
        interface: 0,
        mtu: 0,
        underlay: 0,
        next_hop: Address::NONE,
        outer: Address::NONE,
    };
    match owner {
        Owner::Unassigned => nobodys,
        Owner::Local { device } => PodNetwork {
            kind: PodNetworkKind::Local as u32,
            interface: device
                .as_deref()
                .map_or(0, |device| interface(device, interfaces)),
            ..nobodys
        },
        Owner::Peer { outer, native } => {
            let outer = outer.map_or(Address::NONE, address);
            let nobodys = PodNetwork {
                kind: PodNetworkKind::Peer as u32,
                peer: indices.get(&outer).copied().unwrap_or(NO_INDEX),
                outer,
                ..nobodys
            };
            match native {
                None => nobodys,
                Some(native) => PodNetwork {
                    flags: pod_network_flag::NATIVE | flag(native.on_link, pod_network_flag::ON_LINK),
                    mtu: native.mtu,
                    underlay: interface(&native.device, interfaces),
                    next_hop: address(native.next_hop),
                    ..nobodys
                },
            }
        }
    }
}

fn settings(
    datapath: &Datapath,
    generation: u32,
    slots: &BTreeMap<lane::Tunnel, u32>,
    with: &Circumstances<'_>,
) -> Settings {
    if *datapath == Datapath::default() {
        return Settings::CLOSED;
    }
    let mut tunnels = Settings::CLOSED.tunnels;
    for (tunnel, open) in &datapath.tunnels {
        let Some(slot) = slots.get(tunnel) else { continue };
        let [a, b, c, d, e, f] = open.mac.0;
        tunnels[*slot as usize] = Tunnel {
            port: tunnel.port.to_be(),
            flags: flag16(tunnel.protocol == TunnelProtocol::Geneve, tunnel_flag::GENEVE)
                | flag16(open.stand_in, tunnel_flag::STAND_IN),
            vni: headers::vni_word(tunnel.vni),
            // Where the device is gone for the moment, the tunnel stays open.
            device: interface(&open.device, with.interfaces),
            mac: [a, b, c, d, e, f, 0, 0],
        };
    }
    let (local4, more4) = four4(&datapath.local_pod_cidrs);
    let (local6, more6) = four6(&datapath.local_pod_cidrs);
    let everywhere = datapath.networks.keys().chain(&datapath.local_pod_cidrs);
    Settings {
        generation,
        flags: flag(datapath.bypass, settings_flag::BYPASS)
            | flag(datapath.native, settings_flag::NATIVE)
            | flag(datapath.enter_by_tunnel, settings_flag::ENTER_BY_TUNNEL)
            | flag(with.probe_key.is_some(), settings_flag::PROBES)
            | flag(datapath.check_underlay, settings_flag::CHECK_UNDERLAY)
            | flag(more4 || more6, settings_flag::MORE_LOCAL)
            | flag(with.kernel.decap_flags, settings_flag::DECAP_FLAGS),
        lease: with.lease,
        traffic_class: u32::from(datapath.dscp & 0x3f) << 2,
        pods4: around4(everywhere.clone()),
        pods6: around6(everywhere),
        local4,
        local6,
        tunnels,
        probe_key: with.probe_key.unwrap_or_default(),
    }
}

/// A device's index; 0, which is no device's, where it is not there.
fn interface(name: &str, interfaces: &BTreeMap<String, u32>) -> u32 {
    interfaces.get(name).copied().unwrap_or(0)
}

fn flag(set: bool, bit: u32) -> u32 {
    if set { bit } else { 0 }
}

fn flag16(set: bool, bit: u16) -> u16 {
    if set { bit } else { 0 }
}

pub(crate) fn address(address: IpAddr) -> Address {
    match address {
        IpAddr::V4(address) => Address::of_v4_octets(address.octets()),
        IpAddr::V6(address) => Address::of_v6_octets(address.octets()),
    }
}

pub(crate) fn family(address: IpAddr) -> u32 {
    if address.is_ipv4() { 4 } else { 6 }
}

fn network_key(network: &IpNet) -> NetworkKey {
    let mapped = if matches!(network, IpNet::V4(_)) { 96 } else { 0 };
    (
        u32::from(network.prefix_len()) + mapped,
        address(network.network()),
    )
}

#[cfg(test)]
mod tests;
