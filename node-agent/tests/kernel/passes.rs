//! Whole passes: from what a node is told to what its kernel holds.

use crate::story::{VXLAN, at, underlay};
use podlane_agent::clean::clean;
use podlane_agent::datapath::Datapath;
use podlane_agent::kernel::Kernel;
use podlane_agent::pass::{Outcome, Pass};
use podlane_agent::retries::Retries;
use podlane_plan::desired::{Assignment, Note, Peer};
use podlane_plan::lane::Lane;
use podlane_plan::pair::NodeAddress;
use podlane_plan::policy::{Applied, OffLinkPeers, Rank, Routing, RoutingMode};
use podlane_test_namespaces::{Test, ip, ip_lines};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::time::{Duration, Instant};

pub(crate) const TESTS: &[Test] = &[
    (
        "one_pass_opens_the_lane_and_the_next_has_nothing_to_do",
        one_pass_opens_the_lane_and_the_next_has_nothing_to_do,
    ),
    (
        "a_lane_that_changes_is_never_without_a_route",
        a_lane_that_changes_is_never_without_a_route,
    ),
    (
        "what_refuses_is_there_before_and_after_a_device",
        what_refuses_is_there_before_and_after_a_device,
    ),
    (
        "a_device_that_cannot_open_is_tried_again_but_not_at_once",
        a_device_that_cannot_open_is_tried_again_but_not_at_once,
    ),
    (
        "what_the_kernel_still_sends_on_is_said",
        what_the_kernel_still_sends_on_is_said,
    ),
    (
        "what_a_hand_did_is_undone_in_one_pass",
        what_a_hand_did_is_undone_in_one_pass,
    ),
    ("clean_leaves_nothing_of_ours", clean_leaves_nothing_of_ours),
];

fn policy(routing_mode: RoutingMode) -> Applied {
    Applied {
        rank: Rank {
            priority: 0,
            created: 1,
            name: "default".to_owned(),
        },
        routing: Routing {
            routing_mode,
            auto_direct_node_routes: true,
            off_link_peers: OffLinkPeers::Refuse,
            tunnel: VXLAN,
        },
    }
}

/// The story's k8s-ctr and its two peers.
pub(crate) struct Node {
    pub(crate) kernel: Kernel,
    pub(crate) datapath: Datapath,
    retries: Retries,
    pub(crate) assignment: Assignment,
    pub(crate) peers: BTreeMap<String, Peer>,
    pub(crate) now: Instant,
}

impl Node {
    /// On an underlay that is there.
    fn on_underlay(mode: RoutingMode, lanes: &[Lane]) -> Self {
        let peer = |address: &str, cidr: &str| Peer {
            addresses: vec![NodeAddress {
                address: at(address),
                prefix_length: Some(24),
            }],
            pod_cidrs: vec![cidr.parse().expect("a CIDR")],
            mtu: Some(1500),
            ..Peer::default()
        };
        let now = Instant::now();
        let mut node = Self {
            kernel: Kernel::default(),
            datapath: Datapath::without("the kernel's lanes are tried", now),
            retries: Retries::default(),
            assignment: Assignment {
                name: "k8s-ctr".to_owned(),
                addresses: vec![at("192.168.10.100")],
                pod_cidrs: vec!["172.20.0.0/24".parse().expect("a CIDR")],
                cluster_pod_cidrs: vec!["172.20.0.0/16".parse().expect("a CIDR")],
                ..Assignment::default()
            },
            peers: BTreeMap::from([
                ("k8s-w1".to_owned(), peer("192.168.10.101", "172.20.1.0/24")),
                ("k8s-w0".to_owned(), peer("192.168.20.100", "172.20.2.0/24")),
            ]),
            now,
        };
        node.told(mode, lanes, lanes);
        node
    }

    pub(crate) fn new(mode: RoutingMode, lanes: &[Lane]) -> Self {
        underlay();
        ip("route add default via 192.168.10.200");
        Self::on_underlay(mode, lanes)
    }

    fn told(&mut self, mode: RoutingMode, receive_on: &[Lane], peers_receive_on: &[Lane]) {
        self.assignment.policy = Some(policy(mode));
        self.assignment.receive_on = receive_on.iter().copied().collect();
        for peer in self.peers.values_mut() {
            peer.policy = Some(policy(mode));
            peer.receives_on = peers_receive_on.iter().copied().collect();
        }
    }

    pub(crate) fn pass(&mut self) -> Outcome {
        Pass::new(
            &mut self.kernel,
            &mut self.datapath,
            &mut self.retries,
            &self.assignment,
            &self.peers,
        )
        .run(self.now)
        .expect("the kernel can be read")
    }
}

const BOTH: [Lane; 2] = [Lane::Native, Lane::Tunnel(VXLAN)];
const ENCAP: &str = "encap ip id 1 src 192.168.10.100 dst";

