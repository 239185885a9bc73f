//! Another version of the chart's release, and back.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use podlane_e2e::cluster::{Cluster, podlane};
use podlane_e2e::control_plane::SYSTEM_NAMESPACE;
use podlane_e2e::scenario::Context;
use podlane_e2e::wait::{pause, wait_until};
use serde_json::Value;

use super::{PODS, between_all, settled, tell};

/// Three agents, each of which has to prove its lanes before the next one's turn.
const ROLLED_OUT_WITHIN: Duration = Duration::from_secs(180);
const OTHER: &str = "another";

pub(crate) fn forth_and_back(context: &mut Context) -> Result<()> {
    let cluster = settled(context)?;
    let agent = podlane::name_of("agent");
    let (repository, tag) = agent.rsplit_once(':').unwrap_or((&agent, ""));
    for (node, _) in PODS {
        let other = format!("{repository}:{OTHER}");
        cluster
            .machine(node)?
            .images(&["tag", "--force", &agent, &other])?;
    }
    let traffic = between_all(cluster)?;
    let start = Instant::now();
    cluster.upgrade_podlane(&[
        &format!("agents.image.tag={OTHER}"),
        "agents.logLevel=debug",
        "operator.logLevel=debug",
    ])?;
    all_run(cluster, OTHER)?;
    tell(&format!(
        "figure: three agents replaced in {:.1} s",
        start.elapsed().as_secs_f64()
    ));
    cluster.helm(&["rollback", "podlane", "--wait", "--timeout=6m"])?;
    all_run(cluster, tag)?;
    cluster.wait_for_agents()?;
    cluster.wait_for_policy()?;
    traffic.ensure_none_lost(cluster, "an upgrade and its rollback")
}

/// How long an agent may take to prove itself here.
const PATIENCE: &str = "agents.patienceSeconds=15";
/// How long it is watched that a rollout that has stopped does nothing, and is said, also while another operator takes over.
const WATCHED: Duration = Duration::from_secs(40);

pub(crate) fn without_image(context: &mut Context) -> Result<()> {
    let cluster = settled(context)?;
    cluster.wait_for_agents()?;
    let before = agents(cluster)?;
    let traffic = between_all(cluster)?;
    let start = Instant::now();
    cluster.upgrade_podlane(&["agents.image.tag=missing", PATIENCE])?;
    let message = wait_until(
        "the policy to say that the rollout has stopped",
        ROLLED_OUT_WITHIN,
        || {
            let (reason, message) = ready(cluster)?;
            ensure!(reason == "RolloutStopped", "{reason}: {message}");
            Ok(message)
        },
    )?;
    tell(&format!(
        "figure: said after {:.1} s: {message}",
        start.elapsed().as_secs_f64()
    ));
    let stopped_at = replaced(cluster, &before)?;
    let [node] = stopped_at.as_slice() else {
        bail!("replaced at {stopped_at:?}: {message}");
    };
    ensure!(
        message.contains(&format!("has stopped at {node}"))
            && message.contains("2 other agents are left as they were"),
        "{message}"
    );

    // Another operator leads, who knows only what is written.
    for (pod, _) in cluster.podlane_pods("operator")? {
        cluster.delete_podlane_pod(&pod, &[])?;
    }
    let watched = Instant::now();
    while watched.elapsed() < WATCHED {
        let (reason, message) = ready(cluster)?;
        ensure!(reason == "RolloutStopped", "it says {reason}: {message}");
        let now = replaced(cluster, &before)?;
        ensure!(now == stopped_at, "replaced at {now:?}");
        pause(Duration::from_millis(100))?;
    }

    cluster.helm(&["rollback", "podlane", "--wait", "--timeout=6m"])?;
    wait_until(
        "the agent that was replaced to be so again",
        ROLLED_OUT_WITHIN,
        || {
            let (reason, message) = ready(cluster)?;
            ensure!(reason == "AsDeclared", "{reason}: {message}");
            Ok(())
        },
    )?;
    cluster.wait_for(&[
        "pod",
        "--namespace",
        SYSTEM_NAMESPACE,
        "--selector=app.kubernetes.io/component=agent",
        "--for=condition=Ready",
    ])?;
    let at_last = replaced(cluster, &before)?;
    ensure!(at_last == stopped_at, "replaced in all: {at_last:?}");
    traffic.ensure_none_lost(cluster, "a release that does not work and its rollback")
}

/// What the policy says of itself: the reason of its condition Ready, and the message.
fn ready(cluster: &Cluster) -> Result<(String, String)> {
    let policies = cluster.kubectl()?.get(&["routingpolicies"])?;
    let conditions = policies["items"][0]["status"]["conditions"].as_array();
    let ready = conditions
        .into_iter()
        .flatten()
        .find(|condition| condition["type"] == "Ready")
        .context("no condition Ready")?;
    let text = |key: &str| ready[key].as_str().unwrap_or_default().to_owned();
    Ok((text("reason"), text("message")))
}

/// The agents' pods by node: the uid of each, but of those that are about to go.
fn agents(cluster: &Cluster) -> Result<BTreeMap<String, String>> {
    let list = cluster.kubectl()?.get(&[
        "pods",
        "--namespace",
        SYSTEM_NAMESPACE,
        "--selector=app.kubernetes.io/component=agent",
    ])?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let pods = list["items"].as_array().into_iter().flatten();
    Ok(pods
        .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
        .map(|pod| (text(&pod["spec"]["nodeName"]), text(&pod["metadata"]["uid"])))
        .collect())
}

/// The nodes whose agents' pods are not the ones from before.
fn replaced(cluster: &Cluster, before: &BTreeMap<String, String>) -> Result<Vec<String>> {
    let now = agents(cluster)?;
    let is_another = |(node, uid): &(&String, &String)| now.get(*node) != Some(*uid);
    Ok(before
        .iter()
        .filter(is_another)
        .map(|(node, _)| node.clone())
        .collect())
}

/// Waits until every agent is of the image with this tag.
fn all_run(cluster: &Cluster, tag: &str) -> Result<()> {
    wait_until(&format!("agents of the image {tag}"), ROLLED_OUT_WITHIN, || {
        for (pod, node) in cluster.podlane_pods("agent")? {
            let object = cluster
                .kubectl()?
                .get(&["pod", &pod, "--namespace", SYSTEM_NAMESPACE])?;
            let image = object["spec"]["containers"][0]["image"]
                .as_str()
                .unwrap_or_default();
            ensure!(image.ends_with(&format!(":{tag}")), "{node} runs {image}");
            ensure!(
                object["status"]["containerStatuses"][0]["ready"] == true,
                "{pod} is not ready"
            );
        }
        Ok(())
    })
}
