//! Waiting for programs that run.
#![expect(unsafe_code, reason = "membarrier(2) has no safe wrapper")]

use nix::libc;
use std::io;

/// `MEMBARRIER_CMD_GLOBAL` in include/uapi/linux/membarrier.h.
const GLOBAL: libc::c_int = 1;

/// Waits until every program that runs now has ended: some milliseconds. What a map has had before that no program reads any more.
///
/// A program runs within one of RCU's read-side critical sections, and the kernel waits for all of those (`synchronize_rcu` in
/// kernel/sched/membarrier.c).
///
/// # Errors
/// The kernel's: it has no membarrier(2) (`Unsupported`), or it has CPUs without a clock tick (`InvalidInput`).
pub fn running_programs_have_ended() -> io::Result<()> {
    // SAFETY: three integers and no pointer.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, GLOBAL, 0, 0) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
