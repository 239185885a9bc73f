//! Agents replaced node after node.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use podlane_e2e::control_plane::SYSTEM_NAMESPACE;
use podlane_e2e::lab::Lab;
use podlane_e2e::scenario::Context;
use podlane_e2e::story::wait_for_condition;
use podlane_e2e::wait::{pause, wait_until};
use serde_json::{Value, json};

use super::installed::{
    NODES, SOON, daemon_set, helm, make_pod, name, release, running, start_agent, start_operator,
    wait_until_ready,
};

/// How long a rollout that has stopped is watched.
const WATCHED: Duration = Duration::from_secs(3);

/// The agents' pods by node: each its name, and whether it has been told to end.
fn pods(lab: &Lab) -> Result<BTreeMap<String, (String, bool)>> {
    let list = lab.kubectl()?.get(&["pods", "-n", SYSTEM_NAMESPACE])?;
    let items = list["items"].as_array().context("no list")?;
    items
        .iter()
        .map(|pod| {
            let node = pod["spec"]["nodeName"].as_str().context("no node")?.to_owned();
            Ok((
                node,
                (
                    name(pod)?.to_owned(),
                    pod["metadata"]["deletionTimestamp"].is_string(),
                ),
            ))
        })
        .collect()
}

/// Waits for a template other than `before`, and says of the DaemonSet what its controller would: that it has been seen.
fn observe(lab: &Lab, before: &str) -> Result<String> {
    let (set, template) = wait_until("the new template", SOON, || {
        let set = daemon_set(lab)?;
        let template = template(&set)?;
        ensure!(template != before, "still {before}");
        Ok((set, template))
    })?;
    say_seen(lab, &set)?;
    Ok(template)
}

/// Says of the DaemonSet what its controller would once it has seen it and made all pods.
fn say_seen(lab: &Lab, set: &Value) -> Result<()> {
    let count = NODES.len();
    let status = json!({"status": {
        "observedGeneration": set["metadata"]["generation"],
        "desiredNumberScheduled": count, "currentNumberScheduled": count, "numberReady": count, "numberMisscheduled": 0,
    }});
    lab.kubectl()?.run(&[
        "patch",
        "daemonset",
        "podlane-agent",
        "-n",
        SYSTEM_NAMESPACE,
        "--subresource=status",
        "--type=merge",
        "-p",
        &status.to_string(),
    ])?;
    Ok(())
}

fn template(set: &Value) -> Result<String> {
    let labels = &set["spec"]["template"]["metadata"]["labels"];
    Ok(labels["podlane.io/template"]
        .as_str()
        .context("no template")?
        .to_owned())
}

/// The nodes whose agents have been told to end.
fn ending(lab: &Lab) -> Result<Vec<String>> {
    let ending = pods(lab)?.into_iter().filter(|(_, (_, is_ending))| *is_ending);
    Ok(ending.map(|(node, _)| node).collect())
}

/// Ends the pod on a node and makes its successor.
fn replace(lab: &Lab, node: &str) -> Result<Value> {
    let (pod, _) = pods(lab)?.remove(node).context("no pod")?;
    lab.kubectl()?.run(&[
        "delete",
        "pod",
        &pod,
        "-n",
        SYSTEM_NAMESPACE,
        "--force",
        "--grace-period=0",
    ])?;
    make_pod(lab, node)
}

pub(crate) fn one_by_one(context: &mut Context) -> Result<()> {
    let lab = running(context)?;
    let before = template(&daemon_set(lab)?)?;
    let first = pods(lab)?;
    ensure!(first.len() == NODES.len(), "{first:?}");
    // What an upgrade comes to: another configuration, and the operator started anew with it.
    release(lab, 4, &["upgrade"], &["agents.logLevel=debug"])?;
    lab.operator()?.stop(SOON)?;
    start_operator(lab)?;
    let new = observe(lab, &before)?;
    for (place, node) in NODES.iter().enumerate() {
        wait_until(&format!("the agent on {node} to be replaced"), SOON, || {
            let ending = ending(lab)?;
            ensure!(ending == [*node], "{ending:?}");
            Ok(())
        })?;
        let pod = replace(lab, node)?;
        ensure!(
            pod["metadata"]["labels"]["podlane.io/template"] == new.as_str(),
            "{}",
            pod["metadata"]
        );
        if place == 0 {
            // Its agent is the one from before: the new one has yet to say anything, and the others are left alone.
            pause(WATCHED)?;
            ensure!(
                ending(lab)?.is_empty(),
                "replaced before the one before had proved itself: {:?}",
                pods(lab)?
            );
        }
        lab.agent(node)?.stop(SOON)?;
        start_agent(lab, node, &pod)?;
    }
    wait_until_ready(lab)?;
    pause(Duration::from_millis(1500))?;
    let last = pods(lab)?;
    ensure!(
        ending(lab)?.is_empty() && last.len() == NODES.len(),
        "a rollout that is over goes on: {last:?}"
    );
    Ok(())
}

