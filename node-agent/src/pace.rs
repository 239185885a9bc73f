//! When a pass may begin.

use std::time::{Duration, Instant};

/// Changes come in bursts: a device brings its addresses and routes, a rollout its slices.
const COALESCE: Duration = Duration::from_millis(5);

/// A pass as short as this needs no rest: at three nodes, and at three hundred.
const SHORT: Duration = Duration::from_millis(5);

/// Rests between passes, so that somebody else's endless changes cost at most a fifth of a CPU.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    not_before: Option<Instant>,
}

impl Pace {
    /// A pass ended.
    pub fn ended(&mut self, end: Instant, took: Duration) {
        self.not_before = (took >= SHORT).then(|| end + took * 4);
    }

    /// When the next pass may begin, if a reason for it came up at `woken`.
    pub fn next(&self, woken: Instant) -> Instant {
        let coalesced = woken + COALESCE;
        self.not_before
            .map_or(coalesced, |not_before| not_before.max(coalesced))
    }
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
        pace.ended(start + ms(200), ms(4));
        assert_eq!(pace.next(start + ms(201)), start + ms(206));
    }
}
