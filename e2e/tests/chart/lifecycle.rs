//! What becomes of a release, and what stays.

use anyhow::{Context as _, Result, ensure};
use podlane_e2e::control_plane::SYSTEM_NAMESPACE;
use podlane_e2e::scenario::Context;

use super::installed::{helm, release, running, wait_until_ready};

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
