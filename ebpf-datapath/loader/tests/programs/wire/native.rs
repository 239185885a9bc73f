//! The native lane on the wire: noted, stamped, past the stack, and nothing left behind in the packet.

use super::{Tap, Wire};
use crate::cases::tell;
use crate::machine::Hook;
use crate::model::{Verdict, forwarded, tuple_of};
use crate::packet::{ACK, Body, IpPacket, Link, SYN, ip_packet, udp};
use crate::story::{
    FROM_NEIGHBOUR, FROM_POD, FROM_ROUTER, NEIGHBOUR_MAC, NODE_MAC, ROUTER_MAC, TO_POD, prefix,
};
use aya::programs::tc::{TcAttachType, qdisc_add_clsact};
use podlane_datapath_common::{FlowKind, NATIVE_SLOT, Reason};
use podlane_test_namespaces::{Test, ip};

pub(crate) const TESTS: &[Test] = &[
    ("native_flows_on_the_wire", native_flows_on_the_wire),
    (
        "no_mark_of_the_bypass_leaves_the_node",
        no_mark_of_the_bypass_leaves_the_node,
    ),
    (
        "native_packets_too_long_for_the_lane",
        native_packets_too_long_for_the_lane,
    ),
];

/// A pod of the node on the link and one of a node over the router, the next hops and their link-layer addresses, and this node's pod.
const WAYS: [(&str, &str, &str, [u8; 6]); 4] = [
    ("172.20.1.10", "192.168.10.101", "172.20.0.10", NEIGHBOUR_MAC),
    ("fd20:0:0:1::a", "fd00:10::101", "fd20::a", NEIGHBOUR_MAC),
    ("172.20.8.10", "192.168.10.1", "172.20.0.10", ROUTER_MAC),
    ("fd20:0:0:4:4::a", "fd00:10::1", "fd20::a", ROUTER_MAC),
];

/// The usual wire, its node's native routes and neighbours.
fn wire() -> Wire {
    let wire = Wire::new();
    for (pod, next_hop, _, mac) in WAYS {
        let six = if pod.contains(':') { "-6 " } else { "" };
        let length = if six.is_empty() { 32 } else { 128 };
        let mac = mac.map(|octet| format!("{octet:02x}")).join(":");
        ip(&format!(
            "neigh replace {next_hop} lladdr {mac} dev eth0 nud permanent"
        ));
        ip(&format!("{six}route add {pod}/{length} via {next_hop} dev eth0"));
    }
    wire
}

fn bodies() -> [Body; 5] {
    [
        Body::Udp(40_000, 7, 32),
        Body::Udp(40_000, 7, 1400),
        Body::Tcp(40_000, 80, ACK, 100),
        Body::Tcp(40_000, 80, SYN, 0),
        Body::Other(132, vec![7; 40]),
    ]
}

