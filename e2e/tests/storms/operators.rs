//! An operator that leads no longer.

use std::time::Duration;

use anyhow::{Context as _, Result};
use podlane_e2e::control_plane::SYSTEM_NAMESPACE;
use podlane_e2e::scenario::Context;
use podlane_e2e::story;
use podlane_e2e::wait::pause;

use super::{Traffic, number, settled};

/// Each time at another moment of the change.
pub(crate) fn killed_in_changes(context: &mut Context) -> Result<()> {
    let cluster = settled(context)?;
    let changes = number("PODLANE_STORM_LEADERS", 3)?;
    let traffic = Traffic::between_all(cluster)?;
    for change in 0..changes {
        cluster.apply_policy(&if change % 2 == 0 {
            story::vxlan()
        } else {
            story::native_and_vxlan()
        })?;
        pause(Duration::from_millis(change * 130 % 700))?;
        let lease =
            cluster
                .kubectl()?
                .get(&["lease", "podlane-operator", "--namespace", SYSTEM_NAMESPACE])?;
        let holder = lease["spec"]["holderIdentity"]
            .as_str()
            .context("nobody leads")?
            .to_owned();
        // On the node's own network a pod's host name is the node's.
        let on_node = |(_, node): &(String, String)| holder.starts_with(&format!("{node}_"));
        let (pod, _) = cluster
            .podlane_pods("operator")?
            .into_iter()
            .find(on_node)
            .with_context(|| format!("{holder} is no pod"))?;
        cluster.kubectl()?.run(&[
            "delete",
            "pod",
            &pod,
            "--namespace",
            SYSTEM_NAMESPACE,
            "--grace-period=0",
            "--force",
        ])?;
        cluster.wait_for_policy()?;
    }
    traffic.ensure_none_lost(
        cluster,
        &format!("{changes} leaders killed in the middle of a change"),
    )
}
