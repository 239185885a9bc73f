//! What a packet's octets say.

use podlane_datapath_common::{Address, headers, ip_protocol};

/// A family of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    /// The ethertype.
    pub(crate) const fn ethertype(self) -> u16 {
        match self {
            Self::V4 => headers::ETHERTYPE_IPV4,
            Self::V6 => headers::ETHERTYPE_IPV6,
        }
    }

    /// Octets of the header without options.
    pub(crate) const fn header(self) -> usize {
        match self {
            Self::V4 => headers::IPV4,
            Self::V6 => headers::IPV6,
        }
    }
}

/// An IP header.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ip {
    pub(crate) family: Family,
    /// Where it stands in the frame.
    pub(crate) at: usize,
    /// Where what it carries stands, by the header's own length.
    pub(crate) payload: usize,
    pub(crate) source: Name,
    pub(crate) destination: Name,
    /// IPv6: the first next header.
    pub(crate) protocol: u8,
    pub(crate) ttl: u8,
    pub(crate) traffic_class: u8,
    /// IPv4: a fragment offset or more to come.
    pub(crate) fragment: bool,
    /// IPv4: a fragment offset.
    pub(crate) later_fragment: bool,
}

/// An address in a header of this family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Name {
    pub(crate) family: Family,
    pub(crate) address: Address,
}

impl Name {
    pub(crate) const fn of(family: Family, address: Address) -> Self {
        Self { family, address }
    }

    /// The key under which maps are asked for it; none for an IPv4-mapped address in an IPv6 header, which is nobody's.
    pub(crate) fn looked_up(&self) -> Option<&Address> {
        (self.family == Family::V4 || !self.address.is_v4()).then_some(&self.address)
    }
}

/// The big-endian number at a place.
pub(crate) fn be16(frame: &[u8], at: usize) -> Option<u16> {
    let octets = frame.get(at..at + 2)?;
    Some(u16::from_be_bytes([octets[0], octets[1]]))
}

/// Whether a VLAN's tag is to be behind a frame's addresses.
pub(crate) fn is_tagged(frame: &[u8]) -> bool {
    matches!(be16(frame, 12), Some(0x8100 | 0x88a8))
}

/// The number of the VLAN whose tag is there.
pub(crate) fn vlan(frame: &[u8]) -> Option<u16> {
    be16(frame, 14)
        .filter(|_| is_tagged(frame))
        .map(|tag| tag & 0xfff)
}

/// The frame without that tag; none, where nothing whole is behind it.
pub(crate) fn untagged(frame: &[u8]) -> Option<Vec<u8>> {
    (frame.len() >= 18).then(|| [&frame[..12], &frame[16..]].concat())
}

/// The address of sixteen octets.
pub(crate) fn address6(octets: &[u8]) -> Address {
    Address::of_v6_octets(octets.try_into().expect("sixteen octets"))
}

/// The address of four octets.
pub(crate) fn address4(octets: &[u8]) -> Address {
    Address::of_v4_octets(octets.try_into().expect("four octets"))
}

impl Ip {
    /// The header behind an Ethernet header that stands at `ethernet`.
    pub(crate) fn behind_ethernet(frame: &[u8], ethernet: usize) -> Option<Self> {
        let at = ethernet + headers::ETHERNET;
        match be16(frame, at - 2)? {
            headers::ETHERTYPE_IPV4 => Self::v4(frame, at),
            headers::ETHERTYPE_IPV6 => Self::v6(frame, at),
            _ => None,
        }
    }

    fn v4(frame: &[u8], at: usize) -> Option<Self> {
        let octets = frame.get(at..at + headers::IPV4)?;
        let length = 4 * usize::from(octets[0] & 15);
        if octets[0] >> 4 != 4 || length < headers::IPV4 {
            return None;
        }
        let fragment = be16(octets, 6)?;
        Some(Self {
            family: Family::V4,
            at,
            payload: at + length,
            source: Name::of(Family::V4, address4(&octets[12..16])),
            destination: Name::of(Family::V4, address4(&octets[16..20])),
            protocol: octets[9],
            ttl: octets[8],
            traffic_class: octets[1],
            fragment: fragment & 0x3fff != 0,
            later_fragment: fragment & 0x1fff != 0,
        })
    }

    fn v6(frame: &[u8], at: usize) -> Option<Self> {
        let octets = frame.get(at..at + headers::IPV6)?;
        if octets[0] >> 4 != 6 {
            return None;
        }
        Some(Self {
            family: Family::V6,
            at,
            payload: at + headers::IPV6,
            source: Name::of(Family::V6, address6(&octets[8..24])),
            destination: Name::of(Family::V6, address6(&octets[24..40])),
            protocol: octets[6],
            ttl: octets[7],
            traffic_class: octets[0] << 4 | octets[1] >> 4,
            fragment: false,
            later_fragment: false,
        })
    }

    /// IPv4 options.
    pub(crate) fn has_options(&self) -> bool {
        self.payload - self.at != self.family.header()
    }

    /// Neither a fragment nor with options: what it carries can be read at once. (IPv6 extension headers show in `protocol`.)
    pub(crate) fn is_simple(&self) -> bool {
        !self.fragment && !self.has_options()
    }
}

/// Where a packet's transport header is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    /// UDP to this port.
    Udp(u16),
    /// Something else, or a later fragment.
    Other,
    /// It cannot be told.
    Unknown,
}

/// Walks IPv6 extension headers (at most 8) and IPv4 options to the transport header.
pub(crate) fn walk(frame: &[u8], ip: &Ip) -> Transport {
    if ip.later_fragment {
        return Transport::Other;
    }
    let (mut protocol, mut at) = (ip.protocol, ip.payload);
    let mut walked = 0;
    while ip.family == Family::V6 && matches!(protocol, 0 | 43 | 44 | 51 | 60) {
        if walked == 8 {
            return Transport::Unknown;
        }
        walked += 1;
        let Some(header) = frame.get(at..at + 8) else {
            return Transport::Unknown;
        };
        // RFC 8200, sections 4.3 to 4.6; RFC 4302, section 2.2 for the length of an authentication header.
        at += match protocol {
            44 if u16::from_be_bytes([header[2], header[3]]) & 0xfff8 != 0 => return Transport::Other,
            44 => 8,
            51 => 4 * (usize::from(header[1]) + 2),
            _ => 8 * (usize::from(header[1]) + 1),
        };
        protocol = header[0];
    }
    if protocol != ip_protocol::UDP {
        return Transport::Other;
    }
    be16(frame, at + 2).map_or(Transport::Unknown, Transport::Udp)
}
