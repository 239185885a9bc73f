//! A node whose power was away.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use podlane_e2e::capture::Capture;
use podlane_e2e::cluster::Traffic;
use podlane_e2e::cluster::podlane::CNI_FOLDER;
use podlane_e2e::control_plane::SYSTEM_NAMESPACE;
use podlane_e2e::probe::ping;
use podlane_e2e::scenario::Context;
use podlane_e2e::wait::wait_until;

use super::{installed, tell};

const BACK_WITHIN: Duration = Duration::from_secs(240);

/// Where host-local keeps which addresses are taken.
const LEASES: &str = "/var/lib/cni/networks/podlane";

/// Nobody helps: what is on the node's disk, and what the API server knows, is all that it comes back from.
pub(crate) fn under_traffic(context: &mut Context) -> Result<()> {
    let cluster = installed(context)?;
    for (pod, node) in [
        ("calm-ctr", "k8s-ctr"),
        ("calm-w1", "k8s-w1"),
        ("lost-w0", "k8s-w0"),
    ] {
        cluster.add_pod(pod, node)?;
    }
    let far = cluster.pod_address("calm-ctr")?;
    // It asks from its first moment after the boot, before anybody has told its node the way.
    cluster
        .kubectl()?
        .apply(&asking_pod("asking-w0", "k8s-w0", &far.to_string()).to_string())?;
    cluster.wait_until_running("asking-w0")?;
    let written = cluster
        .machine("k8s-w0")?
        .run("sh", &["-c", &format!("cat {CNI_FOLDER}/*")])?;
    let agent = cluster.pod_process(SYSTEM_NAMESPACE, &cluster.agent_of("k8s-w0")?)?;
    let lost = cluster.pod_process("default", "lost-w0")?;
    let uplink = Capture::start(cluster.lab(), "router", "eth0", "net 172.20.0.0/16")?;
    let traffic = Traffic::between(cluster, &["calm-ctr", "calm-w1"])?;

    cluster.reboot_node("k8s-w0")?;
    let start = Instant::now();
    wait_until("an agent on k8s-w0", BACK_WITHIN, || {
        let now = cluster.pod_process(SYSTEM_NAMESPACE, &cluster.agent_of("k8s-w0")?)?;
        ensure!(now != agent, "as before");
        Ok(())
    })?;
    let agent_runs = start.elapsed();
    wait_until("the pod that was there before to run again", BACK_WITHIN, || {
        let now = cluster.pod_process("default", "lost-w0")?;
        ensure!(now != lost, "as before");
        Ok(())
    })?;
    cluster.enter_pod("lost-w0")?;
    wait_until("answers from and to the node", BACK_WITHIN, || {
        let address = cluster.pod_address("lost-w0")?;
        let there = ping(cluster.lab(), "calm-ctr", address, 1)?;
        let back = ping(cluster.lab(), "lost-w0", far, 1)?;
        ensure!(
            there.all_answered() && back.all_answered(),
            "{address}: {there:?}, {back:?}"
        );
        Ok(())
    })?;
    let answered = start.elapsed();
    cluster.wait_for_agents()?;
    cluster.wait_for_policy()?;
    cluster.wait_for_nodes()?;
    tell(&format!(
        "a node that was rebooted: its agent ran after {:.1} s, its pods answered after {:.1} s, all was as declared after {:.1} s",
        agent_runs.as_secs_f64(),
        answered.as_secs_f64(),
        start.elapsed().as_secs_f64(),
    ));
    traffic.ensure_none_lost(cluster, "other nodes' pods while a node was rebooted")?;
    let machine = cluster.machine("k8s-w0")?;
    ensure!(
        machine.run("sh", &["-c", &format!("cat {CNI_FOLDER}/*")])? == written,
        "the CNI configuration is another one"
    );
    let leaked = uplink.stop()?;
    ensure!(
        leaked.count("")? == 0,
        "packets for pods on the uplink: {:?}",
        leaked.lines("")?
    );
    wait_until(
        "addresses of pods that are no more to be free",
        BACK_WITHIN,
        || {
            let leases = cluster
                .machine("k8s-w0")?
                .run("find", &[LEASES, "-name", "172.*"])?;
            let pods = cluster.kubectl()?.get(&[
                "pods",
                "--all-namespaces",
                "--field-selector=spec.nodeName=k8s-w0",
            ])?;
            let connected = pods["items"]
                .as_array()
                .context("no pods")?
                .iter()
                .filter(|pod| pod["spec"]["hostNetwork"] != true)
                .count();
            ensure!(
                leases.lines().count() == connected,
                "{connected} pods and these leases: {leases}"
            );
            Ok(())
        },
    )?;
    super::services::all_answer(cluster)
}

/// A pod that pings an address without end.
fn asking_pod(name: &str, node: &str, address: &str) -> serde_json::Value {
    let mut pod = podlane_e2e::cluster::objects::plain_pod(name, node);
    let line = format!("while true; do ping -c 1 -W 1 {address} >/dev/null; sleep 0.05; done");
    pod["spec"]["containers"][0]["command"] = serde_json::json!(["sh", "-c", line]);
    pod
}
