//! The leased bypass, both ways, on every lane.

use super::Table;
use super::encapsulated::{PAIRS, understood};
use crate::machine::Hook;
use crate::model::Verdict::{Drop, Pass, ToPod, ToUnderlay};
use crate::model::{Node, Tuple, tuple_of};
use crate::packet::{ACK, Body, FIN, IpPacket, RST, SYN, encapsulated, ip_packet, tcp, udp};
use crate::story::{
    FROM_NEIGHBOUR, FROM_POD, FROM_ROUTER, GENERATION, IN_TUNNEL, OVER_V4, OVER_V6, TO_POD, TUNNELS, address,
    in_tunnel, outer_from,
};
use podlane_datapath_common::{FlowKind, FlowState, NATIVE_SLOT, Reason, settings_flag};
use podlane_test_namespaces::Test;

pub(crate) const TESTS: &[Test] = &[
    (
        "flows_sent_bypass_by_every_tunnel",
        flows_sent_bypass_by_every_tunnel,
    ),
    (
        "flows_received_bypass_from_every_tunnel",
        flows_received_bypass_from_every_tunnel,
    ),
    ("flows_bypass_by_the_native_lane", flows_bypass_by_the_native_lane),
    ("flows_are_noted_and_stamped", flows_are_noted_and_stamped),
];

/// A flow sent, stamped just now.
pub(crate) fn sent(node: &Node, now: u32, pod: u32, peer: &str, slot: usize) -> FlowState {
    let key = address(peer);
    let peer = node.peers[&key];
    let tunnel = node.settings.tunnels[slot];
    FlowState {
        noted: now,
        stamped: now,
        generation: GENERATION,
        kind: FlowKind::SentEncapsulated as u32,
        pod_interface: pod,
        underlay: peer.interface,
        next_hop_family: peer.next_hop_family,
        next_hop: peer.next_hop,
        outer_source: peer.source,
        outer_destination: key,
        vni: tunnel.vni,
        port: tunnel.port,
        tunnel_flags: tunnel.flags,
        slot: slot as u32,
        peer: peer.index,
        mtu: peer.mtu,
        link: [PEER_MAC, MAC].concat().try_into().expect("twelve octets"),
        ttl: 64,
        ..FlowState::UNKNOWN
    }
}

const PEER_MAC: [u8; 6] = IN_TUNNEL[1];
const MAC: [u8; 6] = IN_TUNNEL[0];

/// A flow received, stamped just now.
pub(crate) fn received(node: &Node, now: u32, pod: u32, peer: &str, slot: usize) -> FlowState {
    let there = sent(node, now, pod, peer, slot);
    FlowState {
        kind: FlowKind::ReceivedEncapsulated as u32,
        outer_source: there.outer_destination,
        outer_destination: there.outer_source,
        link: TO_POD.concat().try_into().expect("twelve octets"),
        ttl: 0,
        underlay: 0,
        next_hop_family: 0,
        next_hop: podlane_datapath_common::Address::NONE,
        ..there
    }
}

/// The tuple of a pod's packet.
pub(crate) fn tuple(packet: &IpPacket) -> Tuple {
    tuple_of(&packet.frame(FROM_POD), 0).expect("a tuple")
}

fn flows_sent_bypass_by_every_tunnel() {
    let mut table = Table::new(Hook::PodIngress);
    let (pod, now) = (table.devices.pod, table.machine().ask_time());
    for (peer, there, here) in &PAIRS[..7] {
        for slot in 0..TUNNELS.len() {
            for packet in [udp(here, there), tcp(here, there, ACK)] {
                for traffic_class in [0, 1, 2, 3, 0xff] {
                    let packet = IpPacket {
                        traffic_class,
                        ..packet.clone()
                    };
                    let flow = sent(&table.machine().model, now, pod, peer, slot);
                    table.machine().set_flow(tuple(&packet), flow);
                    let name = format!("{here} to {there} by {peer}, slot {slot}, class {traffic_class:#x}");
                    table.case(&name, &packet.frame(FROM_POD), ToUnderlay);
                }
            }
        }
    }
    table.end();
}

fn flows_received_bypass_from_every_tunnel() {
    let mut table = Table::new(Hook::UnderlayIngress);
    let (pod, now) = (table.devices.pod, table.machine().ask_time());
    for (peer, there, here) in understood(7) {
        for (slot, (header, _)) in TUNNELS.iter().enumerate() {
            for packet in [udp(there, here), tcp(there, here, ACK)] {
                let flow = received(&table.machine().model, now, pod, peer, slot);
                table.machine().set_flow(tuple(&packet), flow);
                for (inner, outer) in [(0, 0), (2, 3), (2, 1), (1, 2), (0xff, 0xb8)] {
                    let packet = IpPacket {
                        traffic_class: inner,
                        ..packet.clone()
                    };
                    let outer = IpPacket {
                        traffic_class: outer,
                        ..outer_from(peer)
                    };
                    let frame = encapsulated(&outer, FROM_ROUTER, header, &packet.frame(IN_TUNNEL));
                    table.case(
                        &format!("{there} to {here} by {peer}, slot {slot}"),
                        &frame,
                        ToPod,
                    );
                }
            }
        }
    }
    table.end();
}

