//! What fits a lane that does not carry packets of its MTU: a search by packets of lengths in between, some a round.

use super::{Kind, SMALL};

/// Lengths that are tried in one round.
const A_ROUND: u32 = 3;

/// The search. It does not end: what was found is tried again with each round, for a network changes, and a packet may be lost that would fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fitting {
    /// The longest packet that came there and back.
    passes: u32,
    /// The shortest longer one that did not.
    fails: u32,
    found: Option<u32>,
}

impl Fitting {
    /// For a lane that carries small packets and none of this length.
    pub(super) fn below(length: u32) -> Self {
        Self {
            passes: SMALL,
            fails: length.max(SMALL + 1),
            found: None,
        }
    }

    /// The lengths to try next, in rising order: what divides the rest evenly, or the two where there is none.
    pub(super) fn lengths(&self) -> Vec<u32> {
        let rest = self.fails - self.passes;
        if rest == 1 {
            return vec![self.passes, self.fails];
        }
        let pieces = (A_ROUND + 1).min(rest);
        (1..pieces)
            .map(|piece| self.passes + rest * piece / pieces)
            .collect()
    }

    /// A round is over in which something was answered. `length` is the lane's MTU.
    pub(super) fn judge(&mut self, asked: &[Kind], answered: &[Kind], length: u32) {
        let asked = lengths(asked);
        let Some(least) = asked.iter().copied().min() else {
            return;
        };
        let Some(passes) = lengths(answered).into_iter().max() else {
            if least <= self.passes {
                // What passed once does so no more.
                self.passes = SMALL;
            } else {
                self.fails = least;
            }
            return;
        };
        // Of two lengths the longer one may come and the other be lost.
        let fails = asked.into_iter().filter(|asked| *asked > passes).min();
        let fails = fails.unwrap_or(if passes < self.fails { self.fails } else { length });
        if (self.passes, self.fails) == (passes, fails) {
            self.found = Some(passes);
        }
        (self.passes, self.fails) = (passes, fails.max(passes + 1));
    }

    /// The longest packet that fits, in bytes without outer headers: what a round has confirmed last.
    pub(super) const fn found(&self) -> Option<u32> {
        self.found
    }
}

fn lengths(kinds: &[Kind]) -> Vec<u32> {
    let length = |kind: &Kind| match kind {
        Kind::Between(length) => Some(*length),
        Kind::Small | Kind::There | Kind::Full => None,
    };
    kinds.iter().filter_map(length).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A round on a lane that carries some of these lengths.
    fn round(fitting: &mut Fitting, length: u32, carries: impl Fn(u32) -> bool) {
        let asked: Vec<Kind> = fitting.lengths().into_iter().map(Kind::Between).collect();
        assert!((1..=3).contains(&asked.len()), "{asked:?}");
        let comes = |kind: &Kind| lengths(&[*kind]).into_iter().all(&carries);
        let answered: Vec<Kind> = asked.iter().copied().filter(comes).collect();
        fitting.judge(&asked, &answered, length);
    }

    #[test]
    fn the_longest_that_fits_is_found_in_a_few_rounds() {
        for (length, rounds) in [(576, 7), (1280, 7), (1450, 7), (8950, 9), (65_000, 10)] {
            for carried in (SMALL..length).step_by(7).chain([length - 1]) {
                let mut fitting = Fitting::below(length);
                for _ in 0..rounds {
                    round(&mut fitting, length, |tried| tried <= carried);
                }
                assert_eq!(fitting.found(), Some(carried), "{length}");
            }
        }
    }

    #[test]
    fn lost_packets_and_a_network_that_changes_lead_to_the_right_length_all_the_same() {
        let mut fitting = Fitting::below(1450);
        for carried in [1350, 1200, 1449, 64, 1300] {
            for turn in 0..40 {
                // Until then every third round is lost whole, and now and then a single packet.
                let is_quiet = turn >= 20;
                round(&mut fitting, 1450, |tried| {
                    tried <= carried && (is_quiet || turn % 3 != 0 && (tried + turn) % 11 != 0)
                });
            }
            assert_eq!(fitting.found(), Some(carried));
        }
    }

    #[test]
    fn no_length_breaks_it() {
        for length in [0, 63, 64, 65, 66] {
            let mut fitting = Fitting::below(length);
            for turn in 0..10 {
                round(&mut fitting, length, |_| turn % 2 == 0);
            }
        }
    }
}
