//! Packets drawn at random, of a seed that can be given again.

use crate::model::probe_tag;
use crate::packet::{
    ACK, Body, FIN, IpPacket, Link, RST, SYN, TunnelHeader, encapsulated, form, ip_packet, probe_body, tagged,
};
use crate::story::{
    FROM_NEIGHBOUR, FROM_POD, FROM_ROUTER, IN_TUNNEL, OFF_LINK, ON_LINK, OVER_V4, OVER_V6, TO_POD, TUNNELS,
    outer_from,
};
use podlane_datapath_common::ip_protocol;
use podlane_datapath_common::probe::{LENGTH, REPLY, REQUEST};
use std::net::IpAddr;

/// SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) const fn of(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// Below `end`.
    pub(crate) const fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// Once in `times`.
    pub(crate) const fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    pub(crate) const fn octet(&mut self) -> u8 {
        self.next() as u8
    }

    pub(crate) const fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }
}

/// Peers, as outer headers name them.
pub(crate) const PEERS: [&str; 4] = [OVER_V4, ON_LINK, OVER_V6, OFF_LINK];

/// Third octets (IPv4) or fourth words (IPv6) of each peer's pod CIDRs.
const CIDRS: [&[u8]; 4] = [&[2], &[1], &[3], &[4, 5, 6, 7, 8]];

/// A pod of this peer, of this family.
pub(crate) fn pod_of(random: &mut Random, peer: usize, six: bool) -> IpAddr {
    let host = random.one_of(&[1, 10, 10, 10, 11, 255]);
    if six {
        let word = u16::from(CIDRS[peer][0]);
        [0xfd20, 0, 0, word, 0, 0, 0, host].into()
    } else {
        [172, 20, random.one_of(CIDRS[peer]), host as u8].into()
    }
}

/// A pod of this node.
pub(crate) fn own_pod(random: &mut Random, six: bool) -> IpAddr {
    let host = random.one_of(&[10, 10, 10, 11, 12, 1]);
    if six {
        [0xfd20, 0, 0, 0, 0, 0, 0, host].into()
    } else {
        [172, 20, 0, host as u8].into()
    }
}

/// Any address, mostly one that means something.
pub(crate) fn any_address(random: &mut Random, six: bool) -> IpAddr {
    const FOUR: [&str; 16] = [
        "0.0.0.0",
        "127.0.0.1",
        "255.255.255.255",
        "224.0.0.1",
        "239.1.2.3",
        "8.8.8.8",
        "192.168.10.100",
        "192.168.20.100",
        "192.168.10.101",
        "192.168.20.103",
        "172.20.0.10",
        "172.20.0.1",
        "172.20.9.9",
        "172.20.77.7",
        "172.21.0.1",
        "192.168.10.255",
    ];
    const SIX: [&str; 15] = [
        "::",
        "::1",
        "fe80::1",
        "ff02::1",
        "2001:db8::1",
        "fd00:10::100",
        "fd00:20::100",
        "fd20::a",
        "fd20::1",
        "fd20:0:0:77::7",
        "fd20:0:1::1",
        "::ffff:172.20.0.10",
        "::ffff:192.168.20.100",
        "::ffff:192.168.10.100",
        "fd20:0:0:2::a",
    ];
    match random.below(8) {
        0..5 if six => random.one_of(&SIX).parse().expect("an address"),
        0..5 => random.one_of(&FOUR).parse().expect("an address"),
        5 | 6 => {
            let peer = random.below(4);
            pod_of(random, peer, six)
        }
        _ if six => {
            IpAddr::from(((u128::from(random.next())) << 64 | u128::from(random.next())).to_be_bytes())
        }
        _ => IpAddr::from((random.next() as u32).to_be_bytes()),
    }
}

/// What a packet may carry.
pub(crate) fn body(random: &mut Random) -> Body {
    const PORTS: [u16; 9] = [40_000, 40_001, 7, 53, 443, 8472, 6081, 6082, 4789];
    let source = random.one_of(&[40_000, 40_000, 40_001]);
    let length = random.one_of(&[0, 1, 18, 32, 33, 100, 1300]);
    match random.below(16) {
        0..6 => Body::Tcp(source, 80, ACK, length),
        6 => {
            let flags = random.one_of(&[SYN, SYN | ACK, FIN | ACK, RST, RST | ACK, ACK | 8, 0, 0xff]);
            Body::Tcp(source, 80, flags, length)
        }
        7..11 => Body::Udp(source, 7, length),
        11 | 12 => Body::Udp(source, random.one_of(&PORTS), length),
        13 => Body::Other(ip_protocol::ICMP, vec![8; 8 + length % 64]),
        14 => Body::Other(ip_protocol::PROBE, vec![0x50; 10 + length % 64]),
        _ => Body::Other(
            random.octet(),
            (0..length % 128).map(|_| random.octet()).collect(),
        ),
    }
}

