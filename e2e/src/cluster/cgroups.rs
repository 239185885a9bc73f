//! The lab's control groups: the tree in which a node's kubelet, runtime and pods run, and by which they are found again.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// What kubelets cannot do without (kubelet, `validateSystemRequirements` of pkg/kubelet/cm).
const NEEDED: [&str; 4] = ["cpu", "cpuacct", "cpuset", "memory"];

/// A mounted hierarchy of control groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// Where it is mounted.
    pub root: PathBuf,
    /// Its controllers; those of version 2 are in the file of that name.
    pub controllers: Vec<String>,
    /// Whether it is version 2.
    pub unified: bool,
}

/// The hierarchies of this machine.
pub fn hierarchies() -> Result<Vec<Hierarchy>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("/proc/self/mountinfo")?;
    let mut found = parse(&mounts);
    for hierarchy in found.iter_mut().filter(|hierarchy| hierarchy.unified) {
        let controllers = fs::read_to_string(hierarchy.root.join("cgroup.controllers")).unwrap_or_default();
        hierarchy.controllers = controllers.split_whitespace().map(str::to_owned).collect();
    }
    Ok(found)
}

/// Of version 1, a mount's options name the controllers, among others.
fn parse(mountinfo: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mountinfo.lines() {
        let Some((before, after)) = line.split_once(" - ") else {
            continue;
        };
        let mut after = after.split(' ');
        let kind = after.next().unwrap_or_default();
        let options = after.nth(1).unwrap_or_default();
        let Some(root) = before.split(' ').nth(4).map(PathBuf::from) else {
            continue;
        };
        if !matches!(kind, "cgroup" | "cgroup2") || found.iter().any(|one| one.root == root) {
            continue;
        }
        let unified = kind == "cgroup2";
        let controllers = if unified { "" } else { options };
        found.push(Hierarchy {
            root,
            controllers: controllers
                .split(',')
                .filter(|word| !word.is_empty())
                .map(str::to_owned)
                .collect(),
            unified,
        });
    }
    found
}

/// What this machine lacks for kubelets in control groups of their own; none when it can have them.
pub fn missing() -> Option<String> {
    let all = match hierarchies() {
        Ok(all) => all,
        Err(error) => return Some(format!("{error:#}")),
    };
    let controllers: BTreeSet<&str> = all
        .iter()
        .flat_map(|hierarchy| &hierarchy.controllers)
        .map(String::as_str)
        .collect();
    // Version 2 has cpuacct in cpu.
    let one_of_version_2 = all
        .iter()
        .any(|it| it.unified && it.controllers.iter().any(|name| name == "cpu"));
    let lacking: Vec<&str> = NEEDED
        .into_iter()
        .filter(|name| !(controllers.contains(name) || (*name == "cpuacct" && one_of_version_2)))
        .collect();
    if !lacking.is_empty() {
        return Some(format!(
            "kubelets need the control group controllers {}, and this machine has none mounted",
            lacking.join(", ")
        ));
    }
    let probe = format!("podlane-probe-{}", std::process::id());
    for hierarchy in &all {
        let path = hierarchy.root.join(&probe);
        if let Err(error) = fs::create_dir(&path).and_then(|()| fs::remove_dir(&path)) {
            return Some(format!(
                "kubelets need control groups, and none can be made in {}: {error}",
                hierarchy.root.display()
            ));
        }
    }
    None
}

/// Makes a control group of that path in every hierarchy, with those above it.
pub fn make(path: &str) -> Result<()> {
    for hierarchy in hierarchies()? {
        let mut place = hierarchy.root.clone();
        for part in Path::new(path) {
            if hierarchy.unified {
                hand_down(&place)?;
            }
            let parent = place.clone();
            place.push(part);
            match fs::create_dir(&place) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(error) => {
                    return Err(error).with_context(|| format!("cannot make {}", place.display()));
                }
            }
            // A new group of version 1 has no processors and no memory, and takes no process until it has.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                let value = parent.join(file);
                if !hierarchy.unified && value.exists() {
                    let value = fs::read_to_string(&value).with_context(|| value.display().to_string())?;
                    fs::write(place.join(file), value.trim())
                        .with_context(|| format!("{}/{file}", place.display()))?;
                }
            }
        }
    }
    Ok(())
}

