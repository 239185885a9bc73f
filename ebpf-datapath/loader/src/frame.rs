//! A probe's frame, as `probe_send` takes it: without its padding and its outermost link-layer addresses.

use crate::probes::{Over, ProbeToSend};
use podlane_datapath_common::headers::{
    ETHERNET, ETHERTYPE_IPV4, ETHERTYPE_IPV6, GENEVE_FIRST, IPV4, IPV6, TUNNEL, UDP, VXLAN_FIRST, checksum,
    source_port, vni_word,
};
use podlane_datapath_common::ip_protocol;
use podlane_datapath_common::probe::{LENGTH, MAGIC, REPLY, REQUEST, SHORT_REPLY, sip_hash};
use podlane_plan::kernel::MacAddress;
use podlane_plan::lane::{TunnelProtocol, tunnel_overhead};
use std::net::IpAddr;

/// Hops that a probe may make.
const HOPS: u8 = 64;

/// A frame, and what comes back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    /// The frame up to the end of the probe's own header.
    pub(crate) octets: Vec<u8>,
    /// The whole frame's length, with padding.
    pub(crate) length: u32,
    /// The tag that the answer bears, as it stands in the packet.
    pub(crate) reply_tag: u64,
}

/// The shortest IP packet that holds a probe.
pub(crate) const fn shortest(inner: &IpAddr) -> u16 {
    (match inner {
        IpAddr::V4(_) => IPV4,
        IpAddr::V6(_) => IPV6,
    } + LENGTH) as u16
}

pub(crate) fn frame(probe: &ProbeToSend) -> Frame {
    let (header, reply_tag) = header(probe);
    let mut octets = Vec::new();
    if let Over::Tunnel {
        tunnel,
        source,
        destination,
        dscp,
    } = probe.over
    {
        let outer = probe.length + tunnel_overhead(&source) as u16;
        ethernet(&mut octets, [0; 6], [0; 6], &source);
        ip(
            &mut octets,
            source,
            destination,
            outer,
            ip_protocol::UDP,
            dscp << 2,
        );
        let ip_length = match source {
            IpAddr::V4(_) => IPV4,
            IpAddr::V6(_) => IPV6,
        } as u16;
        octets.extend(source_port(probe.number as u32 ^ (probe.number >> 32) as u32).to_be_bytes());
        octets.extend(tunnel.port.to_be_bytes());
        octets.extend((outer - ip_length).to_be_bytes());
        // No checksum (RFC 7348, section 4.1; RFC 6935).
        octets.extend([0, 0]);
        octets.extend(
            match tunnel.protocol {
                TunnelProtocol::Vxlan => VXLAN_FIRST,
                TunnelProtocol::Geneve => GENEVE_FIRST,
            }
            .to_ne_bytes(),
        );
        octets.extend(vni_word(tunnel.vni).to_ne_bytes());
        let (from, to) = (MacAddress::of_node(&source), MacAddress::of_node(&destination));
        ethernet(&mut octets, to.0, from.0, &probe.source);
    } else {
        ethernet(&mut octets, [0; 6], [0; 6], &probe.source);
    }
    ip(
        &mut octets,
        probe.source,
        probe.destination,
        probe.length,
        ip_protocol::PROBE,
        0,
    );
    octets.extend(header);
    let padding = u32::from(probe.length - shortest(&probe.source));
    Frame {
        length: octets.len() as u32 + padding,
        octets,
        reply_tag,
    }
}

/// The probe's own header, and the tag of its answer: the same header with another kind, under the same key.
fn header(probe: &ProbeToSend) -> ([u8; LENGTH], u64) {
    let mut header = [0; LENGTH];
    header[..4].copy_from_slice(&MAGIC);
    header[4] = REQUEST;
    header[5] = if probe.short_reply { SHORT_REPLY } else { 0 };
    header[6..8].copy_from_slice(&probe.length.to_be_bytes());
    header[8..16].copy_from_slice(&probe.number.to_be_bytes());
    let request = tag(&header, &probe.key);
    let mut reply = header;
    reply[4] = REPLY;
    header[16..].copy_from_slice(&request);
    (header, u64::from_ne_bytes(tag(&reply, &probe.key)))
}

/// As it stands in the packet: little-endian, as SipHash's authors give its result.
fn tag(header: &[u8; LENGTH], key: &[u64; 2]) -> [u8; 8] {
    let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|octet| header[at + octet]));
    sip_hash(key, &[word(0), word(8)]).to_le_bytes()
}

fn ethernet(octets: &mut Vec<u8>, destination: [u8; 6], source: [u8; 6], inner: &IpAddr) {
    octets.extend(destination);
    octets.extend(source);
    let kind = match inner {
        IpAddr::V4(_) => ETHERTYPE_IPV4,
        IpAddr::V6(_) => ETHERTYPE_IPV6,
    };
    octets.extend(kind.to_be_bytes());
}

/// An IP header of a packet of this length. IPv4: not to be fragmented, without an identification (RFC 6864, section 4.1).
fn ip(octets: &mut Vec<u8>, source: IpAddr, destination: IpAddr, length: u16, protocol: u8, class: u8) {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut header = [0; IPV4];
            header[0] = 0x45;
            header[1] = class;
            header[2..4].copy_from_slice(&length.to_be_bytes());
            header[6] = 0x40;
            header[8] = HOPS;
            header[9] = protocol;
            header[12..16].copy_from_slice(&source.octets());
            header[16..].copy_from_slice(&destination.octets());
            let words = std::array::from_fn(|at| u16::from_ne_bytes([header[2 * at], header[2 * at + 1]]));
            header[10..12].copy_from_slice(&checksum(&words).to_ne_bytes());
            octets.extend(header);
        }
        (source, destination) => {
            let six = |address: IpAddr| match address {
                IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
                IpAddr::V6(address) => address.octets(),
            };
            octets.extend([0x60 | class >> 4, class << 4, 0, 0]);
            octets.extend((length - IPV6 as u16).to_be_bytes());
            octets.extend([protocol, HOPS]);
            octets.extend(six(source));
            octets.extend(six(destination));
        }
    }
}

// What a tunnel adds, in one place as a sum and here one after the other.
const _: () = assert!(IPV4 + UDP + TUNNEL + ETHERNET == 50);

#[cfg(test)]
mod tests;