/// Options and the like, now and then.
pub(crate) fn dress(random: &mut Random, packet: &mut IpPacket) {
    if random.once_in(3) {
        packet.traffic_class = random.octet();
    }
    if random.once_in(12) {
        packet.ttl = random.one_of(&[0, 1, 2, 255]);
    }
    if random.once_in(16) {
        if packet.source.is_ipv6() {
            let protocol = packet.octets()[6];
            let kind = random.one_of(&[0, 43, 44, 51, 60]);
            let length: usize = if kind == 44 {
                8
            } else {
                random.one_of(&[8, 16, 24])
            };
            let units = if kind == 51 {
                length / 4 - 2
            } else {
                length / 8 - 1
            };
            packet.first = kind;
            packet.options = vec![protocol, if kind == 44 { 0 } else { units as u8 }];
            packet.options.resize(length, 0);
            if kind == 44 && random.once_in(2) {
                packet.options[3] = random.octet();
            }
        } else {
            packet.options = vec![1; 4 * (1 + random.below(10))];
        }
    }
    if packet.source.is_ipv4() && random.once_in(12) {
        packet.fragment = random.one_of(&[0x2000, 0x0001, 0x2010, 0x4000, 0x8000, 0x1fff]);
    }
}

/// A packet that a peer encapsulated for this node, right more often than not.
pub(crate) fn in_some_tunnel(random: &mut Random) -> Vec<u8> {
    let peer = random.below(4);
    let slot = some_slot(random);
    let six = random.once_in(2);
    let mut inner = ip_packet("172.20.0.1", "172.20.0.1", body(random));
    inner.source = pod_of(random, peer, six);
    inner.destination = own_pod(random, six);
    match random.below(16) {
        0 => inner.source = any_address(random, six),
        1 => inner.destination = any_address(random, six),
        _ => {}
    }
    dress(random, &mut inner);
    let mut outer = outer_from(PEERS[peer]);
    if random.once_in(16) {
        let six = outer.source.is_ipv6();
        let address = any_address(random, six);
        if random.once_in(2) {
            outer.source = address;
        } else {
            outer.destination = address;
        }
    }
    if random.once_in(4) {
        dress(random, &mut outer);
    }
    let mut header = TUNNELS[slot].0.clone();
    if random.once_in(24) {
        forge_header(random, &mut header);
    }
    encapsulated(&outer, FROM_ROUTER, &header, &inner.frame(IN_TUNNEL))
}

/// A slot, the first one more often than others, so that packets meet the flows that were stamped.
pub(crate) fn some_slot(random: &mut Random) -> usize {
    if random.once_in(2) {
        0
    } else {
        random.below(TUNNELS.len())
    }
}

/// A packet of one of this node's pods, as the pod sends it more often than not, to a peer's pod or to a node.
pub(crate) fn from_a_pod(random: &mut Random) -> Vec<u8> {
    let six = random.once_in(2);
    let peer = random.below(4);
    let mut packet = ip_packet("172.20.0.1", "172.20.0.1", body(random));
    packet.source = own_pod(random, six);
    packet.destination = pod_of(random, peer, six);
    match random.below(16) {
        0 => packet.source = any_address(random, six),
        1 => packet.destination = any_address(random, six),
        2..5 => {
            packet.source = own_pod(random, PEERS[peer].contains(':'));
            packet.destination = PEERS[peer].parse().expect("an address");
        }
        _ => {}
    }
    dress(random, &mut packet);
    packet.frame(FROM_POD)
}

/// A probe, in a tunnel or plain, its tag right under a key that may be the one.
pub(crate) fn some_probe(random: &mut Random) -> Vec<u8> {
    let peer = random.below(4);
    let six = random.once_in(2);
    let (kind, number) = (
        random.one_of(&[REPLY, REPLY, REPLY, REQUEST]),
        random.below(18) as u64,
    );
    // No request's tag is right: how many are answered depends on the time that the test takes.
    let key = random.one_of(&[[1, 2], [1, 2], [2, 1]]);
    let padding = random.one_of(&[0, 0, 1, 200]);
    let tag = probe_tag(&key, &form(kind, 0, number, (LENGTH + padding) as u16));
    let mut packet = ip_packet(
        "172.20.0.1",
        "172.20.0.1",
        probe_body(kind, 0, number, tag, padding),
    );
    packet.source = pod_of(random, peer, six);
    packet.destination = if six {
        [0xfd20, 0, 0, 0, 0, 0, 0, 1].into()
    } else {
        [172, 20, 0, 1].into()
    };
    if random.once_in(8) {
        dress(random, &mut packet);
    }
    if random.once_in(4) {
        let links: [Link; 2] = [FROM_ROUTER, FROM_NEIGHBOUR];
        return packet.frame(random.one_of(&links));
    }
    let slot = some_slot(random);
    encapsulated(
        &outer_from(PEERS[peer]),
        FROM_ROUTER,
        &TUNNELS[slot].0,
        &packet.frame(IN_TUNNEL),
    )
}

