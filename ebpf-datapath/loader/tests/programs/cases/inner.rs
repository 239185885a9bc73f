//! `underlay_ingress`: what is within a tunnel.

use super::Table;
use super::encapsulated::{PAIRS, understood};
use crate::machine::Hook;
use crate::model::Verdict::{Drop, Pass, ToTunnelDevice};
use crate::packet::{ACK, Body, IpPacket, encapsulated, frame, ip_packet, tcp, udp};
use crate::story::{self, FROM_ROUTER, IN_TUNNEL, OVER_V4, TUNNELS, in_tunnel, outer_from};
use podlane_datapath_common::{Reason, settings_flag};
use podlane_test_namespaces::Test;

pub(crate) const TESTS: &[Test] = &[
    ("inner_packets_are_checked", inner_packets_are_checked),
    ("congestion_is_carried_in", congestion_is_carried_in),
    ("super_packets_that_are_not_tcp_go_to_the_driver", super_packets),
];

fn inner_packets_are_checked() {
    let mut table = Table::new(Hook::UnderlayIngress);
    // It came over IPv4.
    let of_ipv6 = if story::decap_flags() == 0 {
        ToTunnelDevice
    } else {
        Pass
    };
    for (from, to, verdict) in [
        ("172.20.2.1", "172.20.0.1", Pass),
        ("172.20.2.255", "172.20.0.255", Pass),
        ("172.20.2.10", "172.20.0.200", Pass),
        ("172.20.3.10", "172.20.0.10", Drop(Reason::ForgedInner)),
        ("172.20.0.10", "172.20.0.10", Drop(Reason::ForgedInner)),
        ("192.168.20.100", "172.20.0.10", Drop(Reason::ForgedInner)),
        ("10.0.0.1", "172.20.0.10", Drop(Reason::ForgedInner)),
        ("0.0.0.0", "172.20.0.10", Drop(Reason::ForgedInner)),
        ("255.255.255.255", "172.20.0.10", Drop(Reason::ForgedInner)),
        ("127.0.0.1", "172.20.0.10", Drop(Reason::ForgedInner)),
        ("172.20.2.10", "172.20.2.11", Drop(Reason::NotHere)),
        ("172.20.2.10", "172.20.3.10", Drop(Reason::NotHere)),
        ("172.20.2.10", "172.20.9.10", Drop(Reason::NotHere)),
        ("172.20.2.10", "192.168.10.100", Drop(Reason::NotHere)),
        ("172.20.2.10", "224.0.0.1", Drop(Reason::NotHere)),
        ("172.20.2.10", "255.255.255.255", Drop(Reason::NotHere)),
        ("172.20.2.10", "127.0.0.1", Drop(Reason::NotHere)),
        ("172.20.2.10", "10.0.0.1", Drop(Reason::NotHere)),
        ("fd20:0:0:2:ffff:ffff:ffff:ffff", "fd20::ffff", of_ipv6),
        ("fd20:0:0:3::a", "fd20::a", Drop(Reason::ForgedInner)),
        ("fe80::1", "fd20::a", Drop(Reason::ForgedInner)),
        ("::", "fd20::a", Drop(Reason::ForgedInner)),
        ("::ffff:172.20.2.10", "fd20::a", Drop(Reason::ForgedInner)),
        ("fd20:0:0:2::a", "fd20:0:0:1::a", Drop(Reason::NotHere)),
        ("fd20:0:0:2::a", "::ffff:172.20.0.10", Drop(Reason::NotHere)),
        ("fd20:0:0:2::a", "ff02::1", Drop(Reason::NotHere)),
        ("fd20:0:0:2::a", "fe80::1", Drop(Reason::NotHere)),
        ("fd20:0:0:2::a", "::1", Drop(Reason::NotHere)),
    ] {
        for slot in [0, 1] {
            let name = format!("{from} to {to}");
            table.case(&name, &in_tunnel(OVER_V4, slot, &udp(from, to)), verdict);
        }
    }
    let right = udp("172.20.2.10", "172.20.0.10");
    let six = udp("fd20:0:0:2::a", "fd20::a");
    for (name, ethertype, octets) in [
        ("ARP", 0x0806, right.octets()),
        ("a VLAN", 0x8100, right.octets()),
        ("MPLS", 0x8847, right.octets()),
        ("a length", 0x0100, right.octets()),
        ("IPv4 that says IPv6", 0x0800, six.octets()),
        ("IPv6 that says IPv4", 0x86dd, right.octets()),
    ] {
        let inner = frame(IN_TUNNEL, ethertype, &octets);
        let packet = encapsulated(&outer_from(OVER_V4), FROM_ROUTER, &TUNNELS[0].0, &inner);
        table.case(name, &packet, Drop(Reason::Malformed));
    }
    let mut short = right.octets();
    short[0] = 0x44;
    let inner = frame(IN_TUNNEL, 0x0800, &short);
    let packet = encapsulated(&outer_from(OVER_V4), FROM_ROUTER, &TUNNELS[0].0, &inner);
    table.case("a header length of 16", &packet, Drop(Reason::Malformed));
    table.settings(|settings| settings.flags |= settings_flag::MORE_LOCAL);
    let further = in_tunnel(OVER_V4, 0, &udp("172.20.2.10", "172.20.9.10"));
    table.case("a pod CIDR that only the trie knows", &further, Pass);
    let peers = in_tunnel(OVER_V4, 0, &udp("172.20.2.10", "172.20.3.10"));
    table.case("a peer's that the trie knows", &peers, Drop(Reason::NotHere));
    table.end();
}