/// Gives the groups below one of version 2 the controllers that it has itself. One that cannot be handed down is missed later, by name.
fn hand_down(group: &Path) -> Result<()> {
    let controllers = group.join("cgroup.controllers");
    let names =
        fs::read_to_string(&controllers).with_context(|| format!("cannot read {}", controllers.display()))?;
    for name in names.split_whitespace() {
        let _ = fs::write(group.join("cgroup.subtree_control"), format!("+{name}"));
    }
    Ok(())
}

/// The files into which a process writes its number to be in a control group, one of each hierarchy.
pub fn doors(path: &str) -> Result<Vec<PathBuf>> {
    Ok(hierarchies()?
        .into_iter()
        .map(|hierarchy| hierarchy.root.join(path).join("cgroup.procs"))
        .collect())
}

/// Kills everything in a control group and those below it, and waits until nothing is left in them.
pub fn kill_within(path: &str) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let processes = processes_within(path)?;
        if processes.is_empty() {
            return Ok(());
        }
        if Instant::now() >= end {
            bail!("in the control group {path} there still run: {processes:?}");
        }
        for pid in processes {
            // One that has ended in between needs no signal.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        sleep(Duration::from_millis(10));
    }
}

/// The processes in a control group and those below it, whichever hierarchy knows them.
pub fn processes_within(path: &str) -> Result<BTreeSet<i32>> {
    let mut found = BTreeSet::new();
    for hierarchy in hierarchies()? {
        for group in groups_below(&hierarchy.root.join(path)) {
            // A group may go at any moment, with the pod that it was for.
            let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
            found.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
        }
    }
    Ok(found)
}

/// Removes a control group and those below it; nothing may run in them. A group stays busy for a moment after its last process has ended:
/// that is waited for.
pub fn remove(path: &str) -> Result<()> {
    const STAYS_BUSY: Duration = Duration::from_secs(20);
    let begun = Instant::now();
    for hierarchy in hierarchies()? {
        for group in groups_below(&hierarchy.root.join(path)).iter().rev() {
            loop {
                match fs::remove_dir(group) {
                    Err(error)
                        if error.kind() == io::ErrorKind::ResourceBusy && begun.elapsed() < STAYS_BUSY =>
                    {
                        sleep(Duration::from_millis(10));
                    }
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        return Err(error).with_context(|| format!("cannot remove {}", group.display()));
                    }
                    _ => break,
                }
            }
        }
    }
    Ok(())
}

/// Where there is a control group of that path.
pub fn remains(path: &str) -> Result<Vec<PathBuf>> {
    Ok(hierarchies()?
        .into_iter()
        .map(|hierarchy| hierarchy.root.join(path))
        .filter(|place| place.exists())
        .collect())
}

/// A group and all below it, outer ones first.
fn groups_below(group: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut ahead = vec![group.to_owned()];
    while let Some(place) = ahead.pop() {
        let Ok(entries) = fs::read_dir(&place) else {
            continue;
        };
        ahead.extend(
            entries
                .flatten()
                .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                .map(|entry| entry.path()),
        );
        found.push(place);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_of_both_versions_are_found_once_each() {
        let mountinfo = "\
            25 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n\
            30 28 0:26 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
            31 28 0:26 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
            32 28 0:27 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
        let found = parse(mountinfo);
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].root, Path::new("/sys/fs/cgroup/cpu,cpuacct"));
        assert_eq!(found[0].controllers, ["rw", "cpu", "cpuacct"]);
        assert!(!found[0].unified);
        assert!(found[1].unified);
    }

    #[test]
    fn outer_groups_come_before_inner_ones() {
        let directory = std::env::temp_dir().join(format!("podlane-groups-{}", std::process::id()));
        fs::create_dir_all(directory.join("a/b")).unwrap();
        let found = groups_below(&directory);
        fs::remove_dir_all(&directory).unwrap();
        assert_eq!(
            found,
            [directory.clone(), directory.join("a"), directory.join("a/b")]
        );
    }
}
