//! The programs where they belong: on devices, with real packets. What BPF_PROG_TEST_RUN cannot show is here: tunnel keys, redirects, VLAN tags, the
//! kernel's own VXLAN device as the other end.

pub(crate) mod kernel;
pub(crate) mod raw;

use crate::machine::{Machine, load, open};
use crate::story::{self, Devices};
use aya::programs::tc::{TcAttachType, qdisc_add_clsact};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use podlane_test_namespaces::{Elsewhere, index, ip, parameter};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// How long a frame may take that has to come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);

/// Frames of a device, in and out.
pub(crate) struct Tap(OwnedFd);

impl Tap {
    /// Of a device in the calling thread's namespace.
    pub(crate) fn on(device: &str) -> Self {
        let socket = socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::EthAll,
        )
        .expect("a packet socket");
        let link = nix::ifaddrs::getifaddrs()
            .expect("devices")
            .filter(|found| found.interface_name == device)
            .find_map(|found| found.address.and_then(|address| address.as_link_addr().copied()))
            .unwrap_or_else(|| panic!("no device {device}"));
        bind(socket.as_raw_fd(), &link).expect("bound to the device");
        let wait = TimeVal::new(0, 100_000);
        setsockopt(&socket, sockopt::ReceiveTimeout, &wait).expect("a time limit");
        Self(socket)
    }

    pub(crate) fn send(&self, frame: &[u8]) {
        let sent = send(self.0.as_raw_fd(), frame, MsgFlags::empty());
        assert_eq!(sent, Ok(frame.len()), "{} octets", frame.len());
    }

    /// The next frame that is wanted; none while there is [`PATIENCE`].
    pub(crate) fn next(&self, wanted: impl Fn(&[u8]) -> bool) -> Option<Vec<u8>> {
        let mut frame = vec![0; 65536];
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            if let Ok(length) = recv(self.0.as_raw_fd(), &mut frame, MsgFlags::empty())
                && wanted(&frame[..length])
            {
                return Some(frame[..length].to_vec());
            }
        }
        None
    }
}

/// A node with real tunnel devices, its pod in a namespace of its own, and the far end of its underlay, which is in one, too.
pub(crate) struct Wire {
    pub(crate) machine: Machine,
    pub(crate) pod: Elsewhere,
    pub(crate) far: Elsewhere,
    pub(crate) devices: Devices,
    /// The GENEVE tunnel's device, which is a VXLAN device.
    pub(crate) stand_in: u32,
}

impl Wire {
    /// In the calling thread's namespace. The programs are attached, the maps the usual node's.
    pub(crate) fn new() -> Self {
        for family in ["ipv4", "ipv6"] {
            for (name, value) in [
                ("accept_dad", "0"),
                ("accept_ra", "0"),
                ("rp_filter", "0"),
                ("forwarding", "1"),
            ] {
                if (family == "ipv4") == (name == "rp_filter") || name == "forwarding" {
                    for device in ["all", "default"] {
                        parameter(&format!("{family}/conf/{device}/{name}"), value);
                    }
                }
            }
        }
        let (pod, far) = (Elsewhere::new(), Elsewhere::new());
        for (device, mac, end_mac, there) in [
            ("eth0", "02:00:00:00:00:01", "02:00:00:00:00:02", &far),
            ("pod1", "02:00:00:00:02:01", "02:00:00:00:02:02", &pod),
        ] {
            // Without the ends' own talk, all that is seen is what the tests send.
            ip(&format!(
                "link add {device} address {mac} type veth peer name {device}-end address {end_mac} netns {}",
                there.tid()
            ));
            ip(&format!("link set {device} addrgenmode none up"));
            there.ip("link set lo up");
            there.ip(&format!("link set {device}-end addrgenmode none up"));
        }
        addresses();
        for (device, port) in [("podlane_vxlan", 8472), ("podlane_geneve", 6082)] {
            ip(&format!(
                "link add {device} address 02:50:c0:a8:0a:64 type vxlan external nolearning dstport {port} udp6zerocsumrx udp6zerocsumtx"
            ));
            ip(&format!("link set {device} mtu 1430 arp off addrgenmode none up"));
        }
        routes();
        let mut ebpf = open();
        // Where the kernel has no tcx (before 6.6), programs are filters of this queueing discipline.
        for device in ["podlane_vxlan", "podlane_geneve", "eth0", "pod1"] {
            qdisc_add_clsact(device).unwrap_or_else(|error| panic!("clsact on {device}: {error}"));
        }
        for (program, device, side) in [
            ("tunnel_egress", "podlane_vxlan", TcAttachType::Egress),
            ("tunnel_egress", "podlane_geneve", TcAttachType::Egress),
            ("tunnel_ingress", "podlane_vxlan", TcAttachType::Ingress),
            ("tunnel_ingress", "podlane_geneve", TcAttachType::Ingress),
            ("underlay_ingress", "eth0", TcAttachType::Ingress),
            ("underlay_egress", "eth0", TcAttachType::Egress),
            ("pod_ingress", "pod1", TcAttachType::Ingress),
            ("pod_egress", "pod1", TcAttachType::Egress),
        ] {
            let classifier = load(&mut ebpf, program);
            classifier
                .attach(device, side)
                .unwrap_or_else(|error| panic!("{program} on {device}: {error}"));
        }
        let devices = Devices {
            underlay: index("eth0"),
            pod: index("pod1"),
            other_pod: 0,
            tunnel: index("podlane_vxlan"),
        };
        let mut node = story::node(devices);
        let stand_in = index("podlane_geneve");
        node.settings.tunnels[2].device = stand_in;
        Self {
            machine: Machine::of(node, ebpf),
            pod,
            far,
            devices,
            stand_in,
        }
    }
}

