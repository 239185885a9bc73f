//! Podlane in a real cluster: three kubelets in the story's network, Podlane installed by its chart.

mod confinement;
mod figures;
mod install;
mod life;
mod plugins;
mod reboot;
mod restarts;
mod services;
mod uninstall;

use std::process::ExitCode;

use anyhow::Result;
use podlane_e2e::cluster::{self, Cluster};
use podlane_e2e::lab::{Extent, Options};
use podlane_e2e::scenario::{Context, Scenario, run};
use podlane_e2e::story;

/// The cluster's nodes.
const NODES: [&str; 3] = ["k8s-ctr", "k8s-w1", "k8s-w0"];

fn main() -> ExitCode {
    let missing = cluster::missing();
    let options = Options {
        extent: Extent::ControlPlane,
        ..Options::named("cluster")
    };
    let scenario =
        |name, run: fn(&mut Context) -> Result<()>| Scenario::new(name, run).lacks(missing.clone());
    run(
        options,
        [
            scenario(
                "helm install makes Podlane the pod network, and pods answer by name across the router",
                install::to_the_first_answer,
            ),
            scenario(
                "agents have three capabilities, filtered system calls and nothing else to write to, and their programs work",
                confinement::of_agents,
            ),
            scenario(
                "what agents and operator take when nothing changes",
                figures::at_rest,
            ),
            scenario(
                "Services answer from all nodes' pods with kube-proxy by nftables and by iptables",
                services::in_both_modes,
            ),
            scenario(
                "a kubelet, a container runtime and kube-proxy that are restarted lose no packet between pods",
                restarts::under_traffic,
            ),
            scenario(
                "a node that was rebooted comes back by itself, and the others' packets are not lost",
                reboot::under_traffic,
            ),
            scenario(
                "helm uninstall cleans every node, pods of one node lose no packet, and it can be installed again",
                uninstall::cleans,
            ),
            scenario(
                "helm uninstall with keepDatapath and another install lose no packet between nodes",
                uninstall::keeps_datapath,
            ),
            scenario(
                "cni.install switched off and on again leaves the file, and takes back and says again what Nodes are told",
                plugins::switched_off_later,
            ),
            scenario(
                "beside another network plugin Podlane routes, and writes no configuration",
                plugins::beside_another,
            ),
            scenario(
                "a cluster whose program was killed is taken down whole from outside",
                life::killed,
            ),
        ],
    )
}

/// The shared cluster with Podlane installed and every lane a tunnel, with the story's workload.
fn installed(context: &mut Context) -> Result<&mut Cluster> {
    let cluster = context.cluster()?;
    if !cluster.has_podlane()? {
        cluster.install_podlane(&[])?;
    }
    cluster.apply_policy(&story::vxlan())?;
    cluster.wait_for_nodes()?;
    cluster.wait_for_policy()?;
    cluster.start_workload()?;
    Ok(cluster)
}

/// Figures are for whoever reads them: how slow and busy this machine is, no test knows.
#[allow(clippy::print_stderr, reason = "a test program speaks on standard error")]
fn tell(figure: &str) {
    eprintln!("figure: {figure}");
}
