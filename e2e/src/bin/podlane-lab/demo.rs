//! The story, told with real parts: each step shows the command that a user would type and what really came back, and a
//! step that comes out otherwise ends the demo with an error.

mod shell;

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use podlane_e2e::capture::Pcap;
use podlane_e2e::cluster::podlane::newest_helm;
use podlane_e2e::cluster::{self, Cluster};
use podlane_e2e::interrupt;
use podlane_e2e::process::Process;
use podlane_e2e::programs::ClusterPrograms;
use podlane_e2e::topology::ROUTER;
use podlane_e2e::wait::wait_until;
use serde_json::Value;

use self::shell::Shell;

const NATIVE: &str = "e2e/manifests/native.yaml";
const TUNNEL: &str = "e2e/manifests/tunnel.yaml";
const BOTH: &str = "e2e/manifests/native-offlink-tunnel.yaml";
const WORKLOAD: &str = "e2e/manifests/webpod.yaml";
const NODES: [&str; 3] = ["k8s-ctr", "k8s-w0", "k8s-w1"];
const SETTLED_WITHIN: Duration = Duration::from_secs(180);
/// Each asking waits 5 s for its answer: so many that wait in vain would take minutes.
const ASKED: usize = 30;
const AT_ONCE: Duration = Duration::from_secs(40);

