//! The netlink requests that carry out operations.

use super::transport::Request;
use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoGeneve, InfoKind, InfoVxlan, LinkAttribute,
    LinkExtentMask, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{
    RouteAttribute, RouteFlags, RouteHeader, RouteIp6Tunnel, RouteIp6TunnelFlags, RouteIpTunnel,
    RouteLwEnCapType, RouteLwTunnelEncap, RouteMessage, RouteMetric, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use podlane_plan::kernel::{
    DEVICE_GROUP, Device, MacAddress, OUTER_TTL, ROUTE_PROTOCOL, Route, RouteKey, RouteTarget,
};
use podlane_plan::lane::TunnelProtocol;
use std::net::IpAddr;

fn family(address: &IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

/// A dump of all devices, without their counters (`RTEXT_FILTER_SKIP_STATS`).
pub(crate) fn all_links() -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message
        .attributes
        .push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    RouteNetlinkMessage::GetLink(message)
}

/// One device by its name.
pub(crate) fn link(name: &str) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    message
        .attributes
        .push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    RouteNetlinkMessage::GetLink(message)
}

/// A dump of all addresses of both families.
pub(crate) fn all_addresses() -> RouteNetlinkMessage {
    RouteNetlinkMessage::GetAddress(AddressMessage::default())
}

/// A dump of a device's neighbours of both families.
pub(crate) fn neighbours_of(device: u32) -> RouteNetlinkMessage {
    let mut message = NeighbourMessage::default();
    message.attributes.push(NeighbourAttribute::IfIndex(device));
    RouteNetlinkMessage::GetNeighbour(message)
}

/// A dump of a family's main table.
pub(crate) fn main_table(family: AddressFamily) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    RouteNetlinkMessage::GetRoute(message)
}

/// A tunnel device, down, with our group from its first moment.
///
/// It takes packets over IPv6 without a UDP checksum, as the programs send them. RFC 6935, section 5, lets a tunnel do so on a port for
/// which that is asked for; of what RFC 6936, section 5, then wants the receiver to check, the outer addresses are compared with the
/// peers' ([`podlane_plan::datapath`]), and what is carried has checksums of its own.
pub(crate) fn create_device(name: &str, device: &Device) -> Request {
    let protocol = if device.stand_in {
        TunnelProtocol::Vxlan
    } else {
        device.protocol
    };
    let (kind, data) = match protocol {
        TunnelProtocol::Vxlan => (
            InfoKind::Vxlan,
            InfoData::Vxlan(vec![
                InfoVxlan::CollectMetadata(device.collect_metadata),
                InfoVxlan::Learning(false),
                InfoVxlan::Port(device.port),
                // IFLA_VXLAN_UDP_ZERO_CSUM6_RX; about IPv6 alone.
                InfoVxlan::UDPZeroCsumRX(true),
            ]),
        ),
        TunnelProtocol::Geneve => {
            let flow_based = device.collect_metadata.then_some(InfoGeneve::CollectMetadata);
            let data = flow_based
                .into_iter()
                .chain([InfoGeneve::Port(device.port), InfoGeneve::UdpZeroCsum6Rx(true)])
                .collect();
            (InfoKind::Geneve, InfoData::Geneve(data))
        }
    };
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Group(DEVICE_GROUP),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind), LinkInfo::Data(data)]),
    ];
    Request {
        message: RouteNetlinkMessage::NewLink(message),
        flags: NLM_F_CREATE | NLM_F_EXCL,
    }
}

/// No link-local address of the kernel's own making on a device (`IFLA_INET6_ADDR_GEN_MODE`). A request by itself, before the
/// device comes up: a kernel without IPv6, or a device too narrow for it, refuses it and nothing is lost.
pub(crate) fn no_link_local_address(index: u32) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
    message
        .attributes
        .push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![mode])]));
    Request {
        message: RouteNetlinkMessage::SetLink(message),
        flags: 0,
    }
}

/// A device's link-layer address, MTU and whether it resolves neighbours by ARP.
pub(crate) fn configure_device(index: u32, device: &Device) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.change_mask = LinkFlags::Noarp;
    message.header.flags = if device.arp {
        LinkFlags::empty()
    } else {
        LinkFlags::Noarp
    };
    message.attributes = vec![
        LinkAttribute::Address(device.mac.0.to_vec()),
        LinkAttribute::Mtu(device.mtu),
    ];
    Request {
        message: RouteNetlinkMessage::SetLink(message),
        flags: 0,
    }
}

