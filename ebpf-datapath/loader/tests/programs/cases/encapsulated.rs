//! `underlay_ingress`: what is encapsulated for the node.

use super::Table;
use crate::machine::Hook;
use crate::model::Verdict::{Drop, Pass, ToTunnelDevice};
use crate::packet::{ACK, Body, IpPacket, TunnelHeader, encapsulated, ip_packet, tcp, udp};
use crate::story::{
    self, FROM_ROUTER, IN_TUNNEL, OFF_LINK, ON_LINK, OVER_V4, OVER_V6, TUNNELS, address, in_tunnel,
    outer_from,
};
use podlane_datapath_common::{Reason, ip_protocol, settings_flag};
use podlane_test_namespaces::Test;

pub(crate) const TESTS: &[Test] = &[
    ("every_tunnel_is_taken_off", every_tunnel_is_taken_off),
    ("families_that_differ", families_that_differ),
    ("outer_headers_are_checked", outer_headers_are_checked),
    ("tunnel_headers_are_checked", tunnel_headers_are_checked),
    ("cut_off_packets", cut_off_packets),
    ("a_closed_node_passes_everything", a_closed_node_passes_everything),
];

/// Pods of peers, by peer, with this node's of the same family.
pub(crate) const PAIRS: [(&str, &str, &str); 8] = [
    (OVER_V4, "172.20.2.10", "172.20.0.10"),
    (OVER_V4, "fd20:0:0:2::a", "fd20::a"),
    (OVER_V6, "172.20.3.10", "172.20.0.10"),
    (OVER_V6, "fd20:0:0:3::a", "fd20::a"),
    (OFF_LINK, "172.20.7.10", "172.20.0.10"),
    (OFF_LINK, "172.20.8.10", "172.20.0.10"),
    (OFF_LINK, "fd20:0:0:4::a", "fd20::a"),
    (ON_LINK, "172.20.1.10", "172.20.0.10"),
];

fn same_family(peer: &str, pod: &str) -> bool {
    peer.contains(':') == pod.contains(':')
}

/// The first of these pairs, without those whose families differ where the kernel cannot be told so: their packets then go another way, by
/// [`families_that_differ`].
pub(crate) fn understood(first: usize) -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    PAIRS
        .into_iter()
        .take(first)
        .filter(|(peer, pod, _)| story::decap_flags() != 0 || same_family(peer, pod))
}

fn bodies() -> [Body; 6] {
    [
        Body::Udp(40_000, 7, 32),
        Body::Tcp(40_000, 80, ACK, 100),
        Body::Tcp(40_000, 80, crate::packet::SYN, 0),
        Body::Other(ip_protocol::ICMP, vec![8, 0, 0xf7, 0xff, 0, 0, 0, 0]),
        // SCTP (RFC 9260).
        Body::Other(132, vec![0x11; 40]),
        Body::Other(ip_protocol::PROBE, vec![0; 40]),
    ]
}

fn every_tunnel_is_taken_off() {
    let mut table = Table::new(Hook::UnderlayIngress);
    for (peer, from, to) in understood(8) {
        for slot in 0..TUNNELS.len() {
            let verdict = match (peer, slot) {
                (ON_LINK, 1..) => Drop(Reason::ForgedOuter),
                _ => Pass,
            };
            for body in bodies() {
                let inner = ip_packet(from, to, body);
                let name = format!("{peer} in slot {slot}: {inner:?}");
                table.case(&name, &in_tunnel(peer, slot, &inner), verdict);
            }
        }
    }
    let fragment = |fragment| IpPacket {
        fragment,
        ..udp("172.20.2.10", "172.20.0.10")
    };
    for (name, inner) in [
        ("the first of several fragments", fragment(0x2000)),
        ("the last fragment", fragment(0x00b9)),
        (
            "IPv4 options",
            IpPacket {
                options: vec![7, 7, 4, 0, 0, 0, 0, 0],
                ..fragment(0)
            },
        ),
        (
            "the last hop",
            IpPacket {
                ttl: 1,
                ..fragment(0)
            },
        ),
        (
            "IPv6 extension headers",
            IpPacket {
                options: vec![17, 0, 1, 4, 0, 0, 0, 0],
                first: 60,
                ..udp("fd20:0:0:3::a", "fd20::a")
            },
        ),
    ] {
        let outer = if inner.source.is_ipv4() { OVER_V4 } else { OVER_V6 };
        table.case(name, &in_tunnel(outer, 0, &inner), Pass);
    }
    table.end();
}

