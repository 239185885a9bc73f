//! Probes: requests are turned around, answers are written down, both without the stack (docs/datapath.md, "Probes").

use core::mem::size_of;

use aya_ebpf::bindings::TC_ACT_SHOT;
use podlane_datapath_common::headers::traffic_class_out;
use podlane_datapath_common::probe::{self, MAGIC, MOST_A_SECOND, REPLY, REQUEST, SHORT_REPLY};
use podlane_datapath_common::{Address, NATIVE_SLOT, Peer, PodNetwork, Reason, Settings, settings_flag};

use crate::counters;
use crate::kernel::{Packet, SECOND, nanoseconds, redirect_to_neighbour, ticks};
use crate::maps::{PROBE_RATES, PROBES, ProbeRate};
use crate::outer::{next_hop, send};
use crate::packet::{Encapsulated, HOPS, Ip, PLAIN, Plain, encapsulated, overhead, written_length};
use crate::wire::{Wire, Word64};

/// A probe as it stands behind an IP header: three words of 64 bits, in network byte order.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Probe {
    /// Magic, kind, flags, length.
    first: Word64,
    number: Word64,
    tag: Word64,
}
// SAFETY: of what is so itself, each of alignment one, so nothing lies between.
unsafe impl Wire for Probe {}
const _: () = assert!(size_of::<Probe>() == probe::LENGTH);

/// What a probe wants.
enum Wanted {
    /// To be turned around, with these words instead of what they were; short or as long as it is.
    Answer { first: u64, tag: u64, short: bool },
    /// Nothing more: it is the answer to one of ours.
    Nothing,
}

/// A tag. Not inlined: it is long, and many ways lead to it.
#[inline(never)]
fn tag(key: &[u64; 2], first: u64, number: u64) -> u64 {
    probe::sip_hash(key, &[u64::from_le(first), u64::from_le(number)]).to_le()
}

/// Reads the probe whose IP header stands at an offset. None: it is to be dropped.
#[inline(always)]
fn read<I: Ip>(packet: &Packet, at: usize, settings: &Settings, from: &Address, slot: u32) -> Option<Wanted> {
    let ip: &I = packet.at(at)?;
    if !ip.is_simple() {
        return None;
    }
    let probe: &Probe = packet.at(at + size_of::<I>())?;
    let (first, number, bears) = (probe.first.get(), probe.number.get(), probe.tag.get());
    let [a, b, c, d, kind, flags, e, f] = first.to_ne_bytes();
    if [a, b, c, d] != MAGIC {
        return None;
    }
    match kind {
        REQUEST => {
            if settings.flags & settings_flag::PROBES == 0
                || tag(&settings.probe_key, first, number) != bears
                || !is_answered(from)
            {
                return None;
            }
            let first = u64::from_ne_bytes([a, b, c, d, REPLY, flags, e, f]);
            Some(Wanted::Answer {
                first,
                tag: tag(&settings.probe_key, first, number),
                short: flags & SHORT_REPLY != 0,
            })
        }
        REPLY => {
            let state = PROBES.get_ptr_mut(u64::from_be(number))?;
            // SAFETY: at worst another probe's, which a tag of this one does not fit.
            let state = unsafe { &mut *state };
            if state.reply_tag != bears {
                return None;
            }
            if state.answered == 0 {
                state.reply_length = packet.len() - at as u32;
                state.slot = slot;
                state.answered = nanoseconds();
            }
            Some(Wanted::Nothing)
        }
        _ => None,
    }
}

/// Whether one more request is answered to this address in this second.
#[inline(always)]
fn is_answered(from: &Address) -> bool {
    let now = ticks();
    if let Some(rate) = PROBE_RATES.get_ptr_mut(from) {
        // SAFETY: at worst another peer's, whose rate is then a little off.
        let rate = unsafe { &mut *rate };
        if now.wrapping_sub(rate.since) >= SECOND {
            rate.since = now;
            rate.answered = 0;
        }
        rate.answered = rate.answered.wrapping_add(1);
        return rate.answered <= MOST_A_SECOND;
    }
    let rate = ProbeRate {
        since: now,
        answered: 1,
    };
    PROBE_RATES.insert(from, rate, 0).is_ok()
}

/// Cuts the packet off behind the probe whose IP header stands at an offset, if the answer is to be short. The IP packet's length then; the error: refused.
#[inline(always)]
fn cut<I: Ip>(packet: &mut Packet, at: usize, short: bool) -> Result<Option<u32>, ()> {
    let shortest = (size_of::<I>() + probe::LENGTH) as u32;
    let whole = at as u32 + shortest;
    if !short {
        Ok(None)
    } else if packet.len() <= whole || packet.change_length(whole) {
        Ok(Some(shortest))
    } else {
        Err(())
    }
}

