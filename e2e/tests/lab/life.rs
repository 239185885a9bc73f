//! A lab's life: it comes up whole or not at all, touches nothing of others, and leaves nothing, however it ends.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use podlane_e2e::capture::Capture;
use podlane_e2e::lab::{self, Extent, Lab, Options};
use podlane_e2e::ledger;
use podlane_e2e::probe::ping;
use podlane_e2e::scenario::Context;
use podlane_e2e::traces::{ensure_no_traces, traces};
use podlane_e2e::traffic::Stream;
use podlane_e2e::wait::{pause, wait_until};

const PROGRAM: &str = env!("CARGO_BIN_EXE_podlane-lab");

pub(crate) fn down_leaves_nothing(context: &mut Context) -> Result<()> {
    let options = context.options_for_own_lab();
    let name = options.name.clone();
    let lab = Lab::up(options)?;
    let interface = lab
        .ledger()
        .state()
        .host_link
        .context("no link to the machine")?
        .interface;
    let _stream = Stream::start(&lab, "pod-ctr-1", "pod-ctr-2", 100)?;
    let _capture = Capture::start(&lab, "router", "eth0", "")?;
    let directory = lab.directory();
    ensure!(
        traces(&name)?.len() > 15,
        "the test sees too little of a lab: {:?}",
        traces(&name)?
    );
    lab.down()?;
    ensure_no_traces(&name)?;
    ensure!(!directory.exists() && !fs::exists(format!("/sys/class/net/{interface}"))?);
    Ok(())
}

pub(crate) fn up_twice(context: &mut Context) -> Result<()> {
    let lab = context.lab()?;
    let before = lab.ledger().state();
    let again = Options {
        extent: Extent::Network,
        ..Options::named(lab.name())
    };
    let Err(error) = Lab::up(again) else {
        bail!("a lab of the same name came up")
    };
    ensure!(
        error.to_string().contains(&lab::down_command(lab.name())),
        "{error:#}"
    );
    let Err(error) = lab::down(lab.name()) else {
        bail!("a lab that is worked with was taken down")
    };
    ensure!(error.to_string().contains("is working with the lab"), "{error:#}");
    ensure!(
        before.processes.iter().all(|process| process.id.runs()),
        "a process has ended"
    );
    ensure!(ping(lab, "pod-ctr-1", lab.pod_address("pod-ctr-2")?, 1)?.all_answered());
    Ok(())
}

pub(crate) fn foreign_namespace(context: &mut Context) -> Result<()> {
    let options = Options {
        extent: Extent::Network,
        ..context.options_for_own_lab()
    };
    let name = options.name.clone();
    let foreign = podlane_e2e::netns::TemporaryNamespace::add(&format!("{name}-pod-w1-2"))?;
    let Err(error) = Lab::up(options) else {
        bail!("the lab came up over a foreign namespace")
    };
    ensure!(format!("{error:#}").contains("make lab-down"), "{error:#}");
    ensure!(foreign.exists(), "the foreign namespace is gone");
    drop(foreign);
    ensure_no_traces(&name)
}

fn start_up(name: &str) -> Result<Child> {
    let mut command = Command::new(PROGRAM);
    command
        .args(["--name", name, "up", "--no-podlane"])
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.spawn().context("cannot start podlane-lab")
}

fn signal(child: &Child, signal: Signal) -> Result<()> {
    Ok(kill(Pid::from_raw(i32::try_from(child.id())?), signal)?)
}

fn run_down(name: &str) -> Result<Output> {
    Command::new(PROGRAM)
        .args(["--name", name, "down"])
        .output()
        .context("cannot run podlane-lab")
}

pub(crate) fn killed_up(context: &mut Context) -> Result<()> {
    // In the middle of the namespaces, of the programs' start, of the wait for the API server; and whole.
    for milliseconds in [
        Some(70),
        Some(110),
        Some(150),
        Some(200),
        Some(300),
        Some(600),
        Some(1500),
        Some(3000),
        None,
    ] {
        let name = context.options_for_own_lab().name;
        let mut child = start_up(&name)?;
        match milliseconds {
            Some(milliseconds) => {
                pause(Duration::from_millis(milliseconds))?;
                signal(&child, Signal::SIGKILL)?;
                child.wait()?;
            }
            None => ensure!(child.wait()?.success(), "the lab did not come up"),
        }
        let left = traces(&name)?.len();
        let output = run_down(&name)?;
        let when = || format!("killed after {milliseconds:?} ms, with {left} traces");
        ensure!(
            output.status.success(),
            "{}: {}",
            when(),
            String::from_utf8_lossy(&output.stderr)
        );
        ensure_no_traces(&name).with_context(when)?;
    }
    Ok(())
}

pub(crate) fn interrupted_up(context: &mut Context) -> Result<()> {
    for milliseconds in [120, 1000] {
        let name = context.options_for_own_lab().name;
        let mut child = start_up(&name)?;
        pause(Duration::from_millis(milliseconds))?;
        signal(&child, Signal::SIGTERM)?;
        let start = Instant::now();
        let status = child.wait()?;
        ensure!(!status.success(), "an interrupted up has ended well");
        ensure!(
            start.elapsed() < Duration::from_secs(60),
            "it took {:?}",
            start.elapsed()
        );
        ensure_no_traces(&name).with_context(|| format!("after {milliseconds} ms"))?;
    }
    Ok(())
}

pub(crate) fn killed_foreground(context: &mut Context) -> Result<()> {
    let name = context.options_for_own_lab().name;
    let mut command = Command::new(PROGRAM);
    command
        .args(["--name", &name, "up", "--no-podlane", "--foreground"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut child = command.spawn().context("cannot start podlane-lab")?;
    let output = child.stdout.take().context("no output of podlane-lab")?;
    let mut lines = BufReader::new(output).lines();
    let up = lines.find(|line| line.as_ref().map_or(true, |line| line.starts_with("Ctrl-C")));
    ensure!(up.is_some(), "the lab did not come up");
    let processes = ledger::read(&name)?.context("the lab has no ledger")?.processes;
    ensure!(
        processes.len() == 2 && processes.iter().all(|process| process.id.runs()),
        "{processes:?}"
    );
    signal(&child, Signal::SIGKILL)?;
    child.wait()?;
    wait_until("the lab's processes to end", Duration::from_secs(20), || {
        ensure!(
            !processes.iter().any(|process| process.id.runs()),
            "{processes:?}"
        );
        Ok(())
    })?;
    // The namespaces wait for the next test program, or for somebody who takes the lab down.
    ensure!(lab::down_orphans()?.contains(&name), "the lab was no orphan");
    ensure_no_traces(&name)
}
