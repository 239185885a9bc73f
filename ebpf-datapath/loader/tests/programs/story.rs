//! The node that most tests are about, and its devices.

use crate::model::Node;
use crate::packet::{IpPacket, Link, TunnelHeader, encapsulated, udp};
use podlane_datapath_common::{
    Address, Network4, Network6, Peer, PodNetwork, PodNetworkKind, Settings, TrieKey, Tunnel, peer_flag,
    pod_network_flag, settings_flag, tunnel_flag,
};
use podlane_test_namespaces::{index, ip, parameter};
use std::net::IpAddr;

/// The underlay device's link-layer address.
pub(crate) const NODE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// The router's.
pub(crate) const ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
/// That of the node on the link.
pub(crate) const NEIGHBOUR_MAC: [u8; 6] = [2, 0, 0, 0, 1, 1];
/// The node's end of a pod's veth.
pub(crate) const VETH_MAC: [u8; 6] = [2, 0, 0, 0, 2, 1];
/// A pod's own.
pub(crate) const POD_MAC: [u8; 6] = [2, 0, 0, 0, 2, 2];
/// The tunnel devices'.
pub(crate) const TUNNEL_MAC: [u8; 6] = [2, 0x50, 192, 168, 10, 100];
/// The peers' tunnel devices'.
pub(crate) const PEER_TUNNEL_MAC: [u8; 6] = [2, 0x50, 192, 168, 20, 100];

/// From the router to the node.
pub(crate) const FROM_ROUTER: Link = [NODE_MAC, ROUTER_MAC];
/// From the node on the link.
pub(crate) const FROM_NEIGHBOUR: Link = [NODE_MAC, NEIGHBOUR_MAC];
/// From the pod to the node.
pub(crate) const FROM_POD: Link = [VETH_MAC, POD_MAC];
/// From the node to the pod.
pub(crate) const TO_POD: Link = [POD_MAC, VETH_MAC];
/// Within the tunnel.
pub(crate) const IN_TUNNEL: Link = [TUNNEL_MAC, PEER_TUNNEL_MAC];

/// The settings' generation.
pub(crate) const GENERATION: u32 = 77;
/// A lease longer than any test.
pub(crate) const LONG_LEASE: u32 = 0x4000_0000;
/// The key of probes to this node.
pub(crate) const PROBE_KEY: [u64; 2] = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];

/// A peer's key among the node's.
pub(crate) const OVER_V4: &str = "192.168.20.100";
/// The node on the link, with a native lane.
pub(crate) const ON_LINK: &str = "192.168.10.101";
/// A node with an IPv6 underlay.
pub(crate) const OVER_V6: &str = "fd00:20::100";
/// A node with more pod CIDRs than fit, and a native lane over a router.
pub(crate) const OFF_LINK: &str = "192.168.20.103";

/// The tunnels by slot.
pub(crate) const TUNNELS: [(TunnelHeader, u16); 5] = [
    (TunnelHeader::vxlan(8472, 1), 0),
    (TunnelHeader::geneve(6081, 1), tunnel_flag::GENEVE),
    (
        TunnelHeader::geneve(6082, 7),
        tunnel_flag::GENEVE | tunnel_flag::STAND_IN,
    ),
    (TunnelHeader::vxlan(4789, 0x12_3456), 0),
    (TunnelHeader::vxlan(8472, 2), 0),
];

/// Indices of the node's devices.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Devices {
    pub(crate) underlay: u32,
    pub(crate) pod: u32,
    pub(crate) other_pod: u32,
    pub(crate) tunnel: u32,
}

/// Makes the node's devices in the calling thread's namespace.
pub(crate) fn devices() -> Devices {
    parameter("ipv4/ip_forward", "1");
    parameter("ipv6/conf/all/forwarding", "1");
    ip("link set lo up");
    for (device, mac) in [
        ("eth0", "02:00:00:00:00:01"),
        ("pod1", "02:00:00:00:02:01"),
        ("pod2", "02:00:00:00:03:01"),
        ("tun0", "02:50:c0:a8:0a:64"),
    ] {
        ip(&format!(
            "link add {device} address {mac} type veth peer name {device}-end"
        ));
        ip(&format!("link set {device} up"));
        ip(&format!("link set {device}-end up"));
    }
    ip("addr add 192.168.10.100/24 dev eth0");
    ip("addr add fd00:10::100/64 dev eth0 nodad");
    for address in ["192.168.10.101", "fd00:10::101"] {
        ip(&format!(
            "neigh add {address} lladdr 02:00:00:00:01:01 dev eth0 nud permanent"
        ));
    }
    for address in ["192.168.10.1", "fd00:10::1"] {
        ip(&format!(
            "neigh add {address} lladdr 02:00:00:00:00:02 dev eth0 nud permanent"
        ));
    }
    Devices {
        underlay: index("eth0"),
        pod: index("pod1"),
        other_pod: index("pod2"),
        tunnel: index("tun0"),
    }
}