fn native_flows_on_the_wire() {
    let mut wire = wire();
    let (pod, far) = (
        wire.pod.run(|| Tap::on("pod1-end")),
        wire.far.run(|| Tap::on("eth0-end")),
    );
    let mut ways = [[0, 0], [0, 0]];
    for (there, _, here, mac) in WAYS {
        for body in bodies() {
            // Twice: the second goes past the stack where it may, and must look the same.
            for time in 0..2 {
                let packet = ip_packet(here, there, body.clone());
                let what = format!("time {time}, {packet:?}");
                pod.send(&packet.frame(FROM_POD));
                ways[0][usize::from(left(&mut wire, &packet))] += 1;
                let mut expected = forwarded(&packet.frame(FROM_POD));
                expected[..12].copy_from_slice(&[mac, NODE_MAC].concat());
                let seen = far.next(|frame| frame[6..12] == NODE_MAC && frame.len() == expected.len());
                assert_eq!(seen, Some(expected), "{what}");
                assert_agreed(&mut wire, &packet, &what);

                let packet = ip_packet(there, here, body.clone());
                let what = format!("time {time}, {packet:?}");
                let link: Link = [NODE_MAC, mac];
                far.send(&packet.frame(link));
                ways[1][usize::from(came(&mut wire, &packet, link))] += 1;
                let mut expected = forwarded(&packet.frame(link));
                expected[..12].copy_from_slice(&TO_POD.concat());
                let seen = pod.next(|frame| frame[..6] == TO_POD[0] && frame.len() == expected.len());
                assert_eq!(seen, Some(expected), "{what}");
                assert_agreed(&mut wire, &packet, &what);
            }
        }
        let flow = udp(here, there);
        let tuple = tuple_of(&flow.frame(FROM_POD), 0).expect("a tuple");
        let flow = wire.machine.flow(&tuple).expect("a flow");
        assert_eq!(
            (flow.kind, flow.underlay, flow.slot),
            (FlowKind::SentPlain as u32, wire.devices.underlay, NATIVE_SLOT)
        );
    }
    assert!(ways.as_flattened().iter().all(|count| *count > 0), "{ways:?}");
    tell(&format!(
        "sent: {} through the stack, {} past it; received: {} and {}",
        ways[0][0], ways[0][1], ways[1][0], ways[1][1]
    ));
    // From the node on the link only by that node, stamped or not.
    let packet = udp("172.20.1.10", "172.20.0.10");
    let before = wire.machine.lanes()[NATIVE_SLOT as usize];
    far.send(&packet.frame(FROM_ROUTER));
    far.send(&packet.frame(FROM_NEIGHBOUR));
    assert!(pod.next(|frame| frame[..6] == TO_POD[0]).is_some());
    let after = wire.machine.lanes()[NATIVE_SLOT as usize];
    let refused = Reason::WrongLinkAddress as usize;
    assert_eq!(after.dropped[refused], before.dropped[refused] + 1);
    assert_eq!(after.received_packets, before.received_packets + 1);
    assert!(
        !pod.any(|frame| frame[..6] == TO_POD[0]),
        "the one that was refused"
    );
}

/// The model's part of a packet from the pod to the wire: whether past the stack.
fn left(wire: &mut Wire, packet: &IpPacket) -> bool {
    let machine = &mut wire.machine;
    machine.ask_time();
    let frame = packet.frame(FROM_POD);
    let entered = machine.expect(Hook::PodIngress, &frame, wire.devices.pod, 0);
    if entered.verdict == Verdict::ToUnderlay {
        return true;
    }
    assert_eq!(entered.verdict, Verdict::Pass);
    let passed = machine.expect(Hook::UnderlayEgress, &forwarded(&frame), wire.devices.underlay, 0);
    assert_eq!(passed.verdict, Verdict::Pass);
    false
}

/// The model's part of a packet from the wire to the pod, likewise.
fn came(wire: &mut Wire, packet: &IpPacket, link: Link) -> bool {
    let machine = &mut wire.machine;
    machine.ask_time();
    let entered = machine.expect(
        Hook::UnderlayIngress,
        &packet.frame(link),
        wire.devices.underlay,
        0,
    );
    if entered.verdict == Verdict::ToPod {
        return true;
    }
    assert_eq!(entered.verdict, Verdict::Pass);
    let mut frame = forwarded(&packet.frame(link));
    frame[..12].copy_from_slice(&TO_POD.concat());
    let passed = machine.expect(Hook::PodEgress, &frame, wire.devices.pod, 0);
    assert_eq!(passed.verdict, Verdict::Pass);
    false
}

fn assert_agreed(wire: &mut Wire, packet: &IpPacket, what: &str) {
    let mut found = wire.machine.counter_differences();
    let tuple = tuple_of(&packet.frame(FROM_POD), 0);
    found.extend(tuple.and_then(|tuple| wire.machine.flow_differences(&tuple)));
    assert!(found.is_empty(), "{what}: {}", found.join("\n"));
}

/// Packets past the stack to each pod in the test of the mark.
const PACKETS: u64 = 20;

