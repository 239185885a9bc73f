//! Peers behind several ways of one cost: the kernel chooses for each flow by the outer tuple, and its choice is taken.

use super::{Tap, Wire};
use crate::cases::tell;
use crate::packet::{Body, ip_packet};
use crate::story::{FROM_POD, NODE_MAC, OVER_V4, OVER_V6, address};
use podlane_datapath_common::peer_flag;
use podlane_test_namespaces::{Test, ip, parameter};
use std::collections::BTreeSet;

pub(crate) const TESTS: &[Test] = &[
    ("flows_are_spread_over_two_devices", || {
        let wire = Wire::new();
        ways_by_two_devices(&wire);
        spread(wire, &["eth0-end", "eth1-end"]);
    }),
    ("flows_are_spread_over_two_gateways", || {
        let wire = Wire::new();
        ways_by_two_gateways();
        spread(wire, &["eth0-end"]);
    }),
];

/// The link-layer addresses of the two next hops.
const NEXT_HOPS: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 3]];

/// The node's addresses are no device's own, for of several ways the kernel prefers one by the device that has the source (`fib_select_multipath`,
/// net/ipv4/fib_semantics.c, since 6.15).
fn ways_by_two_devices(wire: &Wire) {
    for line in [
        &format!(
            "link add eth1 address 02:00:00:00:00:01 type veth peer name eth1-end address 02:00:00:00:00:03 netns {}",
            wire.far.tid()
        ),
        "link set eth1 addrgenmode none up",
    ] {
        ip(line);
    }
    wire.far.ip("link set eth1-end addrgenmode none up");
    for (device, net, mac) in [("eth0", 11, 2), ("eth1", 12, 3)] {
        for line in [
            format!("addr add 192.168.{net}.100/24 dev {device}"),
            format!("addr add fd00:{net}::100/64 dev {device} nodad"),
            format!("neigh add 192.168.{net}.1 lladdr 02:00:00:00:00:0{mac} dev {device} nud permanent"),
            format!("neigh add fd00:{net}::1 lladdr 02:00:00:00:00:0{mac} dev {device} nud permanent"),
        ] {
            ip(&line);
        }
    }
    for line in [
        "addr del 192.168.10.100/24 dev eth0",
        "addr del fd00:10::100/64 dev eth0",
        "addr add 192.168.10.100/32 dev lo",
        "addr add fd00:10::100/128 dev lo nodad",
    ] {
        ip(line);
    }
    for (six, prefix, gateways) in [
        ("", "192.168.20.0/24", ["192.168.11.1", "192.168.12.1"]),
        ("-6 ", "fd00:20::/64", ["fd00:11::1", "fd00:12::1"]),
    ] {
        ip(&format!(
            "{six}route add {prefix} nexthop via {} dev eth0 nexthop via {} dev eth1",
            gateways[0], gateways[1]
        ));
    }
}

fn ways_by_two_gateways() {
    for (six, prefix, gateways) in [
        ("", "192.168.20.0/24", ["192.168.10.1", "192.168.10.2"]),
        ("-6 ", "fd00:20::/64", ["fd00:10::1", "fd00:10::2"]),
    ] {
        ip(&format!(
            "neigh add {} lladdr 02:00:00:00:00:03 dev eth0 nud permanent",
            gateways[1]
        ));
        ip(&format!(
            "{six}route add {prefix} nexthop via {} dev eth0 nexthop via {} dev eth0",
            gateways[0], gateways[1]
        ));
    }
}

/// Flows of each kind.
const FLOWS: u16 = 24;

