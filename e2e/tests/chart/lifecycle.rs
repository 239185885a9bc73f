//! What becomes of a release, and what stays.

use anyhow::{Context as _, Result, ensure};
use podlane_e2e::control_plane::SYSTEM_NAMESPACE;
use podlane_e2e::lab::Lab;
use podlane_e2e::scenario::Context;
use podlane_e2e::wait::wait_until;

use super::installed::{
    NODES, SOON, daemon_set, end_agents, helm, release, running, start_agents, start_operator,
    wait_until_ready,
};
use super::uninstall::network_unavailable;

pub(crate) fn stays(context: &mut Context) -> Result<()> {
    let lab = running(context)?;
    let kubectl = lab.kubectl()?.clone();
    let replicas = || -> Result<i64> {
        let deployment = kubectl.get(&["deployment", "podlane-operator", "-n", SYSTEM_NAMESPACE])?;
        deployment["spec"]["replicas"].as_i64().context("no replicas")
    };
    // What a user has changed since stays as it is through upgrades: the first policy was only the first.
    kubectl.run(&[
        "patch",
        "routingpolicy",
        "default",
        "--type=merge",
        "-p",
        r#"{"spec":{"priority":7}}"#,
    ])?;
    release(
        lab,
        4,
        &["upgrade"],
        &["operator.replicas=3", "firstPolicy.priority=1"],
    )?;
    ensure!(replicas()? == 3, "{} replicas", replicas()?);
    helm(lab, 4, &["rollback", "podlane", "1"])?;
    ensure!(replicas()? == 2, "{} replicas", replicas()?);
    let policy = kubectl.get(&["routingpolicy", "default"])?;
    ensure!(policy["spec"]["priority"] == 7, "{}", policy["spec"]);
    wait_until_ready(lab)
}

/// The release upgraded, and operator and agents replaced with what that makes of them.
fn upgrade(lab: &mut Lab, values: &[&str]) -> Result<()> {
    let before = daemon_set(lab)?["metadata"]["generation"].clone();
    release(lab, 4, &["upgrade"], values)?;
    lab.operator()?.stop(SOON)?;
    start_operator(lab)?;
    wait_until("the new DaemonSet", SOON, || {
        let now = daemon_set(lab)?["metadata"]["generation"].clone();
        ensure!(now != before, "still {before}");
        Ok(())
    })?;
    end_agents(lab)?;
    start_agents(lab)
}

pub(crate) fn connects_no_more(context: &mut Context) -> Result<()> {
    let lab = running(context)?;
    let kubectl = lab.kubectl()?.clone();
    let said = |expected: Option<&str>| {
        wait_until("Nodes to say it", SOON, || {
            for node in NODES {
                let found = network_unavailable(&kubectl, node)?;
                let reason = found.as_ref().map(|(_, reason)| reason.as_str());
                ensure!(reason == expected, "{node}: {found:?}");
            }
            Ok(())
        })
    };
    said(Some("PodlaneConfigured"))?;
    upgrade(lab, &["cni.install=false"])?;
    wait_until_ready(lab)?;
    said(None)?;
    // What pods that run were connected by stays.
    for node in NODES {
        let file = lab
            .directory()
            .join(format!("cni-{node}"))
            .join("10-podlane.conflist");
        ensure!(file.exists(), "{} is gone", file.display());
    }
    upgrade(lab, &[])?;
    wait_until_ready(lab)?;
    said(Some("PodlaneConfigured"))
}
