//! `pod_ingress`: what pods may send, and to whom.

use super::Table;
use crate::machine::Hook;
use crate::model::Verdict::{Drop, Pass};
use crate::packet::{ACK, Body, IpPacket, SYN, frame, ip_packet, tcp, udp};
use crate::story::{FROM_POD, OFF_LINK, ON_LINK, OVER_V4, OVER_V6};
use podlane_datapath_common::{Reason, ip_protocol};
use podlane_test_namespaces::Test;

pub(crate) const TESTS: &[Test] = &[
    (
        "pods_send_from_their_own_addresses",
        pods_send_from_their_own_addresses,
    ),
    (
        "what_the_stack_does_not_forward_passes",
        what_the_stack_does_not_forward_passes,
    ),
    (
        "pods_cannot_speak_to_tunnel_ports",
        pods_cannot_speak_to_tunnel_ports,
    ),
    ("extension_headers_hide_no_port", extension_headers_hide_no_port),
    ("cut_off_packets_of_pods", cut_off_packets_of_pods),
];

fn pods_send_from_their_own_addresses() {
    let mut table = Table::new(Hook::PodIngress);
    let sources = [
        ("172.20.0.10", Pass),
        ("fd20::a", Pass),
        // The other pod's, the node's, a free one, a peer's, an unassigned one, a stranger's.
        ("172.20.0.11", Drop(Reason::PodSource)),
        ("fd20::b", Drop(Reason::PodSource)),
        ("172.20.0.1", Drop(Reason::PodSource)),
        ("fd20::1", Drop(Reason::PodSource)),
        ("172.20.0.12", Drop(Reason::PodSource)),
        ("172.20.9.10", Drop(Reason::PodSource)),
        ("172.20.2.10", Drop(Reason::PodSource)),
        ("fd20:0:0:2::a", Drop(Reason::PodSource)),
        ("172.20.77.1", Drop(Reason::PodSource)),
        ("172.21.0.1", Drop(Reason::PodSource)),
        ("192.168.10.100", Drop(Reason::PodSource)),
        ("192.168.20.100", Drop(Reason::PodSource)),
        ("8.8.8.8", Drop(Reason::PodSource)),
        ("127.0.0.1", Drop(Reason::PodSource)),
        ("255.255.255.255", Drop(Reason::PodSource)),
        ("224.0.0.1", Drop(Reason::PodSource)),
        ("2001:db8::1", Drop(Reason::PodSource)),
        ("::1", Drop(Reason::PodSource)),
        ("::ffff:172.20.0.10", Drop(Reason::PodSource)),
        ("fec0::1", Drop(Reason::PodSource)),
    ];
    for (source, verdict) in sources {
        let destinations: &[&str] = if source.contains(':') {
            &["fd20:0:0:2::a", "2001:db8::2", "fd20::b"]
        } else {
            &["172.20.2.10", "8.8.4.4", "172.20.0.11", "192.168.10.100"]
        };
        for to in destinations {
            for packet in [
                udp(source, to),
                tcp(source, to, ACK),
                ip_packet(source, to, Body::Other(132, vec![1; 30])),
                ip_packet(source, to, Body::Other(ip_protocol::ICMP, vec![8; 8])),
                IpPacket {
                    fragment: if source.contains(':') { 0 } else { 0x2010 },
                    ..udp(source, to)
                },
            ] {
                table.case(&format!("{source} to {to}"), &packet.frame(FROM_POD), verdict);
            }
        }
    }
    let other = table.devices.other_pod;
    table.at(Hook::PodIngress, other);
    for (source, verdict) in [("172.20.0.11", Pass), ("172.20.0.10", Drop(Reason::PodSource))] {
        table.case(
            "the other pod's device",
            &udp(source, "8.8.8.8").frame(FROM_POD),
            verdict,
        );
    }
    table.end();
}

/// What the stack does not forward, but may take for this node itself.
const ON_THE_LINK: [(&str, &str); 8] = [
    (OVER_V4, "255.255.255.255"),
    (OVER_V4, "224.0.0.1"),
    ("172.20.0.10", "239.1.2.3"),
    ("0.0.0.0", "192.168.10.100"),
    (OVER_V6, "ff02::1"),
    (OVER_V6, "fe80::1"),
    ("fe80::1", "fd00:10::100"),
    ("fd20::a", "ff0e::7"),
];

