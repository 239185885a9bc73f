//! Two ways are measured in turn, A B B A, so that what changes slowly on the machine meets both alike, and a sample that others
//! disturbed is taken again.

use std::collections::BTreeMap;

use anyhow::Result;

use crate::figure::Figure;
use crate::noise;

/// What one run of a measurement read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    /// Its figures; none where others left nothing of it.
    pub values: BTreeMap<Figure, f64>,
    /// What other processes and the hypervisor took meanwhile, as a share of one processor.
    pub foreign: f64,
}

impl Sample {
    /// Whether others disturbed it.
    pub fn is_noisy(&self) -> bool {
        self.foreign > noise::LIMIT
    }
}

/// One of two ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The one that the other is compared with.
    Baseline,
    /// The other.
    Way,
}

/// Samples next to each other.
#[derive(Clone, Debug, PartialEq)]
pub struct Pair {
    /// Of the way that the other is compared with.
    pub baseline: Sample,
    /// Of the other.
    pub way: Sample,
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// The pairs, undisturbed unless noise is accepted.
    pub pairs: Vec<Pair>,
    /// What others took during each of the samples that were rejected, as a share of one processor.
    pub rejected: Vec<f64>,
    /// How many pairs were given up since too many samples were disturbed.
    pub given_up: u32,
}

/// How many pairs, and what to do about noise.
#[derive(Clone, Copy, Debug)]
pub struct Pairing {
    /// How many pairs are wanted; an odd number is rounded up.
    pub pairs: u32,
    /// A sample is taken again at most so often before its pair is given up.
    pub repetitions: u32,
    /// Take disturbed samples as they are.
    pub accept_noise: bool,
}

/// Takes samples in the order A B B A, again and again.
///
/// # Errors
/// The first error of a measurement.
pub fn take(pairing: Pairing, mut measure: impl FnMut(Side) -> Result<Sample>) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    for round in 0..pairing.pairs.next_multiple_of(2) {
        let order = if round % 2 == 0 {
            [Side::Baseline, Side::Way]
        } else {
            [Side::Way, Side::Baseline]
        };
        let mut samples = BTreeMap::new();
        for side in order {
            let mut kept = None;
            for _ in 0..=pairing.repetitions {
                let sample = measure(side)?;
                let has_figures = !sample.values.is_empty();
                if has_figures && (pairing.accept_noise || !sample.is_noisy()) {
                    kept = Some(sample);
                    break;
                }
                outcome.rejected.push(sample.foreign);
            }
            // Without this sample the other of the pair is of no use.
            let Some(sample) = kept else { break };
            samples.insert(side == Side::Way, sample);
        }
        match (samples.remove(&false), samples.remove(&true)) {
            (Some(baseline), Some(way)) => outcome.pairs.push(Pair { baseline, way }),
            _ => outcome.given_up += 1,
        }
    }
    Ok(outcome)
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUIET: Pairing = Pairing {
        pairs: 4,
        repetitions: 3,
        accept_noise: false,
    };

    fn sample(value: f64, noisy: bool) -> Sample {
        Sample {
            values: BTreeMap::from([(Figure::Packets, value)]),
            foreign: if noisy { 0.5 } else { 0.01 },
        }
    }

    #[test]
    fn the_order_is_a_b_b_a() {
        let mut order = String::new();
        let outcome = take(QUIET, |side| {
            order.push(if side == Side::Baseline { 'A' } else { 'B' });
            Ok(sample(if side == Side::Baseline { 1.0 } else { 2.0 }, false))
        })
        .unwrap();
        assert_eq!(order, "ABBAABBA");
        assert_eq!((outcome.pairs.len(), outcome.rejected.len()), (4, 0));
        for pair in outcome.pairs {
            assert_eq!(
                (pair.baseline, pair.way),
                (sample(1.0, false), sample(2.0, false))
            );
        }
    }

    #[test]
    fn a_disturbed_sample_is_taken_again_at_once() {
        let mut taken = Vec::new();
        let outcome = take(QUIET, |side| {
            taken.push(side);
            Ok(sample(taken.len() as f64, taken.len() == 2))
        })
        .unwrap();
        assert_eq!(taken[..4], [Side::Baseline, Side::Way, Side::Way, Side::Way]);
        assert_eq!(outcome.rejected, [0.5]);
        assert_eq!(outcome.pairs[0].way, sample(3.0, false));
    }

    #[test]
    fn repeating_has_an_end() {
        let mut taken = 0;
        let outcome = take(QUIET, |_| {
            taken += 1;
            Ok(sample(1.0, true))
        })
        .unwrap();
        assert_eq!((taken, outcome.rejected.len(), outcome.given_up), (16, 16, 4));
        assert!(outcome.pairs.is_empty());
    }

    #[test]
    fn noise_that_is_accepted_is_kept_and_marked() {
        let pairing = Pairing {
            accept_noise: true,
            ..QUIET
        };
        let outcome = take(pairing, |_| Ok(sample(1.0, true))).unwrap();
        assert_eq!((outcome.pairs.len(), outcome.rejected.len()), (4, 0));
        assert!(outcome.pairs.iter().all(|pair| pair.way.is_noisy()));
    }

    #[test]
    fn a_sample_without_figures_is_never_kept() {
        let pairing = Pairing {
            accept_noise: true,
            ..QUIET
        };
        let mut taken = 0;
        let outcome = take(pairing, |_| {
            taken += 1;
            let whole = sample(1.0, true);
            Ok(Sample {
                values: if taken == 1 { BTreeMap::new() } else { whole.values },
                ..whole
            })
        })
        .unwrap();
        assert_eq!((outcome.pairs.len(), outcome.rejected.len()), (4, 1));
    }

    #[test]
    fn an_odd_number_of_pairs_is_rounded_up() {
        let pairing = Pairing { pairs: 3, ..QUIET };
        let outcome = take(pairing, |_| Ok(sample(1.0, false))).unwrap();
        assert_eq!(outcome.pairs.len(), 4);
    }
}
