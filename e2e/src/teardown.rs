//! Takes a lab down by its ledger alone, and looks whether anything is left: the same for a lab that ends by itself, one
//! that is taken down from outside, and one whose process was killed.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use crate::cluster::cgroups;
use crate::ledger::{self, BaseLock, ProcessId, StartedProcess, State};
use crate::netns::{self, Namespace};
use crate::process::send;

/// Ends the lab's processes, deletes its links, namespaces, mounts and files, then looks for what is left. Fails when
/// something is; the ledger then stays, so that taking the lab down can be tried again.
pub fn take_down(state: &State) -> Result<()> {
    let mut failures = Vec::new();
    let mut note = |result: Result<()>| {
        if let Err(error) = result {
            failures.push(format!("{error:#}"));
        }
    };

    note(end_processes(&state.processes));
    // What a container runtime has started is nobody's child, and outlives it.
    for cgroup in &state.cgroups {
        note(cgroups::kill_within(cgroup).and_then(|()| cgroups::remove(cgroup)));
    }
    let namespaces: Vec<Namespace> = state.namespaces.iter().map(Namespace::named).collect();
    let inodes: BTreeMap<u64, &Namespace> = namespaces
        .iter()
        .filter_map(|namespace| Some((namespace.inode().ok()?, namespace)))
        .collect();
    // Looked at while the namespaces are there: of one that is gone another lab's may have the number.
    let strangers = processes_within(&inodes).unwrap_or_else(|error| {
        note(Err(error));
        Vec::new()
    });
    if let Some(link) = &state.host_link
        && has_interface(&link.interface)
    {
        note(netns::ip(None, &["link", "delete", &link.interface]).map(drop));
    }
    for namespace in namespaces.iter().filter(|namespace| namespace.exists()) {
        note(namespace.delete());
    }
    note(
        mounts_below(&state.directory)
            .and_then(|mounts| mounts.iter().rev().try_for_each(|mount| unmount(mount))),
    );
    note(remove_directory(&state.directory));

    note(find_remains(state, &namespaces, &strangers));
    if !failures.is_empty() {
        bail!(
            "the lab {} could not be taken down whole:\n  {}",
            state.lab,
            failures.join("\n  ")
        );
    }
    end_ledger(state)
}

/// Asks the processes to end, all at once, then kills those that have not.
fn end_processes(processes: &[StartedProcess]) -> Result<()> {
    let running = || processes.iter().filter(|process| process.id.runs());
    for process in running() {
        let signal = if process.asked_to_end {
            Signal::SIGTERM
        } else {
            Signal::SIGKILL
        };
        // One that has ended in between needs no signal.
        let _ = send(process.id, signal);
        let _ = send(process.id, Signal::SIGCONT);
    }
    let names = || {
        running()
            .map(|process| format!("{} ({})", process.name, process.id.pid))
            .collect::<Vec<_>>()
    };
    let ended = || {
        let names = names();
        if names.is_empty() {
            Ok(())
        } else {
            bail!("{} still runs", names.join(", "))
        }
    };
    if patiently(Duration::from_secs(3), ended).is_err() {
        for process in running() {
            let _ = send(process.id, Signal::SIGKILL);
        }
    }
    patiently(Duration::from_secs(30), ended)
}

/// Waits although the program is asked to end: that is why it takes the lab down.
fn patiently(limit: Duration, mut attempt: impl FnMut() -> Result<()>) -> Result<()> {
    let end = Instant::now() + limit;
    loop {
        match attempt() {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() >= end => return Err(error),
            Err(_) => sleep(Duration::from_millis(5)),
        }
    }
}

fn has_interface(name: &str) -> bool {
    Path::new("/sys/class/net").join(name).exists()
}

/// The mount points below a directory, outer ones first.
fn mounts_below(directory: &Path) -> Result<Vec<String>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("/proc/self/mountinfo")?;
    Ok(mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .filter(|mount| Path::new(mount).starts_with(directory))
        .map(str::to_owned)
        .collect())
}

fn unmount(mount: &str) -> Result<()> {
    let output = Command::new("umount")
        .arg(mount)
        .process_group(0)
        .output()
        .context("cannot run umount")?;
    if !output.status.success() {
        bail!(
            "umount {mount}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}

fn remove_directory(directory: &Path) -> Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", directory.display()))
        }
        _ => Ok(()),
    }
}

