//! Which thread runs where.

use anyhow::{Context, Result};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

/// Where senders run, and both ends of a round trip.
pub(super) const SENDING: usize = 0;

/// Where receivers run.
pub(super) const RECEIVING: usize = 1;

/// Ties the calling thread to a processor, or to the first where the machine has only one.
pub(super) fn stay_on(processor: usize) -> Result<()> {
    let there = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut set = CpuSet::new();
    set.set(processor.min(there - 1))
        .context("a processor's number")?;
    sched_setaffinity(Pid::from_raw(0), &set).context("cannot stay on one processor")
}