/// Has the probe in the linear part whose IP header stands at an offset.
#[inline(always)]
fn pull<I: Ip>(packet: &mut Packet, at: usize) {
    packet.pull((at + size_of::<I>() + probe::LENGTH) as u32);
}

/// Takes a probe that came by a tunnel from a peer; everything before it has been checked.
#[inline(always)]
pub(crate) fn take_encapsulated<O: Ip, I: Ip>(
    packet: &mut Packet,
    settings: &Settings,
    slot: u32,
    peer: &Peer,
) -> i32 {
    pull::<I>(packet, encapsulated::<O>());
    let Some(frame) = packet.at::<Plain<O>>(0) else {
        return TC_ACT_SHOT;
    };
    let from = frame.ip.source();
    let at = encapsulated::<O>();
    let (first, tag, short) = match read::<I>(packet, at, settings, &from, slot) {
        Some(Wanted::Answer { first, tag, short }) => (first, tag, short),
        Some(Wanted::Nothing) => return TC_ACT_SHOT,
        None => return counters::drop_packet(slot, Some(peer.index), Reason::Probe),
    };
    if peer.interface == 0 {
        return counters::drop_packet(slot, Some(peer.index), Reason::NoWay);
    }
    let Ok(cut_to) = cut::<I>(packet, at, short) else {
        return counters::drop_packet(slot, Some(peer.index), Reason::NoRoom);
    };
    let Some(frame) = packet.at_mut::<Encapsulated<O, I>>(0) else {
        return counters::drop_packet(slot, Some(peer.index), Reason::NoRoom);
    };
    let ip = &mut frame.inner.ip;
    ip.turn(cut_to);
    let class = traffic_class_out(settings.traffic_class as u8, ip.class());
    frame.inner.ethernet.turn();
    frame.around.ethernet.turn();
    let whole = match cut_to {
        Some(length) => length + overhead::<O>() as u32,
        None => frame.around.outer.written(),
    };
    frame.around.outer.write(&peer.source, &from, class, HOPS, whole);
    let udp = &mut frame.around.udp;
    if let Some(length) = cut_to {
        let behind = (overhead::<O>() - size_of::<O>()) as u32;
        udp.length.set(written_length(length + behind));
    }
    udp.checksum.set(0);
    let ports = (udp.source.get(), udp.destination.get());
    let Some(place) = packet.at_mut::<Probe>(at + size_of::<I>()) else {
        return counters::drop_packet(slot, Some(peer.index), Reason::NoRoom);
    };
    place.first.set(first);
    place.tag.set(tag);
    send(
        packet,
        &peer.source,
        &from,
        ports,
        peer.interface,
        next_hop(peer),
        &peer.next_hop,
    )
}

/// Takes a probe that came by the native lane.
#[inline(always)]
pub(crate) fn take_plain<I: Ip>(packet: &mut Packet, settings: &Settings, network: &PodNetwork) -> i32 {
    pull::<I>(packet, PLAIN);
    let (first, tag, short) = match read::<I>(packet, PLAIN, settings, &network.outer, NATIVE_SLOT) {
        Some(Wanted::Answer { first, tag, short }) => (first, tag, short),
        Some(Wanted::Nothing) => return TC_ACT_SHOT,
        None => return counters::drop_packet(NATIVE_SLOT, Some(network.peer), Reason::Probe),
    };
    if network.underlay == 0 {
        return counters::drop_packet(NATIVE_SLOT, Some(network.peer), Reason::NoWay);
    }
    let Ok(cut_to) = cut::<I>(packet, PLAIN, short) else {
        return counters::drop_packet(NATIVE_SLOT, Some(network.peer), Reason::NoRoom);
    };
    let Some(frame) = packet.at_mut::<Plain<I>>(0) else {
        return counters::drop_packet(NATIVE_SLOT, Some(network.peer), Reason::NoRoom);
    };
    frame.ip.turn(cut_to);
    frame.ethernet.turn();
    let Some(place) = packet.at_mut::<Probe>(PLAIN + size_of::<I>()) else {
        return counters::drop_packet(NATIVE_SLOT, Some(network.peer), Reason::NoRoom);
    };
    place.first.set(first);
    place.tag.set(tag);
    redirect_to_neighbour(network.underlay, &network.next_hop)
}
