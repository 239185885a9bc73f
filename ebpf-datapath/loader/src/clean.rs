//! Takes everything of ours away.

use crate::attach::{clsact, tcx};
use crate::failure::Failure;
use crate::pins::{Pins, remove, unpin};
use std::fs;
use std::path::Path;

/// Something that was removed, and how it went.
pub type Removed = (String, Result<(), Failure>);

/// Removes all that programs of ours left below a directory on a bpffs, and on the devices of the calling thread's network namespace: attachments first, then maps and programs, and the word of [`crate::Routed`].
/// Nothing else: other people's programs, filters, queueing disciplines and pins stay. Where there is nothing, nothing is done. Filters stay without the directory (its mount went, or somebody
/// removed it): they are removed all the same; whose their queueing disciplines are cannot be told then, so these stay.
///
/// # Errors
/// The directory is there and on no bpffs.
pub fn clean(bpffs: &Path) -> Result<Vec<Removed>, Failure> {
    let Some(pins) = Pins::existing(bpffs)? else {
        return Ok(clsact::clean(None));
    };
    let mut removed = tcx::clean(&pins.links());
    removed.extend(clsact::clean(Some(&pins)));
    for set in pins.sets() {
        let what = format!("maps and programs in {}", set.path.display());
        removed.push((what, remove(&set.path)));
    }
    if pins.routed().is_symlink() {
        removed.push((
            format!("the link {}", pins.routed().display()),
            unpin(&pins.routed()),
        ));
    }
    for directory in [pins.links(), pins.marks(), pins.directory().to_owned()] {
        // What is left in it is somebody else's, and a mount's root stays.
        let _ = fs::remove_dir(directory);
    }
    Ok(removed)
}