fn flows_bypass_by_the_native_lane() {
    let mut table = Table::new(Hook::PodIngress);
    let (pod, underlay, now) = (
        table.devices.pod,
        table.devices.underlay,
        table.machine().ask_time(),
    );
    for (there, here, next_hop, index, link) in [
        ("172.20.1.10", "172.20.0.10", "192.168.10.101", 1, FROM_NEIGHBOUR),
        ("fd20:0:0:1::a", "fd20::a", "fd00:10::101", 1, FROM_NEIGHBOUR),
        ("172.20.7.10", "172.20.0.10", "192.168.10.1", 7, FROM_ROUTER),
    ] {
        let on_link = index == 1;
        let out = udp(here, there);
        let family = if next_hop.contains(':') { 6 } else { 4 };
        let flow = FlowState {
            noted: now,
            stamped: now,
            generation: GENERATION,
            kind: FlowKind::SentPlain as u32,
            pod_interface: pod,
            underlay,
            next_hop_family: family,
            next_hop: address(next_hop),
            slot: NATIVE_SLOT,
            peer: index,
            mtu: 1500,
            ..FlowState::UNKNOWN
        };
        table.machine().set_flow(tuple(&out), flow);
        table.at(Hook::PodIngress, pod);
        table.case(&format!("to {there}"), &out.frame(FROM_POD), ToUnderlay);
        let last = IpPacket { ttl: 1, ..out };
        table.case(&format!("to {there}, last hop"), &last.frame(FROM_POD), Pass);

        let back = tcp(there, here, ACK);
        let flow = FlowState {
            kind: FlowKind::ReceivedPlain as u32,
            underlay: 0,
            next_hop_family: 0,
            next_hop: podlane_datapath_common::Address::NONE,
            came_from: link[1],
            link: TO_POD.concat().try_into().expect("twelve octets"),
            ..flow
        };
        table.machine().set_flow(tuple(&back), flow);
        table.at(Hook::UnderlayIngress, underlay);
        table.case(&format!("from {there}"), &back.frame(link), ToPod);
        for (name, packet) in [
            (
                "last hop",
                IpPacket {
                    ttl: 1,
                    ..back.clone()
                },
            ),
            ("SYN", tcp(there, here, SYN | ACK)),
            ("FIN", tcp(there, here, FIN | ACK)),
            ("RST", tcp(there, here, RST)),
        ] {
            table.case(&format!("from {there}: {name}"), &packet.frame(link), Pass);
        }
        if on_link {
            let forged = back.frame([link[0], [2, 9, 9, 9, 9, 9]]);
            table.case("from elsewhere", &forged, Drop(Reason::WrongLinkAddress));
        }
    }
    table.end();
}

