//! Agents that end in every way that a cluster knows.

use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use podlane_e2e::cluster::Cluster;
use podlane_e2e::control_plane::SYSTEM_NAMESPACE;
use podlane_e2e::scenario::Context;
use podlane_e2e::wait::{pause, wait_until};

use super::{PODS, between_all, number, settled};

const BACK_WITHIN: Duration = Duration::from_secs(240);

/// On all nodes at once, each time at another moment of the new agent's start.
pub(crate) fn killed(context: &mut Context) -> Result<()> {
    let cluster = settled(context)?;
    let kills = number("PODLANE_STORM_KILLS", 6)?;
    let traffic = between_all(cluster)?;
    let shared = &*cluster;
    let ended: Vec<Result<()>> = thread::scope(|scope| {
        let nodes: Vec<_> = (0..)
            .zip(PODS)
            .map(|(index, (node, _))| {
                scope.spawn(move || {
                    let each = kills.div_ceil(PODS.len() as u64);
                    (0..each).try_for_each(|round| end_agent(shared, node, round, index))
                })
            })
            .collect();
        nodes
            .into_iter()
            .map(|node| node.join().map_err(|_| anyhow!("panicked")).and_then(|it| it))
            .collect()
    });
    ended.into_iter().collect::<Result<()>>()?;
    cluster.wait_for_agents()?;
    cluster.wait_for_policy()?;
    traffic.ensure_none_lost(cluster, &format!("{kills} agents killed"))
}

/// Ends a node's agent in one of three ways and waits until there is another.
fn end_agent(cluster: &Cluster, node: &str, round: u64, index: u64) -> Result<()> {
    let pod = cluster.agent_of(node)?;
    // Without asking it: its process is gone in the middle of whatever it does.
    if (round + index) % 3 == 1 {
        kill_process(cluster, &pod)?;
    }
    let gently = (round + index) % 3 == 2;
    let how: &[&str] = if gently {
        &["--grace-period=30"]
    } else {
        &["--grace-period=0", "--force"]
    };
    cluster.delete_podlane_pod(&pod, how)?;
    wait_until(&format!("another agent on {node}"), BACK_WITHIN, || {
        let now = cluster.agent_of(node)?;
        ensure!(now != pod, "{pod} is still there");
        cluster.pod_process(SYSTEM_NAMESPACE, &now).map(drop)
    })?;
    pause(Duration::from_millis(round * 170 % 900))
}

/// As the kernel does when memory is short. A process that is just being started anew is no failure.
fn kill_process(cluster: &Cluster, pod: &str) -> Result<()> {
    if let Ok(process) = cluster.pod_process(SYSTEM_NAMESPACE, pod) {
        kill(Pid::from_raw(process), Signal::SIGKILL).context("cannot kill the agent")?;
    }
    Ok(())
}
