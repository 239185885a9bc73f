//! How long to wait before trying again: doubling, bounded, and never at the same moment as everybody else.

use std::time::Duration;

/// The wait after so many failures in a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backoff {
    failures: u32,
}

/// The first wait, at most.
pub const FIRST: Duration = Duration::from_millis(200);
/// Any wait, at most.
pub const LONGEST: Duration = Duration::from_secs(30);

impl Backoff {
    /// Counts a failure, and says how long to wait. `chance` is at random between 0 and 1.
    pub fn fail(&mut self, chance: f64) -> Duration {
        let full = FIRST.saturating_mul(1 << self.failures.min(16)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        full.mul_f64(0.5 + chance.clamp(0.0, 1.0) / 2.0)
    }

    /// Failures in a row so far.
    pub const fn failures(&self) -> u32 {
        self.failures
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
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..40).map(|_| backoff.fail(1.0)).collect();
        assert_eq!(waits[..3], [FIRST, FIRST * 2, FIRST * 4]);
        assert_eq!(waits[39], LONGEST);
        backoff.reset();
        assert_eq!(backoff.fail(0.0), FIRST / 2);
    }
}
