//! How many probes may be sent: a leaky bucket.

use std::time::Duration;

/// Probes that are sent in a second, at most: 5,000 peers are proved in 2.5 s, with 3.4 MB/s at 1,700 bytes.
pub const A_SECOND: u32 = 2_000;

/// The time that one probe takes up.
const EACH: Duration = Duration::from_nanos(1_000_000_000 / A_SECOND as u64);

/// Probes that may go at once after a rest: a tenth of a second's.
const BURST: Duration = Duration::from_millis(100);

/// Asked again no sooner than this when the bucket is full: many probes at a time rather than one every half a millisecond.
const REST: Duration = Duration::from_millis(10);

/// The bucket.
#[derive(Clone, Debug, Default)]
pub(super) struct Pace {
    /// When it will have run empty.
    empty_at: Duration,
}

impl Pace {
    /// Whether a round fits in.
    pub(super) fn has_room(&self, now: Duration) -> bool {
        self.empty_at <= now + BURST
    }

    /// Takes in a round of so many probes.
    pub(super) fn take(&mut self, probes: usize, now: Duration) {
        let probes = u32::try_from(probes).unwrap_or(u32::MAX);
        self.empty_at = self.empty_at.max(now) + EACH * probes;
    }

    /// When some will fit that are due then.
    pub(super) fn ready_at(&self, due: Duration) -> Duration {
        match self.empty_at.checked_sub(BURST) {
            Some(fits_at) if fits_at > due => fits_at + REST,
            _ => due,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_go_in_a_second_than_may() {
        let mut pace = Pace::default();
        let mut now = Duration::from_secs(9);
        let mut sent = 0;
        while now < Duration::from_secs(10) {
            while pace.has_room(now) {
                pace.take(3, now);
                sent += 3;
            }
            let ready = pace.ready_at(now);
            assert!(ready >= now + REST);
            now = ready;
        }
        let most = A_SECOND as usize + A_SECOND as usize / 10;
        assert!((most - 100..=most + 3).contains(&sent), "{sent}");
    }
}
