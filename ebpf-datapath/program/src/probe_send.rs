//! Sending a probe. The agent runs the program with a frame that is whole but for its link-layer addresses and its padding (docs/datapath.md,
//! "Probes").

use core::mem::size_of;

use podlane_datapath_common::headers::{ETHERTYPE_IPV4, ETHERTYPE_IPV6};
use podlane_datapath_common::{Address, ip_protocol, probe};

use crate::kernel::{FibQuery, Packet, fib_code, nanoseconds, neighbour_query};
use crate::maps::PROBES;
use crate::packet::{Ethernet, Ip, Ipv4, Ipv6, PLAIN, encapsulated};

/// Sent.
const SENT: i32 = 0;
/// Not sent, for another reason than the FIB's.
const FAILED: i32 = 255;

#[inline(always)]
pub(crate) fn run(packet: &mut Packet) -> i32 {
    send(packet).unwrap_or(FAILED)
}

#[inline(always)]
fn send(packet: &mut Packet) -> Option<i32> {
    /// The loopback device: as what such a run's packet comes when the agent names no device.
    const LOOPBACK: u32 = 1;
    /// A probe with the longest headers.
    const LONGEST: u32 = (encapsulated::<Ipv6>() + size_of::<Ipv6>() + probe::LENGTH) as u32;
    let [a, b, c, d, family] = packet.words();
    let next_hop = match family {
        4 => Address::v4(a),
        6 => Address([a, b, c, d]),
        _ => return None,
    };
    let length = packet.mark();
    if length > packet.len() && !packet.change_length(length) {
        return None;
    }
    packet.pull(LONGEST);
    let number = match packet.protocol() {
        ETHERTYPE_IPV4 => number::<Ipv4>(packet),
        ETHERTYPE_IPV6 => number::<Ipv6>(packet),
        _ => None,
    }?;
    let interface = packet.ifindex();
    let destination = match packet.protocol() {
        ETHERTYPE_IPV4 => packet.at::<Ipv4>(PLAIN)?.destination(),
        _ => packet.at::<Ipv6>(PLAIN)?.destination(),
    };
    let answer = packet.fib(&FibQuery {
        source: &Address::NONE,
        destination: neighbour_query(&next_hop, &destination),
        protocol: 0,
        source_port: 0,
        destination_port: 0,
        interface,
        output: interface != LOOPBACK,
    });
    if answer.code != fib_code::SUCCESS {
        return Some(if answer.code > 0 { answer.code } else { FAILED });
    }
    let ethernet: &mut Ethernet = packet.at_mut(0)?;
    ethernet.destination.set(answer.destination_link);
    ethernet.source.set(answer.source_link);
    let state = PROBES.get_ptr_mut(number)?;
    // SAFETY: written whole; the agent does not reuse numbers.
    unsafe { (*state).sent = nanoseconds() };
    Some(if packet.send_copy(answer.interface) {
        SENT
    } else {
        FAILED
    })
}

/// The number of the probe in a frame of this outer or only family.
#[inline(always)]
fn number<O: Ip>(packet: &Packet) -> Option<u64> {
    let ip: &O = packet.at(PLAIN)?;
    match ip.protocol() {
        ip_protocol::PROBE => number_at(packet, PLAIN + size_of::<O>()),
        ip_protocol::UDP => {
            let at = encapsulated::<O>();
            let ethernet: &Ethernet = packet.at(at - PLAIN)?;
            match u16::from_be(ethernet.ethertype.get()) {
                ETHERTYPE_IPV4 => number_at(packet, at + size_of::<Ipv4>()),
                ETHERTYPE_IPV6 => number_at(packet, at + size_of::<Ipv6>()),
                _ => None,
            }
        }
        _ => None,
    }
}

#[inline(always)]
fn number_at(packet: &Packet, at: usize) -> Option<u64> {
    /// From a probe's beginning.
    const NUMBER: usize = 8;
    packet
        .at::<[u8; 8]>(at + NUMBER)
        .map(|octets| u64::from_be_bytes(*octets))
}
