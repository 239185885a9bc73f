//! What a lab has made, on disk before it is made, so that a lab that was killed can be taken down by another process.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

/// Where the ledgers of all labs are: one directory for each lab, named after it.
pub const BASE: &str = "/run/podlane-lab";

/// A process that cannot be mistaken for a later one with the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// The process's number.
    pub pid: i32,
    /// When it started, in clock ticks since boot (field 22 of /proc/PID/stat).
    pub start_time: u64,
}

impl ProcessId {
    /// The process that has this number now.
    pub fn of(pid: i32) -> io::Result<Self> {
        let (start_time, _) = read_stat(pid)?;
        Ok(Self { pid, start_time })
    }

    /// This very process.
    pub fn own() -> io::Result<Self> {
        let pid = i32::try_from(std::process::id()).map_err(io::Error::other)?;
        Self::of(pid)
    }

    /// Whether the process runs; one that has ended and was not yet waited for does not.
    pub fn runs(&self) -> bool {
        read_stat(self.pid)
            .is_ok_and(|(start_time, state)| start_time == self.start_time && !matches!(state, 'Z' | 'X'))
    }
}

/// Start time and state of a process.
fn read_stat(pid: i32) -> io::Result<(u64, char)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse_stat(&stat).ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat has an unknown form")))
}

fn parse_stat(stat: &str) -> Option<(u64, char)> {
    // The second field is the program's name in parentheses and may itself have spaces and parentheses.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let start_time = fields.nth(18)?.parse().ok()?;
    Some((start_time, state))
}

/// A process that the lab started.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StartedProcess {
    /// What the lab calls it, as in its log's name.
    pub name: String,
    /// Which process it is.
    pub id: ProcessId,
    /// Whether it is asked to end (SIGTERM) before it is killed.
    pub asked_to_end: bool,
}

/// The one link between the machine's own network namespace and the lab.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HostLink {
    /// The interface in the machine's own namespace.
    pub interface: String,
    /// Its network: the first address is the machine's, the second the lab's.
    pub network: Ipv4Net,
}

/// What a lab has made, or was about to make.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct State {
    /// The lab's name.
    pub lab: String,
    /// The process that made the lab.
    pub owner: ProcessId,
    /// Whether the lab stays when that process has ended.
    pub outlives_owner: bool,
    /// Where the lab's files are: logs, certificates, etcd's data.
    pub directory: PathBuf,
    /// The names of its network namespaces.
    pub namespaces: Vec<String>,
    /// The link to the machine's own namespace.
    pub host_link: Option<HostLink>,
    /// Its processes.
    pub processes: Vec<StartedProcess>,
    /// Its control groups, as paths below each hierarchy's root. What is in them is the lab's, whoever started it.
    #[serde(default)]
    pub cgroups: Vec<String>,
}

impl State {
    /// Whether the process that made the lab still works with it, so that nobody else may take it down.
    pub fn is_held(&self) -> bool {
        self.owner.runs()
    }
}

/// The state of a lab, written to disk at each change.
#[derive(Debug)]
pub struct Ledger {
    state: Mutex<State>,
}

impl Ledger {
    /// Begins a ledger. The lab's directory in `BASE` is made by this.
    pub fn begin(state: State) -> Result<Self> {
        fs::create_dir_all(directory_of(&state.lab))
            .context("cannot make the directory of the lab's ledger")?;
        write(&state)?;
        Ok(Self {
            state: Mutex::new(state),
        })
    }

    /// Changes the state, in memory and on disk.
    pub fn change(&self, change: impl FnOnce(&mut State)) -> Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut state);
        write(&state)
    }

    /// The state as it is now.
    pub fn state(&self) -> State {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The directory of a lab's ledger.
pub fn directory_of(lab: &str) -> PathBuf {
    Path::new(BASE).join(lab)
}

/// The state of the lab called `lab`; none when there is no such lab.
pub fn read(lab: &str) -> Result<Option<State>> {
    let path = directory_of(lab).join("state.json");
    match fs::read(&path) {
        Ok(bytes) => Ok(Some(
            serde_json::from_slice(&bytes).with_context(|| format!("cannot read {}", path.display()))?,
        )),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// The names of all labs that have a ledger.
pub fn labs() -> Result<Vec<String>> {
    let entries = match fs::read_dir(BASE) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).context(BASE),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.context(BASE)?;
        if entry.path().is_dir() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

fn write(state: &State) -> Result<()> {
    let directory = directory_of(&state.lab);
    let partial = directory.join("state.json.partial");
    let json = serde_json::to_vec_pretty(state).context("cannot encode the lab's ledger")?;
    fs::write(&partial, json).with_context(|| format!("cannot write {}", partial.display()))?;
    fs::rename(&partial, directory.join("state.json")).context("cannot write the lab's ledger")
}

/// Held while names and addresses that all labs share are chosen or given back.
#[derive(Debug)]
pub struct BaseLock {
    // The lock goes with the file.
    _file: File,
}

impl BaseLock {
    /// Waits for the lock.
    pub fn take() -> Result<Self> {
        let path = Path::new(BASE).join("lock");
        loop {
            fs::create_dir_all(BASE).with_context(|| format!("cannot make {BASE}"))?;
            let file = match File::create(&path) {
                Ok(file) => file,
                // The last lab was taken down in between, and the directory with it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error).with_context(|| format!("cannot make {}", path.display())),
            };
            file.lock()
                .with_context(|| format!("cannot lock {}", path.display()))?;
            let held = file.metadata().context("the lock of all labs")?;
            if fs::metadata(&path).is_ok_and(|current| current.ino() == held.ino()) {
                return Ok(Self { _file: file });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_name_with_spaces_and_parentheses_does_not_shift_the_fields() {
        let stat = "42 (a (b) c) S 1 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 4096 10 18446744073709551615";
        assert_eq!(parse_stat(stat), Some((987_654, 'S')));
    }

    #[test]
    fn the_own_process_runs_and_one_with_another_start_time_does_not() {
        let own = ProcessId::own().unwrap();
        assert!(own.runs());
        assert!(
            !ProcessId {
                start_time: own.start_time + 1,
                ..own
            }
            .runs()
        );
    }
}
