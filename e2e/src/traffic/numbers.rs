//! Which numbers of a stream have come.

use serde::{Deserialize, Serialize};

/// How many ranges of lost numbers a report names.
const NAMED_RANGES: usize = 64;

/// Consecutive numbers, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    /// The first number.
    pub first: u64,
    /// The last number.
    pub last: u64,
}

/// The numbers seen so far, one bit each.
#[derive(Clone, Debug, Default)]
pub struct Numbers {
    words: Vec<u64>,
    seen: u64,
    duplicated: u64,
    reordered: u64,
    next: u64,
}

impl Numbers {
    /// The highest number that is counted: a stream of hours at the highest rate stays below it.
    pub const HIGHEST: u64 = (1 << 32) - 1;

    /// Notes that a number has come. One above `HIGHEST` is none of a stream's and ignored.
    pub fn note(&mut self, number: u64) {
        let Some(word) = usize::try_from(number / 64)
            .ok()
            .filter(|_| number <= Self::HIGHEST)
        else {
            return;
        };
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        let bit = 1 << (number % 64);
        if self.words[word] & bit != 0 {
            self.duplicated += 1;
            return;
        }
        self.words[word] |= bit;
        self.seen += 1;
        if number < self.next {
            self.reordered += 1;
        } else {
            self.next = number + 1;
        }
    }

    /// How many different numbers have come.
    pub fn seen(&self) -> u64 {
        self.seen
    }

    /// How many came again.
    pub fn duplicated(&self) -> u64 {
        self.duplicated
    }

    /// How many came after a higher one.
    pub fn reordered(&self) -> u64 {
        self.reordered
    }

    /// The numbers below `end` that have not come, as ranges; the first ones when there are many.
    pub fn missing(&self, end: u64) -> Vec<Range> {
        let mut ranges: Vec<Range> = Vec::new();
        let mut number = 0;
        while number < end {
            if self.has(number) {
                // A whole word that has come needs no look at its bits.
                let whole = number % 64 == 0 && self.word(number) == u64::MAX;
                number += if whole { 64 } else { 1 };
                continue;
            }
            let named = ranges.len();
            match ranges.last_mut() {
                Some(range) if range.last + 1 == number => range.last = number,
                _ if named == NAMED_RANGES => break,
                _ => ranges.push(Range {
                    first: number,
                    last: number,
                }),
            }
            number += 1;
        }
        ranges
    }

    fn word(&self, number: u64) -> u64 {
        usize::try_from(number / 64)
            .ok()
            .and_then(|word| self.words.get(word))
            .copied()
            .unwrap_or(0)
    }

    fn has(&self, number: u64) -> bool {
        self.word(number) & (1 << (number % 64)) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noted(numbers: impl IntoIterator<Item = u64>) -> Numbers {
        let mut all = Numbers::default();
        numbers.into_iter().for_each(|number| all.note(number));
        all
    }

    #[test]
    fn a_whole_stream_has_no_gap() {
        let numbers = noted(0..1000);
        assert_eq!(
            (numbers.seen(), numbers.duplicated(), numbers.reordered()),
            (1000, 0, 0)
        );
        assert!(numbers.missing(1000).is_empty());
    }

    #[test]
    fn gaps_and_the_lost_end_are_named() {
        let numbers = noted((0..10).chain(12..200));
        assert_eq!(
            numbers.missing(203),
            [
                Range { first: 10, last: 11 },
                Range {
                    first: 200,
                    last: 202
                }
            ]
        );
        assert_eq!(numbers.seen(), 198);
    }

    #[test]
    fn copies_and_latecomers_are_told_apart() {
        let numbers = noted([0, 2, 1, 2, 2, 3]);
        assert_eq!(
            (numbers.seen(), numbers.duplicated(), numbers.reordered()),
            (4, 2, 1)
        );
    }

    #[test]
    fn a_number_that_no_stream_has_takes_no_memory() {
        let numbers = noted([u64::MAX]);
        assert_eq!(numbers.seen(), 0);
        assert!(numbers.words.is_empty());
    }

    #[test]
    fn a_stream_that_lost_every_second_packet_has_a_bounded_report() {
        let numbers = noted((0..10_000).step_by(2));
        assert_eq!(numbers.missing(10_000).len(), NAMED_RANGES);
    }
}
