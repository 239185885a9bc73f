//! The demo: it tells its story to the end, and leaves nothing, also when it is interrupted in the middle.

use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use podlane_e2e::cluster;
use podlane_e2e::lab::{Extent, Options};
use podlane_e2e::scenario::{Context, Scenario, run};
use podlane_e2e::traces::ensure_no_traces;
use podlane_e2e::wait::pause;

const PROGRAM: &str = env!("CARGO_BIN_EXE_podlane-lab");

fn main() -> ExitCode {
    let missing = cluster::missing();
    run(
        Options {
            extent: Extent::ControlPlane,
            ..Options::named("demo")
        },
        [
            Scenario::new("the demo tells its story to the end and leaves nothing", told)
                .lacks(missing.clone()),
            Scenario::new("a demo that is interrupted leaves nothing", interrupted).lacks(missing),
        ],
    )
}

fn told(context: &mut Context) -> Result<()> {
    let name = context.options_for_own_lab().name;
    let output = Command::new(PROGRAM)
        .args(["--name", &name, "demo"])
        .stdin(Stdio::null())
        .output()?;
    let story = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "{}\n{story}",
        String::from_utf8_lossy(&output.stderr)
    );
    for sign in [
        "k8s-w0 is off-link",
        "Couldn't connect to server",
        "node/k8s-w0 condition met",
        "on k8s-w0",
        "VXLAN, flags [I] (0x08), vni 1",
        "nothing is left",
    ] {
        ensure!(story.contains(sign), "the story lacks {sign:?}:\n{story}");
    }
    ensure_no_traces(&name)
}

fn interrupted(context: &mut Context) -> Result<()> {
    // While the network comes up, while the API server or the nodes start, in the middle of the story with containers running.
    for milliseconds in [100, 5000, 20_000] {
        let name = context.options_for_own_lab().name;
        let mut demo = Command::new(PROGRAM)
            .args(["--name", &name, "demo"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        pause(Duration::from_millis(milliseconds))?;
        kill(Pid::from_raw(i32::try_from(demo.id())?), Signal::SIGINT)?;
        let status = demo.wait()?;
        ensure!(!status.success(), "an interrupted demo has ended well");
        ensure_no_traces(&name).with_context(|| format!("after {milliseconds} ms"))?;
    }
    Ok(())
}
