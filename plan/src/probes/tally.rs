//! What the probes of all lanes come to, in figures that do not change with every probe.

use std::time::Duration;

/// The figures of the lanes in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Lanes of which something is known.
    pub probed: u32,
    /// Of those, the lanes that carry full-size packets both ways.
    pub answering: u32,
    /// The lanes on which no probe is answered.
    pub silent: u32,
    /// The lanes on which only small ones are.
    pub too_small: u32,
    /// The longest round trip.
    pub worst_round_trip: Duration,
    /// The most rounds lost, in per cent of a lane's last 32.
    pub worst_loss: u32,
}

impl Tally {
    /// What to show after `shown`: counts as they are, measured figures only where they differ by much. Without that each of thousands
    /// of nodes would write its status with every probe.
    pub fn settled(self, shown: &Self) -> Self {
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let (now, before) = (micros(self.worst_round_trip), micros(shown.worst_round_trip));
        // Twice or half of it, and more than a noisy neighbour's 200 µs.
        let differs = now > before.saturating_mul(2) || now < before / 2;
        let round_trip = if differs && now.abs_diff(before) > 200 {
            two_digits(now)
        } else {
            before
        };
        let loss = match (self.worst_loss, shown.worst_loss) {
            (now, before) if now > before => now.next_multiple_of(5),
            (0, _) => 0,
            (now, before) if now * 2 < before => now.next_multiple_of(5),
            (_, before) => before,
        };
        Self {
            worst_round_trip: Duration::from_micros(round_trip),
            worst_loss: loss.min(100),
            ..self
        }
    }
}

/// Rounded up to two digits.
const fn two_digits(number: u64) -> u64 {
    let mut unit = 1;
    while number / unit >= 100 {
        unit *= 10;
    }
    number.div_ceil(unit) * unit
}

#[cfg(test)]
mod tests {
    use super::*;

    fn micros(micros: u64) -> Tally {
        Tally {
            worst_round_trip: Duration::from_micros(micros),
            ..Tally::default()
        }
    }

    #[test]
    fn a_round_trip_is_shown_anew_only_when_it_differs_by_much() {
        let mut shown = Tally::default();
        for (measured, expected) in [
            (150, 0),
            (1_234, 1_300),
            (2_500, 1_300),
            (2_700, 2_700),
            (1_400, 2_700),
            (1_300, 1_300),
            (0, 0),
        ] {
            shown = micros(measured).settled(&shown);
            assert_eq!(shown.worst_round_trip.as_micros(), expected, "{measured}");
        }
    }

    #[test]
    fn loss_is_shown_when_it_grows_and_when_it_is_over() {
        let mut shown = Tally::default();
        for (measured, expected) in [(3, 5), (4, 5), (12, 15), (9, 15), (6, 10), (0, 0), (100, 100)] {
            let now = Tally {
                worst_loss: measured,
                ..Tally::default()
            };
            shown = now.settled(&shown);
            assert_eq!(shown.worst_loss, expected, "{measured}");
        }
    }
}