fn congestion_is_carried_in() {
    let mut table = Table::new(Hook::UnderlayIngress);
    // RFC 6040, section 4.2, figure 4: rows are the inner codepoint, columns the outer one in the order Not-ECT, ECT(0), ECT(1), CE.
    let figure = [
        (0b00, [Some(0b00), Some(0b00), Some(0b00), None]),
        (0b10, [Some(0b10), Some(0b10), Some(0b01), Some(0b11)]),
        (0b01, [Some(0b01), Some(0b01), Some(0b01), Some(0b11)]),
        (0b11, [Some(0b11), Some(0b11), Some(0b11), Some(0b11)]),
    ];
    for (peer, from, to) in understood(4) {
        for (inner_ecn, row) in figure {
            for (outer_ecn, result) in [0b00, 0b10, 0b01, 0b11].into_iter().zip(row) {
                for (inner_dscp, outer_dscp) in [(0, 0), (0x28, 0xb8), (0xfc, 0xfc)] {
                    assert_eq!(
                        crate::model::ecn_after_decapsulation(outer_ecn, inner_ecn),
                        result
                    );
                    let inner = IpPacket {
                        traffic_class: inner_dscp | inner_ecn,
                        ..tcp(from, to, ACK)
                    };
                    let outer = IpPacket {
                        traffic_class: outer_dscp | outer_ecn,
                        ..outer_from(peer)
                    };
                    let packet = encapsulated(&outer, FROM_ROUTER, &TUNNELS[0].0, &inner.frame(IN_TUNNEL));
                    let verdict = result.map_or(Drop(Reason::EcnInvalid), |_| Pass);
                    let name = format!("{peer}, {from}: {inner_ecn:02b} in {outer_ecn:02b}");
                    table.case(&name, &packet, verdict);
                }
            }
        }
    }
    table.end();
}

fn super_packets() {
    let mut table = Table::new(Hook::UnderlayIngress);
    for (peer, from, to) in &PAIRS[..4] {
        for slot in 0..TUNNELS.len() {
            let packet = in_tunnel(peer, slot, &ip_packet(from, to, Body::Udp(40_000, 443, 1200)));
            table.gso_case(&format!("QUIC in slot {slot}"), &packet, 400, Pass);
            let elsewhere = if from.contains(':') {
                "fd20:0:0:77::9"
            } else {
                "172.20.9.9"
            };
            let forged = in_tunnel(peer, slot, &ip_packet(from, elsewhere, Body::Udp(1, 443, 1200)));
            table.gso_case("forged QUIC", &forged, 400, Drop(Reason::NotHere));
            // BPF_PROG_TEST_RUN gives the packet no kind of GSO, and the kernel does not shrink such: it goes to the driver, too. Real TCP is in the tests of the wire.
            let tcp = in_tunnel(peer, slot, &ip_packet(from, to, Body::Tcp(1, 80, ACK, 1200)));
            table.gso_case(&format!("TCP in slot {slot}"), &tcp, 400, Pass);
        }
    }
    table.end();
}
