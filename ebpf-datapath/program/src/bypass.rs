//! The leased bypass: what the stack has let through lately goes past it (docs/datapath.md, "The leased bypass").

use core::mem::size_of;

use podlane_datapath_common::headers::{ECN, ecn_in};
use podlane_datapath_common::{FlowKind, FlowState, NATIVE_SLOT, Settings};

use crate::counters;
use crate::flow::Flow;
use crate::kernel::{Packet, redirect_to_neighbour, redirect_to_peer};
use crate::outer::{Outer, decapsulate, encapsulate_by_family, keeps_its_device, send};
use crate::packet::{Encapsulated, Ethernet, Ip, Ipv4, Ipv6, PLAIN, Plain, Transport, encapsulated};
use crate::wire::octets;

/// What a packet that bypasses outward as it is has in its `tc_index`, up to the underlay's egress hook: by it the hook tells that the stack has not
/// let it through. It is "PL".
pub(crate) const BYPASSED: u32 = 0x504c;

/// Whether a packet is one that may bypass at all: hops left, and not one of many segments that are not TCP's.
#[inline(always)]
fn may(hops: u8, transport: &Transport, gso_size: u32) -> bool {
    hops > 1 && (gso_size == 0 || transport.is_tcp)
}

/// A pod's packet, if its flow's stamp lets it go to the underlay at once. None: it goes up the stack.
#[inline(always)]
pub(crate) fn outward<I: Ip>(
    packet: &mut Packet,
    settings: &Settings,
    interface: u32,
    flow: &Flow<I::Flow>,
) -> Option<i32> {
    let state = flow.stamp(settings)?;
    if state.pod_interface != interface {
        return None;
    }
    let ip: &I = packet.at(PLAIN)?;
    let gso_size = packet.gso_size();
    if !may(ip.hops(), &flow.transport, gso_size) {
        return None;
    }
    let length = packet.len() - PLAIN as u32;
    let longest = if gso_size == 0 {
        length
    } else {
        gso_size + size_of::<I>() as u32 + flow.transport.length
    };
    if longest > state.mtu {
        return None;
    }
    if state.kind == FlowKind::SentEncapsulated as u32 {
        outward_encapsulated::<I>(packet, settings, state, length)
    } else if state.kind == FlowKind::SentPlain as u32 {
        take_hop::<I>(packet, PLAIN)?;
        packet.set_tc_index(BYPASSED);
        counters::sent(NATIVE_SLOT, state.peer, length, true);
        Some(redirect_to_neighbour(state.underlay, &state.next_hop))
    } else {
        None
    }
}

#[inline(always)]
fn outward_encapsulated<I: Ip>(
    packet: &mut Packet,
    settings: &Settings,
    state: &FlowState,
    length: u32,
) -> Option<i32> {
    let outer = Outer {
        source: &state.outer_source,
        destination: &state.outer_destination,
        port: state.port,
        vni: state.vni,
        tunnel_flags: state.tunnel_flags,
        hops: state.ttl as u8,
        link: Some(&state.link),
    };
    // Refused, for instance since the pod has encapsulated it itself: nothing has changed, and the stack has its way with it.
    let source_port = encapsulate_by_family::<I>(packet, settings, &outer, false).ok()?;
    if state.outer_destination.is_v4() {
        take_hop::<I>(packet, encapsulated::<Ipv4>())?;
    } else {
        take_hop::<I>(packet, encapsulated::<Ipv6>())?;
    }
    counters::sent(state.slot, state.peer, length, true);
    Some(send(
        packet,
        &state.outer_source,
        &state.outer_destination,
        (source_port, state.port),
        state.underlay,
        (state.next_hop_family != 0).then_some(&state.next_hop),
        &state.next_hop,
    ))
}

/// Takes a hop off the packet whose header stands at an offset.
#[inline(always)]
fn take_hop<I: Ip>(packet: &mut Packet, at: usize) -> Option<()> {
    let place: &mut I = packet.at_mut(at)?;
    if let Some((old, new)) = place.take_hop() {
        packet.word_changed(old, new);
    }
    Some(())
}

/// An encapsulated packet from the underlay, if its flow's stamp lets it go into the pod at once. Its tunnel header has been checked.
#[inline(always)]
pub(crate) fn inward_encapsulated<O: Ip, I: Ip>(
    packet: &mut Packet,
    settings: &Settings,
    slot: u32,
    flow: &Flow<I::Flow>,
) -> Option<i32> {
    let state = flow.stamp(settings)?;
    if state.kind != FlowKind::ReceivedEncapsulated as u32 || state.slot != slot {
        return None;
    }
    // As a packet of the outer family it would not be understood in the pod, whose device never sees its Ethernet header.
    if !keeps_its_device::<O, I>(settings) {
        return None;
    }
    let gso_size = packet.gso_size();
    let frame: &Encapsulated<O, I> = packet.at(0)?;
    let (outer, inner) = (&frame.around.outer, &frame.inner.ip);
    if !outer.goes(&state.outer_source, &state.outer_destination)
        || !may(inner.hops(), &flow.transport, gso_size)
    {
        return None;
    }
    // What cannot say that there was congestion is dropped where all else is.
    let was = inner.class();
    let class = was & !ECN | ecn_in(outer.class(), was)?;
    // Refused, nothing has changed, and it takes the long way.
    if !decapsulate::<O, I>(packet, settings) {
        return None;
    }
    if class != was {
        let ip: &mut I = packet.at_mut(PLAIN)?;
        if let Some((old, new)) = ip.set_class(class) {
            packet.word_changed(old, new);
        }
    }
    take_hop::<I>(packet, PLAIN)?;
    counters::received(slot, state.peer, packet.len() - PLAIN as u32, true);
    into_pod::<I>(packet, state)
}

/// A packet that came as it is, likewise.
#[inline(always)]
pub(crate) fn inward_plain<I: Ip>(
    packet: &mut Packet,
    settings: &Settings,
    flow: &Flow<I::Flow>,
) -> Option<i32> {
    let state = flow.stamp(settings)?;
    if state.kind != FlowKind::ReceivedPlain as u32 {
        return None;
    }
    let gso_size = packet.gso_size();
    let frame: &Plain<I> = packet.at(0)?;
    if octets(frame.ethernet.source.get()) != state.came_from
        || !may(frame.ip.hops(), &flow.transport, gso_size)
    {
        return None;
    }
    take_hop::<I>(packet, PLAIN)?;
    counters::received(NATIVE_SLOT, state.peer, packet.len() - PLAIN as u32, true);
    into_pod::<I>(packet, state)
}

/// Puts the packet into the pod as the stack would have handed it over.
#[inline(always)]
fn into_pod<I: Ip>(packet: &mut Packet, state: &FlowState) -> Option<i32> {
    let ethernet: &mut Ethernet = packet.at_mut(0)?;
    ethernet.write(&state.link, I::ETHERTYPE);
    Some(redirect_to_peer(state.pod_interface))
}
