//! Frames put on the wire one by one, and what comes out at the other end, held against the model.

use super::{Tap, Wire};
use crate::cases::tell;
use crate::compare::without_port;
use crate::machine::Hook;
use crate::model::{Key, Verdict, forwarded};
use crate::packet::{ACK, Body, FIN, IpPacket, Link, SYN, encapsulated, ip_packet, tcp, udp};
use crate::story::{
    FROM_POD, FROM_ROUTER, IN_TUNNEL, NODE_MAC, OFF_LINK, OVER_V4, OVER_V6, PEER_TUNNEL_MAC, ROUTER_MAC,
    TO_POD, TUNNEL_MAC, TUNNELS, address, outer_from,
};
use podlane_datapath_common::ip_protocol;
use podlane_test_namespaces::Test;

pub(crate) const TESTS: &[Test] = &[
    (
        "pods_packets_are_encapsulated_on_the_wire",
        pods_packets_are_encapsulated_on_the_wire,
    ),
    (
        "packets_from_the_wire_reach_the_pod",
        packets_from_the_wire_reach_the_pod,
    ),
    (
        "what_the_driver_decapsulates_is_checked",
        what_the_driver_decapsulates_is_checked,
    ),
    (
        "frames_of_other_devices_and_cut_off_ones",
        frames_of_other_devices_and_cut_off_ones,
    ),
];

/// Peers' pods, this node's, the peer, the slot.
const WAYS: [(&str, &str, &str, usize); 8] = [
    ("172.20.2.10", "172.20.0.10", OVER_V4, 0),
    ("fd20:0:0:2::a", "fd20::a", OVER_V4, 0),
    ("172.20.3.10", "172.20.0.10", OVER_V6, 0),
    ("fd20:0:0:3::a", "fd20::a", OVER_V6, 0),
    ("172.20.7.10", "172.20.0.10", OFF_LINK, 2),
    ("fd20:0:0:4::a", "fd20::a", OFF_LINK, 2),
    ("172.20.3.210", "172.20.0.10", OVER_V6, 2),
    ("fd20:0:0:3:8000::a", "fd20::a", OVER_V6, 2),
];

/// From the pod to the peer's pod and back again differ in nothing but addresses.
fn bodies() -> [Body; 6] {
    [
        Body::Udp(40_000, 7, 32),
        Body::Udp(40_000, 7, 1300),
        Body::Tcp(40_000, 80, ACK, 100),
        Body::Tcp(40_000, 80, SYN, 0),
        Body::Tcp(40_000, 80, FIN | ACK, 1),
        Body::Other(132, vec![7; 40]),
    ]
}

fn pods_packets_are_encapsulated_on_the_wire() {
    let mut wire = Wire::new();
    let (pod, far) = (
        wire.pod.run(|| Tap::on("pod1-end")),
        wire.far.run(|| Tap::on("eth0-end")),
    );
    let mut ways = [0, 0];
    for (there, here, peer, slot) in WAYS {
        for body in bodies() {
            for traffic_class in [0, 0b01, 0b10, 0xff] {
                let packet = IpPacket {
                    traffic_class,
                    ..ip_packet(here, there, body.clone())
                };
                // Twice: the second goes past the stack where it may, and must look the same.
                for time in 0..2 {
                    pod.send(&packet.frame(FROM_POD));
                    let (expected, bypassed) = sent(&mut wire, &packet, peer, slot);
                    ways[usize::from(bypassed)] += 1;
                    let seen = far
                        .next(|frame| frame[6..12] == NODE_MAC && frame.len() == expected.len())
                        .unwrap_or_else(|| panic!("{there}, slot {slot}, time {time}: {packet:?} is lost"));
                    assert_eq!(
                        without_port(&seen),
                        without_port(&expected),
                        "{there}, slot {slot}, time {time}, {packet:?}"
                    );
                    let found = wire.machine.counter_differences();
                    assert!(
                        found.is_empty(),
                        "{there}, slot {slot}, time {time}: {}",
                        found.join("\n")
                    );
                }
                let tuple = crate::model::tuple_of(&packet.frame(FROM_POD), 0);
                let differs = tuple.and_then(|tuple| wire.machine.flow_differences(&tuple));
                assert_eq!(differs, None);
            }
        }
    }
    assert!(ways[0] > 0 && ways[1] > 0, "{ways:?}");
    tell(&format!("{} through the stack, {} past it", ways[0], ways[1]));
}

/// What the model sends of a pod's packet, and whether past the stack.
fn sent(wire: &mut Wire, packet: &IpPacket, peer: &str, slot: usize) -> (Vec<u8>, bool) {
    let machine = &mut wire.machine;
    machine.ask_time();
    let entered = machine.expect(Hook::PodIngress, &packet.frame(FROM_POD), wire.devices.pod, 0);
    let bypassed = entered.verdict == Verdict::ToUnderlay;
    let mut frame = if bypassed {
        entered.frame
    } else {
        assert_eq!(entered.verdict, Verdict::Pass);
        let link: Link = [PEER_TUNNEL_MAC, TUNNEL_MAC];
        let inner = forwarded(&packet.frame(link));
        let device = if slot == 2 {
            wire.stand_in
        } else {
            wire.devices.tunnel
        };
        let key = Key {
            peer: address(peer),
            vni: TUNNELS[slot].0.vni,
            ttl: 64,
        };
        let at = machine.packet(&inner, device, 0);
        let left = machine.model.tunnel_egress(&at, Some(key));
        assert_eq!(left.verdict, Verdict::ToUnderlay);
        left.frame
    };
    // What leaves the tunnel device passes the underlay's egress, too.
    frame[..12].copy_from_slice(&[ROUTER_MAC, NODE_MAC].concat());
    (frame, bypassed)
}

