//! Packets made by hand, with every length and checksum right.

use crate::model::{Family, header_checksum};
use podlane_datapath_common::{headers, ip_protocol, probe};
use std::net::IpAddr;

/// Link-layer addresses, destination first.
pub(crate) type Link = [[u8; 6]; 2];

/// TCP flags (RFC 9293, section 3.1).
pub(crate) const FIN: u8 = 1;
pub(crate) const SYN: u8 = 2;
pub(crate) const RST: u8 = 4;
pub(crate) const ACK: u8 = 16;

/// What an IP packet carries.
#[derive(Clone, Debug)]
pub(crate) enum Body {
    /// Ports and octets of payload.
    Udp(u16, u16, usize),
    /// Ports, flags and octets of payload.
    Tcp(u16, u16, u8, usize),
    /// A protocol and its octets as they are.
    Other(u8, Vec<u8>),
}

/// An IP packet.
#[derive(Clone, Debug)]
pub(crate) struct IpPacket {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) ttl: u8,
    pub(crate) traffic_class: u8,
    /// IPv4: flags and fragment offset.
    pub(crate) fragment: u16,
    /// IPv4 options, padded to four octets; IPv6 extension headers as they are, each naming its next (the first is of the kind `first`).
    pub(crate) options: Vec<u8>,
    /// IPv6: the first extension header's kind, where `options` has some.
    pub(crate) first: u8,
    pub(crate) body: Body,
}

/// An IP packet of usual fields.
pub(crate) fn ip_packet(source: &str, destination: &str, body: Body) -> IpPacket {
    IpPacket {
        source: source.parse().expect("an address"),
        destination: destination.parse().expect("an address"),
        ttl: 64,
        traffic_class: 0,
        fragment: 0,
        options: Vec::new(),
        first: 0,
        body,
    }
}

/// UDP between two usual ports.
pub(crate) fn udp(source: &str, destination: &str) -> IpPacket {
    ip_packet(source, destination, Body::Udp(40_000, 7, 32))
}

/// TCP between two usual ports.
pub(crate) fn tcp(source: &str, destination: &str, flags: u8) -> IpPacket {
    ip_packet(source, destination, Body::Tcp(40_000, 80, flags, 32))
}

impl IpPacket {
    pub(crate) fn family(&self) -> Family {
        if self.source.is_ipv4() {
            Family::V4
        } else {
            Family::V6
        }
    }

    /// From the IP header on.
    pub(crate) fn octets(&self) -> Vec<u8> {
        let (protocol, payload) = self.payload();
        let mut packet = Vec::with_capacity(60 + payload.len());
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let length = headers::IPV4 + self.options.len();
                packet.extend([0x40 | (length / 4) as u8, self.traffic_class]);
                packet.extend(((length + payload.len()) as u16).to_be_bytes());
                packet.extend([0x12, 0x34]);
                packet.extend(self.fragment.to_be_bytes());
                packet.extend([self.ttl, protocol, 0, 0]);
                packet.extend(source.octets());
                packet.extend(destination.octets());
                packet.extend(&self.options);
                let checksum = header_checksum(&packet);
                packet[10..12].copy_from_slice(&checksum);
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                packet.extend([0x60 | self.traffic_class >> 4, self.traffic_class << 4, 0, 0]);
                packet.extend(((self.options.len() + payload.len()) as u16).to_be_bytes());
                packet.push(if self.options.is_empty() {
                    protocol
                } else {
                    self.first
                });
                packet.push(self.ttl);
                packet.extend(source.octets());
                packet.extend(destination.octets());
                packet.extend(&self.options);
            }
            _ => panic!("one family"),
        }
        packet.extend(payload);
        packet
    }

    fn payload(&self) -> (u8, Vec<u8>) {
        let filling = |length: usize| (0..length).map(|octet| octet as u8);
        match &self.body {
            Body::Udp(source, destination, length) => {
                let mut payload = source.to_be_bytes().to_vec();
                payload.extend(destination.to_be_bytes());
                payload.extend(((headers::UDP + length) as u16).to_be_bytes());
                payload.extend([0, 0]);
                payload.extend(filling(*length));
                let checksum = self.transport_checksum(ip_protocol::UDP, &payload);
                payload[6..8].copy_from_slice(&checksum);
                (ip_protocol::UDP, payload)
            }
            Body::Tcp(source, destination, flags, length) => {
                let mut payload = source.to_be_bytes().to_vec();
                payload.extend(destination.to_be_bytes());
                payload.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, *flags, 0x10, 0, 0, 0, 0, 0]);
                payload.extend(filling(*length));
                let checksum = self.transport_checksum(ip_protocol::TCP, &payload);
                payload[16..18].copy_from_slice(&checksum);
                (ip_protocol::TCP, payload)
            }
            Body::Other(protocol, octets) => (*protocol, octets.clone()),
        }
    }

    /// Over the pseudo-header (RFC 768; RFC 8200, section 8.1) and the payload, whose own checksum is zero.
    fn transport_checksum(&self, protocol: u8, payload: &[u8]) -> [u8; 2] {
        let mut words = Vec::new();
        for address in [self.source, self.destination] {
            match address {
                IpAddr::V4(address) => words.extend(address.octets()),
                IpAddr::V6(address) => words.extend(address.octets()),
            }
        }
        words.extend((payload.len() as u32).to_be_bytes());
        words.extend([0, 0, 0, protocol]);
        words.extend(payload);
        words.resize(words.len().next_multiple_of(2), 0);
        let mut sum: u64 = words
            .chunks(2)
            .map(|pair| u64::from(u16::from_be_bytes([pair[0], pair[1]])))
            .sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        match !(sum as u16) {
            0 => [0xff, 0xff],
            checksum => checksum.to_be_bytes(),
        }
    }

    /// In an Ethernet frame.
    pub(crate) fn frame(&self, link: Link) -> Vec<u8> {
        frame(link, self.family().ethertype(), &self.octets())
    }
}