fn what_the_stack_does_not_forward_passes() {
    let mut table = Table::new(Hook::PodIngress);
    for (source, destination) in [
        // DHCP (RFC 2131), multicast, and what IPv6 nodes say on the link.
        ("0.0.0.0", "255.255.255.255"),
        ("0.0.0.0", "172.20.2.10"),
        ("1.2.3.4", "0.0.0.0"),
        ("1.2.3.4", "224.0.0.251"),
        ("1.2.3.4", "239.255.255.255"),
        ("1.2.3.4", "255.255.255.255"),
        ("fe80::1", "ff02::1"),
        ("fe80::1", "fd20:0:0:2::a"),
        ("febf::1", "2001:db8::1"),
        ("::", "ff02::1:ff00:a"),
        ("::", "fd20::1"),
        ("2001:db8::1", "fe80::1"),
        ("2001:db8::1", "ff02::2"),
        ("ff02::1", "fd20::1"),
    ] {
        let name = format!("{source} to {destination}");
        table.case(&name, &udp(source, destination).frame(FROM_POD), Pass);
    }
    for (source, destination) in ON_THE_LINK {
        for port in [8472, 6081, 6082, 4789] {
            let packet = ip_packet(source, destination, Body::Udp(40_000, port, 40));
            table.case(
                &format!("{source} to {destination}, port {port}"),
                &packet.frame(FROM_POD),
                Drop(Reason::TunnelPort),
            );
        }
        for (name, body) in [
            ("another port", Body::Udp(8472, 8473, 40)),
            ("TCP", Body::Tcp(1, 8472, SYN, 0)),
        ] {
            let packet = ip_packet(source, destination, body);
            table.case(
                &format!("{source} to {destination}, {name}"),
                &packet.frame(FROM_POD),
                Pass,
            );
        }
    }
    // Reports of multicast listeners (RFC 3810, section 5) come behind a header of options.
    let report = IpPacket {
        first: 0,
        options: vec![58, 0, 5, 2, 0, 0, 1, 0],
        ..ip_packet("fe80::1", "ff02::16", Body::Other(58, vec![143; 28]))
    };
    table.case("listeners", &report.frame(FROM_POD), Pass);
    let to_all = |kinds: &[(u8, usize)]| IpPacket {
        destination: "ff02::1".parse().expect("an address"),
        ..extended(kinds)
    };
    for kinds in [vec![(60, 8)], vec![(44, 8)], vec![(60, 8); 9]] {
        table.case(
            &format!("to all, behind {kinds:?}"),
            &to_all(&kinds).frame(FROM_POD),
            Drop(Reason::TunnelPort),
        );
    }
    let octets = udp("1.2.3.4", "5.6.7.8").octets();
    for ethertype in [0x0806, 0x8100, 0x88a8, 0x8847, 0x88cc, 0x0100] {
        let name = format!("{ethertype:#x}");
        table.case(&name, &frame(FROM_POD, ethertype, &octets), Pass);
    }
    table.end();
}

/// Peers' addresses in outer headers.
const NODES: [&str; 4] = [OVER_V4, ON_LINK, OFF_LINK, OVER_V6];

fn pod_like(address: &str) -> &'static str {
    if address.contains(':') {
        "fd20::a"
    } else {
        "172.20.0.10"
    }
}

fn pods_cannot_speak_to_tunnel_ports() {
    let mut table = Table::new(Hook::PodIngress);
    for node in NODES {
        let pod = pod_like(node);
        for port in [8472, 6081, 6082, 4789] {
            let packet = ip_packet(pod, node, Body::Udp(40_000, port, 40));
            table.case(
                &format!("{node} port {port}"),
                &packet.frame(FROM_POD),
                Drop(Reason::TunnelPort),
            );
        }
        for (name, body) in [
            ("another port", Body::Udp(8472, 8473, 40)),
            ("port 0", Body::Udp(8472, 0, 40)),
            ("TCP", Body::Tcp(1, 8472, ACK, 0)),
            ("UDP-Lite", Body::Other(136, udp(pod, node).octets())),
            ("ICMP", Body::Other(ip_protocol::ICMP, vec![8; 8])),
        ] {
            table.case(
                &format!("{node}: {name}"),
                &ip_packet(pod, node, body).frame(FROM_POD),
                Pass,
            );
        }
    }
    for elsewhere in [
        "172.20.2.10",
        "8.8.8.8",
        "172.20.0.1",
        "192.168.10.1",
        "192.168.10.100",
        "fd20::1",
        "2001:db8::1",
        "fd00:10::100",
    ] {
        let packet = ip_packet(pod_like(elsewhere), elsewhere, Body::Udp(40_000, 8472, 40));
        table.case(&format!("{elsewhere} is no peer"), &packet.frame(FROM_POD), Pass);
    }
    let to_port = |options: Vec<u8>, fragment| IpPacket {
        options,
        fragment,
        ..ip_packet("172.20.0.10", OVER_V4, Body::Udp(40_000, 8472, 40))
    };
    for (name, packet, verdict) in [
        ("options", to_port(vec![1; 4], 0), Drop(Reason::TunnelPort)),
        (
            "the most options",
            to_port(vec![1; 40], 0),
            Drop(Reason::TunnelPort),
        ),
        (
            "a first fragment",
            to_port(vec![], 0x2000),
            Drop(Reason::TunnelPort),
        ),
        ("a later fragment", to_port(vec![], 0x2001), Pass),
        (
            "a forged source",
            IpPacket {
                source: [1, 2, 3, 4].into(),
                ..to_port(vec![], 0)
            },
            Drop(Reason::PodSource),
        ),
    ] {
        table.case(name, &packet.frame(FROM_POD), verdict);
    }
    // The reserved flag is no fragment.
    table.case(
        "the reserved flag",
        &to_port(vec![], 0x8000).frame(FROM_POD),
        Drop(Reason::TunnelPort),
    );
    table.end();
}