/// Flows to peers with several ways: each goes by the one that the kernel says, through the stack and past it, and none is left out.
fn spread(mut wire: Wire, ends: &'static [&'static str]) {
    // By ports too, or all flows to a peer would take one way.
    parameter("ipv4/fib_multipath_hash_policy", "1");
    parameter("ipv6/fib_multipath_hash_policy", "1");
    for peer in [OVER_V4, OVER_V6] {
        let peer = wire.machine.model.peers.get_mut(&address(peer)).expect("a peer");
        peer.flags |= peer_flag::SEVERAL_WAYS;
    }
    wire.machine.write();
    let pod = wire.pod.run(|| Tap::on("pod1-end"));
    let far: Vec<Tap> = ends.iter().map(|end| wire.far.run(|| Tap::on(end))).collect();
    for (here, there, from, to) in [
        ("172.20.0.10", "172.20.2.10", "192.168.10.100", OVER_V4),
        ("fd20::a", "fd20:0:0:2::a", "192.168.10.100", OVER_V4),
        ("172.20.0.10", "172.20.3.10", "fd00:10::100", OVER_V6),
        ("fd20::a", "fd20:0:0:3::a", "fd00:10::100", OVER_V6),
    ] {
        let mut taken = BTreeSet::new();
        for flow in 0..FLOWS {
            let packet = ip_packet(here, there, Body::Udp(40_000 + flow, 7, 32));
            let before = wire.machine.lanes()[0];
            let mut ways = BTreeSet::new();
            for time in 0..2 {
                pod.send(&packet.frame(FROM_POD));
                let what = format!("{there} from port {}, time {time}", 40_000 + flow);
                let seen = next(&far).unwrap_or_else(|| panic!("{what}: lost"));
                ways.insert(way(&seen, &what));
            }
            assert_eq!(ways.len(), 1, "one flow, one way: {ways:?}");
            let (port, next_hop) = ways.pop_first().expect("a way");
            assert_eq!(next_hop, chosen(from, to, port), "{there}, outer port {port}");
            taken.insert(next_hop);
            let after = wire.machine.lanes()[0];
            let sent = [
                after.sent_packets - before.sent_packets,
                after.sent_bypassing - before.sent_bypassing,
            ];
            assert_eq!(sent, [2, 1], "{there}");
        }
        assert_eq!(
            taken,
            BTreeSet::from([0, 1]),
            "{there} over {to}: both ways are taken"
        );
    }
    // With one way left it is taken; with none that the kernel knows the one that the map has, which is the first, too.
    let first = ["192.168.10.1", "192.168.11.1"][ends.len() - 1];
    ip(&format!("route replace 192.168.20.0/24 via {first}"));
    for left in ["one", "none"] {
        for flow in 0..FLOWS {
            let packet = ip_packet("172.20.0.10", "172.20.2.10", Body::Udp(40_000 + flow, 7, 32));
            pod.send(&packet.frame(FROM_POD));
            let seen = next(&far).unwrap_or_else(|| panic!("{left} left: lost"));
            assert_eq!(way(&seen, left).1, 0, "{left} left");
        }
        ip("route flush exact 192.168.20.0/24");
        ip("route flush exact default");
    }
    tell(&format!("{} flows", 4 * FLOWS));
}

/// The next frame of the node at any of the ends.
fn next(far: &[Tap]) -> Option<Vec<u8>> {
    let end = std::time::Instant::now() + super::tap::PATIENCE;
    while std::time::Instant::now() < end {
        let seen = far
            .iter()
            .find_map(|tap| tap.at_once(|frame| frame[6..12] == NODE_MAC && frame[0] == 2));
        if seen.is_some() {
            return seen;
        }
        std::thread::sleep(std::time::Duration::from_micros(200));
    }
    None
}

/// The outer source port of a frame, and which next hop it went to.
fn way(frame: &[u8], what: &str) -> (u16, usize) {
    let udp = if frame[12..14] == [0x08, 0x00] { 34 } else { 54 };
    let port = u16::from_be_bytes([frame[udp], frame[udp + 1]]);
    let next_hop = NEXT_HOPS.iter().position(|mac| frame[..6] == *mac);
    (
        port,
        next_hop.unwrap_or_else(|| panic!("{what}: to nobody: {frame:02x?}")),
    )
}

/// Which next hop the kernel's own packets of this outer tuple take.
fn chosen(from: &str, to: &str, port: u16) -> usize {
    let said = ip(&format!(
        "route get {to} from {from} ipproto udp sport {port} dport 8472"
    ));
    let words: Vec<_> = said.split_whitespace().collect();
    let via = words.windows(2).find(|pair| pair[0] == "via").map(|pair| pair[1]);
    match via {
        Some("192.168.10.1" | "fd00:10::1" | "192.168.11.1" | "fd00:11::1") => 0,
        Some("192.168.10.2" | "fd00:10::2" | "192.168.12.1" | "fd00:12::1") => 1,
        other => panic!("{other:?}: {said}"),
    }
}
