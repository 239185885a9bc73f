//! An operator that leads no longer.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use podlane_e2e::cluster::Cluster;
use podlane_e2e::control_plane::SYSTEM_NAMESPACE;
use podlane_e2e::scenario::Context;
use podlane_e2e::story;
use podlane_e2e::wait::{pause, wait_until};
use serde_json::Value;

use super::{between_all, number, settled};

/// Each time at another moment of the change; in turns killed, so that its lease has to run out, and deleted, so that it gives that back.
pub(crate) fn killed_in_changes(context: &mut Context) -> Result<()> {
    let cluster = settled(context)?;
    let changes = number("PODLANE_STORM_LEADERS", 2)?;
    let traffic = between_all(cluster)?;
    for change in 0..changes {
        let (pod, process) = leader(cluster)?;
        cluster.apply_policy(&if change % 2 == 0 {
            story::vxlan()
        } else {
            story::native_and_vxlan()
        })?;
        pause(Duration::from_millis(change * 130 % 700))?;
        if change % 2 == 0 {
            kill(Pid::from_raw(process), Signal::SIGKILL).context("cannot kill the operator")?;
        }
        // The killed one, too: the kubelet would wait longer each time before it starts the same pod's container again.
        cluster.delete_podlane_pod(&pod, &[])?;
        cluster.wait_for_policy()?;
    }
    traffic.ensure_none_lost(
        cluster,
        &format!("{changes} leaders ended in the middle of a change"),
    )
}

/// The pod that leads, as soon as one does, and its process. One that was killed still holds the lease, but renews it no more.
fn leader(cluster: &Cluster) -> Result<(String, i32)> {
    let mut seen = Value::Null;
    wait_until("an operator that leads", Duration::from_secs(240), || {
        let lease =
            cluster
                .kubectl()?
                .get(&["lease", "podlane-operator", "--namespace", SYSTEM_NAMESPACE])?;
        let before = std::mem::replace(&mut seen, lease["spec"].clone());
        let holder = seen["holderIdentity"].as_str().unwrap_or_default();
        ensure!(
            before["holderIdentity"] == holder && before["renewTime"] != seen["renewTime"],
            "{holder} has not renewed its lease"
        );
        let (pod, _) = holder
            .rsplit_once('_')
            .with_context(|| format!("{holder} names no pod"))?;
        let process = cluster.pod_process(SYSTEM_NAMESPACE, pod)?;
        Ok((pod.to_owned(), process))
    })
}
