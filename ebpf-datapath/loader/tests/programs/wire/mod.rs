//! The programs where they belong: on devices, with real packets. What BPF_PROG_TEST_RUN cannot show is here: tunnel keys, redirects, VLAN tags, the
//! kernel's own tunnel devices as the other end.

pub(crate) mod between_tunnels;
pub(crate) mod forged;
pub(crate) mod kernel;
pub(crate) mod native;
pub(crate) mod open_vswitch;
mod other_end;
pub(crate) mod probe;
pub(crate) mod raw;
pub(crate) mod several_ways;
mod tap;
mod traffic;
pub(crate) mod tshark;
mod underlay;

pub(crate) use tap::Tap;
pub(crate) use underlay::Underlay;

use crate::machine::Machine;
use crate::pool::Object;
use crate::story::{self, Devices};
use aya::programs::tc::{SchedClassifierLinkId, TcAttachType, qdisc_add_clsact};
use podlane_test_namespaces::{Elsewhere, index, ip, parameter};

/// A node with real tunnel devices, its pod in a namespace of its own, and the far end of its underlay, which is in one, too.
pub(crate) struct Wire {
    pub(crate) machine: Machine,
    pub(crate) pod: Elsewhere,
    pub(crate) far: Elsewhere,
    pub(crate) devices: Devices,
    /// The GENEVE tunnel's device, which is a VXLAN device.
    pub(crate) stand_in: u32,
    attached: Vec<(&'static str, &'static str, SchedClassifierLinkId)>,
}

/// Which program is where.
const HOOKS: [(&str, &str, TcAttachType); 8] = [
    ("tunnel_egress", "podlane_vxlan", TcAttachType::Egress),
    ("tunnel_egress", "podlane_geneve", TcAttachType::Egress),
    ("tunnel_ingress", "podlane_vxlan", TcAttachType::Ingress),
    ("tunnel_ingress", "podlane_geneve", TcAttachType::Ingress),
    ("underlay_ingress", "eth0", TcAttachType::Ingress),
    ("underlay_egress", "eth0", TcAttachType::Egress),
    ("pod_ingress", "pod1", TcAttachType::Ingress),
    ("pod_egress", "pod1", TcAttachType::Egress),
];

impl Wire {
    /// In the calling thread's namespace, the underlay a veth. The programs are attached, the maps the usual node's.
    pub(crate) fn new() -> Self {
        Self::over(Underlay::Veth)
    }

    /// The same over another underlay: its device is `eth0`, its end `eth0-end`, whatever they are.
    pub(crate) fn over(underlay: Underlay) -> Self {
        quiet();
        let (pod, far) = (Elsewhere::new(), Elsewhere::new());
        for there in [&pod, &far] {
            there.ip("link set lo up");
        }
        underlay.make(&far);
        // Without the ends' own talk, all that is seen is what the tests send.
        ip(&format!(
            "link add pod1 address 02:00:00:00:02:01 type veth peer name pod1-end address 02:00:00:00:02:02 netns {}",
            pod.tid()
        ));
        ip("link set pod1 addrgenmode none up");
        pod.ip("link set pod1-end addrgenmode none up");
        addresses();
        for (device, port) in [("podlane_vxlan", 8472), ("podlane_geneve", 6082)] {
            ip(&format!(
                "link add {device} address 02:50:c0:a8:0a:64 type vxlan external nolearning dstport {port} udp6zerocsumrx udp6zerocsumtx"
            ));
            ip(&format!("link set {device} mtu 1430 arp off addrgenmode none up"));
        }
        routes();
        let devices = Devices {
            underlay: index("eth0"),
            pod: index("pod1"),
            other_pod: 0,
            tunnel: index("podlane_vxlan"),
        };
        let mut node = story::node(devices);
        let stand_in = index("podlane_geneve");
        node.settings.tunnels[2].device = stand_in;
        // Where the kernel has no tcx (before 6.6), programs are filters of this queueing discipline.
        for device in ["podlane_vxlan", "podlane_geneve", "eth0", "pod1"] {
            qdisc_add_clsact(device).unwrap_or_else(|error| panic!("clsact on {device}: {error}"));
        }
        let mut wire = Self {
            machine: Machine::of(node, Object::new()),
            pod,
            far,
            devices,
            stand_in,
            attached: Vec::new(),
        };
        for (program, device, hook) in HOOKS {
            wire.attach(program, device, hook);
        }
        wire
    }

    /// Attaches a program to one more device in the calling thread's namespace.
    pub(crate) fn attach(&mut self, program: &'static str, device: &'static str, hook: TcAttachType) {
        let link = self
            .machine
            .object
            .program(program)
            .attach(device, hook)
            .unwrap_or_else(|error| panic!("{program} on {device}: {error}"));
        self.attached.push((program, device, link));
    }

    /// Takes a program off a device.
    pub(crate) fn detach(&mut self, program: &str, device: &str) {
        let there = |entry: &(&str, &str, _)| entry.0 == program && entry.1 == device;
        let place = self.attached.iter().position(there).expect("it is attached");
        let (program, _, link) = self.attached.swap_remove(place);
        let program = self.machine.object.program(program);
        program.detach(link).expect("detached");
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        for (program, _, link) in self.attached.drain(..) {
            // From a device that the test has deleted it is gone already.
            let _ = self.machine.object.program(program).detach(link);
        }
    }
}

/// Makes the calling thread's namespace one whose devices forward, and send nothing of their own.
fn quiet() {
    for device in ["all", "default"] {
        for (name, value) in [
            ("ipv4/conf/DEVICE/rp_filter", "0"),
            ("ipv4/conf/DEVICE/forwarding", "1"),
            ("ipv6/conf/DEVICE/forwarding", "1"),
            ("ipv6/conf/DEVICE/accept_dad", "0"),
            ("ipv6/conf/DEVICE/accept_ra", "0"),
        ] {
            parameter(&name.replace("DEVICE", device), value);
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