fn families_that_differ() {
    let without = settings_flag::DECAP_FLAGS;
    for (clear, set) in [(0, 0), (without, 0), (0, settings_flag::ENTER_BY_TUNNEL)] {
        let mut table = Table::of(Hook::UnderlayIngress, |node| {
            node.settings.flags = node.settings.flags & !clear | set;
        });
        for (peer, from, to) in &PAIRS[..7] {
            let unmarked = clear != 0 || story::decap_flags() == 0;
            let by_tunnel = set != 0 || unmarked && !same_family(peer, from);
            let verdict = if by_tunnel { ToTunnelDevice } else { Pass };
            for slot in [0, 1, 2] {
                let name = format!("{peer} with {from}, without {clear:#x}, with {set:#x}");
                let packet = in_tunnel(peer, slot, &tcp(from, to, ACK));
                table.case(&name, &packet, verdict);
            }
        }
        table.end();
        podlane_test_namespaces::ip("link del eth0");
        for device in ["pod1", "pod2", "tun0"] {
            podlane_test_namespaces::ip(&format!("link del {device}"));
        }
    }
}

fn outer_headers_are_checked() {
    let mut table = Table::new(Hook::UnderlayIngress);
    let inner = udp("172.20.2.10", "172.20.0.10");
    let by = |outer: &IpPacket| encapsulated(outer, FROM_ROUTER, &TUNNELS[0].0, &inner.frame(IN_TUNNEL));
    let outer = || outer_from(OVER_V4);
    let of = |source: &str, destination: &str| udp(source, destination);
    let here = "192.168.10.100";
    for (name, outer, verdict) in [
        ("as it should be", outer(), Pass),
        ("from nobody", of("192.168.20.101", here), Drop(Reason::NoPeer)),
        ("from this node", of(here, here), Drop(Reason::NoPeer)),
        ("from nowhere", of("0.0.0.0", here), Drop(Reason::NoPeer)),
        ("from a pod", of("172.20.2.10", here), Drop(Reason::NoPeer)),
        (
            "to another of its addresses",
            of(OVER_V4, "192.168.11.100"),
            Drop(Reason::ForgedOuter),
        ),
        (
            "to everybody",
            of(OVER_V4, "192.168.10.255"),
            Drop(Reason::ForgedOuter),
        ),
        ("from another peer", of(OFF_LINK, here), Drop(Reason::ForgedInner)),
        (
            "from nobody by IPv6",
            of("fd00:20::101", "fd00:10::100"),
            Drop(Reason::NoPeer),
        ),
        (
            "to another by IPv6",
            of(OVER_V6, "fd00:10::101"),
            Drop(Reason::ForgedOuter),
        ),
        (
            "with options",
            IpPacket {
                options: vec![1; 4],
                ..outer()
            },
            Pass,
        ),
        (
            "a first fragment",
            IpPacket {
                fragment: 0x2000,
                ..outer()
            },
            Pass,
        ),
        (
            "a later fragment",
            IpPacket {
                fragment: 0x0001,
                ..outer()
            },
            Pass,
        ),
        (
            "not to be fragmented",
            IpPacket {
                fragment: 0x4000,
                ..outer()
            },
            Pass,
        ),
        ("at its last hop", IpPacket { ttl: 1, ..outer() }, Pass),
        (
            "behind an extension header",
            IpPacket {
                options: vec![17, 0, 1, 4, 0, 0, 0, 0],
                first: 60,
                ..outer_from(OVER_V6)
            },
            Pass,
        ),
    ] {
        table.case(name, &by(&outer), verdict);
    }
    // The mapped form of a peer's IPv4 address in an IPv6 header is not that peer.
    table.case(
        "mapped",
        &by(&of("::ffff:192.168.20.100", "::ffff:192.168.10.100")),
        Drop(Reason::NoPeer),
    );
    table.end();
}