fn no_mark_of_the_bypass_leaves_the_node() {
    let mut wire = wire();
    // The program that reads the mark, once more: where packets arrive at the far end. It counts each that bears none; a veth hands
    // `tc_index` on (`skb_scrub_packet`, net/core/skbuff.c, leaves it).
    let program = wire.machine.object.program("underlay_egress");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            wire.far.enter();
            qdisc_add_clsact("eth0-end").expect("clsact");
            program
                .attach("eth0-end", TcAttachType::Ingress)
                .expect("attached");
        });
    });
    let (pod, far) = (
        wire.pod.run(|| Tap::on("pod1-end")),
        wire.far.run(|| Tap::on("eth0-end")),
    );
    let counted = |wire: &mut Wire, here: &str, there: &str| {
        let before = wire.machine.lanes()[NATIVE_SLOT as usize];
        pod.send(&udp(here, there).frame(FROM_POD));
        assert!(
            far.next(|frame| frame[6..12] == NODE_MAC).is_some(),
            "{there}: lost"
        );
        let after = wire.machine.lanes()[NATIVE_SLOT as usize];
        [
            after.sent_bypassing - before.sent_bypassing,
            after.sent_packets - before.sent_packets,
        ]
    };
    for (there, _, here, _) in WAYS {
        // Counted here, and there as one without a mark; only the first has gone through the stack.
        assert_eq!(counted(&mut wire, here, there), [0, 2], "{there}");
        for _ in 0..PACKETS {
            assert_eq!(counted(&mut wire, here, there), [1, 2], "{there}");
        }
    }
    // That the far end would see one: nothing takes it away any more.
    wire.detach("underlay_egress", "eth0");
    for (there, _, here, _) in WAYS {
        // A packet on its way may still find the program.
        let is_seen = (0..PACKETS).any(|_| counted(&mut wire, here, there) == [1, 1]);
        assert!(is_seen, "{there}: no mark is seen");
    }
}

fn native_packets_too_long_for_the_lane() {
    let mut wire = wire();
    let (there, next_hop, here, _) = WAYS[0];
    const MTU: u32 = 1300;
    for (key, network) in &mut wire.machine.model.pods {
        if *key == prefix("172.20.1.0/24") {
            network.mtu = MTU;
        }
    }
    wire.machine.write();
    ip(&format!(
        "route replace {there} via {next_hop} dev eth0 mtu {MTU}"
    ));
    let (pod, far) = (
        wire.pod.run(|| Tap::on("pod1-end")),
        wire.far.run(|| Tap::on("eth0-end")),
    );
    let body = |length: u32| Body::Udp(40_000, 7, length as usize - 28);
    let may_be_cut = |length| ip_packet(here, there, body(length));
    let whole = |length| IpPacket {
        fragment: 0x4000,
        ..may_be_cut(length)
    };
    let bypassed = |wire: &mut Wire| wire.machine.lanes()[NATIVE_SLOT as usize].sent_bypassing;
    for time in 0..3 {
        pod.send(&whole(MTU).frame(FROM_POD));
        let seen = far.next(|frame| frame[6..12] == NODE_MAC);
        assert_eq!(seen.map(|frame| frame.len()), Some(14 + MTU as usize));
        assert_eq!(bypassed(&mut wire), time, "as long as may be");
    }
    // One more octet, and the stack says so: the flow's stamp is no way around the MTU.
    for _ in 0..2 {
        pod.send(&whole(MTU + 1).frame(FROM_POD));
        let said = pod.next(|frame| frame[..6] == TO_POD[0]).expect("an answer");
        // ICMP, destination unreachable, fragmentation needed, the next hop's MTU (RFC 1191, section 4).
        assert_eq!(
            (said[23], &said[34..36], &said[40..42]),
            (1, &[3, 4][..], &(MTU as u16).to_be_bytes()[..])
        );
        assert_eq!(bypassed(&mut wire), 2);
        pod.send(&may_be_cut(MTU + 1).frame(FROM_POD));
        let pieces = [0, 1].map(|_| far.next(|frame| frame[6..12] == NODE_MAC).expect("a fragment"));
        assert!(
            pieces.iter().all(|piece| piece.len() <= 14 + MTU as usize),
            "{pieces:02x?}"
        );
        assert_eq!(bypassed(&mut wire), 2);
    }
    assert!(!far.any(|frame| frame[6..12] == NODE_MAC), "what was too long");
    pod.send(&whole(100).frame(FROM_POD));
    assert!(far.next(|frame| frame[6..12] == NODE_MAC).is_some());
    assert_eq!(bypassed(&mut wire), 3, "what is not too long still bypasses");
}