/// An Ethernet frame.
pub(crate) fn frame(link: Link, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = link.concat();
    frame.extend(ethertype.to_be_bytes());
    frame.extend(payload);
    frame
}

/// The frame with a VLAN's tag, of this ethertype: priority and number.
pub(crate) fn tagged(frame: &[u8], ethertype: u16, tag: u16) -> Vec<u8> {
    let mut tagged = frame[..12].to_vec();
    tagged.extend(ethertype.to_be_bytes());
    tagged.extend(tag.to_be_bytes());
    tagged.extend(&frame[12..]);
    tagged
}

/// The header of a tunnel.
#[derive(Clone, Debug)]
pub(crate) struct TunnelHeader {
    pub(crate) port: u16,
    pub(crate) first: [u8; 4],
    pub(crate) vni: u32,
    pub(crate) last: u8,
}

impl TunnelHeader {
    pub(crate) const fn vxlan(port: u16, vni: u32) -> Self {
        Self {
            port,
            first: [8, 0, 0, 0],
            vni,
            last: 0,
        }
    }

    pub(crate) const fn geneve(port: u16, vni: u32) -> Self {
        Self {
            port,
            first: [0, 0, 0x65, 0x58],
            vni,
            last: 0,
        }
    }
}

/// The frame in an outer packet between two nodes (whose body is left aside), in a frame.
pub(crate) fn encapsulated(outer: &IpPacket, link: Link, tunnel: &TunnelHeader, inner: &[u8]) -> Vec<u8> {
    let length = (headers::UDP + headers::TUNNEL + inner.len()) as u16;
    let mut body = 50_000_u16.to_be_bytes().to_vec();
    body.extend(tunnel.port.to_be_bytes());
    body.extend(length.to_be_bytes());
    body.extend([0, 0]);
    body.extend(tunnel.first);
    body.extend(&tunnel.vni.to_be_bytes()[1..]);
    body.push(tunnel.last);
    body.extend(inner);
    let whole = IpPacket {
        body: Body::Other(ip_protocol::UDP, body),
        ..outer.clone()
    };
    whole.frame(link)
}

/// A probe's body.
pub(crate) fn probe_body(kind: u8, flags: u8, number: u64, tag: [u8; 8], padding: usize) -> Body {
    let mut form = form(kind, flags, number, (probe::LENGTH + padding) as u16);
    form.extend(tag);
    form.resize(probe::LENGTH + padding, 0xa5);
    Body::Other(ip_protocol::PROBE, form)
}

/// A probe's first sixteen octets, which its tag is made of; `length` is that of what the IP packet carries.
pub(crate) fn form(kind: u8, flags: u8, number: u64, length: u16) -> Vec<u8> {
    let mut form = probe::MAGIC.to_vec();
    form.extend([kind, flags]);
    form.extend(length.to_be_bytes());
    form.extend(number.to_be_bytes());
    form
}
