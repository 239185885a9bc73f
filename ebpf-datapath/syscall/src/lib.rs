//! The few commands of bpf(2) that aya does not offer.
//!
//! aya reads a map one entry a system call, which at 5,000 peers is 30,000 calls; here it is a handful. For each element of a per-CPU map aya reads a file that tells how many
//! CPUs there are. aya does not say on which device
//! a link is, and asks for the programs of a hook by number, for which a process needs `CAP_SYS_ADMIN`. And membarrier(2), by which programs that run are waited for.

mod call;
mod grace;
mod map;
mod tcx;

pub use grace::running_programs_have_ended;
pub use map::{MapShape, PerCpu, entries, shape};
pub use tcx::{Hook, TcxLink, detach, link, programs};

use std::ffi::CString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Opens what is pinned at a path.
///
/// # Errors
/// The kernel's: there is nothing (`NotFound`), it is no pin, or it may not be read.
pub fn open(pin: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(pin.as_os_str().as_bytes())?;
    call::open(&path)
}
