//! A route as an RTM_NEWROUTE message describes it.

use super::request::traffic_class;
use super::wire::{Attributes, address, aligned, u16_at, u16_be, u32_at, u64_be};
use ipnet::IpNet;
use netlink_packet_route::route::{RouteFlags, RouteHeader, RouteType};
use podlane_plan::kernel::{ForeignRoute, NextHop, OUTER_TTL, ROUTE_PROTOCOL, Route, RouteKey, RouteTarget};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// `struct rtmsg` (include/uapi/linux/rtnetlink.h).
const HEADER_LENGTH: usize = 12;

/// `RTA_*` (ibid.).
mod rta {
    pub(super) const DST: u16 = 1;
    pub(super) const OIF: u16 = 4;
    pub(super) const GATEWAY: u16 = 5;
    pub(super) const PRIORITY: u16 = 6;
    pub(super) const PREFSRC: u16 = 7;
    pub(super) const METRICS: u16 = 8;
    pub(super) const MULTIPATH: u16 = 9;
    pub(super) const TABLE: u16 = 15;
    pub(super) const VIA: u16 = 18;
    pub(super) const ENCAP_TYPE: u16 = 21;
    pub(super) const ENCAP: u16 = 22;
    pub(super) const NH_ID: u16 = 30;
}

/// A route of the main table, as it is.
pub(crate) struct Decoded<'a> {
    destination: IpNet,
    pub(crate) tos: u8,
    protocol: u8,
    kind: RouteType,
    onlink: bool,
    metric: u32,
    gateway: Option<IpAddr>,
    device: u32,
    preferred_source: Option<IpAddr>,
    metrics: &'a [u8],
    encap_type: u16,
    encap: &'a [u8],
    multipath: Option<&'a [u8]>,
    nexthop_object: bool,
}

impl<'a> Decoded<'a> {
    /// Reads what follows the netlink header of an RTM_NEWROUTE. None for what is no unicast route of the main table, or a
    /// cached one.
    pub(crate) fn decode(payload: &'a [u8]) -> Option<Self> {
        let header = RouteHeader::parse(payload).ok()?;
        let unspecified = match u8::from(header.address_family) {
            2 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            10 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            _ => return None,
        };
        let others = [
            RouteType::Local,
            RouteType::Broadcast,
            RouteType::Anycast,
            RouteType::Multicast,
        ];
        if header.flags.contains(RouteFlags::Cloned) || others.contains(&header.kind) {
            return None;
        }
        let mut route = Self {
            destination: IpNet::new(unspecified, header.destination_prefix_length).ok()?,
            tos: header.tos,
            protocol: header.protocol.into(),
            kind: header.kind,
            onlink: header.flags.contains(RouteFlags::Onlink),
            metric: 0,
            gateway: None,
            device: 0,
            preferred_source: None,
            metrics: &[],
            encap_type: 0,
            encap: &[],
            multipath: None,
            nexthop_object: false,
        };
        let mut table = u32::from(header.table);
        for (kind, value) in Attributes(payload.get(HEADER_LENGTH..)?) {
            match kind {
                rta::DST => {
                    route.destination = IpNet::new(address(value)?, header.destination_prefix_length).ok()?
                }
                rta::OIF => route.device = u32_at(value, 0)?,
                rta::GATEWAY => route.gateway = address(value),
                rta::VIA => route.gateway = via(value),
                rta::PRIORITY => route.metric = u32_at(value, 0)?,
                rta::PREFSRC => route.preferred_source = address(value),
                rta::METRICS => route.metrics = value,
                rta::MULTIPATH => route.multipath = Some(value),
                // A table beyond 255 does not fit the header (`RT_TABLE_COMPAT`).
                rta::TABLE => table = u32_at(value, 0)?,
                rta::ENCAP_TYPE => route.encap_type = u16_at(value, 0)?,
                rta::ENCAP => route.encap = value,
                rta::NH_ID => route.nexthop_object = true,
                _ => {}
            }
        }
        (table == u32::from(RouteHeader::RT_TABLE_MAIN)).then_some(route)
    }

