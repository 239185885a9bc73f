//! What aya asks of keys and values.
#![expect(
    unsafe_code,
    reason = "each type is repr(C), of integers only, Copy and without padding: any octets are a value of it"
)]

use crate::probe::ProbeState;
use crate::{
    Address, Flow4, Flow6, FlowState, LaneCounters, Network4, Network6, Peer, PeerCounters, PodNetwork,
    Settings, TrieKey, Tunnel,
};
use aya::Pod;
use core::mem::size_of;

// SAFETY: see the reason above; the sizes below show that there is no padding.
unsafe impl Pod for Address {}
// SAFETY: as above.
unsafe impl Pod for Flow4 {}
// SAFETY: as above.
unsafe impl Pod for Flow6 {}
// SAFETY: as above.
unsafe impl Pod for FlowState {}
// SAFETY: as above.
unsafe impl Pod for LaneCounters {}
// SAFETY: as above.
unsafe impl Pod for Network4 {}
// SAFETY: as above.
unsafe impl Pod for Network6 {}
// SAFETY: as above.
unsafe impl Pod for Peer {}
// SAFETY: as above.
unsafe impl Pod for PeerCounters {}
// SAFETY: as above.
unsafe impl Pod for PodNetwork {}
// SAFETY: as above.
unsafe impl Pod for ProbeState {}
// SAFETY: as above.
unsafe impl Pod for Settings {}
// SAFETY: as above.
unsafe impl Pod for TrieKey {}
// SAFETY: as above.
unsafe impl Pod for Tunnel {}

const _: () = {
    assert!(size_of::<Flow4>() == 16);
    assert!(size_of::<Flow6>() == 40);
    assert!(size_of::<FlowState>() == 7 * 4 + 3 * 16 + 4 + 4 + 3 * 4 + 12 + 6 + 2 + 4);
    assert!(size_of::<Peer>() == 4 * 4 + 16 + 4 + 4 + 16 + 4 * 8 + 4 * 32);
    assert!(size_of::<PodNetwork>() == 6 * 4 + 2 * 16);
    assert!(size_of::<ProbeState>() == 3 * 8 + 2 * 4);
    assert!(size_of::<Tunnel>() == 2 + 2 + 4 + 4 + 8);
    assert!(size_of::<Settings>() == 4 * 4 + 8 + 32 + 4 * 8 + 4 * 32 + 16 * size_of::<Tunnel>() + 16);
};
