//! The part of a node's kernel that Podlane keeps: as declared by [`crate::desired`], or as a dump found it.

mod mac_address;
mod observed;

pub use mac_address::MacAddress;
pub use observed::{Capabilities, ForeignRoute, NextHop, Observed, UnderlayAddress};

use crate::lane::{Tunnel, TunnelProtocol};
use crate::masquerade::Masquerade;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

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
}
