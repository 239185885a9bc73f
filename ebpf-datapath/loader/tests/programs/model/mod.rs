//! A second implementation of docs/datapath.md: plain Rust on slices, one packet at a time, written from the text and not from the programs.
//!
//! What it shares with the programs are the forms of maps' values (their ABI) and SipHash; headers, ECN and checksums it works out anew, the long way.

mod encapsulation;
mod flows;
mod layers;
mod plain;
mod pods;
mod probes;
mod tunnel;
mod underlay;

pub(crate) use encapsulation::{ecn_after_decapsulation, forwarded, header_checksum};
pub(crate) use flows::{Tuple, tuple_of, tuples_of};
pub(crate) use layers::Family;
use layers::Name;
pub(crate) use probes::tag as probe_tag;
pub(crate) use tunnel::Key;

use podlane_datapath_common::probe::ProbeState;
use podlane_datapath_common::{
    Address, FlowState, LANE_SLOTS, LaneCounters, Peer, PeerCounters, PodNetwork, PodNetworkKind, Reason,
    Settings, TrieKey, Tunnel, settings_flag,
};
use std::collections::BTreeMap;

/// What a program decides on a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// On to the next program, and then up or down the stack.
    Pass,
    /// Away with it.
    Drop(Reason),
    /// A probe's answer: written down, and gone.
    Taken,
    /// To the neighbour on the underlay: what of Ethernet is written is the neighbour table's affair.
    ToUnderlay,
    /// Into the stack by the tunnel device.
    ToTunnelDevice,
    /// Into the pod.
    ToPod,
}

/// A packet at a hook.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Packet<'a> {
    /// From the Ethernet header on.
    pub(crate) frame: &'a [u8],
    /// The device of the hook.
    pub(crate) interface: u32,
    /// Of a GSO packet the payload's size a segment; else 0.
    pub(crate) gso_size: u32,
    /// The lower 32 bits of the kernel's jiffies.
    pub(crate) now: u32,
    /// Whether the kernel grows and shrinks this packet. It refuses a GSO packet of no known kind (net/core/filter.c, `bpf_skb_net_shrink`), as
    /// BPF_PROG_TEST_RUN makes them.
    pub(crate) resizable: bool,
}

/// What comes of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) verdict: Verdict,
    /// The packet after it. Of a dropped one without meaning.
    pub(crate) frame: Vec<u8>,
}

impl Outcome {
    fn pass(packet: &Packet<'_>) -> Self {
        Self {
            verdict: Verdict::Pass,
            frame: packet.frame.to_vec(),
        }
    }
}

/// A node's maps, as plain values.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) settings: Settings,
    pub(crate) peers: BTreeMap<Address, Peer>,
    pub(crate) pods: Vec<(TrieKey, PodNetwork)>,
    /// What the kernel's neighbour table says.
    pub(crate) neighbours: BTreeMap<Address, [u8; 6]>,
    pub(crate) flows: BTreeMap<Tuple, FlowState>,
    pub(crate) probes: BTreeMap<u64, ProbeState>,
    /// Probes answered to a peer within this second.
    pub(crate) answered: BTreeMap<Address, u32>,
    pub(crate) lanes: [LaneCounters; LANE_SLOTS],
    pub(crate) peer_counters: BTreeMap<u32, PeerCounters>,
}

impl Node {
    /// A node of these maps, with nothing counted and no flow known.
    pub(crate) fn new(settings: Settings) -> Self {
        Self {
            settings,
            peers: BTreeMap::new(),
            pods: Vec::new(),
            neighbours: BTreeMap::new(),
            flows: BTreeMap::new(),
            probes: BTreeMap::new(),
            answered: BTreeMap::new(),
            lanes: [LaneCounters::default(); LANE_SLOTS],
            peer_counters: BTreeMap::new(),
        }
    }

    fn has(&self, flag: u32) -> bool {
        self.settings.flags & flag != 0
    }

    fn closed(&self) -> bool {
        self.settings.generation == 0
    }

