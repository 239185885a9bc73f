//! Forged packets that come as they are, by the underlay or from a pod.

use super::{Kind, plain, right_inner, stranger};
use crate::machine::Hook;
use crate::packet::{Body, IpPacket, TunnelHeader, encapsulated, ip_packet, tagged, udp};
use crate::random::{PEERS, Random, own_pod, pod_of};
use crate::story::{FROM_NEIGHBOUR, FROM_POD, FROM_ROUTER, TUNNELS};
use podlane_datapath_common::Reason;
use std::net::IpAddr;

/// All kinds.
pub(super) const KINDS: &[Kind] = &[
    (
        "plain, of this node's pod",
        Hook::UnderlayIngress,
        Reason::PlainPodSource,
        |random| {
            let six = random.once_in(2);
            plain(own_pod(random, six), own_pod(random, six)).frame(FROM_ROUTER)
        },
    ),
    (
        "plain, of a pod without a native lane",
        Hook::UnderlayIngress,
        Reason::PlainPodSource,
        |random| {
            let (six, peer) = (random.once_in(2), random.one_of(&[0, 2]));
            plain(pod_of(random, peer, six), own_pod(random, six)).frame(FROM_ROUTER)
        },
    ),
    (
        "plain, of nobody's pod",
        Hook::UnderlayIngress,
        Reason::PlainPodSource,
        |random| {
            let unassigned = IpAddr::from([172, 20, 100 + random.below(100) as u8, random.octet()]);
            plain(unassigned, own_pod(random, false)).frame(FROM_ROUTER)
        },
    ),
    (
        "plain, of a neighbour's pod, from elsewhere",
        Hook::UnderlayIngress,
        Reason::WrongLinkAddress,
        |random| {
            let six = random.once_in(2);
            let mut packet = plain(pod_of(random, 1, six), own_pod(random, six)).frame(FROM_NEIGHBOUR);
            packet[6 + random.below(6)] ^= 1 << random.below(8);
            packet
        },
    ),
    (
        "plain, of a pod, with a strange VNI",
        Hook::UnderlayIngress,
        Reason::PlainPodSource,
        |random| {
            let vni = 1000 + random.below(100_000) as u32;
            let outer = udp(&pod_of(random, 0, false).to_string(), "192.168.10.100");
            encapsulated(
                &outer,
                FROM_ROUTER,
                &TunnelHeader::vxlan(8472, vni),
                &right_inner(random),
            )
        },
    ),
    (
        "plain, of a pod, behind a priority tag",
        Hook::UnderlayIngress,
        Reason::PlainPodSource,
        |random| {
            let (six, peer) = (random.once_in(2), random.one_of(&[0, 2]));
            let plain = plain(pod_of(random, peer, six), own_pod(random, six)).frame(FROM_ROUTER);
            behind_priority(random, &plain)
        },
    ),
    (
        "plain, of a pod, behind two priority tags",
        Hook::UnderlayIngress,
        Reason::Malformed,
        |random| {
            let six = random.once_in(2);
            let plain = plain(pod_of(random, 0, six), own_pod(random, six)).frame(FROM_ROUTER);
            let one = behind_priority(random, &plain);
            behind_priority(random, &one)
        },
    ),
    (
        "a pod as anybody, behind a priority tag",
        Hook::PodIngress,
        Reason::PodSource,
        |random| {
            let (six, peer) = (random.once_in(2), random.below(4));
            let packet = plain(pod_of(random, peer, six), own_pod(random, six));
            let frame = any_body(random, packet);
            behind_priority(random, &frame)
        },
    ),
    (
        "a pod as another pod of the node",
        Hook::PodIngress,
        Reason::PodSource,
        |random| {
            let (source, to) = random.one_of(&[("172.20.0.11", "172.20.2.10"), ("fd20::b", "fd20:0:0:2::a")]);
            any_body(random, ip_packet(source, to, Body::Udp(1, 2, 3)))
        },
    ),
    (
        "a pod as a peer's pod",
        Hook::PodIngress,
        Reason::PodSource,
        |random| {
            let (six, peer) = (random.once_in(2), random.below(4));
            let packet = plain(pod_of(random, peer, six), own_pod(random, six));
            any_body(random, packet)
        },
    ),
    (
        "a pod as a stranger",
        Hook::PodIngress,
        Reason::PodSource,
        |random| {
            let packet = udp(&stranger(random), "8.8.8.8");
            any_body(random, packet)
        },
    ),
    ("a pod as a node", Hook::PodIngress, Reason::PodSource, |random| {
        let node = random.one_of(&["192.168.10.100", "192.168.20.100", "172.20.0.1", "192.168.10.1"]);
        any_body(random, udp(node, "172.20.2.10"))
    }),
    (
        "a pod IPv4-mapped",
        Hook::PodIngress,
        Reason::PodSource,
        |random| {
            let packet = udp("::ffff:172.20.0.10", "fd20:0:0:2::a");
            any_body(random, packet)
        },
    ),
    (
        "a pod to a tunnel port",
        Hook::PodIngress,
        Reason::TunnelPort,
        |random| to_tunnel_port(random).frame(FROM_POD),
    ),
    (
        "a pod as a peer, to all on its link",
        Hook::PodIngress,
        Reason::TunnelPort,
        |random| {
            let mut outer = to_tunnel_port(random);
            outer.source = random.one_of(&PEERS).parse().expect("an address");
            let all: [&str; 3] = if outer.source.is_ipv6() {
                ["ff02::1", "ff02::2", "fe80::1"]
            } else {
                ["255.255.255.255", "224.0.0.1", "224.0.0.251"]
            };
            outer.destination = random.one_of(&all).parse().expect("an address");
            let header = TUNNELS[random.below(TUNNELS.len())].0.clone();
            encapsulated(&outer, FROM_POD, &header, &right_inner(random))
        },
    ),
    (
        "a pod to a tunnel port, behind options",
        Hook::PodIngress,
        Reason::TunnelPort,
        |random| {
            let mut packet = to_tunnel_port(random);
            let six = packet.source.is_ipv6();
            let count = 1 + random.below(8);
            if six {
                packet.first = 60;
                packet.options = [60, 0, 1, 4, 0, 0, 0, 0].repeat(count);
                packet.options[8 * (count - 1)] = 17;
            } else {
                packet.options = vec![1; 4 * count];
            }
            packet.frame(FROM_POD)
        },
    ),
    (
        "a pod to a tunnel port, in fragments",
        Hook::PodIngress,
        Reason::TunnelPort,
        |random| {
            let mut packet = to_tunnel_port(random);
            if packet.source.is_ipv6() {
                packet.first = 44;
                packet.options = vec![17, 0, 0, 1, 0, 0, 0, 9];
            } else {
                packet.fragment = 0x2000;
            }
            packet.frame(FROM_POD)
        },
    ),
];

fn behind_priority(random: &mut Random, frame: &[u8]) -> Vec<u8> {
    let priority = (random.below(16) as u16) << 12;
    tagged(frame, random.one_of(&[0x8100, 0x88a8]), priority)
}

fn any_body(random: &mut Random, packet: IpPacket) -> Vec<u8> {
    let body = crate::random::body(random);
    IpPacket { body, ..packet }.frame(FROM_POD)
}

fn to_tunnel_port(random: &mut Random) -> IpPacket {
    let port = random.one_of(&[8472, 6081, 6082, 4789]);
    let peer = random.one_of(&PEERS);
    let pod = if peer.contains(':') {
        "fd20::a"
    } else {
        "172.20.0.10"
    };
    ip_packet(
        pod,
        peer,
        Body::Udp(random.next() as u16, port, random.below(100)),
    )
}
