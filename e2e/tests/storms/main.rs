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

use anyhow::Result;
use podlane_e2e::cluster::{self, Cluster, Traffic};
use podlane_e2e::lab::{Extent, Options};
use podlane_e2e::scenario::{Context, Scenario, run};
use podlane_e2e::story;

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
                "a node's /run is emptied, and no packet of its running pods is lost",
                nodes::run_emptied,
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
                "a release whose agents have no image stops at one node and says so, whoever leads, and no packet is lost",
                releases::without_image,
            ),
            scenario(
                "the API server is away and an agent starts in the meantime, and no packet is lost",
                api_server::away,
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

/// Numbered packets between the pods of all nodes.
fn between_all(cluster: &Cluster) -> Result<Traffic> {
    Traffic::between(cluster, &PODS.map(|(_, pod)| pod))
}

/// How often, or for how long, something is to happen: what the variable says, else the short form.
fn number(variable: &str, short: u64) -> Result<u64> {
    std::env::var(variable).map_or(Ok(short), |text| Ok(text.parse()?))
}

#[allow(clippy::print_stderr, reason = "a test program speaks on standard error")]
fn tell(words: &str) {
    eprintln!("{words}");
}