fn one_pass_opens_the_lane_and_the_next_has_nothing_to_do() {
    let mut node = Node::new(RoutingMode::Tunnel, &BOTH);
    let outcome = node.pass();
    assert!(
        outcome.settled && outcome.unfinished.is_empty(),
        "{:?}",
        outcome.unfinished
    );
    assert_eq!(outcome.desired.receives_on, BOTH.into());
    assert_eq!(outcome.sends_on, [Lane::Tunnel(VXLAN)].into());
    assert_eq!(
        ip_lines("route show proto 172"),
        [
            format!(
                "172.20.1.0/24 {ENCAP} 192.168.10.101 ttl 64 tos 0 via 172.20.1.1 dev podlane_vxlan src 172.20.0.1 metric 135 onlink mtu 1450"
            ),
            format!(
                "172.20.2.0/24 {ENCAP} 192.168.20.100 ttl 64 tos 0 via 172.20.2.1 dev podlane_vxlan src 172.20.0.1 metric 136 onlink mtu 1450"
            ),
            "unreachable 172.20.0.0/16 metric 1000000".to_owned(),
        ]
    );
    assert_eq!(node.pass().applied, 0);
}

/// `ip monitor` at work: all changes of routes and devices between its start and its end.
struct Monitor {
    process: std::process::Child,
    lines: std::sync::mpsc::Receiver<String>,
    /// A route of no use, whose coming and going say from when to when it listened.
    mark: String,
}

