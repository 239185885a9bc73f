//! Counting. Each CPU has counters of its own, so nothing is locked.

use aya_ebpf::bindings::TC_ACT_SHOT;
use podlane_datapath_common::Reason;

use crate::maps::{LANES, PEER_COUNTERS};

/// Drops the packet: counts it on the slot, and by the peer where that is known. The verdict.
#[inline(always)]
pub(crate) fn drop_packet(slot: u32, peer: Option<u32>, reason: Reason) -> i32 {
    if let Some(lane) = LANES.get_ptr_mut(slot) {
        // SAFETY: this CPU's own counters; the reason is less than their number.
        unsafe { (*lane).dropped[reason as usize] += 1 };
    }
    if let Some(counters) = peer.and_then(|index| PEER_COUNTERS.get_ptr_mut(index)) {
        // SAFETY: as above.
        unsafe { (*counters).dropped[reason as usize] += 1 };
    }
    TC_ACT_SHOT
}

/// Counts a packet sent. Octets are the inner packet's.
#[inline(always)]
pub(crate) fn sent(slot: u32, peer: u32, octets: u32, bypassing: bool) {
    if let Some(lane) = LANES.get_ptr_mut(slot) {
        // SAFETY: this CPU's own counters.
        unsafe {
            (*lane).sent_packets += 1;
            (*lane).sent_bytes += u64::from(octets);
            (*lane).sent_bypassing += u64::from(bypassing);
        }
    }
    if let Some(counters) = PEER_COUNTERS.get_ptr_mut(peer) {
        // SAFETY: this CPU's own counters.
        unsafe {
            (*counters).sent_packets += 1;
            (*counters).sent_bytes += u64::from(octets);
        }
    }
}

/// Counts a packet received.
#[inline(always)]
pub(crate) fn received(slot: u32, peer: u32, octets: u32, bypassing: bool) {
    if let Some(lane) = LANES.get_ptr_mut(slot) {
        // SAFETY: this CPU's own counters.
        unsafe {
            (*lane).received_packets += 1;
            (*lane).received_bytes += u64::from(octets);
            (*lane).received_bypassing += u64::from(bypassing);
        }
    }
    if let Some(counters) = PEER_COUNTERS.get_ptr_mut(peer) {
        // SAFETY: this CPU's own counters.
        unsafe {
            (*counters).received_packets += 1;
            (*counters).received_bytes += u64::from(octets);
        }
    }
}
