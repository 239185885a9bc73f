//! Ingress of an underlay device (docs/datapath.md, "underlay_ingress").

use aya_ebpf::bindings::TC_ACT_UNSPEC;
use podlane_datapath_common::headers::{ECN, ETHERTYPE_IPV4, ETHERTYPE_IPV6, VXLAN_FIRST, ecn_in};
use podlane_datapath_common::{
    NO_LANE_SLOT, Peer, Reason, Settings, Tunnel, ip_protocol, settings_flag, tunnel_flag,
};

use crate::kernel::{Packet, redirect_in};
use crate::outer::{decapsulate, first_word, keeps_its_device};
use crate::packet::{
    Encapsulated, Encapsulation, Ethernet, Ip, Ipv4, Ipv6, PLAIN, Plain, encapsulated, looked_at,
};
use crate::{bypass, counters, flow, inner, maps, plain, probe, slots};

#[inline(always)]
pub(crate) fn run(packet: &mut Packet) -> i32 {
    let Some(settings) = maps::settings() else {
        return TC_ACT_UNSPEC;
    };
    if let Err(verdict) = untag(packet) {
        return verdict;
    }
    match packet.protocol() {
        ETHERTYPE_IPV4 => of_family::<Ipv4>(packet, settings),
        ETHERTYPE_IPV6 => of_family::<Ipv6>(packet, settings),
        _ => TC_ACT_UNSPEC,
    }
}

/// Takes a priority tag off, which has no VLAN's number: the kernel, too, takes such a frame for this device's own, behind this hook
/// (`__netif_receive_skb_core`, net/core/dev.c). The error: what becomes of a frame that is another device's, or has two such tags, by which
/// nobody says anything.
#[inline(always)]
fn untag(packet: &mut Packet) -> Result<(), i32> {
    match packet.vlan() {
        None => Ok(()),
        Some(0) => match packet.take_tag().then(|| packet.vlan()) {
            Some(None) => Ok(()),
            Some(Some(1..)) => Err(TC_ACT_UNSPEC),
            Some(Some(0)) | None => Err(counters::drop_packet(NO_LANE_SLOT, None, Reason::Malformed)),
        },
        Some(_) => Err(TC_ACT_UNSPEC),
    }
}

#[inline(always)]
fn of_family<O: Ip>(packet: &mut Packet, settings: &Settings) -> i32 {
    packet.pull(looked_at::<O>(PLAIN));
    let Some(frame) = packet.at::<Plain<O>>(0).filter(|frame| frame.ip.is_sound()) else {
        return TC_ACT_UNSPEC;
    };
    if frame.ip.protocol() == ip_protocol::UDP
        && frame.ip.is_simple()
        && let Some(frame) = packet.at::<Encapsulation<O>>(0)
    {
        let (first, whole) = (frame.tunnel.first.get(), frame.tunnel.vni.get());
        // The last octet is reserved: it says nothing about which tunnel this is, only whether it is well-formed.
        let vni = whole & 0xffff_ff00_u32.to_be();
        if let Some((slot, tunnel)) = slots::by_port(settings, frame.udp.destination.get(), vni) {
            if whole != tunnel.vni || first != first_word(tunnel.flags) {
                return counters::drop_packet(slot, None, Reason::BadHeader);
            }
            return from_tunnel::<O>(packet, settings, slot, tunnel);
        }
    }
    plain::run::<O>(packet, settings)
}

/// A packet for us, with a right tunnel header.
#[inline(always)]
fn from_tunnel<O: Ip>(packet: &mut Packet, settings: &Settings, slot: u32, tunnel: &Tunnel) -> i32 {
    packet.pull(looked_at::<Ipv4>(encapsulated::<O>()));
    let ethertype = packet
        .at::<Ethernet>(encapsulated::<O>() - PLAIN)
        .map_or(0, |ethernet| u16::from_be(ethernet.ethertype.get()));
    match ethertype {
        ETHERTYPE_IPV4 => with_inner::<O, Ipv4>(packet, settings, slot, tunnel),
        ETHERTYPE_IPV6 => with_inner::<O, Ipv6>(packet, settings, slot, tunnel),
        _ => match sender::<O>(packet, slot) {
            Ok(peer) => counters::drop_packet(slot, Some(peer.index), Reason::Malformed),
            Err(dropped) => dropped,
        },
    }
}