pub(crate) fn run(name: &str) -> Result<()> {
    interrupt::watch()?;
    ClusterPrograms::find_or_build()?;
    if let Some(reason) = cluster::missing() {
        bail!("THIS MACHINE CANNOT RUN THE DEMO: {reason}");
    }
    let start = Instant::now();
    heading(
        1,
        "A cluster: three kubelets, a router between them, no pod network",
    );
    say(
        "A router with an uplink joins two networks. k8s-ctr and k8s-w1 are on one, k8s-w0 is on the other. The router knows the nodes' \
         addresses and no pod CIDR.",
    );
    let mut cluster = Cluster::up(cluster::Options {
        progress: |line| println!("  up: {line}"),
        ..cluster::Options::named(name)
    })?;
    let told = tell(&mut cluster);
    if let Err(error) = &told
        && !interrupt::raised()
    {
        println!(
            "\nThe story came out otherwise: {error:#}\nWhat there is:\n{}",
            cluster.describe()
        );
    }
    say("\nEverything is taken down.");
    let down = cluster.down();
    if down.is_ok() {
        say(
            "Looked for containers, control groups, network namespaces, processes, mounts, interfaces and files of the cluster: nothing \
             is left.",
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

fn tell(cluster: &mut Cluster) -> Result<()> {
    let shell = Shell::of(cluster.lab(), &newest_helm()?)?;
    let mut story = Story { cluster, shell };
    story.the_cluster()?;
    story.install()?;
    story.native()?;
    story.tunnel()?;
    story.both()
}

struct Story<'a> {
    cluster: &'a mut Cluster,
    shell: Shell,
}

impl Story<'_> {
    fn the_cluster(&mut self) -> Result<()> {
        println!(
            "$ export KUBECONFIG={} LAB={}",
            self.cluster.kubeconfig().display(),
            self.cluster.lab().directory().display()
        );
        self.nodes("NotReady")
    }

    fn install(&mut self) -> Result<()> {
        heading(2, "helm install");
        let arguments = self.cluster.release_arguments(&[]).join(" ");
        let line = format!(
            "helm install {} --namespace podlane-system --create-namespace >/dev/null",
            arguments
                .replace(&format!("{}/", podlane_e2e::programs::repository().display()), "")
                // A shell takes braces for its own.
                .replace("{172.20.0.0/16}", "'{172.20.0.0/16}'")
        );
        let answer = self.shell.run_well(&line)?;
        println!("({:.1} s)", answer.elapsed.as_secs_f64());
        self.cluster.wait_for_agents()?;
        self.shell.run_well(
            "kubectl -n podlane-system get pods -o custom-columns=NAME:.metadata.name,NODE:.spec.nodeName,PHASE:.status.phase",
        )?;
        let policies = self.shell.run_well("kubectl get routingpolicies")?;
        ensure!(
            policies.text.contains("No resources found"),
            "there is a policy already"
        );
        Ok(())
    }

    fn native(&mut self) -> Result<()> {
        heading(
            3,
            "A native policy: direct where there is a link, refused where there is none",
        );
        self.apply(NATIVE)?;
        say("Podlane is the pod network now: nodes turn ready, and pods start.");
        self.shell
            .run_well("kubectl wait --for=condition=Ready nodes --all --timeout=3m")?;
        self.shell.run_well(&format!("kubectl apply -f {WORKLOAD}"))?;
        self.shell
            .run_well("kubectl rollout status deployment/webpod --timeout=3m | tail -n 1")?;
        self.shell
            .run_well("kubectl wait --for=condition=Ready pod/curl-pod --timeout=3m")?;
        // The resolver's pod has just started, too, and kube-proxy hears of the Service's pods one after the other.
        wait_until("the Service to have all its pods", SETTLED_WITHIN, || {
            let answers = self.cluster.ask(12)?;
            let has_all = ["k8s-ctr", "k8s-w1", ""]
                .iter()
                .all(|node| answers.contains_key(*node));
            ensure!(has_all, "{answers:?}");
            Ok(())
        })?;
        self.shell.run_well(
            "kubectl get pods -o custom-columns=NAME:.metadata.name,NODE:.spec.nodeName,IP:.status.podIP",
        )?;
        say(
            "curl-pod asks the Service by its name. k8s-w0 is behind a gateway: what goes to its pod fails at once, and nothing leaks.",
        );
        let capture = self.capture("native", "eth0", "net 172.20.0.0/16")?;
        let answers = self.ask()?;
        self.shell.end_capture(capture)?;
        ensure!(
            answers.contains("on k8s-ctr") && answers.contains("on k8s-w1"),
            "a pod on the link did not answer"
        );
        ensure!(
            !answers.contains("on k8s-w0"),
            "the pod on k8s-w0 answered over a lane that is refused"
        );
        ensure!(
            answers.contains("Couldn't connect"),
            "what goes to k8s-w0 was not refused"
        );
        let leaked = self.captured("native").count("")?;
        ensure!(
            leaked == 0,
            "{leaked} packets for pod CIDRs left by the router's uplink"
        );
        say("The policy says so in a line, and what to do about it in a sentence:");
        let line = self.shell.run_well("kubectl get routingpolicies")?;
        ensure!(
            line.text.contains("OffLink") && line.text.contains("k8s-w0"),
            "the line does not say that k8s-w0 is off-link"
        );
        let sentence = self.shell.run_well(
            "kubectl get routingpolicy default -o jsonpath='{.status.conditions[?(@.type==\"Ready\")].message}'",
        )?;
        ensure!(
            sentence.text.contains("offLinkPeers"),
            "the condition does not say what to do"
        );
        Ok(())
    }

    fn tunnel(&mut self) -> Result<()> {
        heading(4, "A tunnel policy: VXLAN between the nodes, no restart");
        self.apply(TUNNEL)?;
        self.shell
            .run_well("kubectl wait --for=condition=Ready routingpolicy/default --timeout=3m")?;
        let capture = self.capture("tunnel", "eth2", "udp")?;
        self.ask_all()?;
        self.shell.end_capture(capture)?;
        say("What the router saw of that, and with what is inside:");
        self.shell.run_well(
            "tcpdump -nn -q -r $LAB/tunnel.pcap -c 2 'udp port 8472 and udp[39] = 6' 2>/dev/null",
        )?;
        // By the protocol of the packet inside: TCP.
        let decoded = self.shell.run_well(
            "tcpdump -nn -q -r $LAB/tunnel.pcap -T vxlan -c 2 'udp port 8472 and udp[39] = 6' 2>/dev/null",
        )?;
        ensure!(
            decoded.text.contains("VXLAN") && decoded.text.contains("172.20.2."),
            "the router saw no pod of k8s-w0 inside"
        );
        self.shell.run_well("kubectl get routingpolicies").map(drop)
    }

    fn both(&mut self) -> Result<()> {
        heading(
            5,
            "Native with offLinkPeers: tunnel: direct on the link, VXLAN across the router",
        );
        self.apply(BOTH)?;
        self.shell
            .run_well("kubectl wait --for=condition=Ready routingpolicy/default --timeout=3m")?;
        self.ask_all()?;
        let node = self.cluster.lab().namespace("k8s-ctr");
        let routes = self.shell.run_well(&format!(
            "ip netns exec {} ip route show root 172.20.0.0/16",
            node.name()
        ))?;
        let has = |destination: &str, words: &[&str]| {
            routes
                .text
                .lines()
                .any(|line| line.contains(destination) && words.iter().all(|word| line.contains(word)))
        };
        ensure!(
            has("172.20.1.0/24", &["via 192.168.10.101", "eth0"]),
            "k8s-w1 is not reached directly"
        );
        ensure!(
            has("172.20.2.0/24", &["encap", "192.168.20.100"]),
            "k8s-w0 is not reached by a tunnel"
        );
        self.shell.run_well("kubectl get routingpolicies")?;
        self.shell.run_well("kubectl get routingnodes")?;
        self.nodes("Ready")
    }

    /// Shows the nodes, each of which must say that it is in this state.
    fn nodes(&self, state: &str) -> Result<()> {
        let answer = self.shell.run_well("kubectl get nodes")?;
        for node in NODES {
            let says = answer
                .text
                .lines()
                .any(|line| line.split_whitespace().take(2).eq([node, state]));
            ensure!(says, "{node} is not {state}");
        }
        Ok(())
    }

    fn apply(&self, manifest: &str) -> Result<()> {
        self.shell.run_well(&format!("cat {manifest} | sed '/^#/d'"))?;
        self.shell.run_well(&format!("kubectl apply -f {manifest}"))?;
        wait_until(
            "the policy to be carried out as far as it can be",
            SETTLED_WITHIN,
            || {
                let policy = self.cluster.kubectl()?.get(&["routingpolicy", "default"])?;
                ensure!(is_settled(&policy), "{}", policy["status"]);
                Ok(())
            },
        )
    }

    /// Has curl-pod ask the Service again and again; who answered how often. None of them may have been waited for.
    fn ask(&self) -> Result<String> {
        let answer = self.shell.run_well(&format!(
            "kubectl exec curl-pod -- sh -c 'for i in $(seq {ASKED}); do curl -sS -m 5 http://webpod 2>&1; done' | \
             sed 's/ after .* ms//' | sort | uniq -c"
        ))?;
        ensure!(
            answer.elapsed < AT_ONCE,
            "asking {ASKED} times took {:.0} s",
            answer.elapsed.as_secs_f64()
        );
        Ok(answer.text)
    }

    fn ask_all(&self) -> Result<()> {
        let answers = self.ask()?;
        for node in NODES {
            ensure!(
                answers.contains(&format!("on {node}")),
                "the pod on {node} did not answer"
            );
        }
        ensure!(!answers.contains("curl:"), "not every answer came");
        Ok(())
    }

    fn capture(&mut self, name: &str, interface: &str, filter: &str) -> Result<Process> {
        let lab = self.cluster.lab();
        let router = lab.namespace(ROUTER);
        let line = format!(
            "ip netns exec {} tcpdump -nn -U --immediate-mode -Z root -i {interface} -w $LAB/{name}.pcap {filter}",
            router.name()
        );
        self.shell.capture(lab, name, &line)
    }

    fn captured(&mut self, name: &str) -> Pcap {
        Pcap::at(self.cluster.lab().directory().join(format!("{name}.pcap")))
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