/// An address as the maps have it.
pub(crate) fn address(text: &str) -> Address {
    match text.parse().unwrap_or_else(|error| panic!("{text}: {error}")) {
        IpAddr::V4(address) => Address::of_v4_octets(address.octets()),
        IpAddr::V6(address) => Address::of_v6_octets(address.octets()),
    }
}

/// A prefix as the trie has it.
pub(crate) fn prefix(text: &str) -> TrieKey {
    let (network, length) = text.split_once('/').expect("a prefix");
    let address = address(network);
    let length: u32 = length.parse().expect("a length");
    TrieKey {
        prefix_length: if address.is_v4() { length + 96 } else { length },
        address,
    }
}

/// An IPv4 network as the maps have it.
pub(crate) fn network4(text: &str) -> Network4 {
    let key = prefix(text);
    let bits = key.prefix_length - 96;
    Network4 {
        network: key.address.word(),
        mask: u32::MAX.checked_shl(32 - bits).unwrap_or(0).to_be(),
    }
}

/// An IPv6 network as the maps have it.
pub(crate) fn network6(text: &str) -> Network6 {
    let key = prefix(text);
    let mask = u128::MAX.checked_shl(128 - key.prefix_length).unwrap_or(0);
    Network6 {
        network: key.address.0,
        mask: Address::of_v6_octets(mask.to_be_bytes()).0,
    }
}

fn listed<T: Copy, const N: usize>(empty: T, networks: &[T]) -> [T; N] {
    std::array::from_fn(|place| networks.get(place).copied().unwrap_or(empty))
}

const NOBODYS: PodNetwork = PodNetwork {
    kind: PodNetworkKind::Unassigned as u32,
    flags: 0,
    peer: 0,
    interface: 0,
    mtu: 0,
    underlay: 0,
    next_hop: Address::NONE,
    outer: Address::NONE,
};