fn packets_from_the_wire_reach_the_pod() {
    let mut wire = Wire::new();
    let (pod, far) = (
        wire.pod.run(|| Tap::on("pod1-end")),
        wire.far.run(|| Tap::on("eth0-end")),
    );
    let mut ways = [0, 0];
    for (there, here, peer, slot) in WAYS {
        for body in bodies() {
            for (outer_class, inner_class) in [(0, 0), (0b11, 0b10), (0b01, 0b10), (0xb8, 0x2b)] {
                let packet = IpPacket {
                    traffic_class: inner_class,
                    ..ip_packet(there, here, body.clone())
                };
                let outer = IpPacket {
                    traffic_class: outer_class,
                    ..outer_from(peer)
                };
                let frame = encapsulated(&outer, FROM_ROUTER, &TUNNELS[slot].0, &packet.frame(IN_TUNNEL));
                for time in 0..2 {
                    let what = format!("{there}, slot {slot}, time {time}, {packet:?}");
                    far.send(&frame);
                    let (expected, bypassed) = received(&mut wire, &frame);
                    ways[usize::from(bypassed)] += 1;
                    let seen = pod
                        .next(|frame| frame[..6] == TO_POD[0] && frame.len() == expected.len())
                        .unwrap_or_else(|| panic!("{what} is lost"));
                    assert_eq!(seen, expected, "{what}");
                    let found = wire.machine.counter_differences();
                    assert!(found.is_empty(), "{what}: {}", found.join("\n"));
                }
            }
        }
    }
    assert!(ways[0] > 0 && ways[1] > 0, "{ways:?}");
    tell(&format!("{} through the stack, {} past it", ways[0], ways[1]));
}

/// What the pod gets of a frame from the wire, and whether past the stack.
pub(super) fn received(wire: &mut Wire, frame: &[u8]) -> (Vec<u8>, bool) {
    let machine = &mut wire.machine;
    machine.ask_time();
    let entered = machine.expect(Hook::UnderlayIngress, frame, wire.devices.underlay, 0);
    if entered.verdict == Verdict::ToPod {
        return (entered.frame, true);
    }
    // The latter where the families differ and the kernel cannot be told so.
    assert!(matches!(entered.verdict, Verdict::Pass | Verdict::ToTunnelDevice));
    let mut left = forwarded(&entered.frame);
    left[..12].copy_from_slice(&TO_POD.concat());
    let passed = machine.expect(Hook::PodEgress, &left, wire.devices.pod, 0);
    (passed.frame, false)
}

