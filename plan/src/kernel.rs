//! The part of a node's kernel that Podlane keeps: as declared by [`crate::desired`], or as a dump found it.

mod observed;

pub use observed::{Capabilities, ForeignRoute, NextHop, Observed, UnderlayAddress};

use crate::lane::{Tunnel, TunnelProtocol};
use crate::masquerade::Masquerade;
use fnv::FnvHasher;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::hash::Hasher as _;
use std::net::{IpAddr, Ipv6Addr};

/// Podlane's route protocol number (`rtm_protocol`), on every route that is ours and on no other. Unused in the kernel's
/// `include/uapi/linux/rtnetlink.h` and in iproute2's `etc/iproute2/rt_protos`.
pub const ROUTE_PROTOCOL: u8 = 172;

/// The device group (`IFLA_GROUP`) of every device that is ours. Set in the same message that creates the device, so that
/// an agent which dies in between leaves no device of doubtful ownership.
pub const DEVICE_GROUP: u32 = 172;

/// How every device of ours begins.
pub const DEVICE_PREFIX: &str = "podlane_";

/// Podlane's nftables table, of the family inet. What marks it as ours stands in its user data, which is set together with it.
pub const NFTABLES_TABLE: &str = "podlane";

/// The metric of the `unreachable` routes under the lanes: worse than anything that a network plugin or a human uses,
/// so that they act only where no other route does.
pub const COVER_METRIC: u32 = 1_000_000;

/// The metric of a lane's route: better than [`COVER_METRIC`], and one for each destination whatever the lane, so that a lane is
/// changed by replacing one route.
///
/// IPv4: 1 to 251, by the destination's number among the networks of its size. The kernel finds the next hops of a new route
/// by a hash over protocol, source, metric and device, but not the gateway (`fib_info_hashfn` in net/ipv4/fib_semantics.c):
/// with one metric for all, each of thousands of routes through one device is compared with every other.
///
/// IPv6: 1024 (`IP6_RT_PRIO_USER`), into which the kernel also turns 0.
pub fn lane_metric(destination: &IpNet) -> u32 {
    match destination {
        IpNet::V4(network) => {
            let beyond = u32::from(network.max_prefix_len() - network.prefix_len());
            1 + u32::from(network.network()).checked_shr(beyond).unwrap_or(0) % 251
        }
        IpNet::V6(_) => 1024,
    }
}

/// The TTL of outer headers.
pub const OUTER_TTL: u8 = 64;

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

/// A tunnel device. Ours are flow-based (`external`, collect-metadata): the route that leads to one says the peer and
/// the VNI, and there is no forwarding database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// The encapsulation of what leaves by it.
    pub protocol: TunnelProtocol,
    /// Whether it is a VXLAN device in the place of a GENEVE one, whose programs do the work ([`Capabilities`]).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stand_in: bool,
    /// The UDP port on which it listens and to which it sends.
    pub port: u16,
    /// Its link-layer address, [`MacAddress::of_node`].
    pub mac: MacAddress,
    /// The largest packet it takes, in bytes without the Ethernet header.
    pub mtu: u32,
    /// Flow-based, without learning: false only where a hand changed it.
    pub collect_metadata: bool,
    /// Whether it resolves neighbours by ARP; ours must not.
    pub arp: bool,
    /// Administratively up. A device that is up has its UDP socket open.
    pub up: bool,
}

impl Device {
    /// The device as Podlane declares it.
    pub const fn declared(tunnel: &Tunnel, mac: MacAddress, mtu: u32) -> Self {
        Self {
            protocol: tunnel.protocol,
            stand_in: false,
            port: tunnel.port,
            mac,
            mtu,
            collect_metadata: true,
            arp: false,
            up: true,
        }
    }

