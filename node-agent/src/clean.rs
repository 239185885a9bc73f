//! Takes everything that is Podlane's off this node.

use crate::cni::Directory;
use crate::kernel::{Failure, Kernel};
use anyhow::{Context, bail};
use podlane_plan::backoff::Backoff;
use podlane_plan::diff::diff;
use podlane_plan::kernel::KernelState;
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

/// How long to wait between attempts that leave something.
const AGAIN: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));

/// Cleans for a running agent, for as long as it is told so.
#[derive(Debug)]
pub struct Cleaner {
    is_at_work: bool,
    backoff: Backoff,
}

impl Default for Cleaner {
    fn default() -> Self {
        Self {
            is_at_work: false,
            backoff: AGAIN,
        }
    }
}

impl Cleaner {
    /// Removes what there is of ours: also what came to be since the last time. `bpffs`: where the programs are pinned.
    ///
    /// # Errors
    /// As [`clean`] has them.
    pub fn clean(
        &mut self,
        kernel: &mut Kernel,
        bpffs: &Path,
        cni: Option<&Directory>,
    ) -> anyhow::Result<()> {
        if !std::mem::replace(&mut self.is_at_work, true) {
            tracing::info!("told to take everything of Podlane's off this node");
        }
        let result = clean(kernel, bpffs, cni);
        if let Err(why) = &result {
            tracing::error!("the node is not clean: {why:#}");
        }
        result
    }

    /// Whether cleaning has come to an end since this was asked last: the node is to be routed again.
    pub const fn is_over(&mut self) -> bool {
        std::mem::replace(&mut self.is_at_work, false)
    }

    /// How long to wait after that until the next attempt; none: nothing is left to do.
    pub fn wait(&mut self, result: &anyhow::Result<()>) -> Option<Duration> {
        if result.is_ok() {
            self.backoff.reset();
            return None;
        }
        Some(self.backoff.fail(rand::random()))
    }
}

/// Removes our CNI configuration, programs, nftables table, routes, neighbours, addresses and devices, and nothing else. Kernel
/// parameters stay as they are: what they were before, nobody knows. So do what the CNI plugins made, pods' devices and their routes:
/// pods of the node go on reaching each other.
///
/// # Errors
/// When the kernel cannot be read, or something is left.
pub fn clean(kernel: &mut Kernel, bpffs: &Path, cni: Option<&Directory>) -> anyhow::Result<()> {
    // The configuration first: no pod is connected any more to what is about to go.
    if let Some(directory) = cni
        && directory.clean().context("removing the CNI configuration")?
    {
        tracing::info!("delete the CNI configuration");
    }
    // Programs first: packets then take the kernel's drivers until their routes are gone too.
    let programs = podlane_datapath::clean(bpffs).context("removing the eBPF programs")?;
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
    let in_words =
        |(what, result): (String, Result<(), Failure>)| (what, result.map_err(|why| why.to_string()));
    let programs = programs
        .into_iter()
        .map(|(what, result)| (what, result.map_err(|why| why.to_string())));
    for (what, result) in programs.chain(told.chain(strays).map(in_words)) {
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
