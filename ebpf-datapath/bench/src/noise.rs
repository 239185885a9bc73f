//! What else the machine did during a sample: time that other processes took, and time that the hypervisor did not give.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// A sample during which others took more than this share of one processor's time is worth nothing.
pub const LIMIT: f64 = 0.08;

/// What /proc/stat and the processes' own /proc/PID/stat count in, a second (`USER_HZ`, proc(5)).
const TICKS: f64 = 100.0;

/// The parent of all kernel threads, kthreadd.
const KERNEL: u32 = 2;

/// A process's times, in ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Times {
    parent: u32,
    started: u64,
    /// Its own, of all its threads.
    own: u64,
    /// Those of its children that have ended and been waited for.
    children: u64,
}

/// The machine's times, in ticks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Machine {
    busy: u64,
    steal: u64,
}

/// What had been used when it was taken.
#[derive(Debug)]
pub struct Before {
    taken: Instant,
    machine: Machine,
    /// When reading the processes began: on a busy machine that takes its time, and its own span counts for them.
    scanned: Instant,
    processes: BTreeMap<u32, Times>,
}

/// What happened on the machine during a sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct During {
    /// Processor time of the measurement itself, with the kernel's work for it.
    pub own: Duration,
    /// Time of other processes and of the hypervisor, as a share of one processor.
    pub foreign: f64,
}

impl Before {
    /// Reads everything now.
    ///
    /// # Errors
    /// Where /proc is not as proc(5) says.
    pub fn now() -> Result<Self> {
        let scanned = Instant::now();
        let processes = processes()?;
        Ok(Self {
            machine: machine()?,
            taken: Instant::now(),
            scanned,
            processes,
        })
    }

    /// What happened since.
    ///
    /// # Errors
    /// Where /proc is not as proc(5) says.
    pub fn until_now(self) -> Result<During> {
        let elapsed = self.taken.elapsed().as_secs_f64();
        let machine = machine()?;
        let scanned = self.scanned.elapsed().as_secs_f64();
        let others = foreign_ticks(&self.processes, &processes()?, std::process::id());
        // Shares of one processor.
        let others = others as f64 / TICKS / scanned;
        let stolen = machine.steal.saturating_sub(self.machine.steal) as f64 / TICKS / elapsed;
        let busy = machine.busy.saturating_sub(self.machine.busy) as f64 / TICKS;
        Ok(During {
            own: Duration::from_secs_f64((busy - others * elapsed).max(0.0)),
            foreign: others + stolen,
        })
    }
}

/// What processes other than `own` and the kernel's used between two readings. Short-lived ones are found with those who waited
/// for them.
fn foreign_ticks(before: &BTreeMap<u32, Times>, after: &BTreeMap<u32, Times>, own: u32) -> u64 {
    let is_foreign = |pid: u32, times: &Times| {
        pid != own && times.parent != own && pid != KERNEL && times.parent != KERNEL
    };
    let lives = |pid: u32| {
        let times = |all: &BTreeMap<u32, Times>| all.get(&pid).map(|times| times.started);
        times(after).is_some_and(|started| times(before).is_none_or(|then| then == started))
    };
    // A process that has ended: what it had used before this began is now in the sum of its next living ancestor, if each of those
    // between has waited for its children.
    let mut inherited: BTreeMap<u32, u64> = BTreeMap::new();
    for (pid, times) in before.iter().filter(|(pid, _)| !lives(**pid)) {
        let mut heir = times.parent;
        // Numbers that were read at different moments might form a circle.
        for _ in 0..before.len() {
            match before.get(&heir) {
                Some(ended) if heir != *pid && !lives(heir) => heir = ended.parent,
                _ => break,
            }
        }
        *inherited.entry(heir).or_default() += times.own + times.children;
    }
    after
        .iter()
        .filter(|(pid, times)| is_foreign(**pid, times))
        .map(|(pid, times)| {
            let known = before.get(pid).filter(|then| then.started == times.started);
            let (own, children) = known.map_or((0, 0), |then| (then.own, then.children));
            let waited_for = times.children.saturating_sub(children);
            times.own.saturating_sub(own)
                + waited_for.saturating_sub(inherited.get(pid).copied().unwrap_or_default())
        })
        .sum()
}

fn machine() -> Result<Machine> {
    let text = fs::read_to_string("/proc/stat").context("/proc/stat")?;
    let first = text.lines().next().unwrap_or_default();
    parse_machine(first).with_context(|| format!("/proc/stat begins with {first:?}"))
}

