//! What Podlane's processes in the cluster take of memory and processors.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::Cluster;
use super::cgroups;
use crate::control_plane::SYSTEM_NAMESPACE;
use crate::wait::pause;

/// What one process took while it was looked at.
#[derive(Clone, Debug, PartialEq)]
pub struct Usage {
    /// Its number.
    pub pid: i32,
    /// Its resident memory at the end, in KiB.
    pub resident_kib: u64,
    /// Of that, what is its own and not a file's (its program's).
    pub anonymous_kib: u64,
    /// How much of one processor it took, in percent.
    pub processor_percent: f64,
}

impl Cluster {
    /// The numbers, on the machine itself, of a program's processes in all of the cluster's containers.
    pub fn processes_of(&self, program: &str) -> Result<Vec<i32>> {
        Ok(cgroups::processes_within(&self.cgroup())?
            .into_iter()
            .filter(|pid| {
                fs::read_to_string(format!("/proc/{pid}/comm"))
                    .is_ok_and(|name| is_called(name.trim(), program))
            })
            .collect())
    }

    /// What the first process of each of Podlane's pods of a component (`agent`, `operator`) takes, over a while. (A pod's probe is another
    /// process of the same program, for a moment.)
    pub fn usage_of(&self, component: &str, during: Duration) -> Result<Vec<Usage>> {
        let processes: Vec<i32> = self
            .podlane_pods(component)?
            .iter()
            .map(|(pod, _)| self.pod_process(SYSTEM_NAMESPACE, pod))
            .collect::<Result<_>>()?;
        let start = Instant::now();
        let before: Vec<Duration> = processes
            .iter()
            .map(|&pid| processor_time(pid))
            .collect::<Result<_>>()?;
        pause(during)?;
        let elapsed = start.elapsed();
        processes
            .iter()
            .zip(before)
            .map(|(&pid, before)| {
                let taken = processor_time(pid)?.saturating_sub(before);
                Ok(Usage {
                    pid,
                    resident_kib: memory(pid, "VmRSS")?,
                    anonymous_kib: memory(pid, "RssAnon")?,
                    processor_percent: 100.0 * taken.as_secs_f64() / elapsed.as_secs_f64(),
                })
            })
            .collect()
    }
}

/// The kernel keeps 15 characters of a program's name.
fn is_called(comm: &str, program: &str) -> bool {
    comm == program.get(..15).unwrap_or(program)
}

/// From /proc/PID/schedstat: nanoseconds, where /proc/PID/stat counts whole ticks.
fn processor_time(pid: i32) -> Result<Duration> {
    let mut nanoseconds = 0;
    let tasks = format!("/proc/{pid}/task");
    for task in fs::read_dir(&tasks).with_context(|| tasks.clone())? {
        // A thread may end at any moment.
        let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) else {
            continue;
        };
        let first = text
            .split(' ')
            .next()
            .and_then(|number| number.parse::<u64>().ok());
        nanoseconds += first.context("a schedstat of unknown form")?;
    }
    Ok(Duration::from_nanos(nanoseconds))
}

fn memory(pid: i32, field: &str) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    text.lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
        .and_then(|value| value.trim().strip_suffix(" kB")?.trim().parse().ok())
        .with_context(|| format!("{path} has no {field}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_memory_and_time_are_read_and_long_names_are_known() {
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(memory(own, "VmRSS").unwrap() > 100);
        assert!(processor_time(own).unwrap() > Duration::ZERO);
        assert!(is_called("podlane-operato", "podlane-operator"));
        assert!(is_called("podlane-agent", "podlane-agent"));
        assert!(!is_called("podlane-agent", "podlane-operator"));
    }
}
