//! Forged packets, kind by kind: none is let through.
//!
//! `PODLANE_FORGED_PACKETS` gives another number than CI's.

mod plain;
mod tunnelled;

use crate::cases::bypass::{received, sent, tuple};
use crate::cases::tell;
use crate::machine::{Hook, Machine};
use crate::packet::{ACK, IpPacket, tcp, udp};
use crate::random::{Random, own_pod, pod_of};
use crate::story::{self, Devices, IN_TUNNEL, OVER_V4};
use podlane_datapath_common::{LaneCounters, Reason};
use podlane_test_namespaces::Test;
use std::net::IpAddr;
use std::time::Instant;

pub(crate) const TESTS: &[Test] = &[("no_forged_packet_is_let_through", no_forged_packet_is_let_through)];

/// What is forged, where, and why it is dropped.
type Kind = (&'static str, Hook, Reason, fn(&mut Random) -> Vec<u8>);

const PACKETS: usize = 1_000_000;

fn no_forged_packet_is_let_through() {
    let packets = std::env::var("PODLANE_FORGED_PACKETS").map_or(PACKETS, |text| {
        text.parse()
            .unwrap_or_else(|error| panic!("PODLANE_FORGED_PACKETS={text}: {error}"))
    });
    let kinds: Vec<&Kind> = tunnelled::KINDS.iter().chain(plain::KINDS).collect();
    assert!(kinds.len() >= 20);
    let devices = story::devices();
    let mut machine = Machine::new(story::node(devices));
    stamp(&mut machine, devices);
    let begun = Instant::now();
    let mut random = Random::of(20_261_124);
    let each = packets.div_ceil(kinds.len());
    for (name, hook, reason, forge) in &kinds {
        let before = dropped(&mut machine, *reason);
        let interface = if *hook == Hook::PodIngress {
            devices.pod
        } else {
            devices.underlay
        };
        for number in 0..each {
            let packet = forge(&mut random);
            let ran = machine.run(*hook, &packet, interface, 0);
            assert!(
                ran.code == 2,
                "{name}, number {number}: {} instead of dropped: {packet:02x?}",
                ran.code
            );
        }
        let counted = dropped(&mut machine, *reason) - before;
        assert_eq!(
            counted, each as u64,
            "{name}: dropped for another reason than {reason:?}"
        );
        tell(&format!("{each} dropped as {reason:?}: {name}"));
    }
    tell(&format!(
        "{} packets of {} kinds in {:.1?}",
        each * kinds.len(),
        kinds.len(),
        begun.elapsed()
    ));
}

/// Stamps the flows that some of the forged ones claim to be of.
fn stamp(machine: &mut Machine, devices: Devices) {
    let now = machine.ask_time();
    let inward = tcp("172.20.2.10", "172.20.0.10", ACK);
    let flow = received(&machine.model, now, devices.pod, OVER_V4, 0);
    machine.set_flow(tuple(&inward), flow);
    let outward = tcp("172.20.0.10", "172.20.2.10", ACK);
    let flow = sent(&machine.model, now, devices.pod, OVER_V4, 0);
    machine.set_flow(tuple(&outward), flow);
}

fn dropped(machine: &mut Machine, reason: Reason) -> u64 {
    let lanes: [LaneCounters; podlane_datapath_common::LANE_SLOTS] = machine.lanes();
    lanes.iter().map(|lane| lane.dropped[reason as usize]).sum()
}

/// An IPv4 address that is no peer's, no pod's, not this node's, and forwarded.
pub(super) fn stranger(random: &mut Random) -> String {
    loop {
        let octets = (random.next() as u32).to_be_bytes();
        if !matches!(octets[0], 0 | 172 | 192 | 224..) {
            return IpAddr::from(octets).to_string();
        }
    }
}

pub(super) fn plain(source: IpAddr, destination: IpAddr) -> IpPacket {
    IpPacket {
        source,
        destination,
        ..udp("172.20.0.10", "172.20.0.10")
    }
}

/// What the first peer's pods may send.
pub(super) fn right_inner(random: &mut Random) -> Vec<u8> {
    let six = random.once_in(2);
    let packet = plain(pod_of(random, 0, six), own_pod(random, six));
    packet.frame(IN_TUNNEL)
}