    /// The kernel driver whose device it is.
    pub const fn driver(&self) -> &'static str {
        if self.stand_in {
            TunnelProtocol::Vxlan.driver()
        } else {
            self.protocol.driver()
        }
    }

    /// Whether `self` can become `wanted` without being made anew.
    pub fn can_become(&self, wanted: &Self) -> bool {
        self.protocol == wanted.protocol
            && self.stand_in == wanted.stand_in
            && self.port == wanted.port
            && self.collect_metadata == wanted.collect_metadata
    }
}

/// What tells one route from another in a table: the kernel keeps at most one of ours for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RouteKey {
    /// The destination, host bits zero.
    pub destination: IpNet,
    /// The metric (`RTA_PRIORITY`).
    pub metric: u32,
}

impl fmt::Display for RouteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.destination)?;
        if self.metric != lane_metric(&self.destination) {
            write!(f, " metric {}", self.metric)?;
        }
        Ok(())
    }
}

/// Where a route leads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RouteTarget {
    /// As it is to a neighbour on the link: `via GATEWAY dev DEVICE`.
    Via {
        /// The next hop.
        gateway: IpAddr,
        /// The underlay device.
        device: String,
    },
    /// Wrapped: `encap ip id VNI src SOURCE dst DESTINATION ttl 64 tos 4·DSCP via GATEWAY dev DEVICE onlink`.
    Encapsulated {
        /// The VNI.
        vni: u32,
        /// The outer source: this node's own address.
        source: IpAddr,
        /// The outer destination: the peer's address.
        destination: IpAddr,
        /// The DSCP of the outer header, 0 to 63 (RFC 2474, section 3). The tunnel's driver puts the inner ECN beside it
        /// (`ip_tunnel_ecn_encap`, include/net/inet_ecn.h).
        #[serde(default, skip_serializing_if = "is_default_class")]
        dscp: u8,
        /// The inner next hop, resolved by a permanent neighbour: the peer's router address on IPv4, on IPv6 the link-local address of
        /// its tunnel devices.
        gateway: IpAddr,
        /// The tunnel device.
        device: String,
    },
    /// Refused with ICMP (code: host unreachable on IPv4, no route on IPv6).
    Unreachable,
}

/// Whether a DSCP is the one that asks for nothing: default forwarding (RFC 2474, section 4.1).
#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks by reference")]
const fn is_default_class(dscp: &u8) -> bool {
    *dscp == 0
}

/// A route of ours in the main table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Where it leads.
    pub target: RouteTarget,
    /// The source address of the node's own packets; none: the kernel's choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preferred_source: Option<IpAddr>,
    /// The largest packet that the lane carries, in bytes; none: the device's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
}

impl Route {
    /// A route that refuses.
    pub const UNREACHABLE: Self = Self {
        target: RouteTarget::Unreachable,
        preferred_source: None,
        mtu: None,
    };

    /// The device it leaves by.
    pub fn device(&self) -> Option<&str> {
        match &self.target {
            RouteTarget::Via { device, .. } | RouteTarget::Encapsulated { device, .. } => Some(device),
            RouteTarget::Unreachable => None,
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.target {
            RouteTarget::Via { gateway, device } => write!(f, "via {gateway} dev {device}")?,
            RouteTarget::Encapsulated {
                vni,
                source,
                destination,
                dscp,
                gateway,
                device,
            } => {
                write!(f, "encap id {vni} src {source} dst {destination}")?;
                if !is_default_class(dscp) {
                    write!(f, " dscp {dscp}")?;
                }
                write!(f, " via {gateway} dev {device} onlink")?;
            }
            RouteTarget::Unreachable => f.write_str("unreachable")?,
        }
        if let Some(source) = self.preferred_source {
            write!(f, " src {source}")?;
        }
        if let Some(mtu) = self.mtu {
            write!(f, " mtu {mtu}")?;
        }
        Ok(())
    }
}

/// An address or a neighbour on a device.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct OnDevice {
    /// The address. It comes first because it tells most of them apart at the first look.
    pub address: IpAddr,
    /// The device.
    pub device: String,
}

impl fmt::Display for OnDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} dev {}", self.address, self.device)
    }
}

