//! How long to wait before trying again: doubling, bounded, and never at the same moment as everybody else.

use std::time::Duration;

/// Waits that double from `first` to `longest`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    failures: u32,
}

impl Backoff {
    /// From `first` to `longest`.
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self {
            first,
            longest,
            failures: 0,
        }
    }

    /// Counts a failure, and says how long to wait: between half and all of the bound. `chance` is at random between 0 and 1.
    pub fn fail(&mut self, chance: f64) -> Duration {
        let bound = self
            .first
            .saturating_mul(1 << self.failures.min(16))
            .min(self.longest);
        self.failures = self.failures.saturating_add(1);
        bound.mul_f64(0.5 + chance.clamp(0.0, 1.0) / 2.0)
    }

    /// Failures in a row so far.
    pub const fn failures(&self) -> u32 {
        self.failures
    }

    /// No wait is longer.
    pub const fn longest(&self) -> Duration {
        self.longest
    }

    /// Something succeeded.
    pub const fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_bound_and_are_spread() {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(20));
        let waits: Vec<_> = (0..40).map(|_| backoff.fail(1.0)).collect();
        assert_eq!(waits[..3], [200, 400, 800].map(Duration::from_millis));
        assert_eq!(waits[39], Duration::from_secs(20));
        assert_eq!(backoff.failures(), 40);
        backoff.reset();
        assert_eq!(backoff.fail(0.0), Duration::from_millis(100));
    }
}
