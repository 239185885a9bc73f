//! The program itself: its memory, and how long it takes to put back what a hand removed.

use crate::api_server::{ApiServer, Objects};
use crate::passes::{PEERS, node_address, pod_cidr};
use crate::{table, underlay};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;
use podlane_test_namespaces::{in_fresh, ip, own_bpffs};
use serde_json::{Value, json};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub(crate) fn measure() {
    for peers in [3, PEERS] {
        in_fresh(move || with_peers(peers)).expect("measured");
    }
}

fn with_peers(peers: u32) {
    // Where the agent looks for one, so that its programs are loaded.
    own_bpffs().expect("root");
    underlay();
    let server = ApiServer::serve(Objects {
        node: node(),
        slices: slices(peers),
    });
    let start = Instant::now();
    let agent = Agent::start(&server.address);
    wait_until_ready(&server);
    table::head(&format!("The program with {peers} peers"));
    table::figure(
        "from its start to Ready in its status",
        &format!("{:.2} s", start.elapsed().as_secs_f64()),
        "",
    );
    agent.print_memory("after that");

    let goal = "100 ms";
    // One change at a time: a pass over thousands of peers rests before the next one.
    let (runs, rest) = if peers == PEERS { (40, 400) } else { (200, 30) };
    let rest = Duration::from_millis(rest);
    let route = format!("route del {}", pod_cidr(1));
    table::times(
        "a route removed by hand: back",
        repairs(runs, rest, &route, NEW_ROUTE),
        goal,
    );
    let gateway = router_address(1);
    let neighbour = format!("neigh del {gateway} dev podlane_vxlan");
    table::times(
        "a neighbour removed by hand: back",
        repairs(runs, rest, &neighbour, NEW_NEIGHBOUR),
        goal,
    );
    let device = if peers == PEERS { 5 } else { 200 };
    let samples = (0..device).map(|_| device_repair(peers)).collect();
    table::times(
        "the device removed by hand: every route back",
        samples,
        if peers == PEERS { "" } else { goal },
    );

    let changes = (0..runs).map(|run| peer_change(&server, rest, run)).collect();
    table::times("a peer's MTU published: in the kernel", changes, "1 s");
    agent.print_memory("after all that");
}

fn policy() -> Value {
    json!({"name": "default", "createdAt": "2026-01-01T00:00:00Z", "routingMode": "tunnel", "autoDirectNodeRoutes": true,
        "offLinkPeers": "refuse", "tunnel": {"protocol": "vxlan", "port": 8472, "vni": 1}})
}

fn node() -> Value {
    json!({"apiVersion": "podlane.io/v1alpha1", "kind": "RoutingNode",
        "metadata": {"name": "k8s-ctr", "generation": 1, "resourceVersion": "1"},
        "spec": {"addresses": ["192.168.10.100"], "podCIDRs": ["172.16.0.0/26"], "policy": policy(),
            "receiveOn": ["native", "vxlan:8472:1"]}})
}

fn slices(peers: u32) -> Vec<Value> {
    let peer = |number: u32| {
        json!({"name": format!("node-{number:04}"), "podCIDRs": [pod_cidr(number)], "policy": policy(),
            "addresses": [{"address": node_address(number), "prefixLength": 16, "device": "eth0", "mtu": 1500}],
            "receivesOn": ["native", "vxlan:8472:1"]})
    };
    (0..peers)
        .collect::<Vec<_>>()
        .chunks(100)
        .enumerate()
        .map(|(slice, numbers)| {
            json!({"apiVersion": "podlane.io/v1alpha1", "kind": "PeerSlice",
                "metadata": {"name": format!("peers-{slice}"), "resourceVersion": "1"},
                "spec": {"peers": numbers.iter().map(|number| peer(*number)).collect::<Vec<_>>()}})
        })
        .collect()
}

fn router_address(number: u32) -> std::net::IpAddr {
    podlane_plan::desired::router_address(&pod_cidr(number).parse().expect("a CIDR"))
}

fn wait_until_ready(server: &ApiServer) {
    loop {
        let status = server
            .statuses
            .recv_timeout(Duration::from_secs(60))
            .expect("a status");
        let ready = |condition: &Value| condition["type"] == "Ready" && condition["status"] == "True";
        if status["conditions"]
            .as_array()
            .is_some_and(|conditions| conditions.iter().any(ready))
        {
            return;
        }
    }
}

