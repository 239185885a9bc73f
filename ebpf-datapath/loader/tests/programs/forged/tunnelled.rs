//! Forged packets that come encapsulated.

use super::{Kind, right_inner, stranger};
use crate::machine::Hook;
use crate::packet::{
    ACK, Body, IpPacket, TunnelHeader, encapsulated, form, frame, ip_packet, probe_body, tagged, tcp, udp,
};
use crate::random::{PEERS, Random, own_pod, pod_of};
use crate::story::{FROM_ROUTER, IN_TUNNEL, OFF_LINK, ON_LINK, OVER_V4, OVER_V6, TUNNELS, outer_from};
use podlane_datapath_common::Reason;
use podlane_datapath_common::probe::{LENGTH, REPLY, REQUEST};
use std::net::IpAddr;

/// All kinds.
pub(super) const KINDS: &[Kind] = &[
    (
        "outer source of nobody, IPv4",
        Hook::UnderlayIngress,
        Reason::NoPeer,
        |random| by(&udp(&stranger(random), "192.168.10.100"), random, &right_inner),
    ),
    (
        "outer source of nobody, IPv6",
        Hook::UnderlayIngress,
        Reason::NoPeer,
        |random| by(&udp(&stranger6(random), "fd00:10::100"), random, &right_inner),
    ),
    (
        "outer source of a pod",
        Hook::UnderlayIngress,
        Reason::NoPeer,
        |random| {
            let pod = pod_of(random, 0, false).to_string();
            by(&udp(&pod, "192.168.10.100"), random, &right_inner)
        },
    ),
    (
        "outer source of this node",
        Hook::UnderlayIngress,
        Reason::NoPeer,
        |random| by(&udp("192.168.10.100", "192.168.10.100"), random, &right_inner),
    ),
    (
        "outer source IPv4-mapped",
        Hook::UnderlayIngress,
        Reason::NoPeer,
        |random| {
            by(
                &udp("::ffff:192.168.20.100", "::ffff:192.168.10.100"),
                random,
                &right_inner,
            )
        },
    ),
    (
        "outer source of another peer",
        Hook::UnderlayIngress,
        Reason::ForgedInner,
        |random| {
            let other = random.one_of(&[OVER_V6, OFF_LINK]);
            by(&outer_from(other), random, &right_inner)
        },
    ),
    (
        "outer destination of another",
        Hook::UnderlayIngress,
        Reason::ForgedOuter,
        |random| by(&udp(OVER_V4, &stranger(random)), random, &right_inner),
    ),
    (
        "outer destination of another, IPv6",
        Hook::UnderlayIngress,
        Reason::ForgedOuter,
        |random| by(&udp(OVER_V6, &stranger6(random)), random, &right_inner),
    ),
    (
        "a tunnel that is not open with the peer",
        Hook::UnderlayIngress,
        Reason::ForgedOuter,
        |random| {
            let slot = 1 + random.below(4);
            let inner = udp("172.20.1.10", "172.20.0.10").frame(IN_TUNNEL);
            encapsulated(&outer_from(ON_LINK), FROM_ROUTER, &TUNNELS[slot].0, &inner)
        },
    ),
    (
        "flags of the tunnel header",
        Hook::UnderlayIngress,
        Reason::BadHeader,
        |random| {
            let bit = random.below(32);
            with_header(random, |header| header.first[bit / 8] ^= 1 << (bit % 8))
        },
    ),
    (
        "reserved octet of the tunnel header",
        Hook::UnderlayIngress,
        Reason::BadHeader,
        |random| {
            let last = 1 + random.below(255) as u8;
            with_header(random, |header| header.last = last)
        },
    ),
    (
        "GENEVE as VXLAN and VXLAN as GENEVE",
        Hook::UnderlayIngress,
        Reason::BadHeader,
        |random| {
            with_header(random, |header| {
                header.first = if header.first[0] == 8 {
                    [0, 0, 0x65, 0x58]
                } else {
                    [8, 0, 0, 0]
                };
            })
        },
    ),
    (
        "GENEVE options",
        Hook::UnderlayIngress,
        Reason::BadHeader,
        |random| {
            let words = 1 + random.below(63) as u8;
            let inner = right_inner(random);
            let header = TunnelHeader {
                first: [words, 0, 0x65, 0x58],
                ..TUNNELS[1].0.clone()
            };
            encapsulated(&outer_from(OVER_V4), FROM_ROUTER, &header, &inner)
        },
    ),
    (
        "inner source of nobody",
        Hook::UnderlayIngress,
        Reason::ForgedInner,
        |random| inner_between(random, stranger, |random| own_pod(random, false).to_string()),
    ),
    (
        "inner source of nobody, IPv6",
        Hook::UnderlayIngress,
        Reason::ForgedInner,
        |random| inner_between(random, stranger6, |random| own_pod(random, true).to_string()),
    ),
    (
        "inner source of another peer's pod",
        Hook::UnderlayIngress,
        Reason::ForgedInner,
        |random| {
            let (six, peer) = (random.once_in(2), 1 + random.below(3));
            inner_between(
                random,
                |random| pod_of(random, peer, six).to_string(),
                |random| own_pod(random, six).to_string(),
            )
        },
    ),
    (
        "inner source of another peer's pod, behind a priority tag",
        Hook::UnderlayIngress,
        Reason::ForgedInner,
        |random| {
            let (six, peer) = (random.once_in(2), 1 + random.below(3));
            let frame = inner_between(
                random,
                |random| pod_of(random, peer, six).to_string(),
                |random| own_pod(random, six).to_string(),
            );
            tagged(&frame, 0x8100, (random.below(16) as u16) << 12)
        },
    ),
    (
        "inner source of this node's pod",
        Hook::UnderlayIngress,
        Reason::ForgedInner,
        |random| {
            let six = random.once_in(2);
            inner_between(
                random,
                |random| own_pod(random, six).to_string(),
                |random| own_pod(random, six).to_string(),
            )
        },
    ),
    (
        "inner source of a node",
        Hook::UnderlayIngress,
        Reason::ForgedInner,
        |random| {
            let node = random.one_of(&["192.168.20.100", "192.168.10.100", "192.168.10.1", "127.0.0.1"]);
            inner_between(
                random,
                |_| node.to_owned(),
                |random| own_pod(random, false).to_string(),
            )
        },
    ),
    (
        "inner source IPv4-mapped",
        Hook::UnderlayIngress,
        Reason::ForgedInner,
        |random| {
            inner_between(
                random,
                |random| format!("::ffff:{}", pod_of(random, 0, false)),
                |random| own_pod(random, true).to_string(),
            )
        },
    ),
    (
        "inner destination elsewhere",
        Hook::UnderlayIngress,
        Reason::NotHere,
        |random| inner_between(random, |random| pod_of(random, 0, false).to_string(), stranger),
    ),
    (
        "inner destination a peer's pod",
        Hook::UnderlayIngress,
        Reason::NotHere,
        |random| {
            let (six, peer) = (random.once_in(2), random.below(4));
            inner_between(
                random,
                |random| pod_of(random, 0, six).to_string(),
                |random| pod_of(random, peer, six).to_string(),
            )
        },
    ),
    (
        "inner destination many",
        Hook::UnderlayIngress,
        Reason::NotHere,
        |random| {
            let many = random.one_of(&[
                "224.0.0.1",
                "239.1.1.1",
                "255.255.255.255",
                "0.0.0.0",
                "127.0.0.1",
            ]);
            inner_between(
                random,
                |random| pod_of(random, 0, false).to_string(),
                |_| many.to_owned(),
            )
        },
    ),
    (
        "inner destination many, IPv6",
        Hook::UnderlayIngress,
        Reason::NotHere,
        |random| {
            let many = random.one_of(&["ff02::1", "ff05::2", "fe80::1", "::", "::1", "::ffff:172.20.0.10"]);
            inner_between(
                random,
                |random| pod_of(random, 0, true).to_string(),
                |_| many.to_owned(),
            )
        },
    ),
    (
        "inner packet of another kind",
        Hook::UnderlayIngress,
        Reason::Malformed,
        |random| {
            let ethertype = random.one_of(&[0x0806, 0x8100, 0x88a8, 0x8847, 0x6558, 0x0000, 0x05dc]);
            let inner = frame(IN_TUNNEL, ethertype, &udp("172.20.2.10", "172.20.0.10").octets());
            encapsulated(&outer_from(OVER_V4), FROM_ROUTER, &TUNNELS[0].0, &inner)
        },
    ),
    (
        "inner packet cut off",
        Hook::UnderlayIngress,
        Reason::Malformed,
        |random| {
            let whole = by(&outer_from(OVER_V4), random, &|_| {
                udp("fd20:0:0:2::a", "fd20::a").frame(IN_TUNNEL)
            });
            whole[..50 + random.below(54)].to_vec()
        },
    ),
    (
        "inner version wrong",
        Hook::UnderlayIngress,
        Reason::Malformed,
        |random| {
            let mut whole = by(&outer_from(OVER_V4), random, &right_inner);
            let version = whole[64] >> 4;
            whole[64] = (version ^ (1 + random.below(15) as u8)) << 4 | 5;
            whole
        },
    ),
    (
        "another's flow that is stamped",
        Hook::UnderlayIngress,
        Reason::NoPeer,
        |random| {
            let inner = tcp("172.20.2.10", "172.20.0.10", ACK).frame(IN_TUNNEL);
            encapsulated(
                &udp(&stranger(random), "192.168.10.100"),
                FROM_ROUTER,
                &TUNNELS[0].0,
                &inner,
            )
        },
    ),
    (
        "a stamped flow to another address",
        Hook::UnderlayIngress,
        Reason::ForgedOuter,
        |random| {
            let inner = tcp("172.20.2.10", "172.20.0.10", ACK).frame(IN_TUNNEL);
            encapsulated(
                &udp(OVER_V4, &stranger(random)),
                FROM_ROUTER,
                &TUNNELS[0].0,
                &inner,
            )
        },
    ),
    ("a probe's tag", Hook::UnderlayIngress, Reason::Probe, |random| {
        let kind = random.one_of(&[REQUEST, REPLY]);
        let tag = random.next().to_ne_bytes();
        let number = random.next();
        let probe = ip_packet("172.20.2.1", "172.20.0.1", probe_body(kind, 0, number, tag, 0));
        by(&outer_from(OVER_V4), random, &|_| probe.frame(IN_TUNNEL))
    }),
    (
        "something else than a probe",
        Hook::UnderlayIngress,
        Reason::Probe,
        |random| {
            let mut octets = form(REQUEST, 0, random.next(), LENGTH as u16);
            octets.truncate(random.below(16));
            let probe = ip_packet("172.20.2.1", "172.20.0.1", Body::Other(253, octets));
            by(&outer_from(OVER_V4), random, &|_| probe.frame(IN_TUNNEL))
        },
    ),
];