fn what_the_driver_decapsulates_is_checked() {
    let mut wire = Wire::new();
    let (pod, far) = (
        wire.pod.run(|| Tap::on("pod1-end")),
        wire.far.run(|| Tap::on("eth0-end")),
    );
    let mut counts = [0, 0];
    // Outer options leave a packet to the driver.
    let by_driver = |outer: IpPacket| IpPacket {
        options: vec![1; 4],
        ..outer
    };
    let mut probe = form_of_probe();
    let inner = |from: &str, to: &str| udp(from, to);
    for (name, outer, vni, packet) in [
        (
            "right",
            outer_from(OVER_V4),
            1,
            inner("172.20.2.10", "172.20.0.10"),
        ),
        (
            "right, IPv6",
            outer_from(OVER_V4),
            1,
            inner("fd20:0:0:2::a", "fd20::a"),
        ),
        (
            "right, TCP",
            outer_from(OVER_V4),
            1,
            tcp("172.20.2.10", "172.20.0.10", ACK),
        ),
        (
            "another VNI",
            outer_from(OVER_V4),
            99,
            inner("172.20.2.10", "172.20.0.10"),
        ),
        (
            "from nobody",
            udp("192.168.20.99", "192.168.10.100"),
            1,
            inner("172.20.2.10", "172.20.0.10"),
        ),
        (
            "a tunnel that is not open",
            outer_from(crate::story::ON_LINK),
            2,
            inner("172.20.1.10", "172.20.0.10"),
        ),
        (
            "to all on the underlay",
            udp(OVER_V4, "192.168.10.255"),
            1,
            inner("172.20.2.10", "172.20.0.10"),
        ),
        (
            "to everybody on the underlay",
            udp(OVER_V4, "255.255.255.255"),
            1,
            inner("172.20.2.10", "172.20.0.10"),
        ),
        (
            "from another's pod",
            outer_from(OVER_V4),
            1,
            inner("172.20.3.10", "172.20.0.10"),
        ),
        (
            "from this node's pod",
            outer_from(OVER_V4),
            1,
            inner("172.20.0.11", "172.20.0.10"),
        ),
        (
            "from another's pod, IPv6",
            outer_from(OVER_V4),
            1,
            inner("fd20:0:0:3::a", "fd20::a"),
        ),
        (
            "IPv4-mapped",
            outer_from(OVER_V4),
            1,
            inner("::ffff:172.20.2.10", "fd20::a"),
        ),
        (
            "to another's pod",
            outer_from(OVER_V4),
            1,
            inner("172.20.2.10", "172.20.3.10"),
        ),
        (
            "to everybody",
            outer_from(OVER_V4),
            1,
            inner("172.20.2.10", "255.255.255.255"),
        ),
        (
            "a probe",
            outer_from(OVER_V4),
            1,
            std::mem::replace(&mut probe, inner("172.20.2.10", "172.20.0.10")),
        ),
        ("right again", outer_from(OVER_V4), 1, probe),
    ] {
        let header = crate::packet::TunnelHeader::vxlan(8472, vni);
        let frame = packet.frame(IN_TUNNEL);
        let [from, to] = [outer.source, outer.destination].map(|end| address(&end.to_string()));
        let key = Key {
            peer: from,
            vni,
            ttl: 64,
        };
        far.send(&encapsulated(&by_driver(outer), FROM_ROUTER, &header, &frame));
        let at = wire.machine.packet(&frame, wire.devices.tunnel, 0);
        let outcome = wire.machine.model.tunnel_ingress(&at, Some(key), to);
        if outcome.verdict == Verdict::Pass {
            counts[0] += 1;
            let mut expected = forwarded(&frame);
            expected[..12].copy_from_slice(&TO_POD.concat());
            let seen = pod.next(|frame| frame[..6] == TO_POD[0] && frame.len() == expected.len());
            assert_eq!(seen, Some(expected), "{name}");
        } else {
            counts[1] += 1;
            settle(&mut wire);
        }
        let found = wire.machine.counter_differences();
        assert!(
            found.is_empty(),
            "{name}, {:?}: {}",
            outcome.verdict,
            found.join("\n")
        );
    }
    tell(&format!("{} passed, {} dropped", counts[0], counts[1]));
}

fn form_of_probe() -> IpPacket {
    ip_packet(
        "172.20.2.1",
        "172.20.0.1",
        Body::Other(ip_protocol::PROBE, vec![0; 24]),
    )
}

/// Waits until the model's counters are the programs', at most two seconds.
pub(super) fn settle(wire: &mut Wire) {
    for _ in 0..40 {
        if wire.machine.lanes() == wire.machine.model.lanes {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

fn frames_of_other_devices_and_cut_off_ones() {
    let mut wire = Wire::new();
    let far = wire.far.run(|| Tap::on("eth0-end"));
    let pod = wire.pod.run(|| Tap::on("pod1-end"));
    let before = wire.machine.lanes();
    let tagged = |frame: &[u8]| [&frame[..12], &[0x81, 0x00, 0x00, 0x05], &frame[12..]].concat();
    // All of these would be dropped and counted, were they not another device's or no packets at all.
    far.send(&tagged(&udp("172.20.2.10", "172.20.0.10").frame(FROM_ROUTER)));
    far.send(&tagged(&udp("fd20:0:0:2::a", "fd20::a").frame(FROM_ROUTER)));
    let forged = udp("172.20.3.10", "172.20.0.10").frame(IN_TUNNEL);
    far.send(&tagged(&encapsulated(
        &outer_from(OVER_V4),
        FROM_ROUTER,
        &TUNNELS[0].0,
        &forged,
    )));
    pod.send(&tagged(&udp("9.9.9.9", "172.20.2.10").frame(FROM_POD)));
    for (packet, header) in [
        (udp("172.20.2.10", "172.20.0.10"), 20),
        (udp("fd20:0:0:2::a", "fd20::a"), 40),
    ] {
        for length in 0..header {
            far.send(&packet.frame(FROM_ROUTER)[..14 + length]);
            pod.send(&packet.frame(FROM_POD)[..14 + length]);
        }
    }
    // The last one is counted; with it all before it have been seen.
    far.send(&udp("172.20.2.10", "172.20.0.10").frame(FROM_ROUTER));
    pod.send(&udp("9.9.9.9", "172.20.2.10").frame(FROM_POD));
    let plain = udp("172.20.2.10", "172.20.0.10").frame(FROM_ROUTER);
    wire.machine
        .expect(Hook::UnderlayIngress, &plain, wire.devices.underlay, 0);
    let strange = udp("9.9.9.9", "172.20.2.10").frame(FROM_POD);
    wire.machine
        .expect(Hook::PodIngress, &strange, wire.devices.pod, 0);
    settle(&mut wire);
    let found = wire.machine.counter_differences();
    assert!(
        found.is_empty() && before != wire.machine.lanes(),
        "{}",
        found.join("\n")
    );
    tell("4 tagged, 120 cut off");
}