fn flows_are_noted_and_stamped() {
    let mut table = Table::new(Hook::PodIngress);
    let (pod, other, underlay) = (table.devices.pod, table.devices.other_pod, table.devices.underlay);
    // Sent on the native lane: noted at the pod's device, stamped at the underlay's, and gone past the stack.
    for (here, there) in [("172.20.0.10", "172.20.1.10"), ("fd20::a", "fd20:0:0:4::a")] {
        let packet = udp(here, there);
        table
            .at(Hook::PodIngress, pod)
            .case("noted", &packet.frame(FROM_POD), Pass);
        table.case("noted again", &packet.frame(FROM_POD), Pass);
        table
            .at(Hook::UnderlayEgress, underlay)
            .case("stamped", &packet.frame(FROM_ROUTER), Pass);
        table
            .at(Hook::PodIngress, pod)
            .case("bypasses", &packet.frame(FROM_POD), ToUnderlay);
        let last = IpPacket {
            ttl: 1,
            ..packet.clone()
        };
        table.case("noted, and still stamped", &last.frame(FROM_POD), Pass);
        table.case("bypasses again", &packet.frame(FROM_POD), ToUnderlay);
        table.at(Hook::PodIngress, other).case(
            "from elsewhere",
            &packet.frame(FROM_POD),
            Drop(Reason::PodSource),
        );
        table
            .at(Hook::PodEgress, pod)
            .case("no flow received", &packet.frame(TO_POD), Pass);
    }
    // Received in a tunnel and plain: noted at the underlay's device, stamped at the pod's.
    for (name, wire, packet) in [
        (
            "vxlan",
            in_tunnel(OVER_V4, 0, &tcp("172.20.2.10", "172.20.0.10", ACK)),
            tcp("172.20.2.10", "172.20.0.10", ACK),
        ),
        (
            "geneve",
            in_tunnel(OVER_V6, 1, &udp("fd20:0:0:3::a", "fd20::a")),
            udp("fd20:0:0:3::a", "fd20::a"),
        ),
        (
            "plain",
            udp("172.20.1.10", "172.20.0.10").frame(FROM_NEIGHBOUR),
            udp("172.20.1.10", "172.20.0.10"),
        ),
        (
            "over a router",
            udp("fd20:0:0:4::a", "fd20::a").frame(FROM_ROUTER),
            udp("fd20:0:0:4::a", "fd20::a"),
        ),
    ] {
        table
            .at(Hook::UnderlayIngress, underlay)
            .case(&format!("{name}: noted"), &wire, Pass);
        table.at(Hook::PodEgress, other).case(
            &format!("{name}: another device"),
            &packet.frame(TO_POD),
            Pass,
        );
        table
            .at(Hook::UnderlayIngress, underlay)
            .case(&format!("{name}: still noted"), &wire, Pass);
        table.at(Hook::UnderlayEgress, underlay).case(
            &format!("{name}: no flow sent"),
            &packet.frame(TO_POD),
            Pass,
        );
        table
            .at(Hook::PodEgress, pod)
            .case(&format!("{name}: stamped"), &packet.frame(TO_POD), Pass);
        table
            .at(Hook::UnderlayIngress, underlay)
            .case(&format!("{name}: bypasses"), &wire, ToPod);
        table
            .at(Hook::PodEgress, pod)
            .case(&format!("{name}: stamped again"), &packet.frame(TO_POD), Pass);
        table
            .at(Hook::UnderlayIngress, underlay)
            .case(&format!("{name}: bypasses again"), &wire, ToPod);
    }
    // What opens or closes a connection is neither noted nor stamps.
    for flags in [SYN, SYN | ACK, FIN | ACK, RST, RST | ACK] {
        let opening = ip_packet(
            "172.20.0.10",
            "172.20.1.10",
            Body::Tcp(41_000 + u16::from(flags), 80, flags, 0),
        );
        let sending = ip_packet(
            "172.20.0.10",
            "172.20.1.10",
            Body::Tcp(41_000 + u16::from(flags), 80, ACK, 9),
        );
        table
            .at(Hook::PodIngress, pod)
            .case("not noted", &opening.frame(FROM_POD), Pass);
        table
            .at(Hook::UnderlayEgress, underlay)
            .case("no stamp", &sending.frame(FROM_ROUTER), Pass);
        table
            .at(Hook::PodIngress, pod)
            .case("noted", &sending.frame(FROM_POD), Pass);
        table
            .at(Hook::UnderlayEgress, underlay)
            .case("no stamp", &opening.frame(FROM_ROUTER), Pass);
        table
            .at(Hook::PodIngress, pod)
            .case("not stamped", &sending.frame(FROM_POD), Pass);
    }
    // A flow that the stack has translated leaves under another tuple.
    let before = ip_packet("172.20.0.10", "172.20.1.10", Body::Udp(42_000, 53, 9));
    let after = ip_packet("172.20.0.10", "172.20.1.11", Body::Udp(42_000, 53, 9));
    table
        .at(Hook::PodIngress, pod)
        .case("to be translated", &before.frame(FROM_POD), Pass);
    table
        .at(Hook::UnderlayEgress, underlay)
        .case("translated", &after.frame(FROM_ROUTER), Pass);
    table
        .at(Hook::PodIngress, pod)
        .case("still to be translated", &before.frame(FROM_POD), Pass);
    // Noted, then the settings change: no stamp.
    let flow = ip_packet("172.20.0.10", "172.20.1.10", Body::Udp(43_000, 53, 9));
    table
        .at(Hook::PodIngress, pod)
        .case("noted", &flow.frame(FROM_POD), Pass);
    table.settings(|settings| settings.generation += 1);
    table
        .at(Hook::UnderlayEgress, underlay)
        .case("of another generation", &flow.frame(FROM_ROUTER), Pass);
    table
        .at(Hook::PodIngress, pod)
        .case("noted anew", &flow.frame(FROM_POD), Pass);
    table
        .at(Hook::UnderlayEgress, underlay)
        .case("stamped", &flow.frame(FROM_ROUTER), Pass);
    table
        .at(Hook::PodIngress, pod)
        .case("bypasses", &flow.frame(FROM_POD), ToUnderlay);
    table.settings(|settings| settings.generation += 1);
    table
        .at(Hook::PodIngress, pod)
        .case("of another generation", &flow.frame(FROM_POD), Pass);
    table.settings(|settings| settings.flags &= !settings_flag::BYPASS);
    let quiet = ip_packet("172.20.0.10", "172.20.1.10", Body::Udp(44_000, 53, 9));
    table.case(
        "nothing is noted without the bypass",
        &quiet.frame(FROM_POD),
        Pass,
    );
    let nothing = table.machine().flow(&tuple(&quiet)).is_none();
    table.holds("nothing is noted", nothing);
    table.end();
}
