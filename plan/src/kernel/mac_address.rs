//! Link-layer addresses.

use fnv::FnvHasher;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::hash::Hasher as _;
use std::net::{IpAddr, Ipv6Addr};

/// A link-layer address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct MacAddress(pub [u8; 6]);

impl MacAddress {
    /// The link-layer address of the tunnel devices of the node with this address: locally administered, unicast, and
    /// different for every IPv4 address. (VXLAN drops a frame that has the device's own address as its source, so one
    /// address for all nodes would not do: `vxlan_set_mac` in drivers/net/vxlan/vxlan_core.c.) IPv6 addresses are hashed
    /// to 40 bits (FNV-1a).
    pub fn of_node(address: &IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => {
                let [a, b, c, d] = address.octets();
                Self([0x02, 0x50, a, b, c, d])
            }
            IpAddr::V6(address) => {
                let mut hash = FnvHasher::default();
                hash.write(&address.octets());
                let [a, b, c, d, e, f, g, h] = hash.finish().to_be_bytes();
                Self([0x06, a ^ f, b ^ g, c ^ h, d, e])
            }
        }
    }
}

impl MacAddress {
    /// The IPv6 link-local address that belongs to it: its interface identifier is the address' modified EUI-64 (RFC 4291,
    /// section 2.5.6 and appendix A).
    pub const fn link_local(&self) -> Ipv6Addr {
        let [a, b, c, d, e, f] = self.0;
        Ipv6Addr::from_octets([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 0x02, b, c, 0xff, 0xfe, d, e, f])
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<MacAddress> for String {
    fn from(mac: MacAddress) -> Self {
        mac.to_string()
    }
}

impl TryFrom<String> for MacAddress {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            *octet = parts
                .next()
                .and_then(|part| u8::from_str_radix(part, 16).ok())
                .ok_or_else(|| format!("{text:?} is no link-layer address"))?;
        }
        parts
            .next()
            .is_none()
            .then_some(Self(octets))
            .ok_or_else(|| format!("{text:?} is no link-layer address"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nodes_link_layer_address_is_its_own_locally_administered_and_unicast() {
        let four = MacAddress::of_node(&"192.168.20.100".parse().expect("address"));
        assert_eq!(four.to_string(), "02:50:c0:a8:14:64");
        let six = MacAddress::of_node(&"fd00::1".parse().expect("address"));
        let next = MacAddress::of_node(&"fd00::2".parse().expect("address"));
        assert_ne!(six, next);
        for mac in [four, six, next] {
            assert_eq!(mac.0[0] & 0b11, 0b10, "{mac}");
        }
    }

    #[test]
    fn a_link_local_address_is_of_the_modified_eui_64() {
        let mac = MacAddress([0x02, 0x50, 0xc0, 0xa8, 0x14, 0x64]);
        assert_eq!(mac.link_local().to_string(), "fe80::50:c0ff:fea8:1464");
        // RFC 4291, appendix A: the universal/local bit is inverted.
        assert_eq!(
            MacAddress([0x34, 0x56, 0x78, 0x9a, 0xbc, 0xde])
                .link_local()
                .to_string(),
            "fe80::3656:78ff:fe9a:bcde"
        );
    }

    #[test]
    fn a_link_layer_address_survives_being_written_and_read() {
        let mac = MacAddress([2, 0x50, 0, 1, 0xfe, 0xff]);
        assert_eq!(MacAddress::try_from(String::from(mac)), Ok(mac));
        assert!(MacAddress::try_from("02:50".to_owned()).is_err());
    }
}