/// A tunnel header with something wrong.
fn forge_header(random: &mut Random, header: &mut TunnelHeader) {
    match random.below(4) {
        0 => header.first[random.below(4)] ^= 1 << random.below(8),
        1 => header.last = random.octet(),
        2 => header.vni = random.next() as u32 & 0xff_ffff,
        _ => header.port = random.one_of(&[8472, 6081, 6082, 4789, 53]),
    }
}

/// A plain packet between pods, from a pod or to one, and the Ethernet addresses it comes with.
pub(crate) fn between_pods(random: &mut Random) -> Vec<u8> {
    let six = random.once_in(2);
    let peer = random.below(4);
    let there = pod_of(random, peer, six);
    let here = own_pod(random, six);
    let (source, destination) = if random.once_in(2) {
        (there, here)
    } else {
        (here, there)
    };
    let mut packet = ip_packet("172.20.0.1", "172.20.0.1", body(random));
    (packet.source, packet.destination) = (source, destination);
    match random.below(8) {
        0 => packet.source = any_address(random, six),
        1 => packet.destination = any_address(random, six),
        _ => {}
    }
    dress(random, &mut packet);
    let links: [Link; 4] = [FROM_ROUTER, FROM_NEIGHBOUR, FROM_POD, TO_POD];
    packet.frame(random.one_of(&links))
}

/// Octets of no form but, perhaps, an ethertype.
pub(crate) fn noise(random: &mut Random) -> Vec<u8> {
    let mut frame: Vec<u8> = (0..15 + random.below(120)).map(|_| random.octet()).collect();
    let ethertype = random.one_of(&[[0x08, 0x00], [0x86, 0xdd], [0x08, 0x06], [0x81, 0x00]]);
    frame[12..14].copy_from_slice(&ethertype);
    if random.once_in(2) {
        frame[14] = if ethertype[0] == 0x08 { 0x45 } else { 0x60 };
    }
    frame
}

/// Something done to a packet: a bit, an octet or a word changed (in the headers more often than behind them), cut off, grown, shifted.
pub(crate) fn mutate(random: &mut Random, frame: &mut Vec<u8>) {
    const WORDS: [[u8; 2]; 12] = [
        [0, 0],
        [0xff, 0xff],
        [0x08, 0x00],
        [0x86, 0xdd],
        [0x08, 0x06],
        [0x81, 0x00],
        [0x21, 0x18],
        [0x17, 0xc1],
        [0x12, 0xb5],
        [0x65, 0x58],
        [0x45, 0x00],
        [0x20, 0x00],
    ];
    let most = if random.once_in(4) {
        frame.len()
    } else {
        frame.len().min(130)
    };
    let at = random.below(most);
    match random.below(12) {
        0..4 => frame[at] ^= 1 << random.below(8),
        4 | 5 => frame[at] = random.octet(),
        6 | 7 if at + 2 <= frame.len() => frame[at..at + 2].copy_from_slice(&random.one_of(&WORDS)),
        8 => frame.truncate(at.max(15)),
        9 if random.once_in(2) => frame.extend((0..random.below(40)).map(|octet| octet as u8)),
        9 => {
            for _ in 0..1 + random.below(2) {
                let tag = random.one_of(&[0, 0, 0, 0xe000, 5]);
                *frame = tagged(frame, random.one_of(&[0x8100, 0x88a8]), tag);
            }
        }
        10 if frame.len() > 40 => {
            let at = 14 + random.below(frame.len() - 30);
            frame.remove(at);
        }
        // The ethertype, the version, the lengths and fragments, the protocols.
        _ => {
            let at = random.one_of(&[
                12, 13, 14, 16, 17, 20, 21, 23, 24, 36, 37, 42, 62, 63, 64, 70, 73, 82, 83,
            ]);
            if at < frame.len() {
                frame[at] = random.octet();
            }
        }
    }
}