/// The peer that has encapsulated the packet. The error: that it was dropped.
#[inline(always)]
fn sender<O: Ip>(packet: &Packet, slot: u32) -> Result<&'static Peer, i32> {
    let Some(frame) = packet.at::<Plain<O>>(0) else {
        return Err(TC_ACT_UNSPEC);
    };
    let outer = &frame.ip;
    let Some(peer) = outer.source_key().and_then(maps::peer) else {
        return Err(counters::drop_packet(slot, None, Reason::NoPeer));
    };
    if outer.destination_key() != Some(peer.source) || peer.tunnels & 1 << slot == 0 {
        return Err(counters::drop_packet(slot, Some(peer.index), Reason::ForgedOuter));
    }
    Ok(peer)
}

#[inline(always)]
fn with_inner<O: Ip, I: Ip>(packet: &mut Packet, settings: &Settings, slot: u32, tunnel: &Tunnel) -> i32 {
    if !I::IS_V4 {
        packet.pull(looked_at::<I>(encapsulated::<O>()));
    }
    let flow = flow::of_packet::<I>(packet, settings, encapsulated::<O>());
    if let Some(flow) = &flow
        && let Some(verdict) = bypass::inward_encapsulated::<O, I>(packet, settings, slot, flow)
    {
        return verdict;
    }
    let peer = match sender::<O>(packet, slot) {
        Ok(peer) => peer,
        Err(dropped) => return dropped,
    };
    if let Err(reason) = inner::check::<I>(packet, encapsulated::<O>(), settings, peer) {
        return counters::drop_packet(slot, Some(peer.index), reason);
    }
    let gso_size = packet.gso_size();
    let Some(frame) = packet.at_mut::<Encapsulated<O, I>>(0) else {
        return counters::drop_packet(slot, Some(peer.index), Reason::Malformed);
    };
    let (outer, ip) = (&frame.around.outer, &mut frame.inner.ip);
    if inner::is_probe(ip, settings) {
        return probe::take_encapsulated::<O, I>(packet, settings, slot, peer);
    }
    let Some(ecn) = ecn_in(outer.class(), ip.class()) else {
        return counters::drop_packet(slot, Some(peer.index), Reason::EcnInvalid);
    };
    let class = ip.class() & !ECN | ecn;
    if class != ip.class() {
        let changed = ip.set_class(class);
        if let Some((old, new)) = changed {
            packet.word_changed(old, new);
        }
    }
    let Some(frame) = packet.at::<Encapsulated<O, I>>(0) else {
        return TC_ACT_UNSPEC;
    };
    if gso_size != 0 && frame.inner.ip.protocol() != ip_protocol::TCP {
        return to_driver::<O>(packet, tunnel);
    }
    if let Some(flow) = &flow {
        flow.note_encapsulated(settings, &frame.around.outer, tunnel, slot, peer);
    }
    if !decapsulate::<O, I>(packet, settings) {
        return to_driver::<O>(packet, tunnel);
    }
    counters::received(slot, peer.index, packet.len() - PLAIN as u32, false);
    let Some(ethernet) = packet.at_mut::<Ethernet>(0) else {
        return TC_ACT_UNSPEC;
    };
    if O::IS_V4 != I::IS_V4 {
        ethernet.ethertype.set(I::ETHERTYPE.to_be());
    }
    if keeps_its_device::<O, I>(settings) && settings.flags & settings_flag::ENTER_BY_TUNNEL == 0 {
        return TC_ACT_UNSPEC;
    }
    let word = |at: usize| u16::from_ne_bytes([tunnel.mac[at], tunnel.mac[at + 1]]);
    ethernet.destination.set([word(0), word(2), word(4)]);
    redirect_in(tunnel.device)
}

/// Leaves the packet to the kernel's driver, which a stand-in's understands only as VXLAN. A packet of many segments that are not TCP's keeps the marks of a UDP tunnel's, which only the kernel's driver takes away: without it they would be lost
/// where they are to be told apart. `tunnel_ingress` gets what the driver makes of it.
#[inline(always)]
fn to_driver<O: Ip>(packet: &mut Packet, tunnel: &Tunnel) -> i32 {
    if tunnel.flags & tunnel_flag::STAND_IN != 0
        && let Some(frame) = packet.at_mut::<Encapsulation<O>>(0)
    {
        let old = frame.tunnel.first.get();
        frame.tunnel.first.set(VXLAN_FIRST);
        packet.word_changed(old, VXLAN_FIRST);
    }
    TC_ACT_UNSPEC
}
