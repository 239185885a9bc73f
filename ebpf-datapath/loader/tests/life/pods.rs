//! Two nodes with a pod each, and numbered packets between the pods, by the tunnel and past the stack.

use crate::story::{VXLAN, forward, network, other_node, settle};
use nix::sys::socket::{setsockopt, sockopt};
use podlane_datapath::{LaneCount, LaneName, Options, Programs};
use podlane_plan::datapath::{Datapath, Owner};
use podlane_plan::kernel::MacAddress;
use podlane_test_namespaces::{Elsewhere, bpffs, ip, parameter};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How many numbered packets a second each pod sends.
const RATE: u64 = 5_000;

/// What one set of programs has counted.
pub(crate) type Counted = BTreeMap<LaneName, LaneCount>;

/// k8s-ctr, as the story declares it, in the calling thread's namespace; k8s-w1 and the pods elsewhere.
pub(crate) struct Nodes {
    other: Elsewhere,
    pods: [Elsewhere; 2],
}

/// How many packets each node's pod has sent, and how many of them came, each once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Traffic {
    pub(crate) sent: [u64; 2],
    pub(crate) came: [u64; 2],
}

/// A node's pod.
const fn pod(node: u8) -> Ipv4Addr {
    Ipv4Addr::new(172, 20, node, 5)
}

/// Makes the calling thread's namespace a node, whose underlay device is there.
fn node(number: u8, pod: i32) {
    let (me, other) = (number, 1 - number);
    for device in ["all", "default"] {
        parameter(&format!("ipv4/conf/{device}/rp_filter"), "0");
    }
    for line in [
        "link set lo up".to_owned(),
        format!("link set eth1 address 02:00:00:00:00:0{me} addrgenmode none up"),
        format!("addr add 192.168.10.10{me}/24 dev eth1"),
        format!("neigh add 192.168.10.10{other} lladdr 02:00:00:00:00:0{other} dev eth1 nud permanent"),
        format!(
            "link add podlane_vxlan address {} type vxlan external nolearning dstport 8472",
            tunnel_mac(me)
        ),
        "link set podlane_vxlan mtu 1450 arp off addrgenmode none up".to_owned(),
        format!(
            "link add pod1 address 02:00:00:00:01:0{me} type veth peer name pod1 address 02:00:00:00:02:0{me} netns {pod}"
        ),
        "link set pod1 addrgenmode none up".to_owned(),
        format!("addr add 172.20.{me}.1/32 dev pod1"),
        format!("route add 172.20.{me}.5/32 dev pod1"),
        format!("neigh add 172.20.{me}.5 lladdr 02:00:00:00:02:0{me} dev pod1 nud permanent"),
        format!(
            "neigh add 172.20.{other}.1 lladdr {} dev podlane_vxlan nud permanent",
            tunnel_mac(other)
        ),
        format!(
            "route add 172.20.{other}.0/24 encap ip id 1 src 192.168.10.10{me} dst 192.168.10.10{other} ttl 64 via 172.20.{other}.1 dev podlane_vxlan onlink"
        ),
    ] {
        ip(&line);
    }
    forward();
}

fn tunnel_mac(node: u8) -> MacAddress {
    MacAddress([2, 0x50, 192, 168, 10, 100 + node])
}

/// k8s-w1 with its pod.
fn other_node_with_pod() -> Datapath {
    let mut datapath = other_node();
    for tunnel in datapath.tunnels.values_mut() {
        tunnel.mac = tunnel_mac(1);
    }
    let device = "pod1".to_owned();
    datapath.attached.pods.insert(device.clone(), true);
    let pod = Owner::Local { device: Some(device) };
    datapath.networks.insert(network("172.20.1.5/32"), pod);
    datapath
}

/// The other node's programs.
fn there() -> Programs {
    Programs::open(&bpffs().join("other"), &Options::default()).expect("programs")
}

