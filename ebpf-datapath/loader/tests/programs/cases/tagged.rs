//! Frames with VLAN tags, as BPF_PROG_TEST_RUN has them: in the frame. On a wire (tests/programs/wire/forged.rs) the kernel has the first one beside it.

use super::Table;
use crate::machine::Hook;
use crate::model::Verdict::{Drop, Pass};
use crate::packet::{ACK, Link, frame, tagged, tcp, udp};
use crate::story::{FROM_NEIGHBOUR, FROM_POD, FROM_ROUTER, OVER_V4, OVER_V6, in_tunnel};
use podlane_datapath_common::Reason;
use podlane_test_namespaces::Test;

pub(crate) const TESTS: &[Test] = &[
    ("pods_have_no_priority_tags", pods_have_no_priority_tags),
    (
        "priority_tags_hide_nothing_on_the_underlay",
        priority_tags_hide_nothing_on_the_underlay,
    ),
    ("cut_off_tags", cut_off_tags),
];

const ETHERTYPES: [u16; 2] = [0x8100, 0x88a8];

/// Number 0, with every priority at least once.
const PRIORITIES: [u16; 9] = [0, 0x1000, 0x2000, 0x4000, 0x6000, 0x8000, 0xa000, 0xc000, 0xf000];

fn pods_have_no_priority_tags() {
    let mut table = Table::new(Hook::PodIngress);
    let arp = frame(FROM_POD, 0x0806, &[0; 28]);
    let frames = [
        udp("172.20.0.10", "172.20.2.10").frame(FROM_POD),
        udp("fd20::a", "fd20:0:0:2::a").frame(FROM_POD),
        udp("9.9.9.9", "172.20.2.10").frame(FROM_POD),
        udp("1.2.3.4", "255.255.255.255").frame(FROM_POD),
        arp,
    ];
    for inside in &frames {
        for ethertype in ETHERTYPES {
            for priority in PRIORITIES {
                let one = tagged(inside, ethertype, priority);
                table.case("a priority", &one, Drop(Reason::PodSource));
                let within =
                    [0, 5].map(|number| tagged(&tagged(inside, 0x8100, number), ethertype, priority));
                for two in within {
                    table.case("a priority before another tag", &two, Drop(Reason::PodSource));
                }
                let other = tagged(inside, ethertype, priority | 5);
                table.case("another device's", &other, Pass);
            }
        }
    }
    table.end();
}

fn priority_tags_hide_nothing_on_the_underlay() {
    let mut table = Table::new(Hook::UnderlayIngress);
    let plain = |source: &str, to: &str, link: Link| udp(source, to).frame(link);
    let native = Reason::PlainPodSource;
    let frames = [
        (
            "a node's",
            plain("192.168.20.100", "192.168.10.100", FROM_ROUTER),
            Pass,
        ),
        (
            "a neighbour's pod's",
            plain("172.20.1.10", "172.20.0.10", FROM_NEIGHBOUR),
            Pass,
        ),
        (
            "the same from elsewhere",
            plain("172.20.1.10", "172.20.0.10", FROM_ROUTER),
            Drop(Reason::WrongLinkAddress),
        ),
        (
            "a pod's",
            plain("172.20.2.10", "172.20.0.10", FROM_ROUTER),
            Drop(native),
        ),
        (
            "a pod's, IPv6",
            plain("fd20:0:0:2::a", "fd20::a", FROM_ROUTER),
            Drop(native),
        ),
        (
            "encapsulated",
            in_tunnel(OVER_V4, 0, &udp("172.20.2.10", "172.20.0.10")),
            Pass,
        ),
        (
            "encapsulated, TCP over IPv6",
            in_tunnel(OVER_V6, 1, &tcp("fd20:0:0:3::a", "fd20::a", ACK)),
            Pass,
        ),
        (
            "another's, encapsulated",
            in_tunnel(OVER_V4, 0, &udp("172.20.3.10", "172.20.0.10")),
            Drop(Reason::ForgedInner),
        ),
        ("ARP", frame(FROM_ROUTER, 0x0806, &[0; 28]), Pass),
    ];
    for (name, inside, verdict) in &frames {
        for ethertype in ETHERTYPES {
            for priority in PRIORITIES {
                table.case(name, &tagged(inside, ethertype, priority), *verdict);
                let two = tagged(&tagged(inside, 0x8100, 0x2000), ethertype, priority);
                table.case(&format!("{name}, two tags"), &two, Drop(Reason::Malformed));
                for other in [
                    tagged(inside, ethertype, priority | 5),
                    tagged(&tagged(inside, ethertype, 5), 0x8100, priority),
                ] {
                    table.case(&format!("{name}, another device's"), &other, Pass);
                }
            }
        }
    }
    table.end();
}

fn cut_off_tags() {
    let mut table = Table::new(Hook::UnderlayIngress);
    let inside = udp("172.20.2.10", "172.20.0.10").frame(FROM_ROUTER);
    let one = tagged(&inside, 0x8100, 0);
    let two = tagged(&one, 0x8100, 0);
    let other = tagged(&tagged(&inside, 0x8100, 5), 0x8100, 0);
    // Without both of its octets a tag says nothing, and the kernel throws it away.
    for frame in [&one, &two, &other] {
        table.case("half a tag", &frame[..15], Pass);
        for length in 16..18 {
            table.case("a tag alone", &frame[..length], Drop(Reason::Malformed));
        }
    }
    for length in 18..22 {
        for frame in [&two, &other] {
            table.case("two tags, cut off", &frame[..length], Drop(Reason::Malformed));
        }
    }
    // A whole IP header alone shows whose the packet is.
    for length in 18..38 {
        table.case("one tag, cut off", &one[..length], Pass);
    }
    for length in 38..one.len() {
        table.case("one tag, a header", &one[..length], Drop(Reason::PlainPodSource));
    }
    table.case("two tags, whole", &other[..22], Pass);
    table.end();
}
