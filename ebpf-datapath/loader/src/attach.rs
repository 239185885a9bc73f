//! Puts programs on devices' hooks, where they stay without the agent.
//!
//! Ours run last of those that are on a hook when they are attached (tcx: appended; clsact: the highest priority number in use). So whatever
//! others drop is dropped before ours could take a packet past them, and what ours stamp as let through has really been let through. A packet about
//! which ours have nothing to say goes on to whoever attached later.

pub(crate) mod clsact;
mod netlink;
pub(crate) mod tcx;

use crate::loaded::Program;
use crate::pins::Pins;
use crate::place::{Place, Role};
use crate::synced::Synced;
use std::collections::BTreeMap;

/// What attachments are made of.
pub(crate) struct Attachments<'a> {
    pub(crate) pins: &'a Pins,
    pub(crate) programs: &'a mut BTreeMap<Role, Program>,
    pub(crate) tcx: bool,
}

/// Attaches what is declared, replaces what is another program, detaches what is undeclared. True: no program but these is on any hook of ours any more.
pub(crate) fn sync(with: Attachments<'_>, places: &BTreeMap<Place, &str>, synced: &mut Synced) -> bool {
    let before = synced.failures.len();
    if with.tcx {
        tcx::sync(with, places, synced);
    } else {
        clsact::sync(with, places, synced);
    }
    synced.failures.len() == before
}
