//! Deciding again whenever the picture changes.

use crate::apply::{Applier, Outcome};
use crate::decide::{Decision, decide};
use crate::watch::Shared;
use k8s_openapi::jiff::Timestamp;
use std::convert::Infallible;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// How long to wait for what belongs to the same change.
const GATHER: Duration = Duration::from_millis(20);
/// From the beginning of a pass to that of the next, at least.
const APART: Duration = Duration::from_millis(50);
/// How long without a change until it is decided again all the same.
const RESYNC: Duration = Duration::from_secs(60);

/// Decides and writes, for ever. Only whoever leads may call it; dropping the future ends what is in flight.
pub async fn run(shared: &Shared, applier: &mut Applier) -> Infallible {
    let mut earliest = Instant::now();
    let mut next = earliest;
    loop {
        tokio::select! {
            () = shared.changed.notified() => {}
            () = sleep_until(next) => {}
        }
        sleep_until(earliest.max(Instant::now() + GATHER)).await;
        let start = Instant::now();
        shared.pulse.beat();
        next = start + RESYNC;
        let Some(decision) = look(shared) else { continue };
        let again_at = decision.again_at;
        let decided = start.elapsed();
        // However large the cluster: half of the time is left to whoever brings the changes.
        earliest = start + APART.max(decided * 2);
        let count = decision.writes.len();
        let outcome = applier.carry_out(shared, decision.writes).await;
        if count > 0 {
            tracing::debug!(
                decided_in = ?decided, written_in = ?(start.elapsed() - decided), writes = count, done = outcome.done,
                failed = outcome.failed, "pass"
            );
        }
        if let Some(pause) = outcome.pause {
            sleep_until(pause).await;
        }
        next = next.min(when(&outcome, again_at));
    }
}

/// Decides, once the picture is whole.
fn look(shared: &Shared) -> Option<Decision> {
    let mut world = shared.world();
    if !world.is_whole() {
        return None;
    }
    let now = Timestamp::now();
    let decision = decide(&world, now);
    world.note_decided(decision.is_settled, now);
    Some(decision)
}

/// When to decide again, though nothing changes until then.
fn when(outcome: &Outcome, again_at: Option<Timestamp>) -> Instant {
    let now = Instant::now();
    // What was written has changed the picture, and may have left something to do.
    if outcome.is_cut || outcome.done > 0 || outcome.pause.is_some() {
        return now;
    }
    let again = again_at.map(|again| {
        let wait = again.duration_since(Timestamp::now());
        now + Duration::try_from(wait).unwrap_or_default() + Duration::from_millis(1)
    });
    again
        .into_iter()
        .chain(outcome.retry_at)
        .min()
        .unwrap_or(now + RESYNC)
}
