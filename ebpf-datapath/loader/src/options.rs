//! What can be chosen when programs are loaded.

use std::time::Duration;

/// What can be chosen when programs are loaded. Another number of entries makes new maps: counters begin anew and flows are noted anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Peers that have a place, at least 1. Networks have four times as many.
    pub peers: u32,
    /// Flows of each family that may be known at once, at least 1; the least recently used make room.
    pub flows: u32,
    /// How long a flow that the stack let through may bypass it.
    pub lease: Duration,
    /// Whether to attach by filters of a clsact queueing discipline even where the kernel has tcx. To be chosen before anything is attached: [`crate::clean`]
    /// comes between one way and the other.
    pub clsact: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            peers: 8192,
            flows: 65_536,
            lease: Duration::from_secs(1),
            clsact: false,
        }
    }
}
