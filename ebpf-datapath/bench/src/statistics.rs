//! Medians, ranges and percentiles.

use serde::{Deserialize, Serialize};

/// The middle and the ends of some figures.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Half of the figures are at most so high; between two middle ones their mean.
    pub median: f64,
    /// The lowest.
    pub min: f64,
    /// The highest.
    pub max: f64,
}

impl Spread {
    /// None where there are no figures.
    pub fn of(figures: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = figures.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        };
        Some(Self { median, min, max })
    }
}

/// The least figure that at least `percent` (0 to 100) of the figures do not exceed. None where there are no figures.
pub fn percentile(sorted: &[u64], percent: usize) -> Option<u64> {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread(figures: &[f64]) -> Option<(f64, f64, f64)> {
        Spread::of(figures.iter().copied()).map(|it| (it.median, it.min, it.max))
    }

    #[test]
    fn the_median_of_an_odd_number_is_the_middle_one() {
        assert_eq!(spread(&[3.0, 1.0, 2.0]), Some((2.0, 1.0, 3.0)));
    }

    #[test]
    fn the_median_of_an_even_number_is_between_the_two_middle_ones() {
        assert_eq!(spread(&[4.0, 1.0, 2.0, 8.0]), Some((3.0, 1.0, 8.0)));
    }

    #[test]
    fn of_nothing_there_is_no_median() {
        assert_eq!(spread(&[]), None);
        assert_eq!(percentile(&[], 50), None);
    }

    #[test]
    fn percentiles_are_figures_that_were_measured() {
        let figures: Vec<u64> = (1..=200).collect();
        assert_eq!(percentile(&figures, 50), Some(100));
        assert_eq!(percentile(&figures, 99), Some(198));
        assert_eq!(percentile(&figures, 100), Some(200));
        assert_eq!(percentile(&[7], 0), Some(7));
    }
}
