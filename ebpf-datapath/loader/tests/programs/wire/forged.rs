//! What is forged, on the wire: as a peer, or behind a VLAN's tag that is none.

use super::raw::{received, settle};
use super::{Tap, Wire};
use crate::cases::tell;
use crate::machine::Hook;
use crate::model::{Key, Verdict};
use crate::packet::{encapsulated, tagged, udp};
use crate::story::{FROM_POD, FROM_ROUTER, IN_TUNNEL, OVER_V4, OVER_V6, TO_POD, TUNNELS, address, in_tunnel};
use podlane_datapath_common::Reason;
use podlane_test_namespaces::{Test, ip};

pub(crate) const TESTS: &[Test] = &[
    ("a_pod_is_taken_for_no_peer", a_pod_is_taken_for_no_peer),
    ("priority_tags_hide_nothing", priority_tags_hide_nothing),
];

/// A pod's own outer headers, from a peer's address to where the stack takes what it does not forward: neither the pod's device lets them in, nor, without
/// the program there, the tunnel's.
fn a_pod_is_taken_for_no_peer() {
    let mut wire = Wire::new();
    // Another device to the same pod, with no program.
    ip(&format!(
        "link add aside address 02:00:00:00:02:01 type veth peer name aside-end netns {}",
        wire.pod.tid()
    ));
    ip("link set aside addrgenmode none up");
    wire.pod.ip("link set aside-end addrgenmode none up");
    for device in ["pod1", "aside"] {
        ip(&format!("addr add fe80::1/64 dev {device} nodad"));
    }
    let (pod, aside) = (
        wire.pod.run(|| Tap::on("pod1-end")),
        wire.pod.run(|| Tap::on("aside-end")),
    );
    const FORGED: [(&str, &str, &str, &str); 4] = [
        (OVER_V4, "255.255.255.255", "172.20.2.10", "172.20.0.10"),
        (OVER_V4, "224.0.0.1", "fd20:0:0:2::a", "fd20::a"),
        (OVER_V6, "ff02::1", "172.20.3.10", "172.20.0.10"),
        (OVER_V6, "fe80::1", "fd20:0:0:3::a", "fd20::a"),
    ];
    for is_checked in [true, false] {
        for (peer, to, from, here) in FORGED {
            let inner = udp(from, here).frame(IN_TUNNEL);
            let frame = encapsulated(&udp(peer, to), FROM_POD, &TUNNELS[0].0, &inner);
            if is_checked { &pod } else { &aside }.send(&frame);
            let outcome = if is_checked {
                wire.machine.expect(Hook::PodIngress, &frame, wire.devices.pod, 0)
            } else {
                let key = Key {
                    peer: address(peer),
                    vni: 1,
                    ttl: 64,
                };
                let at = wire.machine.packet(&inner, wire.devices.tunnel, 0);
                wire.machine.model.tunnel_ingress(&at, Some(key), address(to))
            };
            settle(&mut wire);
            let found = wire.machine.counter_differences();
            assert!(
                found.is_empty(),
                "{peer} to {to}, {:?}: {}",
                outcome.verdict,
                found.join("\n")
            );
            let reason = if is_checked {
                Reason::TunnelPort
            } else {
                Reason::ForgedOuter
            };
            assert_eq!(outcome.verdict, Verdict::Drop(reason), "{peer} to {to}");
        }
    }
    assert!(
        !pod.any(|frame| frame[..6] == TO_POD[0]),
        "what is forged comes through"
    );
    tell("4 dropped where the pod is, 4 where the tunnel is");
}

/// The kernel takes a frame whose tag has the number 0 for one without, behind the hooks, whose programs see that tag beside the packet.
fn priority_tags_hide_nothing() {
    let mut wire = Wire::new();
    let (pod, far) = (
        wire.pod.run(|| Tap::on("pod1-end")),
        wire.far.run(|| Tap::on("eth0-end")),
    );
    let (mut came, mut dropped) = (0, 0);
    for (ethertype, priority) in [(0x8100, 0), (0x8100, 0xa000), (0x88a8, 0xe000)] {
        let tag = |frame: &[u8]| tagged(frame, ethertype, priority);
        let twice = |frame: &[u8]| tag(&tagged(frame, 0x8100, 0));
        let other = |frame: &[u8]| tag(&tagged(frame, 0x8100, 5));
        for (peer, there, here) in [
            (OVER_V4, "172.20.2.10", "172.20.0.10"),
            (OVER_V6, "fd20:0:0:3::a", "fd20::a"),
        ] {
            let right = in_tunnel(peer, 0, &udp(there, here));
            // Twice: the second goes past the stack.
            for _ in 0..2 {
                far.send(&tag(&right));
                let (expected, _) = received(&mut wire, &tag(&right));
                let seen = pod.next(|frame| frame[..6] == TO_POD[0] && frame.len() == expected.len());
                assert_eq!(
                    seen,
                    Some(expected),
                    "{ethertype:#x}, {priority:#x}, from {there}"
                );
                came += 1;
            }
            let forged = in_tunnel(peer, 0, &udp("172.20.4.10", "172.20.0.10"));
            let plain = udp(there, here).frame(FROM_ROUTER);
            let strange = udp("9.9.9.9", "172.20.2.10").frame(FROM_POD);
            for (hook, frame, reason) in [
                (Hook::UnderlayIngress, tag(&forged), Some(Reason::ForgedInner)),
                (Hook::UnderlayIngress, tag(&plain), Some(Reason::PlainPodSource)),
                (Hook::UnderlayIngress, twice(&plain), Some(Reason::Malformed)),
                (Hook::UnderlayIngress, twice(&right), Some(Reason::Malformed)),
                (Hook::UnderlayIngress, other(&plain), None),
                (Hook::UnderlayIngress, other(&right), None),
                (Hook::PodIngress, tag(&strange), Some(Reason::PodSource)),
                (Hook::PodIngress, twice(&strange), Some(Reason::PodSource)),
                (Hook::PodIngress, other(&strange), Some(Reason::PodSource)),
            ] {
                let (tap, device) = if hook == Hook::PodIngress {
                    (&pod, wire.devices.pod)
                } else {
                    (&far, wire.devices.underlay)
                };
                tap.send(&frame);
                let outcome = wire.machine.expect(hook, &frame, device, 0);
                assert_eq!(
                    outcome.verdict,
                    reason.map_or(Verdict::Pass, Verdict::Drop),
                    "{frame:02x?}"
                );
                settle(&mut wire);
                let found = wire.machine.counter_differences();
                assert!(found.is_empty(), "{:?}: {}", outcome.verdict, found.join("\n"));
                dropped += usize::from(reason.is_some());
            }
        }
    }
    assert!(
        !pod.any(|frame| frame[..6] == TO_POD[0]),
        "what is forged comes through"
    );
    tell(&format!("{came} came, {dropped} dropped"));
}
