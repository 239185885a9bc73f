//! Programs on a device's hooks (tcx, Linux 6.6).

use crate::call;
use std::io;
use std::os::fd::BorrowedFd;

/// A hook of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    /// What the device receives.
    Ingress,
    /// What it is to send.
    Egress,
}

impl Hook {
    /// `enum bpf_attach_type`, include/uapi/linux/bpf.h.
    const fn attach_type(self) -> u32 {
        match self {
            Self::Ingress => 46,
            Self::Egress => 47,
        }
    }
}

/// A program's attachment to a hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcxLink {
    /// The program's number.
    pub program: u32,
    /// The device's index; none: the device is gone.
    pub interface: Option<u32>,
    /// The hook.
    pub hook: Hook,
}

/// `BPF_LINK_TYPE_TCX`.
const TCX: u32 = 11;

/// Where a link is; none where it is no tcx link.
///
/// # Errors
/// The kernel's, as when the descriptor is no link's.
pub fn link(link: BorrowedFd<'_>) -> io::Result<Option<TcxLink>> {
    // The part for tcx begins at an address that eight divides.
    let [kind, _id, program, _gap, interface, attach_type] = call::info(link)?;
    let hook = [Hook::Ingress, Hook::Egress]
        .into_iter()
        .find(|hook| hook.attach_type() == attach_type);
    Ok(hook.filter(|_| kind == TCX).map(|hook| TcxLink {
        program,
        interface: Some(interface).filter(|index| *index != 0),
        hook,
    }))
}

/// Takes a link off its hook at once. (When a link's last pin and descriptor go, the kernel does so some time later.)
///
/// # Errors
/// The kernel's, as when the descriptor is no link's.
pub fn detach(link: BorrowedFd<'_>) -> io::Result<()> {
    call::detach(link)
}

/// The numbers of the programs on a hook, in the order in which they run.
///
/// # Errors
/// `InvalidInput` where the kernel has no tcx; and the kernel's other ones, as when there is no such device.
pub fn programs(interface: u32, hook: Hook) -> io::Result<Vec<u32>> {
    call::query(interface, hook.attach_type())
}
