//! Who connects pods: another network plugin, beside which Podlane only routes.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use podlane_e2e::cluster::Cluster;
use podlane_e2e::cluster::podlane::CNI_FOLDER;
use podlane_e2e::probe::ping;
use podlane_e2e::scenario::Context;
use podlane_e2e::story;
use podlane_e2e::wait::wait_until;
use serde_json::{Value, json};

use super::{NODES, Traffic, services};

const SOON: Duration = Duration::from_secs(90);
const OTHERS: &str = "05-bridge.conflist";

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
    cluster.install_podlane(&["cni.install=false"])?;
    cluster.apply_policy(&story::native_and_vxlan())?;
    cluster.wait_for_agents()?;
    cluster.wait_for_policy()?;
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
