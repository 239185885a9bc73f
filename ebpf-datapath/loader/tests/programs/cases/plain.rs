//! `underlay_ingress`: plain packets.

use super::Table;
use crate::machine::Hook;
use crate::model::Verdict::{Drop, Pass};
use crate::packet::{ACK, IpPacket, Link, frame, tcp, udp};
use crate::story::{FROM_NEIGHBOUR, FROM_ROUTER, address};
use podlane_datapath_common::{Reason, settings_flag};
use podlane_test_namespaces::{Test, ip};

pub(crate) const TESTS: &[Test] = &[
    ("plain_sources_are_checked", plain_sources_are_checked),
    (
        "plain_sources_without_a_native_lane",
        plain_sources_without_a_native_lane,
    ),
    ("plain_sources_unchecked", plain_sources_unchecked),
    (
        "a_neighbour_that_is_not_resolved",
        a_neighbour_that_is_not_resolved,
    ),
    ("what_is_no_ip_passes", what_is_no_ip_passes),
];

/// Sources of plain packets, the link they come by, and what becomes of them where native lanes are open.
const SOURCES: [(&str, Link, crate::model::Verdict); 26] = [
    ("192.168.20.100", FROM_ROUTER, Pass),
    ("8.8.8.8", FROM_ROUTER, Pass),
    ("127.0.0.1", FROM_ROUTER, Pass),
    ("169.254.1.1", FROM_ROUTER, Pass),
    ("172.15.255.255", FROM_ROUTER, Pass),
    // Within the cover of all pod CIDRs, but nobody's.
    ("172.21.0.1", FROM_ROUTER, Pass),
    ("172.20.0.10", FROM_ROUTER, Drop(Reason::PlainPodSource)),
    ("172.20.0.1", FROM_NEIGHBOUR, Drop(Reason::PlainPodSource)),
    ("172.20.9.1", FROM_ROUTER, Drop(Reason::PlainPodSource)),
    ("172.20.77.1", FROM_ROUTER, Drop(Reason::PlainPodSource)),
    ("172.20.2.10", FROM_ROUTER, Drop(Reason::PlainPodSource)),
    ("172.20.3.10", FROM_ROUTER, Drop(Reason::PlainPodSource)),
    ("172.20.1.10", FROM_NEIGHBOUR, Pass),
    ("172.20.1.10", FROM_ROUTER, Drop(Reason::WrongLinkAddress)),
    ("172.20.4.10", FROM_ROUTER, Pass),
    ("172.20.8.10", FROM_NEIGHBOUR, Pass),
    ("fd00:20::100", FROM_ROUTER, Pass),
    ("fe80::1", FROM_ROUTER, Pass),
    ("fd20::a", FROM_ROUTER, Drop(Reason::PlainPodSource)),
    ("fd20:0:0:77::1", FROM_ROUTER, Drop(Reason::PlainPodSource)),
    ("fd20:0:0:2::a", FROM_ROUTER, Drop(Reason::PlainPodSource)),
    ("fd20:0:0:1::a", FROM_NEIGHBOUR, Pass),
    ("fd20:0:0:1::a", FROM_ROUTER, Drop(Reason::WrongLinkAddress)),
    ("fd20:0:0:4::a", FROM_ROUTER, Pass),
    // Within the cover, but nobody's.
    ("fd20:0:1::1", FROM_ROUTER, Pass),
    ("::ffff:172.20.2.10", FROM_ROUTER, Pass),
];

fn here(source: &str) -> &'static str {
    if source.contains(':') {
        "fd20::a"
    } else {
        "172.20.0.10"
    }
}

/// The packet in every form that hides ports, all of which have to be checked alike.
fn forms(source: &str) -> Vec<(String, IpPacket)> {
    let to = here(source);
    let plain = udp(source, to);
    let mut forms = vec![
        ("UDP".to_owned(), plain.clone()),
        ("TCP".to_owned(), tcp(source, to, ACK)),
        ("TCP SYN".to_owned(), tcp(source, to, crate::packet::SYN)),
        (
            "to the node".to_owned(),
            udp(
                source,
                if source.contains(':') {
                    "fd00:10::100"
                } else {
                    "192.168.10.100"
                },
            ),
        ),
    ];
    if source.contains(':') {
        let extended = |first, options| IpPacket {
            first,
            options,
            ..plain.clone()
        };
        forms.push((
            "a destination option".to_owned(),
            extended(60, vec![17, 0, 1, 4, 0, 0, 0, 0]),
        ));
        forms.push((
            "a fragment".to_owned(),
            extended(44, vec![17, 0, 0, 1, 0, 0, 0, 9]),
        ));
        forms.push((
            "hop by hop".to_owned(),
            extended(0, vec![17, 0, 1, 4, 0, 0, 0, 0]),
        ));
    } else {
        forms.push((
            "options".to_owned(),
            IpPacket {
                options: vec![7, 7, 4, 0, 0, 0, 0, 0],
                ..plain.clone()
            },
        ));
        forms.push((
            "a first fragment".to_owned(),
            IpPacket {
                fragment: 0x2000,
                ..plain.clone()
            },
        ));
        forms.push((
            "a later fragment".to_owned(),
            IpPacket {
                fragment: 0x0123,
                ..plain
            },
        ));
    }
    forms
}

