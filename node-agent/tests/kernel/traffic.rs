//! What a lane carries between two nodes, each a namespace, and what it is on the wire.

use crate::story::{VXLAN, at};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, bind, recv, setsockopt, socket, sockopt,
};
use podlane_agent::datapath::Datapath;
use podlane_agent::kernel::Kernel;
use podlane_agent::pass::Pass;
use podlane_agent::retries::Retries;
use podlane_plan::desired::{Assignment, Peer};
use podlane_plan::lane::{Lane, Tunnel, TunnelProtocol};
use podlane_plan::pair::NodeAddress;
use podlane_plan::policy::{Applied, OffLinkPeers, Rank, Routing, RoutingMode};
use podlane_test_namespaces::{Conditional, Test, in_fresh, ip};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

pub(crate) const TESTS: &[Test] = &[
    ("vxlan_over_ipv4_carries_both_families", || {
        carries(VXLAN, ["192.168.10.100/24", "192.168.10.101/24"]);
    }),
    ("vxlan_over_ipv6_carries_both_families", || {
        carries(VXLAN, ["fd10::100/64", "fd10::101/64"]);
    }),
];

/// The same where the kernel has the driver.
pub(crate) const GENEVE_TESTS: Conditional = Conditional {
    lacking: geneve_driver_lacking,
    tests: &[
        ("geneve_over_ipv4_carries_both_families", || {
            carries(GENEVE, ["192.168.10.100/24", "192.168.10.101/24"]);
        }),
        ("geneve_over_ipv6_carries_both_families", || {
            carries(GENEVE, ["fd10::100/64", "fd10::101/64"]);
        }),
    ],
};

const GENEVE: Tunnel = Tunnel {
    protocol: TunnelProtocol::Geneve,
    port: 6081,
    vni: 0x0a_0b_0c,
};

fn geneve_driver_lacking() -> Option<String> {
    let output = Command::new("ip")
        .args(["link", "add", "probe", "type", "geneve", "external"])
        .output()
        .expect("ip(8) is installed");
    let words = String::from_utf8_lossy(&output.stderr);
    (!output.status.success()).then(|| format!("this kernel makes no GENEVE device ({})", words.trim_end()))
}

/// The router addresses of the two nodes: the first of each pod CIDR.
const ROUTERS: [[&str; 2]; 2] = [["172.20.0.1", "fd20::1"], ["172.20.1.1", "fd20:1::1"]];
const POD_CIDRS: [[&str; 2]; 2] = [["172.20.0.0/24", "fd20::/64"], ["172.20.1.0/24", "fd20:1::/64"]];
/// What the far node echoes on, both UDP and TCP.
const ECHO: u16 = 7;
const PATIENCE: Duration = Duration::from_secs(60);

