//! What becomes of a release, and what stays.

use anyhow::{Context as _, Result, ensure};
use podlane_e2e::control_plane::SYSTEM_NAMESPACE;
use podlane_e2e::scenario::Context;
use podlane_e2e::wait::wait_until;

use super::installed::{SOON, helm, release, running, start_operator, wait_until_ready};

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

    let uid = |what: &[&str]| -> Result<String> {
        let object = kubectl.get(what)?;
        Ok(object["metadata"]["uid"].as_str().context("no uid")?.to_owned())
    };
    let crd = ["crd", "routingpolicies.podlane.io"];
    let policy = ["routingpolicy", "default"];
    let before = (uid(&crd)?, uid(&policy)?);
    wait_until_ready(lab)?;
    lab.operator()?.stop(SOON)?;
    helm(lab, 4, &["uninstall", "podlane"])?;
    // What is left are the types, what they hold, and what only this lab has nobody to collect: DaemonSet and pods.
    let left = wait_until("what is of the release to be gone", SOON, || {
        let kinds = "serviceaccounts,configmaps,deployments,poddisruptionbudgets,networkpolicies,roles,rolebindings,clusterroles,\
                     clusterrolebindings,validatingadmissionpolicies,validatingadmissionpolicybindings";
        let selector = "--selector=app.kubernetes.io/name=podlane";
        let left = kubectl.run(&["get", kinds, "--all-namespaces", selector, "-o", "name"])?;
        ensure!(left.trim().is_empty(), "{left}");
        Ok(left)
    })?;
    ensure!(
        left.trim().is_empty() && (uid(&crd)?, uid(&policy)?) == before,
        "types or policies were made anew"
    );

    // The other Helm finds them, and takes them over.
    release(lab, 3, &["install"], &[])?;
    ensure!(
        (uid(&crd)?, uid(&policy)?) == before,
        "types or policies were made anew"
    );
    start_operator(lab)?;
    wait_until_ready(lab)?;
    let policy = kubectl.get(&policy)?;
    ensure!(policy["spec"]["priority"] == 7, "{}", policy["spec"]);
    Ok(())
}