/// A device up or down.
pub(crate) fn set_up(index: u32, up: bool) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.change_mask = LinkFlags::Up;
    message.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
    Request {
        message: RouteNetlinkMessage::SetLink(message),
        flags: 0,
    }
}

/// A device gone. By its index, which was read together with its group: its name may have gone to another in between.
pub(crate) fn delete_device(index: u32) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    Request {
        message: RouteNetlinkMessage::DelLink(message),
        flags: 0,
    }
}

fn address(index: u32, address: &IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(&address.addr());
    message.header.prefix_len = address.prefix_len();
    message.header.index = index;
    message.attributes = vec![
        AddressAttribute::Local(address.addr()),
        AddressAttribute::Address(address.addr()),
    ];
    message
}

/// An address on a device. IPv6: usable at once, since nobody else on a tunnel could have it (`IFA_F_NODAD`), and without a
/// route of the kernel's own (`IFA_F_NOPREFIXROUTE`), which IPv4 does not make for a /32 either.
pub(crate) fn add_address(index: u32, net: &IpNet) -> Request {
    let mut message = address(index, net);
    if net.addr().is_ipv6() {
        message.attributes.push(AddressAttribute::Flags(
            AddressFlags::Nodad | AddressFlags::Noprefixroute,
        ));
    }
    Request {
        message: RouteNetlinkMessage::NewAddress(message),
        flags: NLM_F_CREATE | NLM_F_EXCL,
    }
}

/// An address off a device.
pub(crate) fn remove_address(index: u32, net: &IpNet) -> Request {
    Request {
        message: RouteNetlinkMessage::DelAddress(address(index, net)),
        flags: 0,
    }
}

fn neighbour(index: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(&address);
    message.header.ifindex = index;
    message.header.kind = RouteType::Unicast;
    message
        .attributes
        .push(NeighbourAttribute::Destination(address.into()));
    message
}

/// A permanent neighbour, made or corrected. Permanent ones do not count against gc_thresh3 (`neigh_alloc` in
/// net/core/neighbour.c, since 5.0).
pub(crate) fn set_neighbour(index: u32, address: IpAddr, mac: MacAddress) -> Request {
    let mut message = neighbour(index, address);
    message.header.state = NeighbourState::Permanent;
    message
        .attributes
        .push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
    Request {
        message: RouteNetlinkMessage::NewNeighbour(message),
        flags: NLM_F_CREATE | NLM_F_REPLACE,
    }
}

/// A neighbour gone.
pub(crate) fn remove_neighbour(index: u32, address: IpAddr) -> Request {
    Request {
        message: RouteNetlinkMessage::DelNeighbour(neighbour(index, address)),
        flags: 0,
    }
}

fn route_message(key: &RouteKey) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(&key.destination.addr());
    message.header.destination_prefix_length = key.destination.prefix_len();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::from(ROUTE_PROTOCOL);
    message
        .attributes
        .push(RouteAttribute::Destination(key.destination.network().into()));
    if key.metric != 0 {
        message.attributes.push(RouteAttribute::Priority(key.metric));
    }
    message
}

/// Whether a route may take the place of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// No: EEXIST where there is any route with this destination and metric.
    Empty,
    /// Yes, in one step.
    Taken,
}

/// A route. `device` is the index of the one that it leaves by.
pub(crate) fn route(key: &RouteKey, route: &Route, device: u32, place: Place) -> Request {
    let mut message = route_message(key);
    let same_family = |gateway: &IpAddr| gateway.is_ipv6() == key.destination.addr().is_ipv6();
    let mut gateway = |gateway: &IpAddr| {
        message.attributes.push(if same_family(gateway) {
            RouteAttribute::Gateway((*gateway).into())
        } else {
            RouteAttribute::Via((*gateway).into())
        });
        message.attributes.push(RouteAttribute::Oif(device));
    };
    match &route.target {
        RouteTarget::Unreachable => message.header.kind = RouteType::Unreachable,
        RouteTarget::Via {
            gateway: next_hop, ..
        } => {
            gateway(next_hop);
            message.header.kind = RouteType::Unicast;
        }
        RouteTarget::Encapsulated {
            vni,
            source,
            destination,
            dscp,
            gateway: next_hop,
            ..
        } => {
            gateway(next_hop);
            message.header.kind = RouteType::Unicast;
            message.header.flags = RouteFlags::Onlink;
            let (encap_type, encap) = encapsulation(*vni, source, destination, *dscp);
            message.attributes.push(RouteAttribute::Encap(encap));
            message.attributes.push(RouteAttribute::EncapType(encap_type));
        }
    }
    if let Some(source) = route.preferred_source {
        message.attributes.push(RouteAttribute::PrefSource(source.into()));
    }
    if let Some(mtu) = route.mtu {
        message
            .attributes
            .push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)]));
    }
    let flags = match place {
        Place::Empty => NLM_F_CREATE | NLM_F_EXCL,
        Place::Taken => NLM_F_CREATE | NLM_F_REPLACE,
    };
    Request {
        message: RouteNetlinkMessage::NewRoute(message),
        flags,
    }
}

