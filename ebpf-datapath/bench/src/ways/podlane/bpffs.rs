//! A BPF file system that no mount namespace has: it is reached by a file descriptor alone, and gone with it, however this process ends.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::thread;

use anyhow::{Context, Result, anyhow};
use nix::fcntl::{OFlag, open};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;

/// Where it is mounted for the moment in which it is opened, seen by the thread that does so only.
const MOUNT_POINT: &str = "/tmp";

/// The file system.
pub(super) struct BpfFs(OwnedFd);

impl BpfFs {
    /// Makes one.
    ///
    /// # Errors
    /// No permission.
    pub(super) fn new() -> Result<Self> {
        let mounting = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS).context("no mount namespace")?;
            let none = None::<&str>;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
                .context("cannot keep mounts to this thread")?;
            mount(Some("bpf"), MOUNT_POINT, Some("bpf"), MsFlags::empty(), none)
                .context("no BPF file system can be mounted")?;
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            open(MOUNT_POINT, flags, Mode::empty()).context("cannot open the BPF file system")
        });
        let opened = mounting.join().map_err(|_| anyhow!("mounting panicked"))??;
        Ok(Self(opened))
    }

    /// A path to its root, good for this process.
    pub(super) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd()))
    }
}
