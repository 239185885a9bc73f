//! Who may not bypass, and how long who may.

use super::Table;
use super::bypass::{received, sent, tuple};
use super::encapsulated::{PAIRS, understood};
use crate::machine::Hook;
use crate::model::Verdict::{self, Drop, Pass, ToPod, ToUnderlay};
use crate::packet::{ACK, Body, FIN, IpPacket, RST, SYN, encapsulated, ip_packet, tcp, udp};
use crate::story::{
    FROM_POD, FROM_ROUTER, GENERATION, IN_TUNNEL, OVER_V4, TUNNELS, address, in_tunnel, outer_from,
};
use podlane_datapath_common::{FlowKind, FlowState, Reason};
use podlane_test_namespaces::Test;

pub(crate) const TESTS: &[Test] = &[
    ("who_may_not_bypass_outward", who_may_not_bypass_outward),
    ("who_may_not_bypass_inward", who_may_not_bypass_inward),
    ("a_lease_ends", a_lease_ends),
];

/// Packets of a flow that may not bypass, whichever way it goes.
fn refused(from: &str, to: &str) -> Vec<(&'static str, IpPacket)> {
    let packet = tcp(from, to, ACK);
    let mut all = vec![
        ("SYN", tcp(from, to, SYN)),
        ("SYN, ACK", tcp(from, to, SYN | ACK)),
        ("FIN, ACK", tcp(from, to, FIN | ACK)),
        ("RST", tcp(from, to, RST)),
        (
            "the last hop",
            IpPacket {
                ttl: 1,
                ..packet.clone()
            },
        ),
        (
            "no hop",
            IpPacket {
                ttl: 0,
                ..packet.clone()
            },
        ),
        (
            "another port",
            ip_packet(from, to, Body::Tcp(40_001, 80, ACK, 32)),
        ),
        ("another protocol", ip_packet(from, to, Body::Udp(40_000, 80, 32))),
    ];
    if from.contains(':') {
        let options = vec![6, 0, 1, 4, 0, 0, 0, 0];
        all.push((
            "an extension header",
            IpPacket {
                options,
                first: 60,
                ..packet
            },
        ));
    } else {
        all.push((
            "options",
            IpPacket {
                options: vec![1; 4],
                ..packet.clone()
            },
        ));
        all.push((
            "a first fragment",
            IpPacket {
                fragment: 0x2000,
                ..packet.clone()
            },
        ));
        all.push((
            "a later fragment",
            IpPacket {
                fragment: 0x0020,
                ..packet
            },
        ));
    }
    all
}

fn who_may_not_bypass_outward() {
    let mut table = Table::new(Hook::PodIngress);
    let (pod, other, now) = (
        table.devices.pod,
        table.devices.other_pod,
        table.machine().ask_time(),
    );
    for (peer, there, here) in &PAIRS[..4] {
        let flow = sent(&table.machine().model, now, pod, peer, 0);
        let right = tuple(&tcp(here, there, ACK));
        for (name, packet) in refused(here, there) {
            table.machine().set_flow(right, flow);
            table.case(&format!("{here}: {name}"), &packet.frame(FROM_POD), Pass);
        }
        for (name, changed, verdict) in [
            ("as it is", flow, ToUnderlay),
            (
                "another generation",
                FlowState {
                    generation: GENERATION - 1,
                    ..flow
                },
                Pass,
            ),
            (
                "another device",
                FlowState {
                    pod_interface: other,
                    ..flow
                },
                Pass,
            ),
            (
                "only noted",
                FlowState {
                    kind: FlowKind::Noted as u32,
                    ..flow
                },
                Pass,
            ),
            (
                "received",
                FlowState {
                    kind: FlowKind::ReceivedEncapsulated as u32,
                    ..flow
                },
                Pass,
            ),
            (
                "of old",
                FlowState {
                    stamped: now.wrapping_sub(0x6000_0000),
                    ..flow
                },
                Pass,
            ),
        ] {
            table.machine().set_flow(right, changed);
            table.case(
                &format!("{here}: {name}"),
                &tcp(here, there, ACK).frame(FROM_POD),
                verdict,
            );
            table.machine().forget_flow(&right);
        }
        let header = if here.contains(':') { 40 } else { 20 };
        for (more, verdict) in [(0, ToUnderlay), (1, Pass)] {
            let payload = flow.mtu as usize - header - 20 + more;
            let packet = ip_packet(here, there, Body::Tcp(40_000, 80, ACK, payload));
            table.machine().set_flow(right, flow);
            table.case(
                &format!("{here}: {more} too long"),
                &packet.frame(FROM_POD),
                verdict,
            );
            // The kernel grows no GSO packet that BPF_PROG_TEST_RUN makes: this one goes up the stack however long.
            let whole = ip_packet(here, there, Body::Tcp(40_000, 80, ACK, 2000));
            table.machine().set_flow(right, flow);
            table.gso_case(
                &format!("{here}: GSO"),
                &whole.frame(FROM_POD),
                payload as u32,
                Pass,
            );
        }
        let quic = ip_packet(here, there, Body::Udp(40_000, 443, 1000));
        table.machine().set_flow(tuple(&quic), flow);
        table.gso_case(&format!("{here}: QUIC"), &quic.frame(FROM_POD), 300, Pass);
    }
    table.end();
}

