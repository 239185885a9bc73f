//! The lanes over which one node's packets reach the pods of another.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// The encapsulation of a tunnel lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TunnelProtocol {
    /// Virtual eXtensible LAN, RFC 7348.
    Vxlan,
    /// Generic Network Virtualization Encapsulation, RFC 8926.
    Geneve,
}

impl TunnelProtocol {
    /// The UDP port where none is given: 8472 for VXLAN (Linux' own default, and Cilium's and Flannel's; IANA's 4789 came
    /// later), 6081 for GENEVE (RFC 8926, section 3.3).
    pub const fn default_port(self) -> u16 {
        match self {
            Self::Vxlan => 8472,
            Self::Geneve => 6081,
        }
    }

    /// The name of the kernel driver, which is also the name of its module.
    pub const fn driver(self) -> &'static str {
        match self {
            Self::Vxlan => "vxlan",
            Self::Geneve => "geneve",
        }
    }
}

impl fmt::Display for TunnelProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.driver())
    }
}

/// One tunnel: everything that both ends must agree upon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Tunnel {
    /// The encapsulation.
    pub protocol: TunnelProtocol,
    /// The UDP destination port, 1 to 65535.
    pub port: u16,
    /// The virtual network identifier, 24 bits (RFC 7348, section 5; RFC 8926, section 3.4).
    pub vni: u32,
}

/// The longest IPv4 packet that every host must be able to take, in bytes: RFC 791, section 3.2.
pub(crate) const IPV4_LEAST_MTU: u32 = 576;
/// The same of IPv6, which is also what every link carries: RFC 8200, section 5.
pub(crate) const IPV6_LEAST_MTU: u32 = 1280;

/// Bytes that VXLAN and GENEVE without options put before the inner packet: the outer IP header, UDP (8), the tunnel
/// header (8) and the inner Ethernet header (14).
pub const fn tunnel_overhead(outer: &IpAddr) -> u32 {
    match outer {
        IpAddr::V4(_) => 20 + 8 + 8 + 14,
        IpAddr::V6(_) => 40 + 8 + 8 + 14,
    }
}

impl Tunnel {
    /// The device that carries this tunnel: one a protocol and port, whatever the VNI, since each route names its own.
    /// At most 15 bytes, as the kernel's IFNAMSIZ asks.
    pub fn device(&self) -> String {
        match (self.protocol, self.port == self.protocol.default_port()) {
            (TunnelProtocol::Vxlan, true) => "podlane_vxlan".to_owned(),
            (TunnelProtocol::Geneve, true) => "podlane_geneve".to_owned(),
            (TunnelProtocol::Vxlan, false) => format!("podlane_vx{}", self.port),
            (TunnelProtocol::Geneve, false) => format!("podlane_gn{}", self.port),
        }
    }
}

impl TunnelProtocol {
    /// The encapsulation of which the name of a device of ours speaks ([`Tunnel::device`]), whatever its driver.
    pub fn named_by(device: &str) -> Option<Self> {
        let kind = device.strip_prefix("podlane_")?;
        let with_port = |prefix: &str| {
            kind.strip_prefix(prefix)
                .is_some_and(|port| port.parse::<u16>().is_ok())
        };
        if kind == "vxlan" || with_port("vx") {
            Some(Self::Vxlan)
        } else if kind == "geneve" || with_port("gn") {
            Some(Self::Geneve)
        } else {
            None
        }
    }
}

/// How packets travel between two nodes.
///
/// Written as `native`, `underlay`, `vxlan:PORT:VNI` or `geneve:PORT:VNI`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// The packet as it is, straight to a node on the same link.
    Native,
    /// The packet as it is, by way of gateways that know the pod CIDRs (BGP, cloud routes).
    Underlay,
    /// The packet wrapped, between the two nodes' own addresses.
    Tunnel(Tunnel),
}

impl Lane {
    /// The lane that a receiver has to have open: a packet that arrives unwrapped looks the same whether gateways or a
    /// common link brought it.
    pub const fn arrives_as(self) -> Self {
        match self {
            Self::Native | Self::Underlay => Self::Native,
            tunnel @ Self::Tunnel(_) => tunnel,
        }
    }

    /// The tunnel, where the lane is one.
    pub const fn tunnel(self) -> Option<Tunnel> {
        match self {
            Self::Tunnel(tunnel) => Some(tunnel),
            Self::Native | Self::Underlay => None,
        }
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Native => f.write_str("native"),
            Self::Underlay => f.write_str("underlay"),
            Self::Tunnel(Tunnel { protocol, port, vni }) => write!(f, "{protocol}:{port}:{vni}"),
        }
    }
}

/// A text that names no lane.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no lane: native, underlay, vxlan:PORT:VNI or geneve:PORT:VNI")]
pub struct NoLane(String);

impl FromStr for Lane {
    type Err = NoLane;

    fn from_str(text: &str) -> Result<Self, NoLane> {
        let wrong = || NoLane(text.to_owned());
        let mut parts = text.split(':');
        let protocol = match parts.next() {
            Some("native") if parts.next().is_none() => return Ok(Self::Native),
            Some("underlay") if parts.next().is_none() => return Ok(Self::Underlay),
            Some("vxlan") => TunnelProtocol::Vxlan,
            Some("geneve") => TunnelProtocol::Geneve,
            _ => return Err(wrong()),
        };
        let port = parts
            .next()
            .and_then(|port| port.parse().ok())
            .filter(|port| *port != 0)
            .ok_or_else(wrong)?;
        let vni = parts
            .next()
            .and_then(|vni| vni.parse().ok())
            .filter(|vni| *vni < 1 << 24)
            .ok_or_else(wrong)?;
        if parts.next().is_some() {
            return Err(wrong());
        }
        Ok(Self::Tunnel(Tunnel { protocol, port, vni }))
    }
}

impl Serialize for Lane {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Lane {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_survives_being_written_and_read() {
        for text in ["native", "underlay", "vxlan:8472:1", "geneve:6081:16777215"] {
            assert_eq!(
                text.parse::<Lane>().map(|lane| lane.to_string()),
                Ok(text.to_owned())
            );
        }
    }

    #[test]
    fn what_is_no_lane_is_refused() {
        for text in [
            "",
            "Native",
            "native:1",
            "vxlan",
            "vxlan:0:1",
            "vxlan:65536:1",
            "vxlan:1:16777216",
            "vxlan:1:1:1",
            "gre:1:1",
        ] {
            assert!(text.parse::<Lane>().is_err(), "{text}");
        }
    }

    #[test]
    fn every_device_name_fits_the_kernel_and_says_its_protocol() {
        for protocol in [TunnelProtocol::Vxlan, TunnelProtocol::Geneve] {
            for port in [1, protocol.default_port(), 65535] {
                let tunnel = Tunnel {
                    protocol,
                    port,
                    vni: 1,
                };
                assert!(tunnel.device().len() <= 15);
                assert_eq!(TunnelProtocol::named_by(&tunnel.device()), Some(protocol));
            }
        }
        for other in [
            "podlane_",
            "podlane_gn",
            "podlane_gn70000",
            "podlane_gneve",
            "geneve",
        ] {
            assert_eq!(TunnelProtocol::named_by(other), None, "{other}");
        }
    }
}
