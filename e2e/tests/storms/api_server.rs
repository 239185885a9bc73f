//! A cluster without its API server.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use podlane_e2e::control_plane::SYSTEM_NAMESPACE;
use podlane_e2e::scenario::Context;
use podlane_e2e::wait::{pause, wait_until};

use super::{between_all, number, settled};

/// Nobody tells the agent that starts what its node is to hold.
pub(crate) fn away(context: &mut Context) -> Result<()> {
    let cluster = settled(context)?;
    let half = Duration::from_secs(number("PODLANE_STORM_API_AWAY_SECONDS", 12)?) / 2;
    let pod = cluster.agent_of("k8s-w0")?;
    let agent = cluster.pod_process(SYSTEM_NAMESPACE, &pod)?;
    let traffic = between_all(cluster)?;
    cluster.lab().control_plane()?.stop_apiserver()?;
    pause(half)?;
    kill(Pid::from_raw(agent), Signal::SIGKILL).context("cannot kill the agent")?;
    let container = "the kubelet to start the agent again";
    wait_until(container, Duration::from_secs(240), || {
        let agents = cluster.processes_of("podlane-agent")?;
        ensure!(agents.len() == 3 && !agents.contains(&agent), "{agents:?} run");
        Ok(())
    })?;
    pause(half)?;
    cluster.lab().control_plane()?.start_apiserver()?;
    cluster.wait_for_agents()?;
    cluster.wait_for_nodes()?;
    cluster.wait_for_policy()?;
    traffic.ensure_none_lost(
        cluster,
        &format!("{} s without an API server", (half * 2).as_secs()),
    )
}
