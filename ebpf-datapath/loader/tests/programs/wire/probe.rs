//! `probe_send`: what leaves, and what it says of what does not.

use super::Tap;
use crate::cases::tell;
use crate::machine::Machine;
use crate::packet::{IpPacket, Link, encapsulated, ip_packet, probe_body, udp};
use crate::story::{self, IN_TUNNEL, NEIGHBOUR_MAC, NODE_MAC, ROUTER_MAC, TUNNELS, address};
use aya::programs::{TestRun, TestRunOptions};
use podlane_datapath_common::probe::{LENGTH, ProbeState, REQUEST};
use podlane_test_namespaces::{Test, index, ip, parameter};

pub(crate) const TESTS: &[Test] = &[
    ("probes_leave_for_the_next_hop", probes_leave_for_the_next_hop),
    ("what_the_fib_refuses_is_said", what_the_fib_refuses_is_said),
    ("what_is_no_probe_is_not_sent", what_is_no_probe_is_not_sent),
];

/// Sent; not sent, for another reason than the FIB's.
const SENT: u32 = 0;
const FAILED: u32 = 255;
/// `BPF_FIB_LKUP_RET_*` (include/uapi/linux/bpf.h).
const BLACKHOLE: u32 = 1;
const UNREACHABLE: u32 = 2;
const PROHIBIT: u32 = 3;
const NOT_FORWARDED: u32 = 4;
const FORWARDING_DISABLED: u32 = 5;
const ENCAPSULATION: u32 = 6;
const NO_NEIGHBOUR: u32 = 7;
const TOO_LONG: u32 = 8;

const NUMBER: u64 = 0x0102_0304_0506_0708;
/// The agent knows neither address.
const BLANK: Link = [[0; 6]; 2];
/// Of the frame, headers and all.
const WHOLE: u32 = 1400;

/// A run of the program: the next hop, as the agent names it; the device, 0 for none; the frame's full length.
struct Asked {
    next_hop: &'static str,
    interface: u32,
    length: u32,
}

/// Has the agent's frame sent: what the program gives back, and what is known of the probe afterwards.
fn send(machine: &mut Machine, frame: &[u8], asked: &Asked) -> (u32, Option<ProbeState>) {
    const MARK: usize = 8;
    const INTERFACE: usize = 40;
    const CB: usize = 48;
    let mut context = [0; 192];
    let mut write = |at: usize, number: u32| context[at..at + 4].copy_from_slice(&number.to_ne_bytes());
    write(MARK, asked.length);
    write(INTERFACE, asked.interface);
    let next_hop = address(asked.next_hop);
    if next_hop.is_v4() {
        write(CB, next_hop.word());
        write(CB + 16, 4);
    } else {
        for (word, at) in next_hop.0.into_iter().zip((CB..).step_by(4)) {
            write(at, word);
        }
        write(CB + 16, 6);
    }
    let code = run(machine, frame, &context);
    (code, machine.probe(NUMBER))
}

fn run(machine: &mut Machine, frame: &[u8], context: &[u8]) -> u32 {
    let program = machine.object.program("probe_send");
    let options = TestRunOptions {
        data_in: Some(frame),
        ctx_in: Some(context),
        ..TestRunOptions::new()
    };
    program.test_run(options).expect("it runs").return_value
}

/// A node that awaits the probe's answer.
fn node() -> Machine {
    let mut node = story::node(story::devices());
    node.probes.insert(NUMBER, ProbeState::default());
    Machine::new(node)
}

/// The probe from one router address to another, as long as makes the frame [`WHOLE`] with so many octets before its IP header.
fn probe(from: &str, to: &str, before: usize) -> IpPacket {
    let header = if from.contains(':') { 40 } else { 20 };
    let padding = WHOLE as usize - before - header - LENGTH;
    ip_packet(from, to, probe_body(REQUEST, 0, NUMBER, [7; 8], padding))
}

/// A probe in a tunnel, in a frame.
fn tunnelled(from: &str, to: &str, slot: usize, inner: (&str, &str)) -> Vec<u8> {
    let outer = udp(from, to);
    let before = 14 + if from.contains(':') { 40 } else { 20 } + 8 + 8 + 14;
    let packet = probe(inner.0, inner.1, before).frame(IN_TUNNEL);
    encapsulated(&outer, BLANK, &TUNNELS[slot].0, &packet)
}

