//! Devices that lead to pods (docs/datapath.md, "pod_ingress" and "The leased bypass").

use aya_ebpf::bindings::TC_ACT_UNSPEC;
use podlane_datapath_common::headers::{ETHERTYPE_IPV4, ETHERTYPE_IPV6};
use podlane_datapath_common::{NO_LANE_SLOT, PodNetworkKind, Reason, Settings, ip_protocol, settings_flag};

use crate::kernel::Packet;
use crate::packet::{Ip, Ipv4, Ipv6, PLAIN, Plain, looked_at};
use crate::{bypass, counters, flow, maps, slots};

/// A packet from a pod.
#[inline(always)]
pub(crate) fn ingress(packet: &mut Packet) -> i32 {
    let Some(settings) = maps::settings() else {
        return TC_ACT_UNSPEC;
    };
    match packet.vlan() {
        None => {}
        // Behind this hook the kernel takes such a frame for this device's own, with or without another tag of that kind (`__netif_receive_skb_core`,
        // net/core/dev.c).
        Some(0) => return counters::drop_packet(NO_LANE_SLOT, None, Reason::PodSource),
        Some(_) => return TC_ACT_UNSPEC,
    }
    match packet.protocol() {
        ETHERTYPE_IPV4 => from_pod::<Ipv4>(packet, settings),
        ETHERTYPE_IPV6 => from_pod::<Ipv6>(packet, settings),
        _ => TC_ACT_UNSPEC,
    }
}

#[inline(always)]
fn from_pod<I: Ip>(packet: &mut Packet, settings: &Settings) -> i32 {
    packet.pull(looked_at::<I>(PLAIN));
    let Some(frame) = packet.at::<Plain<I>>(0) else {
        return TC_ACT_UNSPEC;
    };
    if !frame.ip.is_sound() {
        return TC_ACT_UNSPEC;
    }
    if frame.ip.stays_on_link() {
        // Not forwarded, it may be this node's all the same (broadcast, multicast, link-local), and the driver then takes it, with whatever source.
        return if may_enter_tunnel(packet, &frame.ip, settings) {
            counters::drop_packet(NO_LANE_SLOT, None, Reason::TunnelPort)
        } else {
            TC_ACT_UNSPEC
        };
    }
    let interface = packet.ifindex();
    let flow = flow::of_packet::<I>(packet, settings, PLAIN);
    if let Some(flow) = &flow {
        if let Some(verdict) = bypass::outward::<I>(packet, settings, interface, flow) {
            return verdict;
        }
        if flow.is_known_from(settings, interface) {
            flow.note_sent(settings, interface);
            return TC_ACT_UNSPEC;
        }
    }
    let Some(ip) = packet.at::<I>(PLAIN) else {
        return TC_ACT_UNSPEC;
    };
    let is_pods = ip
        .source_key()
        .and_then(maps::owner)
        .is_some_and(|owner| owner.kind == PodNetworkKind::Local as u32 && owner.interface == interface);
    if !is_pods {
        return counters::drop_packet(NO_LANE_SLOT, None, Reason::PodSource);
    }
    if may_enter_tunnel(packet, ip, settings) && ip.destination_key().and_then(maps::peer).is_some() {
        return counters::drop_packet(NO_LANE_SLOT, None, Reason::TunnelPort);
    }
    if let Some(flow) = &flow {
        flow.note_sent(settings, interface);
    }
    TC_ACT_UNSPEC
}

/// Whether a packet is, or may be, UDP to an open tunnel's port: a peer would take it, behind this node's own address, for encapsulated by this node.
#[inline(always)]
fn may_enter_tunnel<I: Ip>(packet: &Packet, ip: &I, settings: &Settings) -> bool {
    /// From a UDP header's beginning.
    const DESTINATION_PORT: u32 = 2;
    match udp_at(packet, ip) {
        Udp::Absent => false,
        Udp::Hidden => true,
        Udp::At(at) => packet
            .copy::<2>(at + DESTINATION_PORT)
            .is_none_or(|port| slots::has_port(settings, u16::from_ne_bytes(port))),
    }
}

