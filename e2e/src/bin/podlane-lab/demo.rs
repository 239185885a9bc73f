//! The story, told with real parts: each step shows the command that a user would type and what really came back, and a
//! step that comes out otherwise ends the demo with an error.

mod shell;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use podlane_e2e::capture::Pcap;
use podlane_e2e::interrupt;
use podlane_e2e::lab::{Extent, Lab, Options};
use podlane_e2e::probe::routes_to;
use podlane_e2e::scenario::describe;
use podlane_e2e::topology::{Node, Topology};
use podlane_e2e::wait::wait_until;
use serde_json::Value;

use self::shell::Shell;

const NATIVE: &str = "e2e/manifests/native.yaml";
const TUNNEL: &str = "e2e/manifests/tunnel.yaml";
const BOTH: &str = "e2e/manifests/native-offlink-tunnel.yaml";
const SETTLED_WITHIN: Duration = Duration::from_secs(30);

pub(crate) fn run(name: &str) -> Result<()> {
    super::commands::prepare(Extent::Podlane)?;
    let start = Instant::now();
    heading(
        1,
        "The lab: a router, three nodes and their pods, and a real Kubernetes API server",
    );
    say(
        "A router with an uplink joins two networks. k8s-ctr and k8s-w1 are on one, k8s-w0 is on the other. The router knows \
         the nodes' addresses and no pod CIDR. Podlane's operator and agents run, but nobody has declared a policy.",
    );
    let lab = Lab::up(Options {
        topology: Topology::seed(1),
        extent: Extent::Podlane,
        progress: |line| println!("  up: {line}"),
        ..Options::named(name)
    })?;
    let told = tell(&lab);
    if let Err(error) = &told
        && !interrupt::raised()
    {
        println!(
            "\nThe story came out otherwise: {error:#}\nWhat there is:\n{}",
            describe(&lab)
        );
    }
    say("\nEverything is taken down.");
    let down = lab.down();
    if down.is_ok() {
        say(
            "Looked for network namespaces, processes, mounts, interfaces and files of the lab: nothing is left.",
        );
    }
    told?;
    down?;
    println!(
        "\nThe story was told in {:.0} s, and every step came out as it should.",
        start.elapsed().as_secs_f64()
    );
    Ok(())
}

fn tell(lab: &Lab) -> Result<()> {
    let story = Story {
        lab,
        shell: Shell::of(lab)?,
    };
    story.the_lab()?;
    story.the_fault()?;
    story.native()?;
    story.tunnel()?;
    story.both()?;
    story.status()
}

struct Story<'a> {
    lab: &'a Lab,
    shell: Shell,
}

