//! A cluster leaves nothing, however it ends.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use podlane_e2e::cluster::cgroups;
use podlane_e2e::lab;
use podlane_e2e::ledger;
use podlane_e2e::scenario::Context;
use podlane_e2e::traces::{ensure_no_traces, traces};
use podlane_e2e::wait::wait_until;

const PROGRAM: &str = env!("CARGO_BIN_EXE_podlane-lab");

/// Its containers are nobody's children: they run on, and are found by their control groups.
pub(crate) fn killed(context: &mut Context) -> Result<()> {
    let name = context.options_for_own_lab().name;
    let mut program = Command::new(PROGRAM)
        .args(["--name", &name, "cluster"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let up = wait_until("containers in the cluster", Duration::from_secs(480), || {
        if let Some(status) = program.try_wait()? {
            return Ok(Err(status));
        }
        let state = ledger::read(&name)?;
        let cgroups = state.map(|state| state.cgroups).unwrap_or_default();
        let mut agents = 0;
        for cgroup in &cgroups {
            for process in cgroups::processes_within(cgroup)? {
                let comm = std::fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
                agents += usize::from(comm.trim() == "podlane-agent");
            }
        }
        ensure!(agents == 3, "{agents} agents run");
        Ok(Ok(()))
    });
    program.kill()?;
    program.wait()?;
    if let Err(status) = up? {
        bail!("the cluster did not come up: {status}");
    }
    let left = traces(&name)?;
    ensure!(
        left.iter().any(|trace| trace.starts_with("control group")),
        "nothing was left to be taken down: {left:?}"
    );
    ensure!(lab::down(&name)?, "there was no lab {name}");
    ensure_no_traces(&name)
}
