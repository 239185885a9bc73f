//! A pod, its node and what is outside, and who asks whom there.

use podlane_test_namespaces::{Elsewhere, ip, parameter};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

/// Where the outside says by whom it was asked.
pub(super) const WHO: u16 = 7;
/// The outside's addresses beyond the declared networks, and within.
pub(super) const BEYOND: [&str; 2] = ["192.168.10.1", "fd10::1"];
pub(super) const WITHIN: [&str; 2] = ["10.9.9.9", "fd99::9"];
pub(super) const NODE: [&str; 2] = ["192.168.10.100", "fd10::100"];
pub(super) const POD: [&str; 2] = ["172.20.0.10", "fd20::a"];
pub(super) const ROUTER: [&str; 2] = ["172.20.0.1", "fd20::1"];

pub(super) struct Lab {
    pub(super) pod: Elsewhere,
    outside: Elsewhere,
}

impl Lab {
    /// This namespace is the node.
    pub(super) fn up() -> Self {
        let (pod, outside) = (Elsewhere::new(), Elsewhere::new());
        ip("link set lo up");
        ip(&format!(
            "link add eth1 type veth peer name eth1 netns {}",
            outside.tid()
        ));
        ip(&format!(
            "link add pod1 type veth peer name eth0 netns {}",
            pod.tid()
        ));
        for device in ["eth1", "pod1"] {
            ip(&format!("link set {device} addrgenmode none"));
            // From which a router asks for neighbours (`ndisc_send_ns`, net/ipv6/ndisc.c).
            ip(&format!("addr add fe80::1:1/64 dev {device} nodad"));
            ip(&format!("link set {device} up"));
        }
        ip("addr add 192.168.10.100/24 dev eth1");
        ip("addr add fd10::100/64 dev eth1 nodad");
        ip("addr add 172.20.0.1/32 dev pod1");
        ip("addr add fd20::1/128 dev pod1 nodad");
        ip("route add 172.20.0.10/32 dev pod1");
        ip("route add fd20::a/128 dev pod1");
        ip("route add 10.9.9.9/32 via 192.168.10.1");
        ip("route add fd99::9/128 via fd10::1");
        parameter("ipv4/ip_forward", "1");
        parameter("ipv6/conf/all/forwarding", "1");

        outside.ip("link set lo up");
        outside.ip("link set eth1 addrgenmode none");
        outside.ip("addr add 192.168.10.1/24 dev eth1");
        outside.ip("addr add fd10::1/64 dev eth1 nodad");
        outside.ip("addr add 10.9.9.9/32 dev lo");
        outside.ip("addr add fd99::9/128 dev lo nodad");
        outside.ip("link set eth1 up");
        outside.ip("route add 172.20.0.0/24 via 192.168.10.100");
        outside.ip("route add fd20::/64 via fd10::100");
        for address in BEYOND.into_iter().chain(WITHIN) {
            outside.run(move || answer(address));
        }

        pod.ip("link set lo up");
        pod.ip("link set eth0 addrgenmode none");
        pod.ip("addr add 172.20.0.10/32 dev eth0");
        pod.ip("addr add fd20::a/128 dev eth0 nodad");
        pod.ip("link set eth0 up");
        pod.ip("route add 172.20.0.1/32 dev eth0");
        pod.ip("route add default via 172.20.0.1");
        pod.ip("route add fd20::1/128 dev eth0");
        pod.ip("route add default via fd20::1");
        // A cable takes a moment to carry its first packet.
        for address in BEYOND.into_iter().chain(WITHIN) {
            pod.run(move || {
                let socket = socket(address);
                socket
                    .set_read_timeout(Some(Duration::from_millis(50)))
                    .expect("a time");
                let start = Instant::now();
                while let Err(error) = ask(&socket) {
                    assert!(start.elapsed() < Duration::from_secs(60), "{address}: {error}");
                }
            });
        }
        Self { pod, outside }
    }

    /// A second cable to the outside.
    pub(super) fn second_way(&self) {
        let outside = &self.outside;
        ip(&format!(
            "link add eth2 type veth peer name eth2 netns {}",
            outside.tid()
        ));
        ip("addr add 192.168.11.100/24 dev eth2");
        ip("addr add fd11::100/64 dev eth2 nodad");
        ip("link set eth2 up");
        outside.ip("addr add 192.168.11.1/24 dev eth2");
        outside.ip("addr add fd11::1/64 dev eth2 nodad");
        outside.ip("link set eth2 up");
    }

    /// What goes to the outside's addresses within takes the second cable.
    pub(super) fn by_second_way(&self, family: usize) {
        let gateway = ["192.168.11.1", "fd11::1"][family];
        ip(&format!("route replace {} via {gateway}", WITHIN[family]));
    }

    /// Whom the outside sees when the pod asks from a port of its own.
    pub(super) fn seen_at(&self, address: &'static str) -> SocketAddr {
        self.pod.run(move || ask(&socket(address)).expect("an answer"))
    }
}

/// Says, on a thread of its own, to each datagram by whom it was sent.
fn answer(address: &str) {
    let socket = UdpSocket::bind((address, WHO)).expect("the address is there");
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, from)) = socket.recv_from(&mut buffer) {
            socket
                .send_to(from.to_string().as_bytes(), from)
                .expect("a way back");
        }
    });
}

pub(super) fn socket(to: &str) -> UdpSocket {
    let any = if to.contains(':') { "::" } else { "0.0.0.0" };
    let socket = UdpSocket::bind((any, 0)).expect("a port");
    socket
        .connect((to.parse::<IpAddr>().expect("an address"), WHO))
        .expect("a route");
    socket
        .set_read_timeout(Some(Duration::from_secs(20)))
        .expect("a time");
    socket
}

pub(super) fn ask(socket: &UdpSocket) -> std::io::Result<SocketAddr> {
    socket.send(b"who am I?")?;
    let mut buffer = [0; 64];
    let length = socket.recv(&mut buffer)?;
    Ok(std::str::from_utf8(&buffer[..length])
        .expect("text")
        .parse()
        .expect("an address"))
}