/// The same of IPv6.
fn stranger6(random: &mut Random) -> String {
    let mut octets = (u128::from(random.next()) << 64 | u128::from(random.next())).to_be_bytes();
    octets[0] = 0x20 | octets[0] & 0x1f;
    IpAddr::from(octets).to_string()
}

fn by(outer: &IpPacket, random: &mut Random, inner: &dyn Fn(&mut Random) -> Vec<u8>) -> Vec<u8> {
    let slot = random.below(TUNNELS.len());
    let inner = inner(random);
    encapsulated(outer, FROM_ROUTER, &TUNNELS[slot].0, &inner)
}

fn with_header(random: &mut Random, forge: impl Fn(&mut TunnelHeader)) -> Vec<u8> {
    let slot = random.below(TUNNELS.len());
    let mut header = TUNNELS[slot].0.clone();
    forge(&mut header);
    encapsulated(&outer_from(OVER_V4), FROM_ROUTER, &header, &right_inner(random))
}

/// From the first peer, between these.
fn inner_between(
    random: &mut Random,
    source: impl Fn(&mut Random) -> String,
    destination: impl Fn(&mut Random) -> String,
) -> Vec<u8> {
    let (source, destination) = (source(random), destination(random));
    let inner = if random.once_in(2) {
        udp(&source, &destination)
    } else {
        tcp(&source, &destination, ACK)
    };
    by(&outer_from(PEERS[0]), random, &|_| inner.frame(IN_TUNNEL))
}
