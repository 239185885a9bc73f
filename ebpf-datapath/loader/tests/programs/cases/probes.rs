//! Probes: answered, taken, refused.

use super::Table;
use crate::machine::Hook;
use crate::model::Verdict::{Drop, Pass, Taken, ToUnderlay};
use crate::model::{Verdict, probe_tag};
use crate::packet::{Body, IpPacket, form, ip_packet, probe_body};
use crate::story::{FROM_NEIGHBOUR, FROM_ROUTER, OVER_V4, OVER_V6, PROBE_KEY, in_tunnel};
use podlane_datapath_common::probe::{LENGTH, MOST_A_SECOND, ProbeState, REPLY, REQUEST, SHORT_REPLY};
use podlane_datapath_common::{Reason, ip_protocol, settings_flag};
use podlane_test_namespaces::Test;

pub(crate) const TESTS: &[Test] = &[
    ("requests_are_answered", requests_are_answered),
    ("answers_are_taken", answers_are_taken),
    ("wrong_probes_are_dropped", wrong_probes_are_dropped),
    (
        "not_more_than_so_many_are_answered",
        not_more_than_so_many_are_answered,
    ),
];

const WRONG: Verdict = Drop(Reason::Probe);

/// Peers' addresses and this node's router addresses.
const WAYS: [(&str, &str, &str); 4] = [
    (OVER_V4, "172.20.2.1", "172.20.0.1"),
    (OVER_V4, "fd20:0:0:2::1", "fd20::1"),
    (OVER_V6, "172.20.3.1", "172.20.0.1"),
    (OVER_V6, "fd20:0:0:3::1", "fd20::1"),
];

/// A probe with the tag that is right under this key.
pub(crate) fn probe(
    from: &str,
    to: &str,
    kind: u8,
    flags: u8,
    number: u64,
    key: &[u64; 2],
    padding: usize,
) -> IpPacket {
    let tag = probe_tag(key, &form(kind, flags, number, (LENGTH + padding) as u16));
    ip_packet(from, to, probe_body(kind, flags, number, tag, padding))
}

fn request(from: &str, to: &str) -> IpPacket {
    probe(from, to, REQUEST, 0, 0x1122_3344_5566_7788, &PROBE_KEY, 0)
}

fn requests_are_answered() {
    let mut table = Table::new(Hook::UnderlayIngress);
    for (peer, from, to) in WAYS {
        for slot in [0, 1, 2, 3, 4] {
            for padding in [0, 1, 1300] {
                for flags in [0, SHORT_REPLY] {
                    let packet = probe(from, to, REQUEST, flags, 7, &PROBE_KEY, padding);
                    let name = format!("{from} by {peer}, slot {slot}, {padding} of padding, flags {flags}");
                    // So that no peer has more answers than it may.
                    if slot == 0 || padding == 1300 {
                        table.case(&name, &in_tunnel(peer, slot, &packet), ToUnderlay);
                    }
                }
            }
        }
    }
    for (from, to, link) in [
        ("172.20.1.1", "172.20.0.1", FROM_NEIGHBOUR),
        ("172.20.1.77", "172.20.0.1", FROM_NEIGHBOUR),
        ("fd20:0:0:1::1", "fd20::1", FROM_NEIGHBOUR),
        ("172.20.8.1", "172.20.0.1", FROM_ROUTER),
    ] {
        for flags in [0, SHORT_REPLY] {
            let packet = probe(from, to, REQUEST, flags, 7, &PROBE_KEY, 100);
            table.case(&format!("plain from {from}"), &packet.frame(link), ToUnderlay);
        }
    }
    table.end();
}

fn waiting(number: u64) -> ProbeState {
    ProbeState {
        reply_tag: u64::from_ne_bytes(probe_tag(&[1, 2], &form(REPLY, 0, number, LENGTH as u16))),
        sent: 1,
        ..ProbeState::default()
    }
}

