//! What Podlane takes of a node.

use std::time::Duration;

use anyhow::{Result, ensure};
use podlane_e2e::scenario::Context;

use super::{installed, tell};

const LOOKED_AT: Duration = Duration::from_secs(15);
/// Not what is wanted, but what no build of any kind reaches: a leak, or a loop.
const FAR_TOO_MUCH_KIB: u64 = 100 * 1024;
const FAR_TOO_BUSY_PERCENT: f64 = 25.0;

pub(crate) fn at_rest(context: &mut Context) -> Result<()> {
    let cluster = installed(context)?;
    for (component, count, wanted) in [("agent", 3, "20 MiB and 0.5 %"), ("operator", 2, "40 MiB")] {
        let usages = cluster.usage_of(component, LOOKED_AT)?;
        ensure!(
            usages.len() == count,
            "{} of {count} {component}s run",
            usages.len()
        );
        for usage in usages {
            #[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
            let mebibytes = |kib: u64| kib as f64 / 1024.0;
            tell(&format!(
                "{component}: {:.1} MiB resident ({:.1} MiB of it its own), {:.2} % of a core; wanted: {wanted}",
                mebibytes(usage.resident_kib),
                mebibytes(usage.anonymous_kib),
                usage.processor_percent,
            ));
            ensure!(
                usage.resident_kib < FAR_TOO_MUCH_KIB && usage.processor_percent < FAR_TOO_BUSY_PERCENT,
                "{component} takes far too much: {usage:?}"
            );
        }
    }
    Ok(())
}
