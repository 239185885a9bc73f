//! From an empty cluster to the first answer.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use podlane_e2e::scenario::Context;
use podlane_e2e::wait::wait_until;

use super::tell;

pub(crate) fn to_the_first_answer(context: &mut Context) -> Result<()> {
    let cluster = context.cluster()?;
    ensure!(!cluster.has_podlane()?, "Podlane is installed already");
    let node = cluster.kubectl()?.get(&["node", "k8s-w0"])?;
    let ready = node["status"]["conditions"]
        .as_array()
        .context("no conditions")?
        .iter()
        .any(|condition| condition["type"] == "Ready" && condition["status"] == "True");
    ensure!(!ready, "k8s-w0 is ready before there is a pod network");

    let start = Instant::now();
    cluster.install_podlane(&["firstPolicy.routingMode=tunnel"])?;
    let installed = start.elapsed();
    cluster.start_workload()?;
    let running = start.elapsed();
    wait_until("an answer across the router", Duration::from_secs(240), || {
        let answers = cluster.ask(3)?;
        ensure!(answers.contains_key("k8s-w0"), "{answers:?}");
        Ok(())
    })?;
    tell(&format!(
        "first answer across the router {:.1} s after helm install began (which took {:.1} s; the workload ran after {:.1} s); wanted: 30 s",
        start.elapsed().as_secs_f64(),
        installed.as_secs_f64(),
        running.as_secs_f64(),
    ));
    Ok(())
}
