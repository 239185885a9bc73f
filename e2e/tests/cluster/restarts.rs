//! The programs of a node, restarted under its pods.

use anyhow::{Result, ensure};
use podlane_e2e::scenario::Context;

use super::installed;

/// Each time of k8s-w0, behind the router, with streams to and from its pod.
pub(crate) fn under_traffic(context: &mut Context) -> Result<()> {
    let cluster = installed(context)?;
    for (pod, node) in [("ping-ctr", "k8s-ctr"), ("ping-w0", "k8s-w0")] {
        cluster.add_pod(pod, node)?;
    }
    let streams = [
        cluster.stream("ping-ctr", "ping-w0", 500)?,
        cluster.stream("ping-w0", "ping-ctr", 500)?,
    ];
    let process = cluster.pod_process("default", "ping-w0")?;
    // A kubelet that is just starting ends when its container runtime goes away; one that runs waits for it.
    let machine = cluster.machine("k8s-w0")?;
    machine.containerd()?.restart()?;
    machine.wait_for_containerd()?;
    machine.kubelet()?.restart()?;
    machine.wait_for_kubelet()?;
    machine.proxy()?.restart()?;
    cluster.wait_for_nodes()?;
    cluster.wait_for_policy()?;
    ensure!(
        cluster.pod_process("default", "ping-w0")? == process,
        "the pod was restarted: its packets prove nothing"
    );
    for stream in streams {
        let report = stream.finish()?;
        ensure!(report.sent > 100, "hardly anything was sent: {report:?}");
        ensure!(report.lost == 0 && report.duplicated == 0, "{report:?}");
    }
    Ok(())
}
