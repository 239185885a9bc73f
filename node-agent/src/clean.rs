//! Takes everything that is Podlane's out of this kernel.

use crate::kernel::Kernel;
use anyhow::{Context, bail};
use podlane_plan::diff::diff;
use podlane_plan::kernel::KernelState;
use std::collections::BTreeSet;

/// Removes our routes, neighbours, addresses and devices, and nothing else. Kernel parameters stay as they are: what they were
/// before, nobody knows.
///
/// # Errors
/// When the kernel cannot be read, or something is left.
pub fn clean(kernel: &mut Kernel) -> anyhow::Result<()> {
    let seen = kernel
        .observe(|_| BTreeSet::new())
        .context("reading the kernel")?;
    let operations = diff(&KernelState::default(), &seen.observed.ours);
    let results = kernel.apply(&operations, &seen.observed);
    let mut left = 0;
    let told = operations.iter().map(ToString::to_string).zip(results);
    let strays = kernel
        .remove_strays(seen.strays)
        .into_iter()
        .map(|(what, result)| (format!("delete {what}"), result));
    for (what, result) in told.chain(strays) {
        match result {
            Ok(()) => tracing::info!("{what}"),
            Err(failure) => {
                tracing::error!("{what}: {failure}");
                left += 1;
            }
        }
    }
    if left > 0 {
        bail!("{left} of Podlane's items are still in the kernel");
    }
    Ok(())
}