fn answers_are_taken() {
    let mut table = Table::of(Hook::UnderlayIngress, |node| {
        for number in 0..32 {
            node.probes.insert(number, waiting(number));
        }
    });
    let mut number = 0;
    for (peer, from, to) in WAYS {
        for slot in [0, 1, 2, 4] {
            let packet = probe(from, to, REPLY, 0, number, &[1, 2], 0);
            table.case(
                &format!("from {from} in slot {slot}"),
                &in_tunnel(peer, slot, &packet),
                Taken,
            );
            number += 1;
        }
    }
    let plain = probe("172.20.1.1", "172.20.0.1", REPLY, 0, 20, &[1, 2], 0);
    table.case("plain", &plain.frame(FROM_NEIGHBOUR), Taken);
    for (name, number, key, kind) in [
        ("another key", 21, [1, 3], REPLY),
        ("an unknown number", 99, [1, 2], REPLY),
        ("neither kind", 22, [1, 2], 3),
    ] {
        let packet = probe("172.20.2.1", "172.20.0.1", kind, 0, number, &key, 0);
        table.case(name, &in_tunnel(OVER_V4, 0, &packet), WRONG);
    }
    table.settings(|settings| settings.flags &= !settings_flag::PROBES);
    let unasked = probe("172.20.2.1", "172.20.0.1", REPLY, 0, 23, &[1, 2], 0);
    table.case(
        "a node that answers none",
        &in_tunnel(OVER_V4, 0, &unasked),
        Taken,
    );
    let packet = request("172.20.2.1", "172.20.0.1");
    table.case(
        "a node that answers none, asked",
        &in_tunnel(OVER_V4, 0, &packet),
        WRONG,
    );
    table.end();
}

fn wrong_probes_are_dropped() {
    let mut table = Table::new(Hook::UnderlayIngress);
    for (peer, from, to) in WAYS {
        let right = request(from, to);
        let octets = |change: &dyn Fn(&mut Vec<u8>)| {
            let Body::Other(protocol, mut octets) = right.body.clone() else {
                panic!("a probe");
            };
            change(&mut octets);
            IpPacket {
                body: Body::Other(protocol, octets),
                ..right.clone()
            }
        };
        for place in 0..LENGTH {
            let flipped = octets(&|octets| octets[place] ^= 1);
            table.case(&format!("octet {place}"), &in_tunnel(peer, 0, &flipped), WRONG);
        }
        for length in 0..LENGTH {
            let short = octets(&|octets| octets.truncate(length));
            table.case(&format!("{length} octets"), &in_tunnel(peer, 0, &short), WRONG);
        }
        let fragment = if from.contains(':') {
            probe(from, to, REQUEST, 0, 9, &[0, 0], 0)
        } else {
            IpPacket {
                fragment: 0x2000,
                ..right.clone()
            }
        };
        table.case(
            "a fragment, or another key",
            &in_tunnel(peer, 1, &fragment),
            WRONG,
        );
        if !from.contains(':') {
            let options = IpPacket {
                options: vec![1; 4],
                ..right.clone()
            };
            table.case("options", &in_tunnel(peer, 0, &options), WRONG);
        }
    }
    for (name, from, to, verdict) in [
        ("to a pod", "172.20.2.1", "172.20.0.10", Pass),
        (
            "from another's network",
            "172.20.3.1",
            "172.20.0.1",
            Drop(Reason::ForgedInner),
        ),
        (
            "to another's router",
            "172.20.2.1",
            "172.20.3.1",
            Drop(Reason::NotHere),
        ),
    ] {
        table.case(name, &in_tunnel(OVER_V4, 0, &request(from, to)), verdict);
    }
    let packet = request("172.20.2.1", "172.20.0.1");
    table.case(
        "from no peer",
        &in_tunnel("192.168.20.99", 0, &packet),
        Drop(Reason::NoPeer),
    );
    table.case(
        "plain, no lane",
        &packet.frame(FROM_ROUTER),
        Drop(Reason::PlainPodSource),
    );
    let stranger = ip_packet(
        "192.168.20.100",
        "172.20.0.1",
        Body::Other(ip_protocol::PROBE, vec![0; 24]),
    );
    table.case("plain, from no pod", &stranger.frame(FROM_ROUTER), Pass);
    // An empty place among the local networks has no router address.
    let everybody = ip_packet(
        "172.20.4.1",
        "255.255.255.255",
        Body::Other(ip_protocol::PROBE, vec![0; 24]),
    );
    table.case("to everybody", &everybody.frame(FROM_ROUTER), Pass);
    table.end();
}

fn not_more_than_so_many_are_answered() {
    let mut table = Table::new(Hook::UnderlayIngress);
    let packet = in_tunnel(OVER_V4, 0, &request("172.20.2.1", "172.20.0.1"));
    for number in 0..MOST_A_SECOND + 10 {
        let verdict = if number < MOST_A_SECOND { ToUnderlay } else { WRONG };
        table.case(&format!("number {number}"), &packet, verdict);
    }
    let other = in_tunnel(OVER_V6, 0, &request("172.20.3.1", "172.20.0.1"));
    table.case("another peer", &other, ToUnderlay);
    std::thread::sleep(std::time::Duration::from_millis(1100));
    table.machine().model.answered.clear();
    table.case("a second later", &packet, ToUnderlay);
    table.end();
}