/// Extension headers of these kinds before UDP, each of the octets given.
fn extended(kinds: &[(u8, usize)]) -> IpPacket {
    let mut options = Vec::new();
    for (place, (kind, length)) in kinds.iter().enumerate() {
        let next = kinds.get(place + 1).map_or(ip_protocol::UDP, |(kind, _)| *kind);
        let units = match kind {
            44 => 0,
            51 => length / 4 - 2,
            _ => length / 8 - 1,
        };
        let mut header = vec![next, units as u8];
        header.resize(*length, 0);
        options.extend(header);
    }
    IpPacket {
        first: kinds[0].0,
        options,
        ..ip_packet("fd20::a", OVER_V6, Body::Udp(40_000, 8472, 40))
    }
}

fn extension_headers_hide_no_port() {
    let mut table = Table::new(Hook::PodIngress);
    let port = Drop(Reason::TunnelPort);
    for kind in [0, 43, 44, 60] {
        table.case(&format!("{kind}"), &extended(&[(kind, 8)]).frame(FROM_POD), port);
    }
    for (name, kinds) in [
        ("authentication", vec![(51, 24)]),
        ("a long one", vec![(60, 264)]),
        ("the longest one", vec![(60, 2048)]),
        (
            "all",
            vec![(0, 8), (60, 16), (43, 24), (44, 8), (51, 24), (60, 8)],
        ),
        ("eight", vec![(60, 8); 8]),
        ("nine", vec![(60, 8); 9]),
        ("twelve", vec![(60, 8); 12]),
    ] {
        table.case(name, &extended(&kinds).frame(FROM_POD), port);
    }
    let harmless = |kinds: &[(u8, usize)]| IpPacket {
        body: Body::Udp(40_000, 53, 40),
        ..extended(kinds)
    };
    table.case(
        "eight, another port",
        &harmless(&[(60, 8); 8]).frame(FROM_POD),
        Pass,
    );
    table.case(
        "nine, another port",
        &harmless(&[(60, 8); 9]).frame(FROM_POD),
        port,
    );
    let far = IpPacket {
        destination: "2001:db8::1".parse().expect("an address"),
        ..extended(&[(60, 8); 9])
    };
    table.case("nine, not to a node", &far.frame(FROM_POD), Pass);
    let mut later = extended(&[(44, 8)]);
    later.options[3] = 0x08;
    table.case("a later fragment", &later.frame(FROM_POD), Pass);
    let mut reserved = extended(&[(44, 8)]);
    reserved.options[3] = 0x07;
    table.case(
        "a first fragment with its flags set",
        &reserved.frame(FROM_POD),
        port,
    );
    // Encrypted, or nothing at all behind the header (RFC 8200, section 4.7).
    for protocol in [50, 59, 135, 139, 140] {
        let packet = ip_packet("fd20::a", OVER_V6, Body::Other(protocol, vec![0; 32]));
        table.case(&format!("{protocol}"), &packet.frame(FROM_POD), Pass);
    }
    let mut beyond = extended(&[(60, 8)]);
    beyond.options[1] = 200;
    table.case(
        "a header that ends beyond the packet",
        &beyond.frame(FROM_POD),
        port,
    );
    table.end();
}

fn cut_off_packets_of_pods() {
    let mut table = Table::new(Hook::PodIngress);
    let four = ip_packet("172.20.0.10", OVER_V4, Body::Udp(40_000, 8472, 8)).frame(FROM_POD);
    // BPF_PROG_TEST_RUN wants whole IP headers.
    for length in 34..four.len() {
        let verdict = Drop(Reason::TunnelPort);
        table.case(&format!("IPv4, {length} octets"), &four[..length], verdict);
    }
    let six = extended(&[(60, 8), (43, 16)]).frame(FROM_POD);
    for length in 54..six.len() {
        let verdict = Drop(Reason::TunnelPort);
        table.case(&format!("IPv6, {length} octets"), &six[..length], verdict);
    }
    let elsewhere = udp("172.20.0.10", "172.20.2.10").frame(FROM_POD);
    for length in 34..elsewhere.len() {
        table.case(&format!("elsewhere, {length} octets"), &elsewhere[..length], Pass);
    }
    table.end();
}
