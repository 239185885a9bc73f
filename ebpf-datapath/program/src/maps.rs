//! The maps. Their names, keys and values are the ABI (`podlane_datapath_common::ABI`); the loader pins them and writes them.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::macros::map;
use aya_ebpf::maps::lpm_trie::Key;
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
pub(crate) static PODS: LpmTrie<Address, PodNetwork> =
    LpmTrie::with_max_entries(4 * PEERS_AT_MOST, BPF_F_NO_PREALLOC);

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
pub(crate) static PROBE_RATES: LruHashMap<Address, ProbeRate> =
    LruHashMap::with_max_entries(PEERS_AT_MOST, 0);

/// When this CPU last found the next hop to a peer resolved, by [`Peer::index`].
#[map]
pub(crate) static WAYS: PerCpuArray<ResolvedWay> = PerCpuArray::with_max_entries(PEERS_AT_MOST, 0);

/// Where a flow's state is put together before it is written into its map: the programs' stack of 512 octets is too small for it.
#[map]
static SCRATCH: PerCpuArray<FlowState> = PerCpuArray::with_max_entries(1, 0);

/// See [`NEIGHBOURS`].
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Neighbour {
    /// When the kernel was asked ([`crate::kernel::ticks`]).
    pub(crate) asked: u32,
    /// The address, and two octets of zero.
    pub(crate) link: [u8; 8],
}

/// See [`WAYS`].
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct ResolvedWay {
    /// Jiffies (lower 32 bits) up to which it is taken for resolved.
    pub(crate) until: u32,
    /// The settings' generation under which the kernel was asked, by which the peer and its next hop are the same.
    pub(crate) generation: u32,
}

/// See [`PROBE_RATES`].
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct ProbeRate {
    /// When the second began ([`crate::kernel::ticks`]).
    pub(crate) since: u32,
    /// Answered in it.
    pub(crate) answered: u32,
}

/// The settings in force; none where nothing is open.
#[inline(always)]
pub(crate) fn settings() -> Option<&'static Settings> {
    let settings = SETTINGS.get(*ACTIVE.get(0)? & 1)?;
    (settings.generation != 0).then_some(settings)
}

/// The peer with this address in outer headers.
#[inline(always)]
#[expect(
    clippy::needless_borrows_for_generic_args,
    reason = "a copy on the stack more, by which the verifier follows underlay_ingress for an eighth longer"
)]
pub(crate) fn peer(address: Address) -> Option<&'static Peer> {
    // SAFETY: the kernel frees a removed element only when no program can be reading it, for the map is not preallocated.
    unsafe { PEERS.get(&address) }
}

/// Whose an address is.
#[inline(always)]
pub(crate) fn owner(address: Address) -> Option<&'static PodNetwork> {
    PODS.get(Key::new(128, address))
}

/// The scratch pad. It is this program's alone until it ends: programs of a CPU do not run within one another.
#[inline(always)]
pub(crate) fn scratch() -> Option<&'static mut FlowState> {
    // SAFETY: there is one for each CPU, and each program asks for it once at a time.
    SCRATCH.get_ptr_mut(0).map(|state| unsafe { &mut *state })
}