/// The program, which ends with this.
struct Agent {
    child: Child,
    kubeconfig: std::path::PathBuf,
}

impl Agent {
    fn start(server: &str) -> Self {
        let kubeconfig = std::env::temp_dir().join(format!("podlane-agent-bench-{}", std::process::id()));
        let text = json!({"apiVersion": "v1", "kind": "Config", "current-context": "bench",
            "contexts": [{"name": "bench", "context": {"cluster": "bench", "user": "bench"}}],
            "clusters": [{"name": "bench", "cluster": {"server": server}}],
            "users": [{"name": "bench", "user": {}}]});
        std::fs::write(&kubeconfig, text.to_string()).expect("a file");
        let child = Command::new(env!("CARGO_BIN_EXE_podlane-agent"))
            .args(["--node-name", "k8s-ctr", "--kubeconfig"])
            .arg(&kubeconfig)
            .env(
                "RUST_LOG",
                std::env::var("RUST_LOG").unwrap_or_else(|_| "warn".to_owned()),
            )
            .stdout(Stdio::null())
            .spawn()
            .expect("it starts");
        Self { child, kubeconfig }
    }

    fn print_memory(&self, when: &str) {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it runs");
        let mib = |name: &str| {
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .expect("it is listed");
            let kib: f64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
            format!("{:.1} MiB", kib / 1024.0)
        };
        table::figure(&format!("resident memory {when}"), &mib("VmRSS:"), "32 MiB");
        table::figure("  at its highest", &mib("VmHWM:"), "");
        table::figure("  without the program's own text", &mib("RssAnon:"), "");
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // It may have ended by itself; then the benchmark has said so.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.kubeconfig);
    }
}

/// `RTM_NEWROUTE`, `RTM_NEWNEIGH` (include/uapi/linux/rtnetlink.h).
const NEW_ROUTE: u16 = 24;
const NEW_NEIGHBOUR: u16 = 28;

/// The kernel's notifications of routes and neighbours.
fn notifications() -> Socket {
    let mut socket = Socket::new(NETLINK_ROUTE).expect("a socket");
    socket.bind(&SocketAddr::new(0, 0)).expect("bound");
    for group in [3, 7] {
        socket.add_membership(group).expect("a group");
    }
    setsockopt(&socket, sockopt::RcvBufForce, &(16 << 20)).expect("root");
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(10, 0)).expect("a socket");
    socket
}

/// Waits for so many notifications of a kind.
fn wait_for(socket: &Socket, kind: u16, mut count: u32) {
    let mut buffer = vec![0; 64 * 1024];
    while count > 0 {
        let length = socket
            .recv(&mut buffer.as_mut_slice(), 0)
            .expect("it comes back within 10 s");
        let u16_at = |at: usize| u16::from_ne_bytes([buffer[at], buffer[at + 1]]);
        // A neighbour that is deleted is first announced as failed: only a permanent one (`ndm_state`) counts.
        let counts = kind != NEW_NEIGHBOUR || u16_at(16 + 8) & 0x80 != 0;
        if length > 16 && u16_at(4) == kind && counts {
            count -= 1;
        }
    }
}

fn repairs(runs: u32, rest: Duration, hand: &str, kind: u16) -> Vec<Duration> {
    (0..runs)
        .map(|_| {
            let socket = notifications();
            // The hand's own time counts: it may still be at it when the agent has already repaired.
            let start = Instant::now();
            ip(hand);
            wait_for(&socket, kind, 1);
            let took = start.elapsed();
            std::thread::sleep(rest);
            took
        })
        .collect()
}

fn device_repair(peers: u32) -> Duration {
    let socket = notifications();
    let start = Instant::now();
    ip("link del podlane_vxlan");
    wait_for(&socket, NEW_ROUTE, peers);
    let took = start.elapsed();
    std::thread::sleep(Duration::from_millis(u64::from(peers) / 2 + 50));
    took
}

fn peer_change(server: &ApiServer, rest: Duration, run: u32) -> Duration {
    let socket = notifications();
    let start = Instant::now();
    server.change_slice(0, |slice| {
        slice["spec"]["peers"][1]["addresses"][0]["mtu"] = json!(1300 + run)
    });
    wait_for(&socket, NEW_ROUTE, 1);
    let took = start.elapsed();
    std::thread::sleep(rest);
    took
}