/// Where a packet's UDP header is.
enum Udp {
    /// There is none: another protocol, or a fragment other than the first, which nobody puts together without the first.
    Absent,
    /// At this offset.
    At(u32),
    /// Behind what could not be walked to its end.
    Hidden,
}

/// Looks for a UDP header, behind IPv4 options or IPv6 extension headers.
#[inline(always)]
fn udp_at<I: Ip>(packet: &Packet, ip: &I) -> Udp {
    /// Extension headers, at most.
    const HEADERS: u32 = 8;
    let mut at = PLAIN as u32 + ip.length();
    if I::IS_V4 {
        return if ip.protocol() == ip_protocol::UDP && !ip.is_later_fragment() {
            Udp::At(at)
        } else {
            Udp::Absent
        };
    }
    let mut protocol = ip.protocol();
    let mut walked = 0;
    while walked <= HEADERS {
        if protocol == ip_protocol::UDP {
            return Udp::At(at);
        }
        if !extension::is_one(protocol) {
            return Udp::Absent;
        }
        if walked == HEADERS {
            break;
        }
        let Some([next, length, a, b, ..]) = packet.copy::<8>(at) else {
            return Udp::Hidden;
        };
        if protocol == extension::FRAGMENT && u16::from_be_bytes([a, b]) & extension::FRAGMENT_OFFSET != 0 {
            return Udp::Absent;
        }
        at += extension::octets(protocol, length);
        protocol = next;
        walked += 1;
    }
    Udp::Hidden
}

/// Extension headers of IPv6 that the kernel walks (`ipv6_ext_hdr`, net/ipv6/exthdrs_core.c).
mod extension {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    pub(super) const FRAGMENT: u8 = 44;
    const AUTHENTICATION: u8 = 51;
    const DESTINATION: u8 = 60;
    /// Of a fragment header's second word of sixteen bits (RFC 8200, section 4.5).
    pub(super) const FRAGMENT_OFFSET: u16 = 0xfff8;

    #[inline(always)]
    pub(super) fn is_one(protocol: u8) -> bool {
        matches!(
            protocol,
            HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION
        )
    }

    /// How long one is whose second octet is this (RFC 8200, section 4; RFC 4302, section 2.2).
    #[inline(always)]
    pub(super) fn octets(protocol: u8, length: u8) -> u32 {
        match protocol {
            FRAGMENT => 8,
            AUTHENTICATION => (u32::from(length) + 2) * 4,
            _ => (u32::from(length) + 1) * 8,
        }
    }
}

/// A packet to a pod, behind the stack.
#[inline(always)]
pub(crate) fn egress(packet: &mut Packet) -> i32 {
    let Some(settings) = maps::settings() else {
        return TC_ACT_UNSPEC;
    };
    if settings.flags & settings_flag::BYPASS == 0 || packet.vlan_present() != 0 {
        return TC_ACT_UNSPEC;
    }
    match packet.protocol() {
        ETHERTYPE_IPV4 => to_pod::<Ipv4>(packet, settings),
        ETHERTYPE_IPV6 => to_pod::<Ipv6>(packet, settings),
        _ => {}
    }
    TC_ACT_UNSPEC
}

#[inline(always)]
fn to_pod<I: Ip>(packet: &mut Packet, settings: &Settings) {
    packet.pull(looked_at::<I>(PLAIN));
    let Some(frame) = packet.at::<Plain<I>>(0) else {
        return;
    };
    let ip = &frame.ip;
    if !ip.is_sound() {
        return;
    }
    let link = frame.ethernet.link();
    let interface = packet.ifindex();
    if let Some(flow) = flow::of_packet::<I>(packet, settings, PLAIN) {
        flow.stamp_received(settings, interface, link, || {
            ip.destination_key().and_then(maps::owner).is_some_and(|owner| {
                owner.kind == PodNetworkKind::Local as u32 && owner.interface == interface
            })
        });
    }
}
