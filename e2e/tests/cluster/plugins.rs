//! Who connects pods: another network plugin, beside which Podlane only routes.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use podlane_e2e::cluster::podlane::CNI_FOLDER;
use podlane_e2e::cluster::{Cluster, Traffic};
use podlane_e2e::control_plane::SYSTEM_NAMESPACE;
use podlane_e2e::probe::ping;
use podlane_e2e::scenario::Context;
use podlane_e2e::story;
use podlane_e2e::wait::wait_until;
use serde_json::{Value, json};

use super::{NODES, services};

const SOON: Duration = Duration::from_secs(240);
const OTHERS: &str = "05-bridge.conflist";
const OURS: &str = "10-podlane.conflist";

/// The plugin bridge, as kubenet and many a hand-made cluster have it.
fn bridge(pod_cidr: &str) -> Value {
    json!({
        "cniVersion": "1.0.0",
        "name": "bridge",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": true,
                "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{"subnet": pod_cidr}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    })
}

/// A cluster that has it before Podlane comes.
pub(crate) fn beside_another(context: &mut Context) -> Result<()> {
    context.end_lab()?;
    let cluster = context.cluster()?;
    for node in NODES {
        let cidr = wait_until("a pod CIDR", SOON, || cluster.pod_cidr(node))?;
        let folder = cluster.machine(node)?.folder().join("cni");
        fs::create_dir_all(&folder)?;
        let file = folder.join(OTHERS);
        fs::write(&file, bridge(&cidr).to_string())?;
        let place = format!("{CNI_FOLDER}/{OTHERS}");
        cluster
            .machine(node)?
            .run("cp", &[&file.display().to_string(), &place])?;
    }
    cluster.wait_for_nodes()?;
    // As most clusters have it that have a pod network already: the API server is where its Service is.
    cluster.install_podlane(&["cni.install=false", "k8sServiceHost="])?;
    cluster.apply_policy(&story::native_and_vxlan())?;
    cluster.wait_for_agents()?;
    cluster.wait_for_policy()?;
    asks_by_the_service(cluster)?;
    cluster.start_workload()?;
    services::all_answer(cluster)?;

    let pods = [
        ("beside-ctr", "k8s-ctr"),
        ("beside-w1", "k8s-w1"),
        ("beside-w0", "k8s-w0"),
    ];
    for (pod, node) in pods {
        cluster.add_pod(pod, node)?;
    }
    let traffic = Traffic::between(cluster, &pods.map(|(pod, _)| pod))?;
    for (from, _) in pods {
        for (to, _) in pods {
            let address = cluster.pod_address(to)?;
            let report = ping(cluster.lab(), from, address, 3)?;
            ensure!(report.all_answered(), "{from} to {to}: {report:?}");
        }
    }
    for node in NODES {
        let files = cluster.machine(node)?.run("ls", &[CNI_FOLDER])?;
        ensure!(files.trim() == OTHERS, "{node} has {files}");
        let said = network_unavailable(cluster, node)?;
        ensure!(said.is_none(), "said of {node}: {said:?}");
    }
    traffic.ensure_none_lost(cluster, "pods of another plugin")?;
    // Nobody else is to find this cluster.
    context.end_lab()
}

/// Operators and agents reach the API server by the in-cluster Service, which kube-proxy carries out for the node's own network, too.
fn asks_by_the_service(cluster: &Cluster) -> Result<()> {
    let service = cluster
        .kubectl()?
        .get(&["service", "kubernetes", "--namespace=default"])?;
    let address = service["spec"]["clusterIP"].as_str().context("no clusterIP")?;
    let told = format!("KUBERNETES_SERVICE_HOST={address}");
    for (component, count) in [("operator", 2), ("agent", NODES.len())] {
        let pods = cluster.podlane_pods(component)?;
        ensure!(pods.len() == count, "{component}: {pods:?}");
        for (pod, _) in pods {
            let process = cluster.pod_process(SYSTEM_NAMESPACE, &pod)?;
            let environment = fs::read_to_string(format!("/proc/{process}/environ"))?;
            ensure!(
                environment.split('\0').any(|variable| variable == told),
                "{pod} is not told {told}"
            );
        }
    }
    Ok(())
}

/// The condition NetworkUnavailable of a Node: its status and its reason, where there is one.
fn network_unavailable(cluster: &Cluster, node: &str) -> Result<Option<(String, String)>> {
    let object = cluster.kubectl()?.get(&["node", node])?;
    let conditions = object["status"]["conditions"].as_array();
    let found = conditions
        .context("no conditions")?
        .iter()
        .find(|condition| condition["type"] == "NetworkUnavailable");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok(found.map(|found| (text(&found["status"]), text(&found["reason"]))))
}

/// Waits until something is said of every node's network; none: nothing at all.
fn wait_until_said(cluster: &Cluster, said: Option<(&str, &str)>) -> Result<()> {
    for node in NODES {
        wait_until(&format!("{said:?} to be said of {node}"), SOON, || {
            let is = network_unavailable(cluster, node)?;
            let words = is
                .as_ref()
                .map(|(status, reason)| (status.as_str(), reason.as_str()));
            ensure!(words == said, "{is:?} is said");
            Ok(())
        })?;
    }
    Ok(())
}

/// The file stays for the pods that it has connected; the Node's condition is nobody's to keep true any more.
pub(crate) fn switched_off_later(context: &mut Context) -> Result<()> {
    let cluster = super::installed(context)?;
    wait_until_said(cluster, Some(("False", "PodlaneConfigured")))?;
    for (pod, node) in [("switched-ctr", "k8s-ctr"), ("switched-w0", "k8s-w0")] {
        cluster.add_pod(pod, node)?;
    }
    let place = format!("{CNI_FOLDER}/{OURS}");
    let written = cluster.machine("k8s-w0")?.run("cat", &[&place])?;
    let traffic = Traffic::between(cluster, &["switched-ctr", "switched-w0"])?;
    cluster.upgrade_podlane(&["cni.install=false"])?;
    wait_until_said(cluster, None)?;
    cluster.wait_for_agents()?;
    ensure!(
        cluster.machine("k8s-w0")?.run("cat", &[&place])? == written,
        "the file is another one"
    );
    // As before: its runtime has the file.
    cluster.add_pod("later-w0", "k8s-w0")?;
    let address = cluster.pod_address("later-w0")?;
    let report = ping(cluster.lab(), "switched-ctr", address, 3)?;
    ensure!(report.all_answered(), "switched-ctr to later-w0: {report:?}");
    cluster.upgrade_podlane(&[])?;
    wait_until_said(cluster, Some(("False", "PodlaneConfigured")))?;
    cluster.wait_for_agents()?;
    cluster.wait_for_policy()?;
    traffic.ensure_none_lost(cluster, "cni.install switched off and on")
}
