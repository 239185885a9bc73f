//! The programs of a node, restarted under its pods.

use anyhow::Result;
use podlane_e2e::cluster::Traffic;
use podlane_e2e::scenario::Context;

use super::installed;

/// Each time of k8s-w0, behind the router, with streams to and from its pod.
pub(crate) fn under_traffic(context: &mut Context) -> Result<()> {
    let cluster = installed(context)?;
    for (pod, node) in [("ping-ctr", "k8s-ctr"), ("ping-w0", "k8s-w0")] {
        cluster.add_pod(pod, node)?;
    }
    let traffic = Traffic::between(cluster, &["ping-ctr", "ping-w0"])?;
    // A kubelet that is just starting ends when its container runtime goes away; one that runs waits for it.
    let machine = cluster.machine("k8s-w0")?;
    machine.containerd()?.restart()?;
    machine.wait_for_containerd()?;
    machine.kubelet()?.restart()?;
    machine.wait_for_kubelet()?;
    machine.proxy()?.restart()?;
    cluster.wait_for_nodes()?;
    cluster.wait_for_policy()?;
    traffic.ensure_none_lost(cluster, "a node's programs restarted")
}
