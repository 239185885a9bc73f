//! The release taken away, and installed again.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use podlane_e2e::cluster::{Cluster, Traffic};
use podlane_e2e::control_plane::SYSTEM_NAMESPACE;
use podlane_e2e::probe::ping;
use podlane_e2e::scenario::Context;
use podlane_e2e::story;
use podlane_e2e::wait::wait_until;

use super::{NODES, installed, tell};

const SOON: Duration = Duration::from_secs(240);

/// `helm uninstall`; what its Job says, which is still there to be read.
fn uninstall(cluster: &Cluster) -> Result<String> {
    let start = Instant::now();
    cluster.helm(&["uninstall", "podlane", "--wait", "--timeout=6m"])?;
    tell(&format!(
        "helm uninstall took {:.1} s",
        start.elapsed().as_secs_f64()
    ));
    let said = cluster
        .kubectl()?
        .run(&["logs", "job/podlane-uninstall", "--namespace", SYSTEM_NAMESPACE])?;
    wait_until("Podlane's pods to be gone", SOON, || {
        let left = cluster.kubectl()?.run(&[
            "get",
            "pods",
            "--namespace",
            SYSTEM_NAMESPACE,
            "--selector=app.kubernetes.io/component in (agent, operator)",
            "-o",
            "name",
        ])?;
        ensure!(left.trim().is_empty(), "{left}");
        Ok(())
    })?;
    Ok(said)
}

/// Installs again and waits until everything is as declared.
fn install(cluster: &Cluster) -> Result<()> {
    cluster.install_podlane(&[])?;
    cluster.wait_for_agents()?;
    cluster.wait_for_policy()?;
    cluster.wait_for_nodes()
}

pub(crate) fn cleans(context: &mut Context) -> Result<()> {
    let cluster = installed(context)?;
    for (pod, node) in [
        ("near-ctr", "k8s-ctr"),
        ("near-1", "k8s-w0"),
        ("near-2", "k8s-w0"),
    ] {
        cluster.add_pod(pod, node)?;
    }
    let traffic = Traffic::between(cluster, &["near-1", "near-2"])?;
    for node in NODES {
        let held = cluster.left_on(node)?;
        ensure!(held.len() > 4, "{node} holds little to begin with: {held:?}");
    }
    let said = uninstall(cluster)?;
    for node in NODES {
        ensure!(
            said.lines()
                .any(|line| line.split_whitespace().eq([node, "cleaned"])),
            "{node} is not called cleaned in\n{said}"
        );
        let left = cluster.left_on(node)?;
        ensure!(left.is_empty(), "left on {node}: {left:?}");
    }
    ensure!(said.contains("3 of 3 nodes are clean"), "{said}");
    story::wait_for_condition(
        cluster.lab(),
        "routingpolicy",
        "default",
        "Ready",
        "False",
        "Uninstalled",
    )?;
    traffic.ensure_none_lost(cluster, "pods of one node while Podlane was uninstalled")?;

    let traffic = Traffic::between(cluster, &["near-1", "near-2"])?;
    install(cluster)?;
    let far = cluster.pod_address("near-ctr")?;
    let report = ping(cluster.lab(), "near-1", far, 3)?;
    ensure!(report.all_answered(), "near-1 to near-ctr: {report:?}");
    // Pods that are new, connected by the new configuration, as those that were there.
    cluster.add_pod("newer-w0", "k8s-w0")?;
    let report = ping(cluster.lab(), "newer-w0", far, 3)?;
    ensure!(report.all_answered(), "newer-w0 to near-ctr: {report:?}");
    super::services::all_answer(cluster)?;
    traffic.ensure_none_lost(cluster, "pods of one node while Podlane was installed again")
}

pub(crate) fn keeps_datapath(context: &mut Context) -> Result<()> {
    let cluster = installed(context)?;
    for (pod, node) in [
        ("kept-ctr", "k8s-ctr"),
        ("kept-w1", "k8s-w1"),
        ("kept-w0", "k8s-w0"),
    ] {
        cluster.add_pod(pod, node)?;
    }
    cluster.upgrade_podlane(&["keepDatapath=true"])?;
    let held: Vec<_> = NODES
        .iter()
        .map(|node| cluster.left_on(node))
        .collect::<Result<_>>()?;
    let traffic = Traffic::between(cluster, &["kept-ctr", "kept-w1", "kept-w0"])?;
    let said = uninstall(cluster)?;
    ensure!(said.contains("nodes stay as they are"), "{said}");
    for (node, held) in NODES.iter().zip(held) {
        let now = cluster.left_on(node)?;
        ensure!(now == held, "{node} held {held:#?} and holds {now:#?}");
    }
    install(cluster)?;
    traffic.ensure_none_lost(cluster, "uninstalled with keepDatapath and installed again")
}
