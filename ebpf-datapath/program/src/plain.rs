//! Packets on the underlay that no tunnel carries: those that claim a pod's source (docs/datapath.md, "underlay_ingress, plain packets"), and what
//! leaves by the native lane ("underlay_egress").

use aya_ebpf::bindings::TC_ACT_UNSPEC;
use podlane_datapath_common::headers::{ETHERTYPE_IPV4, ETHERTYPE_IPV6};
use podlane_datapath_common::{
    Address, NATIVE_SLOT, PodNetwork, PodNetworkKind, Reason, Settings, pod_network_flag, settings_flag,
};

use crate::bypass::{self, BYPASSED};
use crate::kernel::{FibQuery, Packet, SECOND, fib_code, ticks};
use crate::maps::{self, NEIGHBOURS, Neighbour};
use crate::packet::{Ip, Ipv4, Ipv6, PLAIN, Plain, looked_at};
use crate::wire::octets;
use crate::{counters, flow, inner, probe};

/// A packet that came by the underlay. Its headers have been found sound.
#[inline(always)]
pub(crate) fn run<I: Ip>(packet: &mut Packet, settings: &Settings) -> i32 {
    if settings.flags & settings_flag::CHECK_UNDERLAY == 0 {
        return TC_ACT_UNSPEC;
    }
    let Some(frame) = packet.at::<Plain<I>>(0) else {
        return TC_ACT_UNSPEC;
    };
    let came_from = octets(frame.ethernet.source.get());
    if !frame.ip.source_within(&settings.pods4, &settings.pods6) {
        return TC_ACT_UNSPEC;
    }
    let flow = flow::of_packet::<I>(packet, settings, PLAIN);
    if let Some(flow) = &flow
        && let Some(verdict) = bypass::inward_plain::<I>(packet, settings, flow)
    {
        return verdict;
    }
    let Some(frame) = packet.at::<Plain<I>>(0) else {
        return TC_ACT_UNSPEC;
    };
    let Some(network) = frame.ip.source_key().and_then(maps::owner) else {
        return TC_ACT_UNSPEC;
    };
    if network.kind != PodNetworkKind::Peer as u32 {
        return counters::drop_packet(NATIVE_SLOT, None, Reason::PlainPodSource);
    }
    if network.flags & pod_network_flag::NATIVE == 0 || settings.flags & settings_flag::NATIVE == 0 {
        return counters::drop_packet(NATIVE_SLOT, Some(network.peer), Reason::PlainPodSource);
    }
    if network.flags & pod_network_flag::ON_LINK != 0 && !is_neighbours(packet, came_from, &network.next_hop)
    {
        return counters::drop_packet(NATIVE_SLOT, Some(network.peer), Reason::WrongLinkAddress);
    }
    if inner::is_probe(&frame.ip, settings) {
        return probe::take_plain::<I>(packet, settings, network);
    }
    counters::received(NATIVE_SLOT, network.peer, packet.len() - PLAIN as u32, false);
    if let Some(flow) = &flow {
        flow.note_plain(settings, came_from, network);
    }
    TC_ACT_UNSPEC
}

/// Whether a frame's source is the link-layer address of a neighbour, as the kernel knows it or has known it lately. What differs from what was
/// known is no reason to refuse it without asking: the neighbour may have moved to another address.
#[inline(always)]
fn is_neighbours(packet: &Packet, came_from: [u8; 6], neighbour: &Address) -> bool {
    let [a, b, c, d, e, f] = came_from;
    let came_from = [a, b, c, d, e, f, 0, 0];
    let now = ticks();
    // SAFETY: what is read is compared, and at worst another neighbour's, who then does not match.
    let known = unsafe { NEIGHBOURS.get(neighbour) };
    if let Some(known) = known
        && now.wrapping_sub(known.asked) < SECOND
        && known.link == came_from
    {
        return true;
    }
    let answer = packet.fib(&FibQuery {
        source: &Address::NONE,
        destination: neighbour,
        protocol: 0,
        source_port: 0,
        destination_port: 0,
        interface: packet.ifindex(),
        output: true,
    });
    if matches!(answer.code, fib_code::SUCCESS | fib_code::TOO_LONG) && answer.next_hop == *neighbour {
        let [a, b, c, d, e, f] = octets(answer.destination_link);
        let link = [a, b, c, d, e, f, 0, 0];
        // Without room for it the kernel is asked again.
        let _ = NEIGHBOURS.insert(neighbour, Neighbour { asked: now, link }, 0);
        return link == came_from;
    }
    known.is_some_and(|known| known.link == came_from)
}

/// A packet that leaves by the underlay.
#[inline(always)]
pub(crate) fn leave(packet: &mut Packet) -> i32 {
    let Some(settings) = maps::settings() else {
        return TC_ACT_UNSPEC;
    };
    if packet.tc_index() == BYPASSED {
        // The stack has not seen it, and it was counted.
        packet.set_tc_index(0);
        return TC_ACT_UNSPEC;
    }
    if packet.vlan_present() != 0 {
        return TC_ACT_UNSPEC;
    }
    match packet.protocol() {
        ETHERTYPE_IPV4 => leave_in_family::<Ipv4>(packet, settings),
        ETHERTYPE_IPV6 => leave_in_family::<Ipv6>(packet, settings),
        _ => TC_ACT_UNSPEC,
    }
}

#[inline(always)]
fn leave_in_family<I: Ip>(packet: &mut Packet, settings: &Settings) -> i32 {
    packet.pull(looked_at::<I>(PLAIN));
    let Some(frame) = packet.at::<Plain<I>>(0) else {
        return TC_ACT_UNSPEC;
    };
    let ip = &frame.ip;
    if !ip.is_sound() || !ip.destination_within(&settings.pods4, &settings.pods6) {
        return TC_ACT_UNSPEC;
    }
    let Some(network) = ip.destination_key().and_then(maps::owner) else {
        return TC_ACT_UNSPEC;
    };
    if network.kind != PodNetworkKind::Peer as u32 {
        return TC_ACT_UNSPEC;
    }
    counters::sent(NATIVE_SLOT, network.peer, packet.len() - PLAIN as u32, false);
    stamp::<I>(packet, settings, network);
    TC_ACT_UNSPEC
}

#[inline(always)]
fn stamp<I: Ip>(packet: &Packet, settings: &Settings, network: &PodNetwork) {
    let interface = packet.ifindex();
    if network.underlay == interface
        && network.next_hop != Address::NONE
        && let Some(flow) = flow::of_packet::<I>(packet, settings, PLAIN)
    {
        flow.stamp_plain(settings, interface, network);
    }
}
