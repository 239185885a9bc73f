//! Egress of a tunnel device, in place of its driver (docs/datapath.md, "tunnel_egress").

use aya_ebpf::bindings::TC_ACT_UNSPEC;
use podlane_datapath_common::headers::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, vni_word};
use podlane_datapath_common::{NO_LANE_SLOT, Peer, Reason, Settings, Tunnel, tunnel_flag};

use crate::counters;
use crate::flow::{SentEncapsulated, of_packet};
use crate::kernel::{Packet, Refusal, TunnelKey};
use crate::maps;
use crate::outer::{Outer, encapsulate_by_family, is_resolved, next_hop, send};
use crate::packet::{HOPS, Ip, Ipv4, Ipv6, PLAIN, Plain, looked_at};
use crate::slots;

#[inline(always)]
pub(crate) fn run(packet: &mut Packet) -> i32 {
    let Some(settings) = maps::settings() else {
        return TC_ACT_UNSPEC;
    };
    if packet.vlan_present() != 0 {
        return TC_ACT_UNSPEC;
    }
    let Some(key) = packet.tunnel_key() else {
        return TC_ACT_UNSPEC;
    };
    let device = packet.ifindex();
    let Some((slot, tunnel)) = slots::by_device(settings, device, vni_word(key.vni)) else {
        // A stand-in's driver would write another protocol's header.
        return if slots::is_stand_in(settings, device) {
            counters::drop_packet(NO_LANE_SLOT, None, Reason::NoWay)
        } else {
            TC_ACT_UNSPEC
        };
    };
    let peer = match maps::peer(key.local) {
        Some(peer) if peer.interface != 0 => peer,
        unknown => return leave_to_driver(slot, tunnel, unknown, Reason::NoWay),
    };
    match packet.protocol() {
        ETHERTYPE_IPV4 => encapsulate::<Ipv4>(packet, settings, &key, slot, tunnel, peer),
        ETHERTYPE_IPV6 => encapsulate::<Ipv6>(packet, settings, &key, slot, tunnel, peer),
        _ => leave_to_driver(slot, tunnel, Some(peer), Reason::NoRoom),
    }
}

/// What the program cannot do the driver may, unless it is a stand-in.
#[inline(always)]
fn leave_to_driver(slot: u32, tunnel: &Tunnel, peer: Option<&Peer>, reason: Reason) -> i32 {
    if tunnel.flags & tunnel_flag::STAND_IN != 0 {
        counters::drop_packet(slot, peer.map(|peer| peer.index), reason)
    } else {
        TC_ACT_UNSPEC
    }
}

#[inline(always)]
fn encapsulate<I: Ip>(
    packet: &mut Packet,
    settings: &Settings,
    key: &TunnelKey,
    slot: u32,
    tunnel: &Tunnel,
    peer: &Peer,
) -> i32 {
    packet.pull(looked_at::<I>(PLAIN));
    let Some(frame) = packet.at::<Plain<I>>(0) else {
        return leave_to_driver(slot, tunnel, Some(peer), Reason::NoRoom);
    };
    let link = frame.ethernet.link();
    let flow = of_packet::<I>(packet, settings, PLAIN);
    let length = packet.len() - PLAIN as u32;
    let ttl = if key.ttl == 0 { HOPS } else { key.ttl };
    let outer = Outer {
        source: &peer.source,
        destination: &key.local,
        port: tunnel.port,
        vni: tunnel.vni,
        tunnel_flags: tunnel.flags,
        hops: ttl,
        link: None,
    };
    let source_port = match encapsulate_by_family::<I>(packet, settings, &outer, true) {
        Ok(port) => port,
        // The driver encapsulates what is marked so already: it leaves the inner headers' places, which are right still, as they are
        // (`iptunnel_handle_offloads`, net/ipv4/ip_tunnel_core.c). It also encapsulates packets of many segments of any kind: SCTP's, and fragments of UDP.
        Err(refusal)
            if matches!(refusal, Refusal::Encapsulated)
                || matches!(refusal, Refusal::Unsupported) && packet.gso_size() != 0 =>
        {
            if tunnel.flags & tunnel_flag::STAND_IN == 0 {
                counters::sent(slot, peer.index, length, false);
            }
            return leave_to_driver(slot, tunnel, Some(peer), Reason::NoRoom);
        }
        Err(_) => return counters::drop_packet(slot, Some(peer.index), Reason::NoRoom),
    };
    if let Some(flow) = flow {
        flow.stamp_encapsulated(
            settings,
            &SentEncapsulated {
                destination: &key.local,
                tunnel,
                slot,
                peer,
                link,
                ttl: ttl.into(),
            },
        );
    }
    counters::sent(slot, peer.index, length, false);
    let next_hop = next_hop(peer);
    if next_hop.is_some() && !is_resolved(packet, settings, peer, &key.local) {
        packet.forget_route();
    }
    send(
        packet,
        &peer.source,
        &key.local,
        (source_port, tunnel.port),
        peer.interface,
        next_hop,
        &peer.next_hop,
    )
}