fn who_may_not_bypass_inward() {
    let mut table = Table::new(Hook::UnderlayIngress);
    let (pod, now) = (table.devices.pod, table.machine().ask_time());
    for (peer, there, here) in understood(4) {
        let flow = received(&table.machine().model, now, pod, peer, 0);
        let right = tuple(&tcp(there, here, ACK));
        for (name, packet) in refused(there, here) {
            table.machine().set_flow(right, flow);
            table.case(&format!("{there}: {name}"), &in_tunnel(peer, 0, &packet), Pass);
        }
        let elsewhere = address("192.168.20.99");
        for (name, changed, verdict) in [
            ("as it is", flow, ToPod),
            (
                "another generation",
                FlowState {
                    generation: GENERATION + 1,
                    ..flow
                },
                Pass,
            ),
            (
                "only noted",
                FlowState {
                    kind: FlowKind::Noted as u32,
                    ..flow
                },
                Pass,
            ),
            (
                "sent",
                FlowState {
                    kind: FlowKind::SentEncapsulated as u32,
                    ..flow
                },
                Pass,
            ),
            (
                "plain",
                FlowState {
                    kind: FlowKind::ReceivedPlain as u32,
                    ..flow
                },
                Pass,
            ),
            (
                "from elsewhere",
                FlowState {
                    outer_source: elsewhere,
                    ..flow
                },
                Pass,
            ),
            (
                "to elsewhere",
                FlowState {
                    outer_destination: elsewhere,
                    ..flow
                },
                Pass,
            ),
            ("in another slot", FlowState { slot: 4, ..flow }, Pass),
            (
                "of old",
                FlowState {
                    stamped: now.wrapping_sub(0x6000_0000),
                    ..flow
                },
                Pass,
            ),
        ] {
            table.machine().set_flow(right, changed);
            table.case(
                &format!("{there}: {name}"),
                &in_tunnel(peer, 0, &tcp(there, here, ACK)),
                verdict,
            );
            table.machine().forget_flow(&right);
        }
        table.machine().set_flow(right, flow);
        let forged = |source: &str, destination: &str| {
            encapsulated(
                &udp(source, destination),
                FROM_ROUTER,
                &TUNNELS[0].0,
                &tcp(there, here, ACK).frame(IN_TUNNEL),
            )
        };
        table.case(
            "stamped, from nobody",
            &forged("192.168.20.99", "192.168.10.100"),
            Drop(Reason::NoPeer),
        );
        table.case(
            "stamped, to elsewhere",
            &forged(OVER_V4, "192.168.10.99"),
            Drop(Reason::ForgedOuter),
        );
        let congested = IpPacket {
            traffic_class: 3,
            ..outer_from(peer)
        };
        let frame = encapsulated(
            &congested,
            FROM_ROUTER,
            &TUNNELS[0].0,
            &tcp(there, here, ACK).frame(IN_TUNNEL),
        );
        table.case("congestion that cannot be said", &frame, Drop(Reason::EcnInvalid));
        table.machine().forget_flow(&right);
        let quic = ip_packet(there, here, Body::Udp(40_000, 443, 1000));
        table.machine().set_flow(tuple(&quic), flow);
        table.gso_case("QUIC", &in_tunnel(peer, 0, &quic), 300, Pass);
    }
    table.end();
}

fn a_lease_ends() {
    let mut table = Table::of(Hook::PodIngress, |node| node.settings.lease = 15_000);
    let pod = table.devices.pod;
    let packet = udp("172.20.0.10", "172.20.2.10");
    let age = |table: &mut Table, age: u32| {
        let now = table.machine().ask_time();
        let flow = sent(&table.machine().model, now.wrapping_sub(age), pod, OVER_V4, 0);
        table.machine().set_flow(tuple(&packet), flow);
    };
    let cases: [(u32, Verdict); 4] = [
        (0, ToUnderlay),
        (3000, ToUnderlay),
        (15_001, Pass),
        (60_000, Pass),
    ];
    for (old, verdict) in cases {
        age(&mut table, old);
        table.case(&format!("{old} jiffies old"), &packet.frame(FROM_POD), verdict);
    }
    // A stamp from the future is none.
    age(&mut table, u32::MAX - 20_000);
    table.case("from the future", &packet.frame(FROM_POD), Pass);
    let machine = table.machine();
    machine.model.settings.lease = 50;
    machine.write_settings();
    age(&mut table, 0);
    std::thread::sleep(std::time::Duration::from_millis(600));
    table.case("after a while", &packet.frame(FROM_POD), Pass);
    table.end();
}