fn addresses() {
    ip("link set lo up");
    for line in [
        "addr add 192.168.10.100/24 dev eth0",
        "addr add fd00:10::100/64 dev eth0 nodad",
        "neigh add 192.168.10.1 lladdr 02:00:00:00:00:02 dev eth0 nud permanent",
        "neigh add fd00:10::1 lladdr 02:00:00:00:00:02 dev eth0 nud permanent",
        "route add default via 192.168.10.1",
        "-6 route add default via fd00:10::1",
        "addr add 172.20.0.1/32 dev pod1",
        "addr add fd20::1/128 dev pod1 nodad",
        "route add 172.20.0.10/32 dev pod1",
        "-6 route add fd20::a/128 dev pod1",
        "neigh add 172.20.0.10 lladdr 02:00:00:00:02:02 dev pod1 nud permanent",
        "neigh add fd20::a lladdr 02:00:00:00:02:02 dev pod1 nud permanent",
    ] {
        ip(line);
    }
}

/// Where each peer's pods are: network, its gateway, encapsulation, device.
fn routes() {
    const V4: &str = "ip id 1 src 192.168.10.100 dst 192.168.20.100 ttl 64";
    const V6: &str = "ip6 id 1 src fd00:10::100 dst fd00:20::100 hoplimit 64";
    const STAND_IN: &str = "ip id 7 src 192.168.10.100 dst 192.168.20.103 ttl 64";
    const STAND_IN_V6: &str = "ip6 id 7 src fd00:10::100 dst fd00:20::100 hoplimit 64";
    for (network, gateway, encapsulation, device) in [
        ("172.20.2.0/24", "172.20.2.1", V4, "podlane_vxlan"),
        ("fd20:0:0:2::/64", "fd20:0:0:2::1", V4, "podlane_vxlan"),
        ("172.20.3.0/25", "172.20.3.1", V6, "podlane_vxlan"),
        ("fd20:0:0:3::/65", "fd20:0:0:3::1", V6, "podlane_vxlan"),
        ("172.20.7.0/24", "172.20.7.1", STAND_IN, "podlane_geneve"),
        ("fd20:0:0:4::/64", "fd20:0:0:4::1", STAND_IN, "podlane_geneve"),
        ("172.20.3.128/25", "172.20.3.129", STAND_IN_V6, "podlane_geneve"),
        (
            "fd20:0:0:3:8000::/65",
            "fd20:0:0:3:8000::1",
            STAND_IN_V6,
            "podlane_geneve",
        ),
    ] {
        let six = if network.contains(':') { "-6 " } else { "" };
        ip(&format!(
            "neigh add {gateway} lladdr 02:50:c0:a8:14:64 dev {device} nud permanent"
        ));
        ip(&format!(
            "{six}route add {network} encap {encapsulation} via {gateway} dev {device} onlink"
        ));
    }
}