fn tunnel_headers_are_checked() {
    let mut table = Table::new(Hook::UnderlayIngress);
    let inner = udp("172.20.2.10", "172.20.0.10").frame(IN_TUNNEL);
    for (slot, (right, _)) in TUNNELS.iter().enumerate() {
        for (peer, family) in [(OVER_V4, "IPv4"), (OVER_V6, "IPv6")] {
            let mut case = |name: &str, change: &dyn Fn(&mut TunnelHeader), verdict| {
                let mut header = right.clone();
                change(&mut header);
                let packet = encapsulated(&outer_from(peer), FROM_ROUTER, &header, &inner);
                table.case(&format!("{name}, slot {slot}, {family}"), &packet, verdict);
            };
            case("another VNI", &|header| header.vni = 3, Pass);
            case("the VNI's high octet", &|header| header.vni ^= 0x80_0000, Pass);
            case("no VNI", &|header| header.vni = 0, Pass);
            case("another port", &|header| header.port = 1, Pass);
            for bit in 0..32 {
                let flip = |header: &mut TunnelHeader| header.first[bit / 8] ^= 0x80 >> (bit % 8);
                case(&format!("bit {bit}"), &flip, Drop(Reason::BadHeader));
            }
            for bit in 0..8 {
                case(
                    &format!("last bit {bit}"),
                    &|header| header.last = 1 << bit,
                    Drop(Reason::BadHeader),
                );
            }
            let other = if right.first[0] == 8 {
                [0, 0, 0x65, 0x58]
            } else {
                [8, 0, 0, 0]
            };
            case(
                "the other protocol",
                &|header| header.first = other,
                Drop(Reason::BadHeader),
            );
            case(
                "GENEVE of IPv4",
                &|header| header.first = [0, 0, 8, 0],
                Drop(Reason::BadHeader),
            );
        }
    }
    // A VNI that is nobody's is no way around the plain packets' check.
    let stranger = encapsulated(
        &udp("172.20.2.10", "172.20.0.10"),
        FROM_ROUTER,
        &TunnelHeader::vxlan(8472, 99),
        &inner,
    );
    table.case(
        "a pod's source and a strange VNI",
        &stranger,
        Drop(Reason::PlainPodSource),
    );
    table.end();
}

fn cut_off_packets() {
    let mut table = Table::new(Hook::UnderlayIngress);
    for (peer, from, to) in understood(4) {
        for slot in [0, 1] {
            let packet = in_tunnel(peer, slot, &tcp(from, to, ACK));
            let outer = if peer.contains(':') { 54 } else { 34 };
            let inner = if from.contains(':') { 40 } else { 20 };
            for length in outer..packet.len() {
                let verdict = if length < outer + 16 || length >= outer + 16 + 14 + inner {
                    Pass
                } else {
                    Drop(Reason::Malformed)
                };
                table.case(
                    &format!("{peer}, {from}, {length} octets"),
                    &packet[..length],
                    verdict,
                );
            }
        }
    }
    table.end();
}

fn a_closed_node_passes_everything() {
    let mut table = Table::of(Hook::UnderlayIngress, |node| {
        node.settings = podlane_datapath_common::Settings::CLOSED;
    });
    let (underlay, pod) = (table.devices.underlay, table.devices.pod);
    let packets = [
        in_tunnel(OVER_V4, 0, &udp("172.20.2.10", "172.20.0.10")),
        in_tunnel("192.168.20.101", 0, &udp("172.20.3.10", "172.20.0.10")),
        udp("172.20.2.10", "172.20.0.10").frame(FROM_ROUTER),
        udp("10.0.0.1", "172.20.2.10").frame(story::FROM_POD),
        udp("172.20.0.10", OVER_V4).frame(story::FROM_POD),
    ];
    for hook in Hook::ALL {
        let interface = match hook {
            Hook::UnderlayIngress | Hook::UnderlayEgress => underlay,
            Hook::PodIngress | Hook::PodEgress => pod,
        };
        table.at(hook, interface);
        for packet in &packets {
            table.case(hook.program(), packet, Pass);
        }
    }
    assert!(table.machine().model.peers.contains_key(&address(OVER_V4)));
    table.end();
}