/// All of Podlane's own in a kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelState {
    /// Tunnel devices by name: [`DEVICE_PREFIX`] and [`DEVICE_GROUP`] mark them.
    #[serde(default)]
    pub devices: BTreeMap<String, Device>,
    /// Addresses on these devices, as /32 or /128 (link-local ones are the kernel's own and not listed).
    #[serde(default)]
    pub addresses: BTreeSet<OnDevice>,
    /// Permanent neighbours on these devices.
    #[serde(default, with = "pairs")]
    pub neighbours: BTreeMap<OnDevice, MacAddress>,
    /// Routes in the main table with [`ROUTE_PROTOCOL`].
    #[serde(default, with = "pairs")]
    pub routes: BTreeMap<RouteKey, Route>,
    /// Kernel parameters by their path below /proc/sys, e.g. `net/ipv4/ip_forward`.
    #[serde(default)]
    pub sysctls: BTreeMap<String, String>,
    /// The table that masquerades: [`NFTABLES_TABLE`], with a mark of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub masquerade: Option<Masquerade>,
}

impl KernelState {
    /// Everything in it, by name.
    pub fn items(&self) -> BTreeSet<Item> {
        let devices = self.devices.keys().cloned().map(Item::Device);
        let addresses = self.addresses.iter().cloned().map(Item::Address);
        let neighbours = self.neighbours.keys().cloned().map(Item::Neighbour);
        let routes = self.routes.keys().copied().map(Item::Route);
        let sysctls = self.sysctls.keys().cloned().map(Item::Sysctl);
        let masquerade = self.masquerade.iter().map(|_| Item::Masquerade);
        devices
            .chain(addresses)
            .chain(neighbours)
            .chain(routes)
            .chain(sysctls)
            .chain(masquerade)
            .collect()
    }
}

/// One item of a [`KernelState`], by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Item {
    /// A tunnel device.
    Device(String),
    /// An address on one.
    Address(OnDevice),
    /// A neighbour on one.
    Neighbour(OnDevice),
    /// A route.
    Route(RouteKey),
    /// A kernel parameter.
    Sysctl(String),
    /// The table that masquerades.
    Masquerade,
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device(name) => write!(f, "device {name}"),
            Self::Address(address) => write!(f, "address {address}"),
            Self::Neighbour(neighbour) => write!(f, "neighbour {neighbour}"),
            Self::Route(key) => write!(f, "route {key}"),
            Self::Sysctl(path) => write!(f, "kernel parameter {path}"),
            Self::Masquerade => f.write_str("masquerade"),
        }
    }
}

/// Maps whose keys are structures, as lists of pairs: YAML and JSON keys are texts.
mod pairs {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use std::collections::BTreeMap;

    #[derive(Serialize, Deserialize)]
    struct Pair<K, V> {
        #[serde(flatten)]
        key: K,
        is: V,
    }

    pub(super) fn serialize<K: Serialize, V: Serialize, S: Serializer>(
        map: &BTreeMap<K, V>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.collect_seq(map.iter().map(|(key, is)| Pair { key, is }))
    }

    pub(super) fn deserialize<'de, K, V, D>(from: D) -> Result<BTreeMap<K, V>, D::Error>
    where
        K: Deserialize<'de> + Ord,
        V: Deserialize<'de>,
        D: Deserializer<'de>,
    {
        Ok(Vec::<Pair<K, V>>::deserialize(from)?
            .into_iter()
            .map(|Pair { key, is }| (key, is))
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_pod_cidrs_have_different_metrics() {
        let metric = |cidr: &str| lane_metric(&cidr.parse().expect("a CIDR"));
        assert_eq!(metric("172.20.1.0/24") + 1, metric("172.20.2.0/24"));
        assert_eq!(metric("0.0.0.0/0"), 1);
        for cidr in ["255.255.255.255/32", "10.0.0.0/8", "172.20.250.0/24"] {
            assert!((1..=251).contains(&metric(cidr)), "{cidr}");
        }
    }

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
