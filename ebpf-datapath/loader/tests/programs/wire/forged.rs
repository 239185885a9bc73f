//! What a pod forges, on the wire.

use super::raw::settle;
use super::{Tap, Wire};
use crate::cases::tell;
use crate::machine::Hook;
use crate::model::{Key, Verdict};
use crate::packet::{encapsulated, udp};
use crate::story::{FROM_POD, IN_TUNNEL, OVER_V4, OVER_V6, TO_POD, TUNNELS, address};
use podlane_datapath_common::Reason;
use podlane_test_namespaces::{Test, ip};

pub(crate) const TESTS: &[Test] = &[("a_pod_is_taken_for_no_peer", a_pod_is_taken_for_no_peer)];

/// A pod's own outer headers, from a peer's address to where the stack takes what it does not forward: neither the pod's device lets them in, nor, without
/// the program there, the tunnel's.
fn a_pod_is_taken_for_no_peer() {
    let mut wire = Wire::new();
    let pod = wire.pod.run(|| Tap::on("pod1-end"));
    ip("addr add fe80::1/64 dev pod1 nodad");
    const FORGED: [(&str, &str, &str, &str); 4] = [
        (OVER_V4, "255.255.255.255", "172.20.2.10", "172.20.0.10"),
        (OVER_V4, "224.0.0.1", "fd20:0:0:2::a", "fd20::a"),
        (OVER_V6, "ff02::1", "172.20.3.10", "172.20.0.10"),
        (OVER_V6, "fe80::1", "fd20:0:0:3::a", "fd20::a"),
    ];
    for is_checked in [true, false] {
        if !is_checked {
            wire.detach("pod_ingress", "pod1");
        }
        for (peer, to, from, here) in FORGED {
            let inner = udp(from, here).frame(IN_TUNNEL);
            let frame = encapsulated(&udp(peer, to), FROM_POD, &TUNNELS[0].0, &inner);
            pod.send(&frame);
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