    /// Whether it bears our protocol number.
    pub(crate) const fn is_ours(&self) -> bool {
        self.protocol == ROUTE_PROTOCOL
    }

    /// What tells it from others.
    pub(crate) const fn key(&self) -> RouteKey {
        RouteKey {
            destination: self.destination,
            metric: self.metric,
        }
    }

    /// The route as one of ours. One that we would not have made (a blackhole, several next hops, another TTL …) comes out as
    /// `via` an unspecified gateway, which equals no declared route, so that [`podlane_plan::diff`] corrects or removes it.
    pub(crate) fn ours(&self, names: &BTreeMap<u32, String>) -> Route {
        self.declarable(names).unwrap_or_else(|| Route {
            target: RouteTarget::Via {
                gateway: match self.destination {
                    IpNet::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                    IpNet::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
                },
                device: names.get(&self.device).cloned().unwrap_or_default(),
            },
            preferred_source: None,
            mtu: None,
        })
    }

    fn declarable(&self, names: &BTreeMap<u32, String>) -> Option<Route> {
        let mtu = self.mtu()?;
        if self.multipath.is_some() || self.nexthop_object {
            return None;
        }
        if self.kind == RouteType::Unreachable {
            let plain = mtu.is_none() && self.preferred_source.is_none();
            return plain.then_some(Route::UNREACHABLE);
        }
        if self.kind != RouteType::Unicast {
            return None;
        }
        let gateway = self.gateway?;
        let device = names.get(&self.device)?.clone();
        let target = match (self.encap_type, self.onlink) {
            (0, false) => RouteTarget::Via { gateway, device },
            (encap, true) => {
                let outer = Outer::decode(encap, self.encap)?;
                RouteTarget::Encapsulated {
                    vni: outer.vni,
                    source: outer.source,
                    destination: outer.destination,
                    dscp: outer.dscp,
                    gateway,
                    device,
                }
            }
            _ => return None,
        };
        Some(Route {
            target,
            preferred_source: self.preferred_source,
            mtu,
        })
    }

    /// The route's MTU, where it has one; None where it has other metrics, or a locked one.
    fn mtu(&self) -> Option<Option<u32>> {
        /// `RTAX_MTU` (include/uapi/linux/rtnetlink.h).
        const MTU: u16 = 2;
        Attributes(self.metrics).try_fold(None, |_, (kind, value)| (kind == MTU).then(|| u32_at(value, 0)))
    }

    /// The route as one of somebody else's.
    pub(crate) fn foreign(&self, names: &BTreeMap<u32, String>) -> ForeignRoute {
        let name = |index| names.get(&index).cloned().unwrap_or_else(|| format!("if{index}"));
        let next_hops = match (self.kind, self.multipath) {
            (RouteType::Unicast, Some(multipath)) => next_hops(multipath)
                .map(|(gateway, index)| NextHop {
                    gateway,
                    device: name(index),
                })
                .collect(),
            (RouteType::Unicast, None) if self.device != 0 => {
                vec![NextHop {
                    gateway: self.gateway,
                    device: name(self.device),
                }]
            }
            _ => Vec::new(),
        };
        ForeignRoute {
            destination: self.destination,
            metric: self.metric,
            protocol: self.protocol,
            next_hops,
        }
    }
}

/// `struct rtvia`: a gateway of the other family.
fn via(value: &[u8]) -> Option<IpAddr> {
    address(value.get(2..)?)
}

/// `struct rtnexthop` (include/uapi/linux/rtnetlink.h), one after another: gateway and device.
fn next_hops(mut bytes: &[u8]) -> impl Iterator<Item = (Option<IpAddr>, u32)> {
    const HEADER_LENGTH: usize = 8;
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        let index = u32_at(bytes, 4)?;
        let attributes = bytes.get(HEADER_LENGTH..length)?;
        bytes = bytes.get(aligned(length)..).unwrap_or_default();
        let gateway = Attributes(attributes).find_map(|(kind, value)| match kind {
            rta::GATEWAY => address(value),
            rta::VIA => via(value),
            _ => None,
        });
        Some((gateway, index))
    })
}