pub(crate) fn refused(context: &mut Context) -> Result<()> {
    let lab = running(context)?;
    let before = daemon_set(lab)?;
    say_seen(lab, &before)?;
    // More than the limit of 128 Mi.
    let values = ["agents.resources.requests.memory=256Mi"];
    release(lab, 4, &["upgrade", "--reuse-values"], &values)?;
    lab.operator()?.stop(SOON)?;
    start_operator(lab)?;
    let message = wait_for_condition(
        lab,
        "routingpolicy",
        "default",
        "Ready",
        "False",
        "RolloutStopped",
    )?;
    for words in [
        "the API server does not take the DaemonSet podlane-agent",
        "must be less than or equal to memory limit",
        "helm rollback",
    ] {
        ensure!(message.contains(words), "{words} is not in: {message}");
    }
    let now = daemon_set(lab)?;
    ensure!(now["spec"] == before["spec"], "{}", now["spec"]);
    ensure!(ending(lab)?.is_empty(), "agents are replaced: {:?}", ending(lab)?);
    helm(lab, 4, &["rollback", "podlane"])?;
    lab.operator()?.stop(SOON)?;
    start_operator(lab)?;
    wait_until_ready(lab)
}

pub(crate) fn put_back(context: &mut Context) -> Result<()> {
    let lab = running(context)?;
    let kubectl = lab.kubectl()?;
    let image = |set: &Value| set["spec"]["template"]["spec"]["containers"][0]["image"].clone();
    let before = daemon_set(lab)?;
    let other = r#"[{"op":"replace","path":"/spec/template/spec/containers/0/image","value":"other"},
        {"op":"add","path":"/metadata/annotations/e2e","value":"mine"}]"#;
    let set = ["daemonset", "podlane-agent", "-n", SYSTEM_NAMESPACE];
    kubectl.run(&[["patch"].as_slice(), &set, &["--type=json", "-p", other]].concat())?;
    wait_until("the image to be put back", SOON, || {
        let now = daemon_set(lab)?;
        ensure!(image(&now) == image(&before), "{}", image(&now));
        // What the operator says nothing of is left to whoever does.
        ensure!(
            now["metadata"]["annotations"]["e2e"] == "mine",
            "{}",
            now["metadata"]
        );
        Ok(())
    })?;
    kubectl.run(&[["delete"].as_slice(), &set].concat())?;
    wait_until("the DaemonSet to be made again", SOON, || {
        let now = daemon_set(lab)?;
        ensure!(
            now["metadata"]["uid"] != before["metadata"]["uid"],
            "still the old one"
        );
        ensure!(now["spec"] == before["spec"], "{}", now["spec"]);
        Ok(())
    })
}

pub(crate) fn left_out(context: &mut Context) -> Result<()> {
    let lab = running(context)?;
    let kubectl = lab.kubectl()?.clone();
    let before = template(&daemon_set(lab)?)?;
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "old-1"}, "spec": {"podCIDR": "172.20.77.0/24"},
    "status": {
        "addresses": [{"type": "InternalIP", "address": "192.168.30.77"}],
        "nodeInfo": {"kernelVersion": "4.19.0-27-amd64", "operatingSystem": "linux", "architecture": "amd64"},
    }});
    kubectl.create(&node.to_string())?;
    let left_out = |set: &Value| {
        let affinity = &set["spec"]["template"]["spec"]["affinity"]["nodeAffinity"];
        let terms = &affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"];
        terms[0]["matchFields"][0]["values"][0].clone()
    };
    wait_until("the node to be left out", SOON, || {
        let set = daemon_set(lab)?;
        ensure!(
            left_out(&set) == "old-1",
            "{}",
            set["spec"]["template"]["spec"]["affinity"]
        );
        Ok(())
    })?;
    let message = wait_for_condition(lab, "routingpolicy", "default", "Ready", "False", "NodeUnfit")?;
    ensure!(
        message.contains("old-1 has kernel 4.19.0-27-amd64, and agents need Linux 5.8"),
        "{message}"
    );
    kubectl.run(&["delete", "node", "old-1"])?;
    wait_until("nobody to be left out", SOON, || {
        let set = daemon_set(lab)?;
        ensure!(left_out(&set).is_null(), "{}", left_out(&set));
        Ok(())
    })?;
    ensure!(
        template(&daemon_set(lab)?)? == before,
        "another template, which would replace all agents"
    );
    ensure!(ending(lab)?.is_empty(), "agents are replaced: {:?}", ending(lab)?);
    wait_until_ready(lab)
}
