//! Nodes that lose what they remember, or leave.

use anyhow::{Context as _, Result, ensure};
use podlane_e2e::control_plane::{SYSTEM_NAMESPACE, node_object};
use podlane_e2e::probe::ping;
use podlane_e2e::scenario::Context;
use podlane_e2e::topology::Node;

use super::{Traffic, settled};

/// What k8s-w0's pods are numbered from when it has joined again.
const ANOTHER: &str = "172.20.7.0/24";

/// What a boot would empty, under pods that run: the agent starts with nothing but what the kernel holds.
pub(crate) fn run_emptied(context: &mut Context) -> Result<()> {
    let cluster = settled(context)?;
    let traffic = Traffic::between_all(cluster)?;
    let machine = cluster.machine("k8s-w0")?;
    // What others keep there: the container runtime's sockets and its view of what runs.
    machine.run(
        "find",
        &[
            "/run",
            "-xdev",
            "-mindepth",
            "1",
            "-maxdepth",
            "1",
            "!",
            "-name",
            "containerd",
            "!",
            "-name",
            "netns",
            "-exec",
            "rm",
            "-rf",
            "{}",
            "+",
        ],
    )?;
    let pod = cluster.agent_of("k8s-w0")?;
    cluster
        .kubectl()?
        .run(&["delete", "pod", &pod, "--namespace", SYSTEM_NAMESPACE])?;
    cluster.wait_for_agents()?;
    cluster.wait_for_policy()?;
    traffic.ensure_none_lost(cluster, "/run emptied")
}

/// Its pods are the cluster's no more; packets between the others do not notice.
pub(crate) fn joined_again(context: &mut Context) -> Result<()> {
    let cluster = settled(context)?;
    let traffic = Traffic::between(cluster, &["still-ctr", "still-w1"])?;
    let before = cluster.pod_cidr("k8s-w0")?;
    cluster.remove_node("k8s-w0")?;
    // kube-controller-manager might give it the one that it had.
    let node = cluster.lab().topology().node("k8s-w0").context("no such node")?;
    let mut object = node_object(&Node {
        pod_cidrs: vec![ANOTHER.parse()?],
        ..node.clone()
    });
    object.as_object_mut().context("no object")?.remove("status");
    cluster.kubectl()?.create(&object.to_string())?;
    cluster.join_node("k8s-w0")?;
    cluster.wait_for_nodes()?;
    cluster.wait_for_agents()?;
    cluster.wait_for_policy()?;
    ensure!(
        cluster.pod_cidr("k8s-w0")? == ANOTHER && before != ANOTHER,
        "{before} before"
    );
    cluster.add_pod("new-w0", "k8s-w0")?;
    let address = cluster.pod_address("new-w0")?;
    ensure!(
        ANOTHER.parse::<ipnet::IpNet>()?.contains(&address),
        "{address} of {ANOTHER}"
    );
    for from in ["still-ctr", "still-w1"] {
        let report = ping(cluster.lab(), from, address, 3)?;
        ensure!(report.all_answered(), "{from} to {address}: {report:?}");
    }
    traffic.ensure_none_lost(cluster, "a node that left and joined")
}