fn plain_sources_are_checked() {
    let mut table = Table::new(Hook::UnderlayIngress);
    for (source, link, verdict) in SOURCES {
        for (form, packet) in forms(source) {
            table.case(&format!("{form} from {source}"), &packet.frame(link), verdict);
        }
    }
    table.end();
}

fn plain_sources_without_a_native_lane() {
    let mut table = Table::of(Hook::UnderlayIngress, |node| {
        node.settings.flags &= !settings_flag::NATIVE;
    });
    for (source, link, verdict) in SOURCES {
        let native = [
            "172.20.1.",
            "172.20.4.",
            "172.20.8.",
            "fd20:0:0:1:",
            "fd20:0:0:4:",
        ];
        let verdict = if native.iter().any(|prefix| source.starts_with(prefix)) {
            Drop(Reason::PlainPodSource)
        } else {
            verdict
        };
        table.case(source, &udp(source, here(source)).frame(link), verdict);
    }
    table.end();
}

fn plain_sources_unchecked() {
    let mut table = Table::of(Hook::UnderlayIngress, |node| {
        node.settings.flags &= !settings_flag::CHECK_UNDERLAY;
    });
    for (source, link, _) in SOURCES {
        table.case(source, &udp(source, here(source)).frame(link), Pass);
    }
    table.end();
}

fn a_neighbour_that_is_not_resolved() {
    let mut table = Table::new(Hook::UnderlayIngress);
    let four = udp("172.20.1.10", "172.20.0.10").frame(FROM_NEIGHBOUR);
    let six = udp("fd20:0:0:1::a", "fd20::a").frame(FROM_NEIGHBOUR);
    // Only IPv4's is asked for, and so remembered.
    table.case("resolved", &four, Pass);
    ip("neigh del 192.168.10.101 dev eth0");
    ip("neigh del fd00:10::101 dev eth0");
    std::thread::sleep(std::time::Duration::from_millis(1100));
    table.case("remembered", &four, Pass);
    table.machine().model.neighbours.remove(&address("fd00:10::101"));
    table.case("never known", &six, Drop(Reason::WrongLinkAddress));
    ip("neigh add 192.168.10.101 lladdr 02:00:00:00:00:02 dev eth0 nud permanent");
    std::thread::sleep(std::time::Duration::from_millis(1100));
    table
        .machine()
        .model
        .neighbours
        .insert(address("192.168.10.101"), crate::story::ROUTER_MAC);
    table.case("moved: the old one", &four, Drop(Reason::WrongLinkAddress));
    let moved = udp("172.20.1.10", "172.20.0.10").frame(FROM_ROUTER);
    table.case("moved: the new one", &moved, Pass);
    table.end();
}

fn what_is_no_ip_passes() {
    let mut table = Table::new(Hook::UnderlayIngress);
    let right = udp("172.20.2.10", "172.20.0.10");
    for ethertype in [
        0x0806, 0x8100, 0x88a8, 0x8847, 0x88cc, 0x0003, 0x05ff, 0x8864, 0x22f0,
    ] {
        let name = format!("{ethertype:#x}");
        table.case(&name, &frame(FROM_ROUTER, ethertype, &right.octets()), Pass);
    }
    let six = udp("fd20:0:0:2::a", "fd20::a");
    table.case(
        "IPv4 that says IPv6",
        &frame(FROM_ROUTER, 0x0800, &six.octets()),
        Pass,
    );
    table.case(
        "IPv6 that says IPv4",
        &frame(FROM_ROUTER, 0x86dd, &right.octets()),
        Pass,
    );
    let cut = frame(FROM_ROUTER, 0x0800, &right.octets()[..20]);
    table.case("a header and nothing more", &cut, Drop(Reason::PlainPodSource));
    table.end();
}