/// `cpu user nice system idle iowait irq softirq steal …`
fn parse_machine(line: &str) -> Option<Machine> {
    let columns: Vec<u64> = line
        .strip_prefix("cpu ")?
        .split_whitespace()
        .map(|column| column.parse().ok())
        .collect::<Option<_>>()?;
    let [user, nice, system, _idle, _iowait, irq, softirq, steal, ..] = columns[..] else {
        return None;
    };
    Some(Machine {
        busy: user + nice + system + irq + softirq,
        steal,
    })
}

fn processes() -> Result<BTreeMap<u32, Times>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir("/proc").context("/proc")? {
        let path = entry.context("/proc")?.path();
        let pid = path.file_name().and_then(|name| name.to_str()?.parse().ok());
        // A process may end at any moment.
        if let Some(pid) = pid
            && let Ok(text) = fs::read_to_string(path.join("stat"))
            && let Some(times) = parse_process(&text)
        {
            found.insert(pid, times);
        }
    }
    Ok(found)
}

/// `pid (name) state ppid …`; the name may have anything in it, also parentheses.
fn parse_process(text: &str) -> Option<Times> {
    let (_, rest) = text.rsplit_once(')')?;
    // The third column of proc(5) is the first here.
    let columns: Vec<&str> = rest.split_whitespace().collect();
    let number = |column: usize| columns.get(column - 3)?.parse::<u64>().ok();
    Some(Times {
        parent: u32::try_from(number(4)?).ok()?,
        started: number(22)?,
        own: number(14)? + number(15)?,
        children: number(16)? + number(17)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: u32 = 100;

    fn times(parent: u32, own: u64, children: u64) -> Times {
        Times {
            parent,
            started: 1,
            own,
            children,
        }
    }

    #[test]
    fn own_time_and_the_kernels_are_not_foreign() {
        let before = BTreeMap::from([(2, times(0, 0, 0)), (16, times(2, 5, 0)), (OWN, times(1, 0, 0))]);
        let after = BTreeMap::from([(2, times(0, 3, 0)), (16, times(2, 90, 0)), (OWN, times(1, 70, 9))]);
        assert_eq!(foreign_ticks(&before, &after, OWN), 0);
    }

    #[test]
    fn what_others_used_and_their_short_lived_children_count() {
        let before = BTreeMap::from([(7, times(1, 10, 4))]);
        let after = BTreeMap::from([(7, times(1, 12, 9)), (8, times(7, 3, 0))]);
        assert_eq!(foreign_ticks(&before, &after, OWN), 2 + 5 + 3);
    }

    #[test]
    fn a_child_that_ends_does_not_bring_its_past() {
        let before = BTreeMap::from([(7, times(1, 10, 0)), (8, times(7, 1000, 0))]);
        let after = BTreeMap::from([(7, times(1, 10, 1003))]);
        assert_eq!(foreign_ticks(&before, &after, OWN), 3);
    }

    #[test]
    fn a_whole_family_that_ends_does_not_bring_its_past() {
        let before = BTreeMap::from([
            (7, times(1, 10, 0)),
            (8, times(7, 20, 300)),
            (9, times(8, 1000, 0)),
        ]);
        let after = BTreeMap::from([(7, times(1, 10, 1320 + 5))]);
        assert_eq!(foreign_ticks(&before, &after, OWN), 5);
    }

    #[test]
    fn a_number_that_is_used_again_is_another_process() {
        let before = BTreeMap::from([(8, times(7, 1000, 0))]);
        let mut again = times(7, 2, 0);
        again.started = 9;
        assert_eq!(foreign_ticks(&before, &BTreeMap::from([(8, again)]), OWN), 2);
    }

    #[test]
    fn names_may_have_parentheses_and_blanks() {
        let text = "77 (a) b (c) S 5 77 77 0 -1 4194304 1 2 3 4 11 12 13 14 20 0 1 0 4242 1 1";
        assert_eq!(
            parse_process(text),
            Some(Times {
                parent: 5,
                started: 4242,
                own: 23,
                children: 27
            })
        );
    }

    #[test]
    fn the_machines_columns_are_told_apart() {
        let machine = parse_machine("cpu  1 2 3 1000 2000 4 5 6 0 0").unwrap();
        assert_eq!(machine, Machine { busy: 15, steal: 6 });
        assert_eq!(parse_machine("cpu0 1 2"), None);
    }

    #[test]
    fn this_machine_can_be_read() {
        let during = Before::now().unwrap().until_now().unwrap();
        assert!(during.foreign >= 0.0);
    }
}