impl Story<'_> {
    fn the_lab(&self) -> Result<()> {
        println!(
            "$ export KUBECONFIG={} LAB={}",
            self.lab.kubeconfig().display(),
            self.lab.directory().display()
        );
        self.shell.run_well(
            "kubectl get nodes -o custom-columns=NAME:.metadata.name,ADDRESS:.status.addresses[0].address,POD-CIDR:.spec.podCIDR",
        )?;
        self.shell
            .run_well("kubectl get --raw /version | grep gitVersion")?;
        let router = self.namespace("router");
        self.shell.run_well(&format!("ip netns exec {router} ip route"))?;
        let policies = self.shell.run_well("kubectl get routingpolicies")?;
        ensure!(
            policies.text.contains("No resources found"),
            "there is a policy already"
        );
        Ok(())
    }

    fn the_fault(&self) -> Result<()> {
        heading(
            2,
            "The fault: without a policy, a pod's packets leave toward the internet",
        );
        say("A pod on k8s-ctr pings one on k8s-w0. No error is shown anywhere, and no answer comes.");
        let capture = self.capture_uplink("fault")?;
        let ping = self.ping("pod-ctr-1", "pod-w0-1", 2)?;
        self.shell.end_capture(capture)?;
        self.shell.run_well("tcpdump -nn -r $LAB/fault.pcap")?;
        ensure!(!ping.success, "a ping without any route to it was answered");
        ensure!(
            !ping.text.to_lowercase().contains("unreachable"),
            "the ping was refused: there was no fault to see"
        );
        let leaked = self.captured("fault").count("icmp")?;
        ensure!(
            leaked == 2,
            "the router forwarded {leaked} of 2 packets out of eth0"
        );
        say("That was eth0 of the router: its uplink.");
        Ok(())
    }

    fn native(&self) -> Result<()> {
        heading(
            3,
            "A native policy: direct where there is a link, refused where there is none",
        );
        self.apply(NATIVE)?;
        say("k8s-ctr and k8s-w1 are on one link and reach each other directly:");
        self.show_routes("k8s-ctr")?;
        for (node, peer) in [("k8s-ctr", "k8s-w1"), ("k8s-w1", "k8s-ctr")] {
            let route = self.route(node, peer)?;
            ensure!(
                route["gateway"] == self.address(peer)?,
                "{node} does not reach {peer} directly: {route}"
            );
        }
        for (from, to) in [("pod-ctr-1", "pod-w1-1"), ("pod-w1-1", "pod-ctr-1")] {
            let ping = self.ping(from, to, 1)?;
            ensure!(ping.success, "{to} did not answer {from}");
        }
        say("k8s-w0 is behind a gateway. Its pods are refused at once, and nothing leaks:");
        let capture = self.capture_uplink("native")?;
        let ping = self.ping("pod-ctr-1", "pod-w0-1", 2)?;
        self.shell.end_capture(capture)?;
        self.shell.run_well("tcpdump -nn -r $LAB/native.pcap")?;
        ensure!(
            ping.text.matches("nreachable").count() >= 2,
            "the ping was not refused as unreachable"
        );
        ensure!(
            ping.elapsed < Duration::from_secs(3),
            "it took {:?} to be refused",
            ping.elapsed
        );
        let leaked = self.captured("native").count("")?;
        ensure!(leaked == 0, "{leaked} packets for pod CIDRs left by the uplink");
        say("The policy says so in a line, and what to do about it in a sentence:");
        let line = self.shell.run_well("kubectl get routingpolicies")?;
        ensure!(line.text.contains("k8s-w0"), "the line does not name k8s-w0");
        ensure!(
            line.text.to_lowercase().replace('-', "").contains("offlink"),
            "the line does not say off-link"
        );
        let sentence = self
            .shell
            .run_well("kubectl describe routingpolicy default | sed -n '/^Status/,$p'")?;
        ensure!(
            sentence.text.contains("offLinkPeers"),
            "the description does not say what to do"
        );
        Ok(())
    }

    fn tunnel(&self) -> Result<()> {
        heading(4, "A tunnel policy: VXLAN between the nodes, no restart");
        self.apply(TUNNEL)?;
        self.shell
            .run_well("kubectl wait --for=condition=Ready routingpolicy/default --timeout=30s")?;
        let router = self.namespace("router");
        let capture = self.shell.capture(
            self.lab,
            "tunnel",
            &format!(
                "ip netns exec {router} tcpdump -nn -U --immediate-mode -Z root -i eth2 -w $LAB/tunnel.pcap 'udp or icmp'"
            ),
        )?;
        self.all_directions()?;
        self.shell.end_capture(capture)?;
        say(
            "Every node has a route to both other pod CIDRs through the tunnel device, with its own router address as source:",
        );
        for node in &self.lab.topology().nodes {
            self.show_routes(&node.name)?;
            for peer in self.peers_of(node) {
                self.ensure_tunnelled(node, &peer.name)?;
            }
        }
        say("The router sees UDP between node addresses, and no pod's:");
        self.shell
            .run_well("tcpdump -nn -q -r $LAB/tunnel.pcap -c 4 'udp port 8472'")?;
        say(
            "Told what UDP 8472 is, tcpdump shows the pods inside (and, as ip-proto-253, the nodes probing the lane):",
        );
        let decoded = self
            .shell
            .run_well("tcpdump -nn -r $LAB/tunnel.pcap -T vxlan -c 4 'udp port 8472'")?;
        let capture = self.captured("tunnel");
        // The pods' own, by the inner protocol: the nodes' probes come and go when they will.
        let outer = capture.count("udp port 8472 and udp[39] = 1 and net 192.168.0.0/16")?;
        ensure!(outer == 8, "the router saw {outer} of 8 packets between nodes");
        let inner = capture.count("net 172.20.0.0/16")?;
        ensure!(
            inner == 0,
            "the router saw {inner} packets of pods outside of the tunnel"
        );
        ensure!(
            decoded.text.contains("VXLAN") && decoded.text.contains("172.20."),
            "the packets have no pods inside"
        );
        Ok(())
    }

    fn both(&self) -> Result<()> {
        heading(
            5,
            "Native with offLinkPeers: tunnel: direct on the link, VXLAN across the router",
        );
        self.apply(BOTH)?;
        self.shell
            .run_well("kubectl wait --for=condition=Ready routingpolicy/default --timeout=30s")?;
        self.show_routes("k8s-ctr")?;
        let nodes = &self.lab.topology().nodes;
        for node in nodes {
            for peer in self.peers_of(node) {
                if peer.link == node.link {
                    let route = self.route(&node.name, &peer.name)?;
                    let direct =
                        route["gateway"] == self.address(&peer.name)? && route.get("encap").is_none();
                    ensure!(
                        direct,
                        "{} does not reach {} directly: {route}",
                        node.name,
                        peer.name
                    );
                } else {
                    self.ensure_tunnelled(node, &peer.name)?;
                }
            }
        }
        self.all_directions()
    }

    fn status(&self) -> Result<()> {
        heading(6, "Status: per policy, per node and per peer; then the end");
        self.shell.run_well("kubectl get routingpolicies")?;
        let nodes = self.shell.run_well("kubectl get routingnodes")?;
        for node in &self.lab.topology().nodes {
            ensure!(
                nodes.text.contains(&node.name),
                "there is no status of {}",
                node.name
            );
        }
        let peers = self.shell.run_well(
            "kubectl get routingnode k8s-ctr -o jsonpath='{range .status.peers[*]}{.name}{\"\\t\"}{.lane}{\"\\n\"}{end}'",
        )?;
        let lane_of = |peer: &str| {
            peers
                .text
                .lines()
                .find_map(|line| line.strip_prefix(peer))
                .unwrap_or_default()
                .trim()
        };
        ensure!(
            lane_of("k8s-w1").starts_with("native"),
            "k8s-ctr does not say that k8s-w1 is reached natively"
        );
        ensure!(
            lane_of("k8s-w0").starts_with("vxlan"),
            "k8s-ctr does not say that k8s-w0 is reached by vxlan"
        );
        self.shell.run_well("kubectl get peerslices").map(drop)
    }

    fn apply(&self, file: &str) -> Result<()> {
        self.shell.run_well(&format!("sed -n '/^spec/,$p' {file}"))?;
        self.shell.run_well(&format!("kubectl apply -f {file}"))?;
        let start = Instant::now();
        wait_until(
            "the policy to be carried out, and its status to say so",
            SETTLED_WITHIN,
            || {
                let policy = self.lab.kubectl()?.get(&["routingpolicy", "default"])?;
                ensure!(is_settled(&policy), "its status is {}", policy["status"]);
                Ok(())
            },
        )?;
        println!(
            "  (carried out, as its status says, {:.1} s after)",
            start.elapsed().as_secs_f64()
        );
        Ok(())
    }

    fn capture_uplink(&self, name: &str) -> Result<podlane_e2e::process::Process> {
        let router = self.namespace("router");
        let line = format!(
            "ip netns exec {router} tcpdump -nn -U --immediate-mode -Z root -i eth0 -w $LAB/{name}.pcap net 172.20.0.0/16"
        );
        self.shell.capture(self.lab, name, &line)
    }

    fn captured(&self, name: &str) -> Pcap {
        Pcap::at(self.lab.directory().join(format!("{name}.pcap")))
    }

    fn ping(&self, from: &str, to: &str, count: u32) -> Result<shell::Answer> {
        let address = self.lab.pod_address(to)?;
        self.shell.run(&format!(
            "ip netns exec {} ping -n -c {count} -W 1 {address}",
            self.namespace(from)
        ))
    }

    /// A pod of each node pings one of each other node.
    fn all_directions(&self) -> Result<()> {
        for node in &self.lab.topology().nodes {
            for peer in self.peers_of(node) {
                let from = &node
                    .pods
                    .first()
                    .with_context(|| format!("{} has no pod", node.name))?
                    .name;
                let to = &peer
                    .pods
                    .first()
                    .with_context(|| format!("{} has no pod", peer.name))?
                    .name;
                let line = format!(
                    "ip netns exec {} ping -n -c 1 -W 1 {} | grep -i from",
                    self.namespace(from),
                    self.lab.pod_address(to)?
                );
                let answer = self.shell.run(&line)?;
                ensure!(answer.text.contains("bytes from"), "{to} did not answer {from}");
            }
        }
        Ok(())
    }

    fn show_routes(&self, node: &str) -> Result<()> {
        self.shell
            .run_well(&format!("ip netns exec {} ip route", self.namespace(node)))
            .map(drop)
    }

    fn peers_of(&self, node: &Node) -> impl Iterator<Item = &Node> {
        let name = node.name.clone();
        self.lab
            .topology()
            .nodes
            .iter()
            .filter(move |peer| peer.name != name)
    }

    /// A node's one route to the pod CIDR of another.
    fn route(&self, node: &str, peer: &str) -> Result<Value> {
        let peer = self
            .lab
            .topology()
            .node(peer)
            .with_context(|| format!("the lab has no node {peer}"))?;
        let cidr = peer
            .pod_cidrs
            .first()
            .with_context(|| format!("{} has no pod CIDR", peer.name))?;
        let mut routes = routes_to(self.lab, node, &cidr.to_string())?;
        match routes.len() {
            1 => Ok(routes.remove(0)),
            count => bail!("{node} has {count} routes to {cidr}"),
        }
    }

    fn ensure_tunnelled(&self, node: &Node, peer: &str) -> Result<()> {
        let route = self.route(&node.name, peer)?;
        let own = node
            .pod_gateways()
            .next()
            .with_context(|| format!("{} has no router address", node.name))?;
        let tunnelled = route["dev"]
            .as_str()
            .is_some_and(|device| device.starts_with("podlane"));
        ensure!(
            tunnelled && route["prefsrc"] == own.to_string(),
            "{} does not tunnel to {peer}: {route}",
            node.name
        );
        Ok(())
    }

    fn address(&self, node: &str) -> Result<String> {
        let node = self
            .lab
            .topology()
            .node(node)
            .with_context(|| format!("the lab has no node {node}"))?;
        Ok(node
            .internal_ip()
            .with_context(|| format!("{} has no address", node.name))?
            .to_string())
    }

    fn namespace(&self, name: &str) -> String {
        self.lab.namespace(name).name().to_owned()
    }
}

/// Whether a policy's status speaks of its newest generation and no change is on its way.
fn is_settled(policy: &Value) -> bool {
    let generation = &policy["metadata"]["generation"];
    let conditions = policy["status"]["conditions"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let has = |kind: &str| {
        conditions
            .iter()
            .find(|condition| condition["type"] == kind && condition["observedGeneration"] == *generation)
    };
    has("Progressing").is_some_and(|condition| condition["status"] == "False") && has("Ready").is_some()
}

fn heading(number: u32, text: &str) {
    println!("\n=== {number}. {text}");
}

fn say(text: &str) {
    println!("{text}");
}
