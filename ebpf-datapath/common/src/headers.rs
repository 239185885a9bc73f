//! The headers of an encapsulated packet, and what of them both sides compute.

/// Octets of an Ethernet header.
pub const ETHERNET: usize = 14;
/// Octets of an IPv4 header without options (RFC 791, section 3.1).
pub const IPV4: usize = 20;
/// Octets of an IPv6 header (RFC 8200, section 3).
pub const IPV6: usize = 40;
/// Octets of a TCP header without options (RFC 9293, section 3.1).
pub const TCP: usize = 20;
/// Octets of a UDP header (RFC 768).
pub const UDP: usize = 8;
/// Octets of a VXLAN header (RFC 7348, section 5), or of a GENEVE header without options (RFC 8926, section 3.4).
pub const TUNNEL: usize = 8;
/// What encapsulation puts before an inner IP packet on an IPv4 underlay.
pub const OVERHEAD4: usize = IPV4 + UDP + TUNNEL + ETHERNET;
/// The same on IPv6.
pub const OVERHEAD6: usize = IPV6 + UDP + TUNNEL + ETHERNET;

/// Ethertype of IPv4.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// Ethertype of IPv6.
pub const ETHERTYPE_IPV6: u16 = 0x86dd;

/// Ethertypes of VLAN tags (IEEE 802.1Q): a customer's, and a provider's.
pub const ETHERTYPES_VLAN: [u16; 2] = [0x8100, 0x88a8];

/// The first word of a VXLAN header: the flag that the VNI is valid, all else zero. Network byte order.
pub const VXLAN_FIRST: u32 = 0x0800_0000_u32.to_be();
/// The first word of a GENEVE header: version 0, no options, no flags, Ethernet inside (0x6558). Network byte order.
pub const GENEVE_FIRST: u32 = 0x0000_6558_u32.to_be();

/// The last word of either header for a VNI of 24 bits, in network byte order.
#[inline(always)]
pub const fn vni_word(vni: u32) -> u32 {
    (vni << 8).to_be()
}

/// The lowest outer source port: from here on ports are ephemeral (RFC 6335, section 6; RFC 7348, section 5 asks for such).
pub const FIRST_SOURCE_PORT: u16 = 49152;

/// The outer source port for an inner flow's hash, in host byte order: 49152 to 65535.
#[inline(always)]
pub const fn source_port(hash: u32) -> u16 {
    FIRST_SOURCE_PORT | ((hash ^ hash >> 16) as u16 & 0x3fff)
}

/// The Internet checksum (RFC 1071) of ten words of sixteen bits in the byte order in which they were read: an IPv4 header's, with zero in its
/// checksum's place. To be written in that same byte order.
#[inline(always)]
pub const fn checksum(words: &[u16; 10]) -> u16 {
    let mut sum = 0_u32;
    let mut at = 0;
    while at < 10 {
        sum += words[at] as u32;
        at += 1;
    }
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}

/// The ECN bits of a traffic class.
pub const ECN: u8 = 0b11;
/// Congestion experienced (RFC 3168, section 5).
pub const ECN_CE: u8 = 0b11;

/// The outer traffic class of an inner one (RFC 6040, section 4.1, normal mode): DSCP as configured, ECN copied.
#[inline(always)]
pub const fn traffic_class_out(configured: u8, inner: u8) -> u8 {
    configured & !ECN | inner & ECN
}

/// The inner ECN bits after decapsulation (RFC 6040, section 4.2, figure 4); none: the packet is to be dropped, since congestion
/// was marked on a flow that cannot be told.
#[inline(always)]
pub const fn ecn_in(outer: u8, inner: u8) -> Option<u8> {
    match (inner & ECN, outer & ECN) {
        (0b00, ECN_CE) => None,
        (0b00, _) => Some(0b00),
        (_, ECN_CE) => Some(ECN_CE),
        // ECT(1) on the outside of ECT(0) is kept: it may mark congestion of a lower severity.
        (0b10, 0b01) => Some(0b01),
        (inner, _) => Some(inner),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_with_its_checksum_sums_to_nothing() {
        let mut words = [
            0x4500, 0x0073, 0, 0x4000, 0x4011, 0, 0xc0a8, 0x0001, 0xc0a8, 0x00c7,
        ];
        words[5] = checksum(&words);
        assert_eq!(words[5], 0xb861);
        assert_eq!(checksum(&words), 0);
    }

    #[test]
    fn ecn_follows_rfc_6040() {
        assert_eq!(ecn_in(0b11, 0b00), None);
        assert_eq!(ecn_in(0b10, 0b00), Some(0b00));
        assert_eq!(ecn_in(0b01, 0b10), Some(0b01));
        assert_eq!(ecn_in(0b10, 0b01), Some(0b01));
        assert_eq!(ecn_in(0b11, 0b10), Some(0b11));
        assert_eq!(ecn_in(0b00, 0b11), Some(0b11));
        assert_eq!(traffic_class_out(0b1011_1000, 0b0000_0111), 0b1011_1011);
    }

    #[test]
    fn source_ports_are_ephemeral() {
        for hash in [0, 1, u32::MAX, 0x1234_5678] {
            assert!(source_port(hash) >= FIRST_SOURCE_PORT);
        }
    }
}
