//! Outer headers: putting them around a packet, taking them off, and the way on from there.

use aya_ebpf::bindings::{
    BPF_ADJ_ROOM_ENCAP_L2_SHIFT, BPF_F_ADJ_ROOM_DECAP_L3_IPV4, BPF_F_ADJ_ROOM_DECAP_L3_IPV6,
    BPF_F_ADJ_ROOM_ENCAP_L2_ETH, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6,
    BPF_F_ADJ_ROOM_ENCAP_L4_UDP, BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_ADJ_ROOM_NO_CSUM_RESET,
};
use core::mem::size_of;

use podlane_datapath_common::headers::{self, GENEVE_FIRST, VXLAN_FIRST, source_port, traffic_class_out};
use podlane_datapath_common::{Address, Peer, Settings, ip_protocol, peer_flag, settings_flag, tunnel_flag};

use crate::kernel::{FibQuery, Packet, Refusal, fib_code, jiffies, neighbour_query, redirect_to_neighbour};
use crate::maps::WAYS;
use crate::packet::{
    Encapsulation, Ethernet, Ip, Ipv4, Ipv6, PLAIN, Plain, encapsulated, overhead, written_length,
};

/// What outer headers say.
pub(crate) struct Outer<'a> {
    pub(crate) source: &'a Address,
    pub(crate) destination: &'a Address,
    /// Network byte order.
    pub(crate) port: u16,
    /// As the tunnel header has it.
    pub(crate) vni: u32,
    pub(crate) tunnel_flags: u16,
    pub(crate) hops: u8,
    /// The inner Ethernet addresses; none: those that the frame has.
    pub(crate) link: Option<&'a [u8; 12]>,
}

/// The first word of a tunnel's header.
#[inline(always)]
pub(crate) fn first_word(tunnel_flags: u16) -> u32 {
    if tunnel_flags & tunnel_flag::GENEVE != 0 {
        GENEVE_FIRST
    } else {
        VXLAN_FIRST
    }
}

/// Makes room for an outer header in a packet that is marked as encapsulated already: one that came by a tunnel and is about to leave by
/// another. The kernel does not mark a packet twice.
#[inline(always)]
fn make_room_again<O: Ip, I: Ip>(packet: &mut Packet) -> Result<(), Refusal> {
    let flags = u64::from(BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET);
    if O::IS_V4 == I::IS_V4 {
        return packet.adjust_room(overhead::<O>() as i32, flags);
    }
    // Without the marks the packet would keep the inner family's ethertype, by which the kernel chooses how it leaves. What changes it
    // also changes a merged packet's segments, which are of the inner family still.
    if packet.gso_size() != 0 {
        return Err(Refusal::Encapsulated);
    }
    packet.adjust_room(overhead::<I>() as i32, flags)?;
    if packet.change_protocol(O::ETHERTYPE) {
        Ok(())
    } else {
        Err(Refusal::Other)
    }
}

/// Puts outer headers around a packet. The outer source port, in network byte order.
///
/// What was refused as encapsulated has not been changed; nor has what was refused for something else, unless it was marked so.
#[inline(always)]
pub(crate) fn encapsulate<O: Ip, I: Ip>(
    packet: &mut Packet,
    settings: &Settings,
    outer: &Outer<'_>,
    again: bool,
) -> Result<u16, Refusal> {
    let inner: &Plain<I> = packet.at(0).ok_or(Refusal::Other)?;
    let link = inner.ethernet.link();
    let class = traffic_class_out(settings.traffic_class as u8, inner.ip.class());
    let hash = packet.hash();
    let family = if O::IS_V4 {
        BPF_F_ADJ_ROOM_ENCAP_L3_IPV4
    } else {
        BPF_F_ADJ_ROOM_ENCAP_L3_IPV6
    };
    let flags = u64::from(
        family
            | BPF_F_ADJ_ROOM_ENCAP_L4_UDP
            | BPF_F_ADJ_ROOM_ENCAP_L2_ETH
            | BPF_F_ADJ_ROOM_FIXED_GSO
            | BPF_F_ADJ_ROOM_NO_CSUM_RESET,
    ) | (headers::ETHERNET as u64) << BPF_ADJ_ROOM_ENCAP_L2_SHIFT;
    match packet.adjust_room(overhead::<O>() as i32, flags) {
        Err(Refusal::Encapsulated) if again => make_room_again::<O, I>(packet)?,
        done => done?,
    }
    let length = packet.len() - PLAIN as u32;
    let port = source_port(hash).to_be();
    let inner: &mut Ethernet = packet.at_mut(encapsulated::<O>() - PLAIN).ok_or(Refusal::Other)?;
    match outer.link {
        Some(link) => inner.write(link, I::ETHERTYPE),
        None => inner.write(&link, I::ETHERTYPE),
    }
    let frame: &mut Encapsulation<O> = packet.at_mut(0).ok_or(Refusal::Other)?;
    frame
        .outer
        .write(outer.source, outer.destination, class, outer.hops, length);
    frame.udp.source.set(port);
    frame.udp.destination.set(outer.port);
    frame
        .udp
        .length
        .set(written_length(length - size_of::<O>() as u32));
    // Zero says that there is none (RFC 7348, section 4.1; RFC 6935 and RFC 6936 for IPv6).
    frame.udp.checksum.set(0);
    frame.tunnel.first.set(first_word(outer.tunnel_flags));
    frame.tunnel.vni.set(outer.vni);
    Ok(port)
}

