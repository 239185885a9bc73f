//! When a pass may begin.

use nix::time::{ClockId, clock_gettime};
use std::time::{Duration, Instant};

/// Changes come in bursts: a device brings its addresses and routes, a rollout its slices.
const COALESCE: Duration = Duration::from_millis(5);

/// A pass that costs no more than this needs no rest: at three nodes, and at three hundred.
const SHORT: Duration = Duration::from_millis(5);

/// The longest rest. Longer passes are those that make thousands of routes, which nobody's churn brings about; what a hand
/// removes after one shall not wait for seconds.
const LONGEST_REST: Duration = Duration::from_millis(400);

/// Rests between passes, so that somebody else's endless changes cost at most a fifth of a CPU. What counts is a pass's CPU time,
/// the kernel's part included, and not how long it waited for its turn or for `rtnl_lock`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    not_before: Option<Instant>,
}

impl Pace {
    /// A pass ended, and cost so much CPU time.
    pub fn ended(&mut self, end: Instant, cost: Duration) {
        self.not_before = (cost >= SHORT).then(|| end + (cost * 4).min(LONGEST_REST));
    }

    /// When the next pass may begin, if a reason for it came up at `woken`.
    pub fn next(&self, woken: Instant) -> Instant {
        let coalesced = woken + COALESCE;
        self.not_before
            .map_or(coalesced, |not_before| not_before.max(coalesced))
    }
}

/// The CPU time that this thread has had so far.
pub fn cpu_time() -> Duration {
    let now = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID);
    now.map_or(Duration::ZERO, Duration::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_passes_rest_four_times_as_long_and_short_ones_do_not() {
        let start = Instant::now();
        let ms = Duration::from_millis;
        let mut pace = Pace::default();
        assert_eq!(pace.next(start), start + COALESCE);
        pace.ended(start, ms(20));
        assert_eq!(pace.next(start + ms(1)), start + ms(80));
        assert_eq!(pace.next(start + ms(100)), start + ms(105));
        pace.ended(start, ms(1300));
        assert_eq!(pace.next(start), start + LONGEST_REST);
        pace.ended(start + ms(200), ms(4));
        assert_eq!(pace.next(start + ms(201)), start + ms(206));
    }
}