/// An error that names everything of the lab that is still there.
fn find_remains(state: &State, namespaces: &[Namespace], strangers: &[(ProcessId, String)]) -> Result<()> {
    let mut remains = Vec::new();
    remains.extend(
        namespaces
            .iter()
            .filter(|namespace| namespace.exists())
            .map(|name| format!("network namespace {}", name.name())),
    );
    remains.extend(
        state
            .processes
            .iter()
            .filter(|process| process.id.runs())
            .map(|it| format!("process {} {}", it.id.pid, it.name)),
    );
    remains.extend(
        strangers
            .iter()
            .filter(|(id, _)| id.runs())
            .map(|(_, what)| what.clone()),
    );
    if let Some(link) = &state.host_link
        && has_interface(&link.interface)
    {
        remains.push(format!("interface {}", link.interface));
    }
    remains.extend(
        mounts_below(&state.directory)?
            .into_iter()
            .map(|mount| format!("mount {mount}")),
    );
    for namespace in namespaces {
        remains.extend(
            mounts_below(&namespace.path())?
                .into_iter()
                .map(|mount| format!("mount {mount}")),
        );
    }
    for cgroup in &state.cgroups {
        remains.extend(
            cgroups::remains(cgroup)?
                .iter()
                .map(|place| format!("control group {}", place.display())),
        );
    }
    if state.directory.exists() {
        remains.push(format!("directory {}", state.directory.display()));
    }
    if !remains.is_empty() {
        bail!("left over: {}", remains.join(", "));
    }
    Ok(())
}

/// Processes that the lab did not start but that are in its namespaces, such as a shell somebody opened there.
fn processes_within(inodes: &BTreeMap<u64, &Namespace>) -> Result<Vec<(ProcessId, String)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("/proc")? {
        let path = entry.context("/proc")?.path();
        // Only processes have this, and one may end at any moment.
        let Ok(target) = fs::read_link(path.join("ns/net")) else {
            continue;
        };
        let target = target.to_string_lossy();
        let inode = target
            .strip_prefix("net:[")
            .and_then(|rest| rest.strip_suffix(']')?.parse().ok());
        let number = path.file_name().and_then(|name| name.to_str()?.parse().ok());
        if let Some(namespace) = inode.and_then(|inode: u64| inodes.get(&inode))
            && let Some(id) = number.and_then(|number| ProcessId::of(number).ok())
        {
            let program = fs::read_to_string(path.join("comm")).unwrap_or_default();
            let what = format!(
                "process {} ({}), which the lab did not start, in {}: end it yourself",
                id.pid,
                program.trim(),
                namespace.name()
            );
            found.push((id, what));
        }
    }
    Ok(found)
}

/// Removes the ledger, and with the last one what all labs share.
fn end_ledger(state: &State) -> Result<()> {
    let _lock = BaseLock::take()?;
    remove_directory(&ledger::directory_of(&state.lab))?;
    if !ledger::labs()?.is_empty() {
        return Ok(());
    }
    let marker = netns_mount_marker();
    if marker.exists() {
        fs::remove_file(&marker).with_context(|| format!("cannot remove {}", marker.display()))?;
        // Namespaces that others have made meanwhile keep it.
        if fs::read_dir(netns::DIRECTORY).is_ok_and(|mut names| names.next().is_none()) {
            unmount(netns::DIRECTORY)?;
            fs::remove_dir(netns::DIRECTORY)
                .with_context(|| format!("cannot remove {}", netns::DIRECTORY))?;
        }
    }
    remove_directory(Path::new(ledger::BASE))
}

/// There when /run/netns was no mount point before the first lab.
fn netns_mount_marker() -> PathBuf {
    Path::new(ledger::BASE).join("made-netns-mount")
}

/// Notes that /run/netns is no mount point yet, so that it is none again after the last lab. Call it under the lock of
/// all labs.
pub fn note_netns_mount() -> Result<()> {
    if mounts_below(Path::new(netns::DIRECTORY))?.is_empty() {
        fs::write(netns_mount_marker(), b"").context("cannot note that /run/netns is to be made")?;
    }
    Ok(())
}
