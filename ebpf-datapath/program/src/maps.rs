//! The maps. Their names, keys and values are the ABI (`podlane_datapath_common::ABI`); the loader pins them and writes them.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray};
use podlane_datapath_common::probe::ProbeState;
use podlane_datapath_common::{
    Address, Flow4, Flow6, FlowState, LANE_SLOTS, LaneCounters, Peer, PeerCounters, PodNetwork, Settings,
};

/// Peers, at most; the loader may ask for another number.
const PEERS_AT_MOST: u32 = 8192;
/// Flows that may be known at once, of each family; the least recently used make room.
const FLOWS_AT_MOST: u32 = 65_536;

/// Two settings, of which [`ACTIVE`] names the one in force.
#[map]
pub(crate) static SETTINGS: Array<Settings> = Array::with_max_entries(2, 0);

/// 0 or 1.
#[map]
pub(crate) static ACTIVE: Array<u32> = Array::with_max_entries(1, 0);

/// Peers by their address in outer headers. Not preallocated: a removed one is then freed only when no program reads it any more.
#[map]
pub(crate) static PEERS: HashMap<Address, Peer> = HashMap::with_max_entries(PEERS_AT_MOST, BPF_F_NO_PREALLOC);

/// Whose a pod address is.
#[map]
pub(crate) static PODS: LpmTrie<Address, PodNetwork> = LpmTrie::with_max_entries(4 * PEERS_AT_MOST, BPF_F_NO_PREALLOC);

/// Flows of IPv4.
#[map]
pub(crate) static FLOWS4: LruHashMap<Flow4, FlowState> = LruHashMap::with_max_entries(FLOWS_AT_MOST, 0);

/// Flows of IPv6.
#[map]
pub(crate) static FLOWS6: LruHashMap<Flow6, FlowState> = LruHashMap::with_max_entries(FLOWS_AT_MOST, 0);

/// Counters by lane slot.
#[map]
pub(crate) static LANES: PerCpuArray<LaneCounters> = PerCpuArray::with_max_entries(LANE_SLOTS as u32, 0);

/// Counters by peer index.
#[map]
pub(crate) static PEER_COUNTERS: PerCpuArray<PeerCounters> = PerCpuArray::with_max_entries(PEERS_AT_MOST, 0);

/// Link-layer addresses of on-link peers as the kernel's neighbour table gave them, by the peer's address: a cache.
#[map]
pub(crate) static NEIGHBOURS: LruHashMap<Address, Neighbour> = LruHashMap::with_max_entries(PEERS_AT_MOST, 0);

/// Probes on their way, by number.
#[map]
pub(crate) static PROBES: HashMap<u64, ProbeState> = HashMap::with_max_entries(PEERS_AT_MOST, 0);

/// Probes answered to a peer lately.
#[map]
pub(crate) static PROBE_RATES: LruHashMap<Address, ProbeRate> = LruHashMap::with_max_entries(PEERS_AT_MOST, 0);

/// See [`NEIGHBOURS`].
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Neighbour {
    /// Jiffies (lower 32 bits) when the kernel was asked.
    pub(crate) asked: u32,
    /// The address, and two octets of zero.
    pub(crate) link: [u8; 8],
}

/// See [`PROBE_RATES`].
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct ProbeRate {
    /// Jiffies (lower 32 bits) when the second began.
    pub(crate) since: u32,
    /// Answered in it.
    pub(crate) answered: u32,
}
