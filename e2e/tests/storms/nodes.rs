//! Nodes that lose what they remember, or leave.

use std::time::Duration;

use anyhow::{Result, ensure};
use podlane_e2e::cluster::Traffic;
use podlane_e2e::control_plane::SYSTEM_NAMESPACE;
use podlane_e2e::probe::ping;
use podlane_e2e::scenario::Context;
use podlane_e2e::story;
use podlane_e2e::wait::wait_until;

use super::{between_all, settled};

/// What a boot would empty, under pods that run: the agent starts with nothing but what the kernel holds.
pub(crate) fn run_emptied(context: &mut Context) -> Result<()> {
    let cluster = settled(context)?;
    let traffic = between_all(cluster)?;
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

const BACK_WITHIN: Duration = Duration::from_secs(240);

/// Its pod CIDR when it has come back: another one.
const AFTERWARDS: &str = "172.20.9.0/24";
/// An address out of the cluster's pod CIDR, and of no node's.
const NOBODYS: &str = "172.20.77.1";

/// Its pods are the cluster's no more; packets between the others do not notice.
pub(crate) fn joined_again(context: &mut Context) -> Result<()> {
    let cluster = settled(context)?;
    let traffic = Traffic::between(cluster, &["still-ctr", "still-w1"])?;
    cluster.remove_node("k8s-w0")?;
    cluster.join_node("k8s-w0", Some(AFTERWARDS))?;
    // Until then all may seem to be as it was: nobody has looked yet.
    wait_until("pods of the new pod CIDR", BACK_WITHIN, || {
        let (status, _, message) = story::condition(cluster.lab(), "routingnode", "k8s-w0", "PodNetwork")?;
        ensure!(
            status == "True" && message.contains(AFTERWARDS),
            "{status}: {message}"
        );
        Ok(())
    })?;
    cluster.wait_for_nodes()?;
    cluster.wait_for_agents()?;
    cluster.wait_for_policy()?;
    cluster.add_pod("new-w0", "k8s-w0")?;
    let address = cluster.pod_address("new-w0")?;
    ensure!(
        AFTERWARDS.parse::<ipnet::IpNet>()?.contains(&address),
        "{address} of {AFTERWARDS}"
    );
    for from in ["still-ctr", "still-w1"] {
        wait_until("answers of the new pod", BACK_WITHIN, || {
            let report = ping(cluster.lab(), from, address, 3)?;
            ensure!(report.all_answered(), "{from} to {address}: {report:?}");
            Ok(())
        })?;
    }
    // Pods that were there before run on with addresses that are nobody's now. What is for no node is refused all the same.
    let report = ping(cluster.lab(), "new-w0", NOBODYS.parse()?, 2)?;
    ensure!(report.all_refused(), "new-w0 to {NOBODYS}: {report:?}");
    traffic.ensure_none_lost(cluster, "a node that left and joined")
}