/// Two nodes with these underlay addresses open the lane by a pass of each agent; then datagrams and streams of both
/// families go there and back, on the wire as the tunnel's frames and as nothing else.
fn carries(tunnel: Tunnel, underlay: [&'static str; 2]) {
    let (thread, its_namespace) = channel();
    let (wire, cable) = channel();
    let (open, opened) = channel();
    std::thread::spawn(move || {
        in_fresh(move || {
            thread.send(nix::unistd::gettid()).expect("the near node");
            cable.recv().expect("the near node");
            connected(underlay[1]);
            open_lane(1, tunnel, underlay);
            echo(ROUTERS[1][0]);
            echo(ROUTERS[1][1]);
            open.send(()).expect("the near node");
            // The namespace is there for as long as a thread is in it.
            let _ = cable.recv();
        })
    });
    let far = its_namespace.recv().expect("the far node");
    ip(&format!("link add eth1 type veth peer name eth1 netns {far}"));
    wire.send(()).expect("the far node");
    connected(underlay[0]);
    open_lane(0, tunnel, underlay);
    opened.recv().expect("the far node's lane opens");

    for router in ROUTERS[1] {
        let wire = Wire::tapped();
        datagrams_return(router);
        stream_returns(router);
        let frames = wire.frames();
        let of_tunnel = frames.iter().filter(|frame| frame.is_of(&tunnel)).count();
        assert!(of_tunnel >= 4, "{router}: {of_tunnel} of {} frames", frames.len());
        assert_eq!(of_tunnel, frames.len(), "{router}: no frames but the tunnel's");
    }
}

/// This end of the cable, up.
fn connected(address: &str) {
    ip("link set lo up");
    // No link-local addresses, whose duplicate detection goes on in the background.
    ip("link set eth1 addrgenmode none");
    let detection = if address.contains(':') { "nodad" } else { "" };
    ip(&format!("addr add {address} dev eth1 {detection}"));
    ip("link set eth1 up");
}

/// A pass of the agent of the first or the second node, told of the other.
fn open_lane(own: usize, tunnel: Tunnel, underlay: [&str; 2]) {
    let policy = Applied {
        rank: Rank {
            priority: 0,
            created: 1,
            name: "default".to_owned(),
        },
        routing: Routing {
            routing_mode: RoutingMode::Tunnel,
            auto_direct_node_routes: false,
            off_link_peers: OffLinkPeers::Refuse,
            tunnel,
        },
    };
    let pod_cidrs = |node: usize| {
        POD_CIDRS[node]
            .iter()
            .map(|cidr| cidr.parse().expect("a CIDR"))
            .collect()
    };
    let address_of = |node: usize| {
        let (address, length) = underlay[node].split_once('/').expect("a prefix");
        NodeAddress {
            address: at(address),
            prefix_length: Some(length.parse().expect("a length")),
        }
    };
    let lane = Lane::Tunnel(tunnel);
    let other = 1 - own;
    let assignment = Assignment {
        name: own.to_string(),
        addresses: vec![address_of(own).address],
        pod_cidrs: pod_cidrs(own),
        policy: Some(policy.clone()),
        receive_on: [lane].into(),
        ..Assignment::default()
    };
    let peer = Peer {
        addresses: vec![address_of(other)],
        pod_cidrs: pod_cidrs(other),
        mtu: Some(1500),
        receives_on: [lane].into(),
        policy: Some(policy),
        ..Peer::default()
    };
    let peers = BTreeMap::from([(other.to_string(), peer)]);
    let now = Instant::now();
    let outcome = Pass::new(
        &mut Kernel::default(),
        &mut Datapath::without("the kernel's lanes are tried", now),
        &mut Retries::default(),
        &assignment,
        &peers,
    )
    .run(now)
    .expect("the kernel can be read");
    assert!(
        outcome.settled && outcome.sends_on == [lane].into(),
        "{:?} {:?}",
        outcome.unfinished,
        outcome.desired.notes
    );
}

/// Sends back, on threads of their own, what comes to this address.
fn echo(address: &str) {
    let address: IpAddr = at(address);
    let datagrams = UdpSocket::bind((address, ECHO)).expect("the router address is ours");
    std::thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        while let Ok((length, from)) = datagrams.recv_from(&mut buffer) {
            datagrams.send_to(&buffer[..length], from).expect("a way back");
        }
    });
    let streams = TcpListener::bind((address, ECHO)).expect("the router address is ours");
    std::thread::spawn(move || {
        let (mut stream, _) = streams.accept().expect("a connection");
        let mut all = Vec::new();
        stream.read_to_end(&mut all).expect("a stream");
        stream.write_all(&all).expect("a way back");
    });
}

/// Bytes that differ from place to place.
fn bytes(length: u32) -> Vec<u8> {
    (0..length)
        .map(|it| it.wrapping_mul(2_654_435_761).to_be_bytes()[0])
        .collect()
}

