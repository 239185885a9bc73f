//! Bad weather in a real cluster: Podlane's pods, its version, its API server and whole nodes come and go, while numbered packets flow
//! between pods that nobody touches.
//!
//! CI has the short form; `make proof` sets the numbers higher (see [`number`]).

mod agents;
mod api_server;
mod nodes;
mod operators;
mod releases;

use std::process::ExitCode;

use anyhow::{Result, ensure};
use podlane_e2e::cluster::{self, Cluster};
use podlane_e2e::lab::{Extent, Options};
use podlane_e2e::scenario::{Context, Scenario, run};
use podlane_e2e::story;
use podlane_e2e::traffic::Stream;

fn main() -> ExitCode {
    let missing = cluster::missing();
    let options = Options {
        extent: Extent::ControlPlane,
        ..Options::named("storms")
    };
    let scenario =
        |name, run: fn(&mut Context) -> Result<()>| Scenario::new(name, run).lacks(missing.clone());
    run(
        options,
        [
            scenario(
                "agents' pods are killed and deleted again and again, and no packet is lost",
                agents::killed,
            ),
            scenario(
                "the operator's leader is killed in the middle of changes of the policy, and no packet is lost",
                operators::killed_in_changes,
            ),
            scenario(
                "a release with another image of the agents is rolled out and rolled back, and no packet is lost",
                releases::forth_and_back,
            ),
            scenario(
                "the API server is away and an agent starts in the meantime, and no packet is lost",
                api_server::away,
            ),
            scenario(
                "a node's /run is emptied, and no packet of its running pods is lost",
                nodes::run_emptied,
            ),
            scenario(
                "a node is deleted and joins again with another pod CIDR, and the others' packets are not lost",
                nodes::joined_again,
            ),
        ],
    )
}

/// The cluster's nodes, each with the pod that packets go to and come from.
const PODS: [(&str, &str); 3] = [
    ("k8s-ctr", "still-ctr"),
    ("k8s-w1", "still-w1"),
    ("k8s-w0", "still-w0"),
];

/// The shared cluster with Podlane installed, native on the link and a tunnel across the router, and a pod on each node.
fn settled(context: &mut Context) -> Result<&mut Cluster> {
    let cluster = context.cluster()?;
    let is_new = !cluster.has_podlane()?;
    if is_new {
        cluster.install_podlane(&[])?;
    }
    cluster.apply_policy(&story::native_and_vxlan())?;
    cluster.wait_for_policy()?;
    cluster.wait_for_nodes()?;
    if is_new {
        for (node, pod) in PODS {
            cluster.add_pod(pod, node)?;
        }
    }
    Ok(cluster)
}

/// Numbered packets between pods, in both directions of each pair.
struct Traffic {
    streams: Vec<(String, Stream)>,
    /// The first process of each pod: another one is another pod.
    processes: Vec<(String, i32)>,
}

impl Traffic {
    fn between(cluster: &Cluster, pods: &[&str]) -> Result<Self> {
        let mut streams = Vec::new();
        let mut processes = Vec::new();
        for from in pods {
            processes.push(((*from).to_owned(), cluster.pod_process("default", from)?));
            for to in pods.iter().filter(|to| *to != from) {
                streams.push((format!("{from} to {to}"), cluster.stream(from, to, RATE)?));
            }
        }
        Ok(Self { streams, processes })
    }

    fn between_all(cluster: &Cluster) -> Result<Self> {
        Self::between(cluster, &PODS.map(|(_, pod)| pod))
    }

    /// Ends it: every packet has come, once. Says how many there were.
    fn ensure_none_lost(self, cluster: &Cluster, what: &str) -> Result<()> {
        for (pod, process) in self.processes {
            ensure!(
                cluster.pod_process("default", &pod)? == process,
                "{pod} was started again: its packets prove nothing"
            );
        }
        let mut sent = 0;
        for (direction, stream) in self.streams {
            let report = stream.finish()?;
            ensure!(
                report.sent > 100,
                "{direction}: hardly anything was sent: {report:?}"
            );
            ensure!(
                report.lost == 0 && report.duplicated == 0,
                "{direction}: {report:?}"
            );
            sent += report.sent;
        }
        tell(&format!("{what}: {sent} packets, 0 lost, 0 doubled"));
        Ok(())
    }
}

/// Packets a second of each stream.
const RATE: u32 = 500;

/// How often, or for how long, something is to happen: what the variable says, else the short form.
fn number(variable: &str, short: u64) -> Result<u64> {
    std::env::var(variable).map_or(Ok(short), |text| Ok(text.parse()?))
}

#[allow(clippy::print_stderr, reason = "a test program speaks on standard error")]
fn tell(words: &str) {
    eprintln!("{words}");
}
