//! Another version of the chart's release, and back.

use std::time::Duration;

use anyhow::{Result, ensure};
use podlane_e2e::cluster::{Cluster, podlane};
use podlane_e2e::control_plane::SYSTEM_NAMESPACE;
use podlane_e2e::scenario::Context;
use podlane_e2e::wait::wait_until;

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
    let start = std::time::Instant::now();
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
