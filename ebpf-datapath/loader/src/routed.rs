//! A word that a boot takes back: this node has its routes, and pods may be connected.
//!
//! A BPF file system is empty after each boot and holds no plain files, but symbolic links (`bpf_symlink` in kernel/bpf/inode.c). One that leads to
//! an empty file is what others can open from then on, and nothing before.

use crate::failure::Failure;
use crate::pins::{Pins, make, unpin};
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

const EMPTY: &str = "/dev/null";

/// Where it is said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Routed {
    path: PathBuf,
}

impl Routed {
    /// Below a directory on a bpffs, which need not be there yet.
    ///
    /// # Errors
    /// The directory is on no bpffs: elsewhere the word would outlive a boot.
    pub fn below(directory: &Path) -> Result<Self, Failure> {
        Pins::of(directory).map(|pins| Self { path: pins.routed() })
    }

    /// The file that can be opened once it is said; it is empty.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Says it. Whether it was not said before.
    ///
    /// # Errors
    /// The link cannot be made.
    pub fn say(&self) -> Result<bool, Failure> {
        if fs::read_link(&self.path).is_ok_and(|target| target == Path::new(EMPTY)) {
            return Ok(false);
        }
        if let Some(directory) = self.path.parent() {
            make(directory)?;
        }
        unpin(&self.path)?;
        match symlink(EMPTY, &self.path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(Failure::of_io(
                &format!("make the link {}", self.path.display()),
                &error,
            )),
            _ => Ok(true),
        }
    }

    /// Takes it back. Whether it was said before.
    ///
    /// # Errors
    /// The link cannot be removed.
    pub fn take_back(&self) -> Result<bool, Failure> {
        let was_said = fs::symlink_metadata(&self.path).is_ok();
        unpin(&self.path)?;
        Ok(was_said)
    }
}