impl Nodes {
    /// The other one has its programs, the calling thread's has none yet.
    pub(crate) fn new() -> Self {
        let nodes = Self {
            other: Elsewhere::new(),
            pods: [Elsewhere::new(), Elsewhere::new()],
        };
        ip(&format!(
            "link add eth1 type veth peer name eth1 netns {}",
            nodes.other.tid()
        ));
        let [here, there_] = [nodes.pods[0].tid(), nodes.pods[1].tid()];
        node(0, here);
        nodes.other.run(move || node(1, there_));
        for (number, pod) in nodes.pods.iter().enumerate() {
            for line in [
                "link set lo up".to_owned(),
                "link set pod1 addrgenmode none up".to_owned(),
                format!("addr add 172.20.{number}.5/32 dev pod1"),
                format!("neigh add 172.20.{number}.1 lladdr 02:00:00:00:01:0{number} dev pod1 nud permanent"),
                format!("route add default via 172.20.{number}.1 dev pod1 onlink"),
            ] {
                pod.ip(&line);
            }
        }
        nodes.other.run(|| {
            settle(&mut there(), &other_node_with_pod());
        });
        nodes
    }

    /// Has the pods send each other numbered packets while something happens.
    pub(crate) fn under_traffic(&self, happens: impl FnOnce()) -> Traffic {
        let stop = Arc::new(AtomicBool::new(false));
        let sockets = [0, 1].map(|number: u8| {
            self.pods[usize::from(number)].run(move || {
                let socket = UdpSocket::bind((pod(number), 7000)).expect("a socket");
                socket.connect((pod(1 - number), 7000)).expect("connected");
                socket
            })
        });
        for socket in &sockets {
            setsockopt(socket, sockopt::RcvBufForce, &(64 << 20)).expect("room");
            socket
                .set_read_timeout(Some(Duration::from_secs(3)))
                .expect("a limit");
        }
        let receivers = [1, 0].map(|number: usize| {
            let socket = sockets[number].try_clone().expect("a socket");
            std::thread::spawn(move || received(&socket))
        });
        let senders = sockets.map(|socket| {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || send(&socket, &stop))
        });
        std::thread::sleep(Duration::from_millis(300));
        happens();
        stop.store(true, Ordering::Relaxed);
        Traffic {
            sent: senders.map(|sender| sender.join().expect("it sent")),
            came: receivers.map(|receiver| receiver.join().expect("it received")),
        }
    }

    /// That every packet came, and that it was the programs that carried each: this node's, of which each set has counted a part, and the other's.
    pub(crate) fn carried(&self, traffic: Traffic, here: &[Counted]) {
        let Traffic { sent, came } = traffic;
        assert!(sent.iter().all(|sent| *sent > 1_000), "{sent:?} packets");
        assert_eq!(came, sent, "packets that came of those that were sent");
        let there = self
            .other
            .run(|| there().lane_counters().expect("the maps are read"));
        for (sets, [sent, came]) in [(here, sent), (&[there], [sent[1], sent[0]])] {
            let dropped: Vec<_> = sets
                .iter()
                .flat_map(BTreeMap::values)
                .filter(|lane| !lane.dropped.is_empty())
                .collect();
            assert!(dropped.is_empty(), "{dropped:?}");
            let of_tunnel = |part: fn(&LaneCount) -> u64| -> u64 {
                sets.iter().map(|set| part(&set[&LaneName::Tunnel(VXLAN)])).sum()
            };
            assert_eq!(
                [
                    of_tunnel(|lane| lane.sent_packets),
                    of_tunnel(|lane| lane.received_packets)
                ],
                [sent, came],
                "{sets:?}"
            );
            let past = [
                of_tunnel(|lane| lane.sent_bypassing),
                of_tunnel(|lane| lane.received_bypassing),
            ];
            assert!(
                past.iter().all(|past| *past > 0),
                "{past:?} past the stack: {sets:?}"
            );
        }
    }
}

/// Sends numbers until it is to stop: how many.
fn send(socket: &UdpSocket, stop: &AtomicBool) -> u64 {
    let begun = Instant::now();
    let mut sent = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        let due = u64::try_from(begun.elapsed().as_micros()).expect("not that long") * RATE / 1_000_000;
        // What could not be sent in time is made up for in small bursts, which no queue on the way is too short for.
        let most = due.min(sent + 100);
        while sent < most {
            socket.send(&sent.to_be_bytes()).expect("sent");
            sent += 1;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    sent
}

/// How many came, until nothing comes any more; none of them twice.
fn received(socket: &UdpSocket) -> u64 {
    let mut seen = Vec::new();
    let mut packet = [0; 8];
    while socket.recv(&mut packet).is_ok() {
        seen.push(u64::from_be_bytes(packet));
    }
    let all = seen.len();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), all, "none came twice");
    u64::try_from(all).expect("a number")
}
