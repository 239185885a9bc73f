//! What is ours on the bpffs.
//!
//! ```text
//! DIRECTORY/
//!   abi-1/            a set: maps, and the programs that use them; abi-1-2 where the first one no longer fit
//!     maps/NAME
//!     programs-HASH/NAME
//!   links/INDEX-NAME  attachments (tcx), by device and program
//!   clsact/INDEX      (a directory) the queueing discipline on that device is ours
//!   routed            (a link) the node has had its routes since its boot
//! ```

use crate::failure::{Cause, Failure};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use podlane_datapath_common::ABI;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The directory, and the names in it.
#[derive(Clone, Debug)]
pub(crate) struct Pins {
    directory: PathBuf,
}

impl Pins {
    /// Takes a directory on a bpffs; makes it where only its parents are there.
    pub(crate) fn at(directory: &Path) -> Result<Self, Failure> {
        let pins = Self::of(directory)?;
        for needed in [pins.links(), pins.marks()] {
            make(&needed)?;
        }
        Ok(pins)
    }

    /// The same, and nothing is made yet.
    pub(crate) fn of(directory: &Path) -> Result<Self, Failure> {
        let existing = directory
            .ancestors()
            .find(|ancestor| ancestor.exists())
            .ok_or_else(|| Failure::no_bpffs(directory))?;
        let is_bpffs = statfs(existing).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC);
        if !is_bpffs {
            return Err(Failure::no_bpffs(directory));
        }
        Ok(Self {
            directory: directory.to_owned(),
        })
    }

    /// The same, where it need not be there at all: none, then.
    pub(crate) fn existing(directory: &Path) -> Result<Option<Self>, Failure> {
        if !directory.exists() {
            return Ok(None);
        }
        match statfs(directory) {
            Ok(found) if found.filesystem_type() == BPF_FS_MAGIC => Ok(Some(Self {
                directory: directory.to_owned(),
            })),
            _ => Err(Failure::no_bpffs(directory)),
        }
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(crate) fn links(&self) -> PathBuf {
        self.directory.join("links")
    }

    /// Where it is written down which queueing disciplines are ours.
    pub(crate) fn marks(&self) -> PathBuf {
        self.directory.join("clsact")
    }

    pub(crate) fn routed(&self) -> PathBuf {
        self.directory.join("routed")
    }

    /// All sets, of every ABI, the newest first: by ABI and number.
    pub(crate) fn sets(&self) -> Vec<Set> {
        let mut sets: Vec<_> = names(&self.directory)
            .iter()
            .filter_map(|name| Set::named(&self.directory, name))
            .collect();
        sets.sort_by_key(|set| std::cmp::Reverse((set.abi, set.number)));
        sets
    }

    /// A set of this ABI that is not there yet.
    pub(crate) fn new_set(&self) -> Result<Set, Failure> {
        let newest = self.sets().into_iter().find(|set| set.abi == ABI);
        let number = newest.map_or(1, |set| set.number + 1);
        let name = match number {
            1 => format!("abi-{ABI}"),
            number => format!("abi-{ABI}-{number}"),
        };
        let set = Set {
            abi: ABI,
            number,
            path: self.directory.join(name),
        };
        make(&set.maps())?;
        Ok(set)
    }
}

/// Maps, and the programs that use them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Set {
    pub(crate) abi: u32,
    number: u32,
    pub(crate) path: PathBuf,
}

impl Set {
    fn named(directory: &Path, name: &str) -> Option<Self> {
        let rest = name.strip_prefix("abi-")?;
        let (abi, number) = rest.split_once('-').unwrap_or((rest, "1"));
        Some(Self {
            abi: abi.parse().ok()?,
            number: number.parse().ok()?,
            path: directory.join(name),
        })
    }

    pub(crate) fn maps(&self) -> PathBuf {
        self.path.join("maps")
    }

    pub(crate) fn programs(&self, hash: &str) -> PathBuf {
        self.path.join(format!("programs-{hash}"))
    }

    /// Directories of programs, other than those with this hash.
    pub(crate) fn other_programs(&self, hash: &str) -> Vec<PathBuf> {
        let ours = self.programs(hash);
        names(&self.path)
            .iter()
            .filter(|name| name.starts_with("programs-"))
            .map(|name| self.path.join(name))
            .filter(|path| *path != ours)
            .collect()
    }
}

pub(crate) fn make(directory: &Path) -> Result<(), Failure> {
    fs::create_dir_all(directory)
        .map_err(|error| Failure::of_io(&format!("make {}", directory.display()), &error))
}

/// The names in a directory, sorted; of one that is not there, none.
pub(crate) fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

/// Removes a pin. One that is gone already is as wanted.
pub(crate) fn unpin(pin: &Path) -> Result<(), Failure> {
    unless_gone(pin, fs::remove_file(pin))
}

/// Removes a directory and the pins below it.
pub(crate) fn remove(directory: &Path) -> Result<(), Failure> {
    unless_gone(directory, fs::remove_dir_all(directory))
}

fn unless_gone(what: &Path, result: io::Result<()>) -> Result<(), Failure> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => match error.kind() {
            io::ErrorKind::PermissionDenied => Err(Failure::new(
                Cause::Permission,
                format!(
                    "cannot remove {}: the agent needs to own it, or the capability DAC_OVERRIDE",
                    what.display()
                ),
            )),
            _ => Err(Failure::of_io(&format!("remove {}", what.display()), &error)),
        },
        _ => Ok(()),
    }
}
