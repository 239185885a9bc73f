//! What came of a pass.

use crate::failure::Failure;
use podlane_bpf_syscall::Hook;

/// Something declared that is not in effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfinished {
    /// What.
    pub what: String,
    /// Why not.
    pub why: Failure,
}

/// Other people's programs that run after ours on a hook: a packet that we redirect does not reach them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Followers {
    /// The device.
    pub device: String,
    /// The hook.
    pub hook: Hook,
    /// The programs' numbers, as `bpftool prog` shows them.
    pub programs: Vec<u32>,
}

/// What came of a pass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Synced {
    /// How many things were changed: entries of maps, settings, attachments, pins. 0: all was as declared.
    pub applied: usize,
    /// What is declared and not in effect.
    pub failures: Vec<Unfinished>,
    /// Whether the maps hold all that is declared and has a place: programs know of every lane that is to be open.
    pub told: bool,
    /// The generation of the settings in force; 0: closed.
    pub generation: u32,
    /// Where other people's programs run after ours (tcx only): they attached later. Flows that bypass the stack there bypass them.
    pub followers: Vec<Followers>,
}

impl Synced {
    pub(crate) fn took(&mut self, what: impl FnOnce() -> String, result: Result<(), Failure>) {
        match result {
            Ok(()) => self.applied += 1,
            Err(why) => self.failures.push(Unfinished { what: what(), why }),
        }
    }
}