/// The outer header that a route's encapsulation gives.
#[derive(Debug, PartialEq, Eq)]
struct Outer {
    vni: u32,
    source: IpAddr,
    destination: IpAddr,
    dscp: u8,
}

impl Outer {
    /// Reads `RTA_ENCAP`, where it is as ours: the same TTL, no ECN of the route's own, no options, a UDP checksum on IPv6 alone.
    fn decode(encap_type: u16, encap: &[u8]) -> Option<Self> {
        /// `LWTUNNEL_ENCAP_IP`, `LWTUNNEL_ENCAP_IP6`; `LWTUNNEL_IP_*` and `LWTUNNEL_IP6_*` have the same numbers
        /// (include/uapi/linux/lwtunnel.h).
        const IP: u16 = 2;
        const IP6: u16 = 4;
        const ID: u16 = 1;
        const DST: u16 = 2;
        const SRC: u16 = 3;
        const TTL: u16 = 4;
        const TOS: u16 = 5;
        const FLAGS: u16 = 6;
        const PAD: u16 = 7;
        /// `TUNNEL_CSUM` (include/uapi/linux/if_tunnel.h).
        const CHECKSUM: u16 = 1;

        let flags_of_ours = match encap_type {
            IP => 0,
            IP6 => CHECKSUM,
            _ => return None,
        };
        let (mut id, mut source, mut destination, mut ttl) = (None, None, None, None);
        let (mut dscp, mut flags) = (0, 0);
        for (kind, value) in Attributes(encap) {
            match kind {
                ID => id = u64_be(value),
                DST => destination = address(value),
                SRC => source = address(value),
                TTL => ttl = value.first().copied(),
                TOS => {
                    let class = *value.first()?;
                    dscp = class >> 2;
                    // What is beside the DSCP says "as the inner packet's" to some drivers, and is never ours.
                    (class == traffic_class(dscp)).then_some(())?;
                }
                FLAGS => flags = u16_be(value)?,
                PAD => {}
                _ => return None,
            }
        }
        (ttl == Some(OUTER_TTL) && flags == flags_of_ours).then_some(())?;
        Some(Self {
            vni: u32::try_from(id?).ok()?,
            source: source?,
            destination: destination?,
            dscp,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::wire::tests::attribute;
    use super::*;

    fn header(kind: u8, protocol: u8, flags: u32) -> Vec<u8> {
        let mut bytes = vec![2, 24, 0, 0, 254, protocol, 0, kind];
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(attribute(rta::DST, &[172, 20, 2, 0]));
        bytes
    }

    fn names() -> BTreeMap<u32, String> {
        BTreeMap::from([(3, "podlane_vxlan".to_owned()), (4, "eth1".to_owned())])
    }

    fn encap(ttl: u8, class: u8, more: &[u8]) -> Vec<u8> {
        let encap = [
            attribute(1, &7_u64.to_be_bytes()),
            attribute(2, &[192, 168, 20, 100]),
            attribute(3, &[192, 168, 10, 100]),
            attribute(4, &[ttl]),
            attribute(5, &[class]),
            attribute(6, &[0, 0]),
            more.to_vec(),
        ]
        .concat();
        [
            attribute(rta::ENCAP_TYPE, &2_u16.to_ne_bytes()),
            attribute(rta::ENCAP, &encap),
        ]
        .concat()
    }

    fn encapsulated(ttl: u8, class: u8, more: &[u8], flags: u32) -> Vec<u8> {
        [
            header(1, ROUTE_PROTOCOL, flags),
            attribute(rta::OIF, &3_u32.to_ne_bytes()),
            attribute(rta::GATEWAY, &[172, 20, 2, 1]),
            encap(ttl, class, more),
            attribute(rta::PREFSRC, &[172, 20, 0, 1]),
            attribute(rta::METRICS, &attribute(2, &1450_u32.to_ne_bytes())),
        ]
        .concat()
    }

    const ONLINK: u32 = 4;

    #[test]
    fn an_encapsulated_route_is_read_as_declared() {
        let payload = encapsulated(64, 0, &[], ONLINK);
        let route = Decoded::decode(&payload).expect("of the main table");
        assert!(route.is_ours());
        assert_eq!(route.key().to_string(), "172.20.2.0/24 metric 0");
        assert_eq!(
            route.ours(&names()).to_string(),
            "encap id 7 src 192.168.10.100 dst 192.168.20.100 via 172.20.2.1 dev podlane_vxlan onlink src 172.20.0.1 mtu 1450"
        );
        // Expedited forwarding (RFC 3246): a traffic class of 0xb8.
        let payload = encapsulated(64, 0xb8, &[], ONLINK);
        let route = Decoded::decode(&payload).expect("of the main table");
        assert_eq!(
            route.ours(&names()).to_string(),
            "encap id 7 src 192.168.10.100 dst 192.168.20.100 dscp 46 via 172.20.2.1 dev podlane_vxlan onlink src 172.20.0.1 mtu 1450"
        );
    }

    #[test]
    fn what_we_would_not_have_made_equals_nothing_declared() {
        let lone_header = header(6, ROUTE_PROTOCOL, 0);
        let hop = [
            attribute(rta::OIF, &4_u32.to_ne_bytes()),
            attribute(rta::GATEWAY, &[192, 168, 10, 101]),
        ]
        .concat();
        let other_metric = attribute(rta::METRICS, &attribute(8, &1400_u32.to_ne_bytes()));
        for payload in [
            encapsulated(63, 0, &[], ONLINK),
            encapsulated(64, 1, &[], ONLINK),
            encapsulated(64, 0xb8 | 2, &[], ONLINK),
            encapsulated(64, 0, &attribute(8, &[1]), ONLINK),
            encapsulated(64, 0, &[], 0),
            lone_header,
            [header(1, ROUTE_PROTOCOL, ONLINK), hop.clone()].concat(),
            [header(1, ROUTE_PROTOCOL, 0), hop.clone(), other_metric].concat(),
            [
                header(1, ROUTE_PROTOCOL, 0),
                hop,
                attribute(rta::NH_ID, &[1, 0, 0, 0]),
            ]
            .concat(),
        ] {
            let route = Decoded::decode(&payload)
                .expect("of the main table")
                .ours(&names());
            assert!(
                matches!(route.target, RouteTarget::Via { gateway, .. } if gateway.is_unspecified()),
                "{route}"
            );
        }
    }

    #[test]
    fn other_tables_and_cached_routes_are_passed_over() {
        let mut other = header(1, 4, 0);
        other.extend(attribute(rta::TABLE, &1000_u32.to_ne_bytes()));
        assert!(Decoded::decode(&other).is_none());
        assert!(Decoded::decode(&header(1, 4, 0x200)).is_none());
        assert!(Decoded::decode(&header(2, 2, 0)).is_none());
        assert!(Decoded::decode(&[2, 24]).is_none());
    }

    #[test]
    fn all_next_hops_of_a_foreign_route_are_read() {
        let hop = |index: u32, attributes: Vec<u8>| {
            let mut bytes = ((8 + attributes.len()) as u16).to_ne_bytes().to_vec();
            bytes.extend([0, 0]);
            bytes.extend(index.to_ne_bytes());
            bytes.extend(attributes);
            bytes
        };
        let six: [u8; 18] = [10, 0, 0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9];
        let hops = [
            hop(4, attribute(rta::GATEWAY, &[192, 168, 10, 1])),
            hop(5, attribute(rta::VIA, &six)),
        ]
        .concat();
        let payload = [header(1, 186, 0), attribute(rta::MULTIPATH, &hops)].concat();
        let route = Decoded::decode(&payload)
            .expect("of the main table")
            .foreign(&names());
        assert_eq!(route.protocol, 186);
        let hops: Vec<_> = route
            .next_hops
            .iter()
            .map(|hop| (hop.gateway.map(|it| it.to_string()), hop.device.as_str()))
            .collect();
        assert_eq!(
            hops,
            [
                (Some("192.168.10.1".to_owned()), "eth1"),
                (Some("fe80::9".to_owned()), "if5")
            ]
        );
    }
}
