//! Headers put on and taken off.

use super::layers::{Family, Ip};
use super::{Node, Packet};
use podlane_datapath_common::{Address, Tunnel, headers, ip_protocol, tunnel_flag};

/// The one's complement of the one's complement sum of a header, its checksum left out (RFC 791, section 3.1; RFC 1071).
pub(crate) fn header_checksum(header: &[u8]) -> [u8; 2] {
    let mut sum: u64 = 0;
    for (index, pair) in header.chunks(2).enumerate() {
        if index != 5 {
            sum += u64::from(u16::from_be_bytes([pair[0], pair[1]]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

/// What a header's change of one word does to its checksum (RFC 1624, equation 3): a wrong checksum stays wrong.
fn adjust_checksum(header: &mut [u8], at: usize, was: u16) {
    let word = |header: &[u8], at: usize| u64::from(u16::from_be_bytes([header[at], header[at + 1]]));
    let mut sum = (word(header, 10) ^ 0xffff) + u64::from(!was) + word(header, at);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    header[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
}

/// RFC 6040, figure 4, row by row (inner) and column by column (outer Not-ECT, ECT(0), ECT(1), CE); none: drop.
pub(crate) fn ecn_after_decapsulation(outer: u8, inner: u8) -> Option<u8> {
    const NOT: u8 = 0b00;
    const ECT0: u8 = 0b10;
    const ECT1: u8 = 0b01;
    const CE: u8 = 0b11;
    let column = match outer & 3 {
        NOT => 0,
        ECT0 => 1,
        ECT1 => 2,
        _ => 3,
    };
    match inner & 3 {
        NOT => [Some(NOT), Some(NOT), Some(NOT), None][column],
        ECT0 => [Some(ECT0), Some(ECT0), Some(ECT1), Some(CE)][column],
        ECT1 => [Some(ECT1), Some(ECT1), Some(ECT1), Some(CE)][column],
        _ => Some(CE),
    }
}

/// Writes a traffic class's ECN bits.
pub(super) fn set_ecn(frame: &mut [u8], ip: &Ip, ecn: u8) {
    let header = &mut frame[ip.at..];
    match ip.family {
        Family::V4 => {
            let was = u16::from_be_bytes([header[0], header[1]]);
            header[1] = header[1] & !3 | ecn;
            if u16::from_be_bytes([header[0], header[1]]) != was {
                adjust_checksum(header, 0, was);
            }
        }
        Family::V6 => header[1] = header[1] & !0x30 | ecn << 4,
    }
}

/// One hop less.
pub(super) fn lower_ttl(frame: &mut [u8], ip: &Ip) {
    let header = &mut frame[ip.at..];
    match ip.family {
        Family::V4 => {
            let was = u16::from_be_bytes([header[8], header[9]]);
            header[8] -= 1;
            adjust_checksum(header, 8, was);
        }
        Family::V6 => header[7] -= 1,
    }
}

/// The packet as the stack forwards it.
pub(crate) fn forwarded(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    if let Some(ip) = Ip::behind_ethernet(&frame.clone(), 0) {
        lower_ttl(&mut frame, &ip);
    }
    frame
}

/// What the outer headers of a packet sent have to say.
pub(super) struct Outer<'a> {
    pub(super) source: Address,
    pub(super) destination: Address,
    pub(super) ttl: u8,
    pub(super) tunnel: &'a Tunnel,
    /// The inner Ethernet addresses, destination first.
    pub(super) link: [u8; 12],
}

impl Node {
    /// The packet with outer headers before it. The outer Ethernet addresses are the inner ones' (the neighbour's are written on the way out), the UDP source
    /// port is 0: the kernel's hash is its own secret, so whoever compares has to leave it out.
    pub(super) fn encapsulate(&self, packet: &Packet<'_>, ip: &Ip, outer: &Outer<'_>) -> Vec<u8> {
        let family = if outer.source.is_v4() {
            Family::V4
        } else {
            Family::V6
        };
        let inner_ip = &packet.frame[headers::ETHERNET..];
        let udp_length = (headers::UDP + headers::TUNNEL + headers::ETHERNET + inner_ip.len()) as u16;
        let traffic_class = self.settings.traffic_class as u8 & 0xfc | ip.traffic_class & 3;

        let mut frame = outer.link.to_vec();
        frame.extend(family.ethertype().to_be_bytes());
        match family {
            Family::V4 => {
                let mut header = vec![0x45, traffic_class];
                header.extend((headers::IPV4 as u16 + udp_length).to_be_bytes());
                header.extend([0, 0, 0x40, 0, outer.ttl, ip_protocol::UDP, 0, 0]);
                header.extend(&outer.source.octets()[12..]);
                header.extend(&outer.destination.octets()[12..]);
                let checksum = header_checksum(&header);
                header[10..12].copy_from_slice(&checksum);
                frame.extend(header);
            }
            Family::V6 => {
                frame.extend([0x60 | traffic_class >> 4, traffic_class << 4, 0, 0]);
                frame.extend(udp_length.to_be_bytes());
                frame.extend([ip_protocol::UDP, outer.ttl]);
                frame.extend(outer.source.octets());
                frame.extend(outer.destination.octets());
            }
        }
        frame.extend([0, 0]);
        frame.extend(outer.tunnel.port.to_ne_bytes());
        frame.extend(udp_length.to_be_bytes());
        frame.extend([0, 0]);
        frame.extend(first_word(outer.tunnel));
        frame.extend(outer.tunnel.vni.to_ne_bytes());
        frame.extend(outer.link);
        frame.extend(ip.family.ethertype().to_be_bytes());
        frame.extend(inner_ip);
        frame
    }
}

/// The first four octets of a tunnel's header: RFC 7348, section 5; RFC 8926, section 3.4.
pub(super) fn first_word(tunnel: &Tunnel) -> [u8; 4] {
    if tunnel.flags & tunnel_flag::GENEVE != 0 {
        [0, 0, 0x65, 0x58]
    } else {
        [0x08, 0, 0, 0]
    }
}

/// What is left once outer headers are taken off: the outer Ethernet addresses, the inner ethertype, the inner packet.
pub(super) fn decapsulated(frame: &[u8], inner: &Ip) -> Vec<u8> {
    let mut left = frame[..12].to_vec();
    left.extend(inner.family.ethertype().to_be_bytes());
    left.extend(&frame[inner.at..]);
    left
}