/// A small datagram, and one that the kernel has to cut into fragments.
fn datagrams_return(router: &str) {
    let any = if router.contains(':') { "::" } else { "0.0.0.0" };
    let socket = UdpSocket::bind((any, 0)).expect("a port");
    socket.connect((router, ECHO)).expect("a route");
    socket.set_read_timeout(Some(PATIENCE)).expect("a time");
    for length in [100, 4000] {
        let sent = bytes(length);
        socket.send(&sent).expect("sent");
        let mut buffer = vec![0; 1 << 16];
        let received = socket.recv(&mut buffer);
        let received = received.unwrap_or_else(|error| panic!("{length} bytes to {router}: {error}"));
        assert_eq!(buffer[..received], sent, "{length} bytes to {router}");
    }
}

/// Enough for the kernel to send super-packets, which are cut only after encapsulation.
fn stream_returns(router: &str) {
    let mut stream = TcpStream::connect_timeout(&(at(router), ECHO).into(), PATIENCE).expect("a connection");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time");
    let sent = bytes(1 << 18);
    stream.write_all(&sent).expect("sent");
    stream.shutdown(Shutdown::Write).expect("connected");
    let mut received = Vec::new();
    stream
        .read_to_end(&mut received)
        .unwrap_or_else(|error| panic!("a stream to {router}: {error}"));
    assert!(received == sent, "{} bytes from {router}", received.len());
}

/// Everything that eth1 sends and receives.
struct Wire(OwnedFd);

impl Wire {
    fn tapped() -> Self {
        let eth1 = nix::ifaddrs::getifaddrs()
            .expect("devices")
            .filter(|device| device.interface_name == "eth1")
            .find_map(|device| device.address?.as_link_addr().copied())
            .expect("eth1");
        let tap = socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC,
            SockProtocol::EthAll,
        )
        .expect("a packet socket");
        setsockopt(&tap, sockopt::RcvBufForce, &(16 << 20)).expect("room for every frame");
        bind(tap.as_raw_fd(), &eth1).expect("eth1 is there");
        Self(tap)
    }

    /// The frames with UDP or TCP in them.
    fn frames(&self) -> Vec<Frame> {
        let mut frames = Vec::new();
        let mut buffer = [0; 128];
        loop {
            match recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(length) => frames.extend(Frame::parse(&buffer[..length])),
                Err(Errno::EAGAIN) => return frames,
                Err(errno) => panic!("{errno}"),
            }
        }
    }
}

/// The beginning of a UDP datagram or TCP segment.
struct Frame {
    is_udp: bool,
    port: u16,
    /// What follows a UDP header.
    payload: Vec<u8>,
}

impl Frame {
    /// None for what is neither, ARP and ICMPv6 for instance.
    fn parse(frame: &[u8]) -> Option<Self> {
        let (protocol, rest) = match frame.get(12..14)? {
            [0x08, 0x00] => (*frame.get(23)?, frame.get(34..)?),
            [0x86, 0xdd] => (*frame.get(20)?, frame.get(54..)?),
            _ => return None,
        };
        let is_udp = match protocol {
            6 => false,
            17 => true,
            _ => return None,
        };
        let port = u16::from_be_bytes([*rest.get(2)?, *rest.get(3)?]);
        Some(Self {
            is_udp,
            port,
            payload: rest.get(8..16)?.to_vec(),
        })
    }

    /// Whether it is what the tunnel sends: RFC 7348 section 5, RFC 8926 section 3.4 (version 0, no options, Ethernet inside).
    fn is_of(&self, tunnel: &Tunnel) -> bool {
        let [_, high, middle, low] = tunnel.vni.to_be_bytes();
        let header = match tunnel.protocol {
            TunnelProtocol::Vxlan => [8, 0, 0, 0, high, middle, low, 0],
            TunnelProtocol::Geneve => [0, 0, 0x65, 0x58, high, middle, low, 0],
        };
        self.is_udp && self.port == tunnel.port && self.payload == header
    }
}