/// Where a frame's padding begins, which the agent leaves to the program.
fn padding(frame: &[u8]) -> usize {
    let start = frame.iter().rposition(|octet| *octet != 0xa5).expect("a header");
    assert!(start + 1 < frame.len());
    start + 1
}

fn frames() -> [(&'static str, Vec<u8>); 6] {
    const V4: (&str, &str) = ("192.168.10.100", "192.168.20.100");
    const V6: (&str, &str) = ("fd00:10::100", "fd00:20::100");
    const INNER_V4: (&str, &str) = ("172.20.0.1", "172.20.2.1");
    const INNER_V6: (&str, &str) = ("fd20::1", "fd20:0:0:2::1");
    [
        ("plain", probe(INNER_V4.0, INNER_V4.1, 14).frame(BLANK)),
        ("plain, IPv6", probe(INNER_V6.0, INNER_V6.1, 14).frame(BLANK)),
        ("VXLAN", tunnelled(V4.0, V4.1, 0, INNER_V4)),
        ("IPv6 in VXLAN", tunnelled(V4.0, V4.1, 0, INNER_V6)),
        ("GENEVE over IPv6", tunnelled(V6.0, V6.1, 1, INNER_V4)),
        ("IPv6 in GENEVE over IPv6", tunnelled(V6.0, V6.1, 1, INNER_V6)),
    ]
}

fn probes_leave_for_the_next_hop() {
    let mut machine = node();
    ip("route add 192.168.20.0/24 via 192.168.10.1");
    ip("-6 route add fd00:20::/64 via fd00:10::1");
    let wire = Tap::on("eth0-end");
    let eth0 = index("eth0");
    let mut count = 0;
    for (name, whole) in frames() {
        for (next_hop, interface, to) in [
            ("192.168.10.101", eth0, NEIGHBOUR_MAC),
            ("fd00:10::101", eth0, NEIGHBOUR_MAC),
            ("192.168.10.1", eth0, ROUTER_MAC),
            ("fd00:10::1", eth0, ROUTER_MAC),
            // What is not on the link goes by the routes; by no device given, too.
            ("192.168.20.100", eth0, ROUTER_MAC),
            ("fd00:20::100", eth0, ROUTER_MAC),
            ("192.168.20.100", 0, ROUTER_MAC),
            ("fd00:20::100", 0, ROUTER_MAC),
        ] {
            let given = padding(&whole);
            let mut expected = whole.clone();
            expected[given..].fill(0);
            expected[..12].copy_from_slice(&[to, NODE_MAC].concat());
            // Cut off behind the probe, and whole already.
            for frame in [&whole[..given], &expected[..]] {
                let asked = Asked {
                    next_hop,
                    interface,
                    length: WHOLE,
                };
                machine.await_probe(NUMBER);
                let (code, known) = send(&mut machine, frame, &asked);
                let what = format!(
                    "{name} to {next_hop} by device {interface}, {} octets",
                    frame.len()
                );
                assert_eq!(code, SENT, "{what}");
                assert!(
                    known.is_some_and(|state| state.sent != 0 && state.answered == 0),
                    "{what}"
                );
                let seen = wire.next(|frame| frame[6..12] == NODE_MAC && frame.len() > 200);
                assert!(
                    seen.as_ref() == Some(&expected),
                    "{what}: {seen:02x?}, not {expected:02x?}"
                );
                count += 1;
            }
        }
    }
    tell(&format!("{count} sent"));
}

fn what_the_fib_refuses_is_said() {
    let mut machine = node();
    for line in [
        "route add blackhole 10.1.0.0/16",
        "route add unreachable 10.2.0.0/16",
        "route add prohibit 10.3.0.0/16",
        "route add 10.4.0.0/16 encap ip id 1 dst 192.168.20.100 via 192.168.10.1 dev eth0",
        "-6 route add 2001:db8:4::/48 encap ip6 id 1 dst fd00:20::100 via fd00:10::1 dev eth0",
    ] {
        ip(line);
    }
    let wire = Tap::on("eth0-end");
    let eth0 = index("eth0");
    let mut refused = |what: &str, next_hop: &'static str, length: u32, expected: u32| {
        for (name, frame) in frames() {
            machine.await_probe(NUMBER);
            let asked = Asked {
                next_hop,
                interface: eth0,
                length,
            };
            let (code, known) = send(&mut machine, &frame, &asked);
            assert_eq!(code, expected, "{name}: {what}");
            // Its round trip is not counted from here.
            assert_eq!(known, Some(ProbeState::default()), "{name}: {what}");
        }
    };
    for (what, next_hop, expected) in [
        ("a blackhole", "10.1.0.1", BLACKHOLE),
        ("unreachable", "10.2.0.1", UNREACHABLE),
        ("prohibited", "10.3.0.1", PROHIBIT),
        ("no route", "10.9.0.1", NOT_FORWARDED),
        ("no route, IPv6", "2001:db8:9::1", NOT_FORWARDED),
        ("behind a tunnel", "10.4.0.1", ENCAPSULATION),
        ("behind a tunnel, IPv6", "2001:db8:4::1", ENCAPSULATION),
        ("nobody known", "192.168.10.77", NO_NEIGHBOUR),
        ("nobody known, IPv6", "fd00:10::77", NO_NEIGHBOUR),
    ] {
        refused(what, next_hop, WHOLE, expected);
    }
    refused("longer than the device takes", "192.168.10.101", 1600, TOO_LONG);
    refused("longer than any packet", "192.168.10.101", 1 << 20, FAILED);
    for family in ["ipv4", "ipv6"] {
        parameter(&format!("{family}/conf/eth0/forwarding"), "0");
    }
    refused("no router, IPv4", "192.168.10.101", WHOLE, FORWARDING_DISABLED);
    refused("no router, IPv6", "fd00:10::101", WHOLE, FORWARDING_DISABLED);
    assert!(!wire.any(|frame| frame.len() > 200), "nothing left");
}