    /// The longest prefix that contains the address.
    fn owner(&self, address: &Name) -> Option<PodNetwork> {
        let address = address.looked_up()?;
        self.pods
            .iter()
            .filter(|(key, _)| prefix_contains(key, address))
            .max_by_key(|(key, _)| key.prefix_length)
            .map(|(_, network)| *network)
    }

    fn open_slots(&self) -> impl Iterator<Item = (u32, &Tunnel)> {
        (0..)
            .zip(&self.settings.tunnels)
            .filter(|(_, tunnel)| tunnel.port != 0)
    }

    /// Whether one of this node's networks contains the address.
    fn is_local(&self, address: &Name) -> bool {
        let settings = &self.settings;
        let listed = match address.family {
            Family::V4 => settings
                .local4
                .iter()
                .any(|network| network.contains(address.address.word())),
            Family::V6 => settings
                .local6
                .iter()
                .any(|network| network.contains(&address.address.0)),
        };
        let in_the_trie = || {
            self.has(settings_flag::MORE_LOCAL)
                && self
                    .owner(address)
                    .is_some_and(|owner| owner.kind == PodNetworkKind::Local as u32)
        };
        listed || in_the_trie()
    }

    /// Whether an address claims to be a pod's.
    fn claims_to_be_a_pod(&self, name: &Name) -> bool {
        match name.family {
            Family::V4 => self.settings.pods4.contains(name.address.word()),
            Family::V6 => self.settings.pods6.contains(&name.address.0),
        }
    }

    /// Whether the address is the first of one of this node's pod CIDRs.
    fn is_router_address(&self, name: &Name) -> bool {
        let address = name.address;
        if name.family == Family::V4 {
            let one = u32::from_be_bytes(1_u32.to_ne_bytes());
            self.settings
                .local4
                .iter()
                .any(|local| local.mask != 0 && address.word() == local.network | one)
        } else {
            let first = |network: [u32; 4]| {
                let mut octets = Address(network).octets();
                octets[15] |= 1;
                Address::of_v6_octets(octets)
            };
            self.settings
                .local6
                .iter()
                .any(|local| local.mask != [0; 4] && address == first(local.network))
        }
    }

    fn drop(&mut self, reason: Reason, slot: u32, peer: Option<u32>) -> Outcome {
        self.lanes[slot as usize].dropped[reason as usize] += 1;
        if let Some(peer) = peer {
            self.peer_counters.entry(peer).or_default().dropped[reason as usize] += 1;
        }
        Outcome {
            verdict: Verdict::Drop(reason),
            frame: Vec::new(),
        }
    }

    fn count_received(&mut self, slot: u32, peer: u32, bytes: usize, bypassing: bool) {
        let lane = &mut self.lanes[slot as usize];
        lane.received_packets += 1;
        lane.received_bytes += bytes as u64;
        lane.received_bypassing += u64::from(bypassing);
        let peer = self.peer_counters.entry(peer).or_default();
        peer.received_packets += 1;
        peer.received_bytes += bytes as u64;
    }

    fn count_sent(&mut self, slot: u32, peer: u32, bytes: usize, bypassing: bool) {
        let lane = &mut self.lanes[slot as usize];
        lane.sent_packets += 1;
        lane.sent_bytes += bytes as u64;
        lane.sent_bypassing += u64::from(bypassing);
        let peer = self.peer_counters.entry(peer).or_default();
        peer.sent_packets += 1;
        peer.sent_bytes += bytes as u64;
    }
}

impl Node {
    /// The peer whose outer headers bear this address.
    fn peer(&self, name: &Name) -> Option<Peer> {
        self.peers.get(name.looked_up()?).copied()
    }
}

/// Bit by bit, as the kernel's trie compares.
fn prefix_contains(key: &TrieKey, address: &Address) -> bool {
    let number = |address: &Address| u128::from_be_bytes(address.octets());
    let differing = number(&key.address) ^ number(address);
    differing.leading_zeros() >= key.prefix_length
}