/// The flag that this kernel lets the loader set: `BPF_F_ADJ_ROOM_DECAP_L3_*` are of Linux 6.3.
pub(crate) fn decap_flags() -> u32 {
    let name = nix::sys::utsname::uname().expect("the kernel has a name");
    let release = name.release().to_string_lossy().into_owned();
    let mut numbers = release
        .split(|letter: char| !letter.is_ascii_digit())
        .map(|number| number.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= (6, 3) {
        settings_flag::DECAP_FLAGS
    } else {
        0
    }
}

/// The node: five tunnels, four peers, two pods, all that can be open open.
pub(crate) fn node(devices: Devices) -> Node {
    let mut tunnels = [Tunnel::default(); podlane_datapath_common::MAX_TUNNELS];
    for (slot, (header, flags)) in TUNNELS.iter().enumerate() {
        let mac = TUNNEL_MAC;
        tunnels[slot] = Tunnel {
            port: header.port.to_be(),
            flags: *flags,
            vni: (header.vni << 8).to_be(),
            device: devices.tunnel,
            mac: [mac[0], mac[1], mac[2], mac[3], mac[4], mac[5], 0, 0],
        };
    }
    let mut node = Node::new(Settings {
        generation: GENERATION,
        flags: settings_flag::BYPASS
            | settings_flag::NATIVE
            | settings_flag::PROBES
            | settings_flag::CHECK_UNDERLAY
            | decap_flags(),
        lease: LONG_LEASE,
        traffic_class: 0xb8,
        pods4: network4("172.16.0.0/12"),
        pods6: network6("fd20::/40"),
        local4: listed(Network4::EMPTY, &[network4("172.20.0.0/24")]),
        local6: listed(Network6::EMPTY, &[network6("fd20::/64")]),
        tunnels,
        probe_key: PROBE_KEY,
    });
    peers(&mut node, devices);
    pods(&mut node, devices);
    for next_hop in ["192.168.10.101", "fd00:10::101"] {
        node.neighbours.insert(address(next_hop), NEIGHBOUR_MAC);
    }
    node
}

fn peers(node: &mut Node, devices: Devices) {
    let peer = |index: u32, source: &str, next_hop: &str, pods4: &[&str], pods6: &[&str]| Peer {
        index,
        flags: 0,
        tunnels: 0b11111,
        mtu: 1450,
        source: address(source),
        interface: devices.underlay,
        next_hop_family: Node::family_of(&address(next_hop)),
        next_hop: address(next_hop),
        networks4: listed(
            Network4::EMPTY,
            &pods4.iter().copied().map(network4).collect::<Vec<_>>(),
        ),
        networks6: listed(
            Network6::EMPTY,
            &pods6.iter().copied().map(network6).collect::<Vec<_>>(),
        ),
    };
    let here = "192.168.10.100";
    let over_v4 = peer(0, here, "192.168.10.1", &["172.20.2.0/24"], &["fd20:0:0:2::/64"]);
    let on_link = Peer {
        tunnels: 0b00001,
        ..peer(
            1,
            here,
            "192.168.10.101",
            &["172.20.1.0/24"],
            &["fd20:0:0:1::/64"],
        )
    };
    let over_v6 = Peer {
        mtu: 1430,
        ..peer(
            2,
            "fd00:10::100",
            "fd00:10::1",
            &["172.20.3.0/24"],
            &["fd20:0:0:3::/64"],
        )
    };
    let several = ["172.20.4.0/24", "172.20.5.0/24", "172.20.6.0/24", "172.20.7.0/24"];
    let off_link = Peer {
        flags: peer_flag::MORE_NETWORKS,
        ..peer(7, here, "192.168.10.1", &several, &["fd20:0:0:4::/64"])
    };
    for (key, peer) in [
        (OVER_V4, over_v4),
        (ON_LINK, on_link),
        (OVER_V6, over_v6),
        (OFF_LINK, off_link),
    ] {
        node.peers.insert(address(key), peer);
    }
}

fn pods(node: &mut Node, devices: Devices) {
    let local = |interface: u32| PodNetwork {
        kind: PodNetworkKind::Local as u32,
        interface,
        ..NOBODYS
    };
    let of_peer = |peer: u32, outer: &str, flags: u32, next_hop: &str| PodNetwork {
        kind: PodNetworkKind::Peer as u32,
        flags,
        peer,
        interface: 0,
        mtu: 1500,
        underlay: devices.underlay,
        next_hop: address(next_hop),
        outer: address(outer),
    };
    let on_link = pod_network_flag::NATIVE | pod_network_flag::ON_LINK;
    let native = pod_network_flag::NATIVE;
    let networks = [
        ("172.20.0.0/16", NOBODYS),
        ("fd20::/48", NOBODYS),
        ("172.20.0.0/24", local(0)),
        ("fd20::/64", local(0)),
        ("172.20.9.0/24", local(0)),
        ("172.20.0.10/32", local(devices.pod)),
        ("fd20::a/128", local(devices.pod)),
        ("172.20.0.11/32", local(devices.other_pod)),
        ("fd20::b/128", local(devices.other_pod)),
        ("172.20.2.0/24", of_peer(0, OVER_V4, 0, "192.168.10.1")),
        ("fd20:0:0:2::/64", of_peer(0, OVER_V4, 0, "fd00:10::1")),
        ("172.20.1.0/24", of_peer(1, ON_LINK, on_link, "192.168.10.101")),
        ("fd20:0:0:1::/64", of_peer(1, ON_LINK, on_link, "fd00:10::101")),
        ("172.20.3.0/24", of_peer(2, OVER_V6, 0, "192.168.10.1")),
        ("fd20:0:0:3::/64", of_peer(2, OVER_V6, 0, "fd00:10::1")),
        ("172.20.4.0/24", of_peer(7, OFF_LINK, native, "192.168.10.1")),
        ("172.20.5.0/24", of_peer(7, OFF_LINK, native, "192.168.10.1")),
        ("172.20.6.0/24", of_peer(7, OFF_LINK, native, "192.168.10.1")),
        ("172.20.7.0/24", of_peer(7, OFF_LINK, native, "192.168.10.1")),
        ("172.20.8.0/24", of_peer(7, OFF_LINK, native, "192.168.10.1")),
        ("fd20:0:0:4::/64", of_peer(7, OFF_LINK, native, "fd00:10::1")),
    ];
    node.pods = networks.map(|(text, network)| (prefix(text), network)).to_vec();
}

/// An outer packet from a peer to this node.
pub(crate) fn outer_from(peer: &str) -> IpPacket {
    let here = if peer.contains(':') {
        "fd00:10::100"
    } else {
        "192.168.10.100"
    };
    udp(peer, here)
}

/// A pod's packet as a peer encapsulates it, in the tunnel of this slot.
pub(crate) fn in_tunnel(peer: &str, slot: usize, inner: &IpPacket) -> Vec<u8> {
    let outer = outer_from(peer);
    encapsulated(&outer, FROM_ROUTER, &TUNNELS[slot].0, &inner.frame(IN_TUNNEL))
}