/// Hands an encapsulated packet to the underlay: to the next hop, or to the one of several that the kernel selects. The verdict.
#[inline(always)]
pub(crate) fn send(
    packet: &mut Packet,
    source: &Address,
    destination: &Address,
    ports: (u16, u16),
    interface: u32,
    next_hop: Option<&Address>,
    otherwise: &Address,
) -> i32 {
    if let Some(next_hop) = next_hop {
        return redirect_to_neighbour(interface, next_hop);
    }
    let answer = packet.fib(&FibQuery {
        source,
        destination,
        protocol: ip_protocol::UDP,
        source_port: ports.0,
        destination_port: ports.1,
        interface,
        // Bound to a device, it could not select among ways by several.
        output: false,
    });
    match answer.code {
        fib_code::SUCCESS => redirect_to_neighbour(answer.interface, &answer.next_hop),
        fib_code::NO_NEIGHBOUR => {
            packet.forget_route();
            redirect_to_neighbour(answer.interface, &answer.next_hop)
        }
        _ => redirect_to_neighbour(interface, otherwise),
    }
}

/// Whether the kernel has the link-layer address of the next hop to a peer, whose outer address is the destination, asked once a lease and CPU while it has.
#[inline(always)]
pub(crate) fn is_resolved(packet: &Packet, settings: &Settings, peer: &Peer, destination: &Address) -> bool {
    // SAFETY: this CPU's own.
    let way = WAYS.get_ptr_mut(peer.index).map(|way| unsafe { &mut *way });
    let now = jiffies();
    if let Some(way) = &way
        && way.generation == settings.generation
        && way.until.wrapping_sub(now) <= settings.lease
    {
        return true;
    }
    let answer = packet.fib(&FibQuery {
        source: &Address::NONE,
        destination: neighbour_query(&peer.next_hop, destination),
        protocol: 0,
        source_port: 0,
        destination_port: 0,
        interface: peer.interface,
        output: true,
    });
    let resolved = matches!(answer.code, fib_code::SUCCESS | fib_code::TOO_LONG);
    if resolved && let Some(way) = way {
        way.until = now.wrapping_add(settings.lease);
        way.generation = settings.generation;
    }
    resolved
}

/// The next hop of what goes to a peer; none: the kernel is to be asked.
#[inline(always)]
pub(crate) fn next_hop(peer: &Peer) -> Option<&Address> {
    (peer.flags & peer_flag::SEVERAL_WAYS == 0).then_some(&peer.next_hop)
}

/// Whether a decapsulated packet goes on as a packet of its family where it came in.
#[inline(always)]
pub(crate) fn keeps_its_device<O: Ip, I: Ip>(settings: &Settings) -> bool {
    O::IS_V4 == I::IS_V4 || settings.flags & settings_flag::DECAP_FLAGS != 0
}

/// Takes outer headers off. False: refused.
#[inline(always)]
pub(crate) fn decapsulate<O: Ip, I: Ip>(packet: &mut Packet, settings: &Settings) -> bool {
    let mut flags = u64::from(BPF_F_ADJ_ROOM_FIXED_GSO);
    if O::IS_V4 != I::IS_V4 && keeps_its_device::<O, I>(settings) {
        flags |= u64::from(if I::IS_V4 {
            BPF_F_ADJ_ROOM_DECAP_L3_IPV4
        } else {
            BPF_F_ADJ_ROOM_DECAP_L3_IPV6
        });
    }
    packet.adjust_room(-(overhead::<O>() as i32), flags).is_ok()
}

/// [`encapsulate`] in the family of the outer addresses.
#[inline(always)]
pub(crate) fn encapsulate_by_family<I: Ip>(
    packet: &mut Packet,
    settings: &Settings,
    outer: &Outer<'_>,
    again: bool,
) -> Result<u16, Refusal> {
    if outer.destination.is_v4() {
        encapsulate::<Ipv4, I>(packet, settings, outer, again)
    } else {
        encapsulate::<Ipv6, I>(packet, settings, outer, again)
    }
}
