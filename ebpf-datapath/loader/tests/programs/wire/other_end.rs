//! Another node, of which nothing is ours: its tunnel is a device of the kernel's own driver.

use super::Wire;
use crate::story::TUNNELS;
use podlane_datapath_common::tunnel_flag;
use podlane_test_namespaces::{Elsewhere, ip};
use std::net::IpAddr;

/// A pod there and one here that speak with each other.
pub(crate) type Pair = (&'static str, &'static str);

/// A node as the tests' first node sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OtherNode {
    /// Its address in outer headers.
    pub(crate) outer: &'static str,
    /// The first node's toward it.
    pub(crate) here: &'static str,
    /// Of each family one.
    pub(crate) pods: [Pair; 2],
}

/// The peers of the story that have a node of their own here.
pub(crate) const OTHER_NODES: [OtherNode; 2] = [
    OtherNode {
        outer: "192.168.20.100",
        here: "192.168.10.100",
        pods: [("172.20.2.10", "172.20.0.10"), ("fd20:0:0:2::a", "fd20::a")],
    },
    OtherNode {
        outer: "fd00:20::100",
        here: "fd00:10::100",
        pods: [("172.20.3.10", "172.20.0.10"), ("fd20:0:0:3::a", "fd20::a")],
    },
];

/// `-6 ` for ip(8), a host's prefix length, and `nodad`, where the address is one of IPv6.
pub(crate) fn by_family(address: &str) -> (&'static str, u8, &'static str) {
    if address.contains(':') {
        ("-6 ", 128, "nodad")
    } else {
        ("", 32, "")
    }
}

/// Makes the far end of the wire the router of the first node, and these other nodes' addresses its own.
pub(crate) fn underlay(far: &Elsewhere, nodes: &[OtherNode]) {
    for line in [
        "addr add 192.168.10.1/24 dev eth0-end",
        "addr add fd00:10::1/64 dev eth0-end nodad",
        "neigh add 192.168.10.100 lladdr 02:00:00:00:00:01 dev eth0-end nud permanent",
        "neigh add fd00:10::100 lladdr 02:00:00:00:00:01 dev eth0-end nud permanent",
    ] {
        far.ip(line);
    }
    for node in nodes {
        let (_, length, nodad) = by_family(node.outer);
        far.ip(&format!("addr add {}/{length} dev lo {nodad}", node.outer));
    }
}

impl OtherNode {
    /// Opens its end of the tunnel of a slot there, the device `tunnel1`, with its pods' addresses on it.
    pub(crate) fn open(&self, there: &Elsewhere, slot: usize) {
        let (header, flags) = &TUNNELS[slot];
        let (six, length, _) = by_family(self.here);
        let checksums = if six.is_empty() {
            ""
        } else {
            "udp6zerocsumrx udp6zerocsumtx"
        };
        let (kind, local) = if flags & tunnel_flag::GENEVE == 0 {
            ("vxlan", format!("local {}", self.outer))
        } else {
            // This driver asks the routes for its source.
            let route = there.ip(&format!("{six}route get {}", self.here));
            let device = route.split_whitespace().skip_while(|word| *word != "dev").nth(1);
            there.ip(&format!(
                "{six}route add {}/{length} dev {} src {}",
                self.here,
                device.expect("a device"),
                self.outer
            ));
            ("geneve", String::new())
        };
        there.ip(&format!(
            "link add tunnel1 address 02:50:c0:a8:14:64 type {kind} id {} dstport {} {local} remote {} {checksums}",
            header.vni, header.port, self.here
        ));
        there.ip("link set tunnel1 mtu 1430 addrgenmode none up");
        for (pod, _) in self.pods {
            let (_, length, nodad) = by_family(pod);
            there.ip(&format!("addr add {pod}/{length} dev tunnel1 {nodad}"));
        }
        for (pod, here) in self.pods {
            self.reach(there, pod, here);
        }
    }

    /// Has its pod reach another by the tunnel.
    pub(crate) fn reach(&self, there: &Elsewhere, pod: &str, other: &str) {
        let (six, ..) = by_family(pod);
        there.ip(&format!("{six}route add {other} dev tunnel1 src {pod}"));
        there.ip(&format!(
            "neigh add {other} lladdr 02:50:c0:a8:0a:64 dev tunnel1 nud permanent"
        ));
    }

    /// Has the first node send to its pods by this device and the tunnel of this slot.
    pub(crate) fn lead(&self, device: &str, slot: usize) {
        let (encapsulation, hops) = if self.here.contains(':') {
            ("ip6", "hoplimit")
        } else {
            ("ip", "ttl")
        };
        for (pod, _) in self.pods {
            let (six, length, _) = by_family(pod);
            // One that no route leads elsewhere.
            let gateway = if six.is_empty() {
                "169.254.20.100"
            } else {
                "fe80::14:64"
            };
            ip(&format!(
                "neigh replace {gateway} lladdr 02:50:c0:a8:14:64 dev {device} nud permanent"
            ));
            ip(&format!(
                "{six}route add {pod}/{length} encap {encapsulation} id {} src {} dst {} {hops} 64 via {gateway} dev {device} onlink",
                TUNNELS[slot].0.vni, self.here, self.outer
            ));
        }
    }

    /// The pairs, parsed.
    pub(crate) fn pairs(&self) -> [(IpAddr, IpAddr); 2] {
        self.pods
            .map(|(there, here)| (there.parse().expect("one"), here.parse().expect("one")))
    }
}

/// Makes the wire's pod one whose sockets speak.
pub(crate) fn pod(wire: &Wire) {
    for (here, router) in [("172.20.0.10", "172.20.0.1"), ("fd20::a", "fd20::1")] {
        let (six, length, nodad) = by_family(here);
        wire.pod
            .ip(&format!("addr add {here}/{length} dev pod1-end {nodad}"));
        wire.pod.ip(&format!(
            "neigh add {router} lladdr 02:00:00:00:02:01 dev pod1-end nud permanent"
        ));
        wire.pod.ip(&format!(
            "{six}route add default via {router} dev pod1-end onlink"
        ));
    }
    wire.pod.ip("link set pod1-end mtu 1430");
    ip("link set pod1 mtu 1430");
}