fn what_is_no_probe_is_not_sent() {
    let mut machine = node();
    let wire = Tap::on("eth0-end");
    let eth0 = index("eth0");
    let right = Asked {
        next_hop: "192.168.10.101",
        interface: eth0,
        length: WHOLE,
    };
    let whole = probe("172.20.0.1", "172.20.2.1", 14);
    let other = |body| IpPacket {
        body,
        ..whole.clone()
    };
    let unknown = probe_body(REQUEST, 0, NUMBER + 1, [7; 8], 100);
    let within = tunnelled(
        "192.168.10.100",
        "192.168.20.100",
        0,
        ("172.20.0.1", "172.20.2.1"),
    );
    let mut strange = within.clone();
    // The inner ethertype: ARP.
    strange[14 + 20 + 8 + 8 + 12..][..2].copy_from_slice(&[0x08, 0x06]);
    let arp = crate::packet::frame(BLANK, 0x0806, &[0; 200]);
    for (name, frame) in [
        ("awaited by nobody", other(unknown).frame(BLANK)),
        (
            "TCP",
            crate::packet::tcp("172.20.0.1", "172.20.2.1", crate::packet::ACK).frame(BLANK),
        ),
        ("neither IPv4 nor IPv6", arp),
        ("in a tunnel neither", strange),
    ] {
        let (code, known) = send(&mut machine, &frame, &right);
        assert_eq!((code, known), (FAILED, Some(ProbeState::default())), "{name}");
    }
    // Cut off before its number, and not to be filled up.
    for (frame, header) in [(whole.frame(BLANK), 14 + 20), (within, 14 + 20 + 8 + 8 + 14 + 20)] {
        for length in 14 + 20..header + 16 {
            let asked = Asked { length: 0, ..right };
            let (code, known) = send(&mut machine, &frame[..length], &asked);
            assert_eq!(
                (code, known),
                (FAILED, Some(ProbeState::default())),
                "{length} octets"
            );
        }
    }
    // Neither family.
    for family in [0_u32, 5, 10] {
        let mut context = [0; 192];
        context[40..44].copy_from_slice(&eth0.to_ne_bytes());
        context[64..68].copy_from_slice(&family.to_ne_bytes());
        let code = run(&mut machine, &whole.frame(BLANK), &context);
        assert_eq!(code, FAILED, "family {family}");
    }
    assert!(
        !wire.any(|frame| frame.len() > 14 && frame[12..14] == [8, 0]),
        "nothing left"
    );
}