/// The octet that has a DSCP in its upper six bits; ECN's two are left to the driver, which takes them from the inner header.
pub(super) const fn traffic_class(dscp: u8) -> u8 {
    dscp << 2
}

/// The outer header. Over IPv6 with a UDP checksum: the driver has it almost for nothing, and a receiver that does not expect a packet
/// without one drops it (RFC 8200, section 8.1).
fn encapsulation(
    vni: u32,
    source: &IpAddr,
    destination: &IpAddr,
    dscp: u8,
) -> (RouteLwEnCapType, Vec<RouteLwTunnelEncap>) {
    let class = traffic_class(dscp);
    match (source, destination) {
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let encap = [
                RouteIp6Tunnel::Id(vni.into()),
                RouteIp6Tunnel::Source(*source),
                RouteIp6Tunnel::Destination(*destination),
                RouteIp6Tunnel::Hoplimit(OUTER_TTL),
                RouteIp6Tunnel::Tc(class),
                RouteIp6Tunnel::Flags(RouteIp6TunnelFlags::Checksum),
            ];
            (
                RouteLwEnCapType::Ip6,
                encap.into_iter().map(RouteLwTunnelEncap::Ip6).collect(),
            )
        }
        (source, destination) => {
            let four = |address: &IpAddr| match address {
                IpAddr::V4(address) => *address,
                // Two families in one outer header: the kernel refuses 0.0.0.0 no more than ip(8) does, but such a route
                // carries nothing, and reads back as different from what was declared.
                IpAddr::V6(_) => std::net::Ipv4Addr::UNSPECIFIED,
            };
            let encap = [
                RouteIpTunnel::Id(vni.into()),
                RouteIpTunnel::Source(four(source)),
                RouteIpTunnel::Destination(four(destination)),
                RouteIpTunnel::Ttl(OUTER_TTL),
                RouteIpTunnel::Tos(class),
            ];
            (
                RouteLwEnCapType::Ip,
                encap.into_iter().map(RouteLwTunnelEncap::Ip).collect(),
            )
        }
    }
}

/// A route of ours gone. `was` is what the last dump found: its type and device make the match as narrow as can be. The kernel
/// matches IPv4's metric 0 with any (`fib_nh_match` in net/ipv4/fib_semantics.c), but finds the lowest first; so only where the
/// route has gone meanwhile can an `unreachable` one of ours at another metric be meant in its place, which the dump after the
/// pass notices. Our protocol number is always part of the match.
pub(crate) fn remove_route(key: &RouteKey, was: Option<&Route>, device: u32) -> Request {
    let mut message = route_message(key);
    message.header.scope = RouteScope::NoWhere;
    message.header.kind = match was.map(|route| &route.target) {
        Some(RouteTarget::Unreachable) => RouteType::Unreachable,
        // A stand-in for what could not be read: any type.
        Some(RouteTarget::Via { gateway, .. }) if gateway.is_unspecified() => RouteType::Unspec,
        Some(_) => RouteType::Unicast,
        None => RouteType::Unspec,
    };
    if message.header.kind == RouteType::Unicast && device != 0 {
        message.attributes.push(RouteAttribute::Oif(device));
    }
    Request {
        message: RouteNetlinkMessage::DelRoute(message),
        flags: 0,
    }
}

/// A route of ours with a type of service, which no declared route has.
pub(crate) fn remove_route_with_tos(key: &RouteKey, tos: u8) -> Request {
    let mut request = remove_route(key, None, 0);
    if let RouteNetlinkMessage::DelRoute(message) = &mut request.message {
        message.header.tos = tos;
    }
    request
}