impl Monitor {
    fn start() -> Self {
        let mut process = std::process::Command::new("ip")
            .args(["monitor", "link", "route"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("ip(8) is installed");
        let output = BufReader::new(process.stdout.take().expect("a pipe"));
        let (sender, lines) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let mut monitor = Self {
            process,
            lines,
            mark: String::new(),
        };
        // While it does not listen it misses marks, so there is another one.
        for round in 1..100 {
            monitor.mark = format!("blackhole 198.51.100.{round}");
            ip(&format!("route add {}", monitor.mark));
            if monitor.until(&monitor.mark, Duration::from_millis(100)).is_some() {
                return monitor;
            }
        }
        panic!("ip monitor does not listen");
    }

    /// What it says up to a line that begins so.
    fn until(&self, words: &str, limit: Duration) -> Option<String> {
        let mut seen = String::new();
        loop {
            let line = self.lines.recv_timeout(limit).ok()?;
            // As a word: 198.51.100.1 is not 198.51.100.10.
            if line
                .strip_prefix(words)
                .is_some_and(|rest| !rest.starts_with(|next: char| next.is_ascii_digit()))
            {
                return Some(seen);
            }
            seen += &line;
            seen.push('\n');
        }
    }

    fn end(mut self) -> String {
        ip(&format!("route del {}", self.mark));
        let last = format!("Deleted {}", self.mark);
        let seen = self.until(&last, Duration::from_secs(60));
        self.process.kill().expect("it runs");
        self.process.wait().expect("it ended");
        seen.expect("the monitor says all")
    }
}

/// What comes out of a tunnel for a pod that is not there must find no default route: after a boot, and when all is taken away.
fn what_refuses_is_there_before_and_after_a_device() {
    let mut node = Node::new(RoutingMode::Tunnel, &BOTH);
    let monitor = Monitor::start();
    node.pass();
    node.assignment.policy = None;
    node.assignment.receive_on.clear();
    node.peers.clear();
    node.pass();
    let seen = monitor.end();
    let of = |word: &str| {
        let lines = seen.lines().enumerate();
        let mut numbers = lines.filter_map(|(number, line)| line.contains(word).then_some(number));
        let first = numbers.next().unwrap_or_else(|| panic!("{word}: {seen}"));
        (first, numbers.last().unwrap_or(first))
    };
    let (cover, device) = (of("unreachable 172.20.0.0/16"), of("podlane_vxlan"));
    assert!(cover.0 < device.0 && device.1 < cover.1, "{seen}");
    assert!(seen.contains("Deleted unreachable 172.20.0.0/16"), "{seen}");
    assert!(
        ip("link show")
            .lines()
            .all(|line| !line.contains("podlane_vxlan"))
    );
}

fn a_lane_that_changes_is_never_without_a_route() {
    let mut node = Node::new(RoutingMode::Native, &[Lane::Native]);
    node.pass();
    assert_eq!(
        ip_lines("route show 172.20.1.0/24"),
        ["172.20.1.0/24 via 192.168.10.101 dev eth1 proto 172 metric 135"]
    );
    assert_eq!(
        ip_lines("route show 172.20.2.0/24"),
        ["unreachable 172.20.2.0/24 proto 172 metric 136"]
    );

    // Told of the tunnel; the peers have not said that they receive on it: nothing moves, but the device is there.
    node.told(RoutingMode::Tunnel, &BOTH, &[Lane::Native]);
    let outcome = node.pass();
    assert_eq!(outcome.desired.receives_on, BOTH.into());
    assert_eq!(outcome.sends_on, [Lane::Native].into());
    assert!(ip("route show 172.20.1.0/24").contains("dev eth1"));

    // They have: the routes are replaced where they are.
    let monitor = Monitor::start();
    for (mode, lane) in [
        (RoutingMode::Tunnel, Lane::Tunnel(VXLAN)),
        (RoutingMode::Native, Lane::Native),
    ] {
        node.told(mode, &BOTH, &BOTH);
        let outcome = node.pass();
        assert!(outcome.settled);
        assert_eq!(outcome.sends_on, [lane].into());
    }
    let seen = monitor.end();
    assert!(
        seen.contains("172.20.1.0/24") && !seen.contains("Deleted 172.20.1.0/24"),
        "{seen}"
    );

    // Nobody sends on it any more: it goes.
    node.told(RoutingMode::Native, &[Lane::Native], &BOTH);
    assert!(node.pass().settled);
    assert!(!ip("link show").contains("podlane"));
}

fn a_device_that_cannot_open_is_tried_again_but_not_at_once() {
    let mut node = Node::new(RoutingMode::Tunnel, &BOTH);
    ip("link add flannel.1 type vxlan id 1 dstport 8472 dev eth1");
    ip("link set flannel.1 up");
    for _ in 0..2 {
        let outcome = node.pass();
        let why = outcome.desired.notes.iter().find_map(|note| match note {
            Note::NoDevice { why, .. } => Some(why.clone()),
            _ => None,
        });
        assert!(
            why.is_some_and(|why| why.contains("flannel.1")),
            "{:?}",
            outcome.desired.notes
        );
        assert!(
            outcome.unfinished.is_empty(),
            "the note says it: {:?}",
            outcome.unfinished
        );
        assert_eq!(outcome.desired.receives_on, [Lane::Native].into());
    }
    // Refused, and not forwarded to the default route.
    assert_eq!(
        ip_lines("route show 172.20.2.0/24"),
        ["unreachable 172.20.2.0/24 proto 172 metric 136"]
    );

    ip("link del flannel.1");
    assert_eq!(node.pass().applied, 0, "not due yet");
    node.now = node.retries.next().expect("something waits");
    let outcome = node.pass();
    assert!(outcome.settled);
    assert_eq!(outcome.desired.receives_on, BOTH.into());
    assert_eq!(node.retries.next(), None);
}

fn what_the_kernel_still_sends_on_is_said() {
    let mut node = Node::new(RoutingMode::Tunnel, &BOTH);
    node.pass();
    // Somebody puts a route in front of ours, so that ours cannot be replaced.
    ip("route prepend 172.20.1.0/24 via 192.168.10.200 dev eth1 proto static metric 135");
    node.told(RoutingMode::Native, &BOTH, &BOTH);
    let outcome = node.pass();
    assert!(!outcome.settled);
    assert_eq!(outcome.unfinished.len(), 1, "{:?}", outcome.unfinished);
    assert!(
        outcome.sends_on.contains(&Lane::Tunnel(VXLAN)),
        "{:?}",
        outcome.sends_on
    );
    assert!(ip("route show 172.20.1.0/24").contains("encap ip"));
}

fn what_a_hand_did_is_undone_in_one_pass() {
    let mut node = Node::new(RoutingMode::Tunnel, &BOTH);
    node.pass();
    let before = (
        ip_lines("route show"),
        ip_lines("neigh show dev podlane_vxlan"),
        ip_lines("-o addr show podlane_vxlan"),
    );
    for hand in [
        "route del 172.20.1.0/24",
        "route replace blackhole 172.20.2.0/24 proto 172",
        "neigh del 172.20.2.1 dev podlane_vxlan",
        "addr del 172.20.0.1/32 dev podlane_vxlan",
        "addr add 172.20.0.7/24 dev podlane_vxlan",
        "link set podlane_vxlan down",
        "link del podlane_vxlan",
    ] {
        ip(hand);
        let outcome = node.pass();
        assert!(
            outcome.settled && outcome.applied > 0,
            "{hand}: {:?}",
            outcome.unfinished
        );
        let after = (
            ip_lines("route show"),
            ip_lines("neigh show dev podlane_vxlan"),
            ip_lines("-o addr show podlane_vxlan"),
        );
        let without_index = |lines: &Vec<String>| {
            lines
                .iter()
                .map(|line| {
                    line.split_once(": ")
                        .map_or(line.clone(), |(_, rest)| rest.to_owned())
                })
                .collect::<Vec<_>>()
        };
        assert_eq!((&before.0, &before.1), (&after.0, &after.1), "{hand}");
        assert_eq!(without_index(&before.2), without_index(&after.2), "{hand}");
    }
}

fn clean_leaves_nothing_of_ours() {
    underlay();
    let before = (ip("route show table all"), ip("-o link show"), ip("-o addr show"));
    let mut node = Node::on_underlay(RoutingMode::Tunnel, &BOTH);
    node.pass();
    ip("addr add 172.20.0.7/24 dev podlane_vxlan");
    clean(&mut Kernel::default(), Path::new("/no/programs"), None).expect("nothing is left");
    assert_eq!(
        before,
        (ip("route show table all"), ip("-o link show"), ip("-o addr show"))
    );
}
