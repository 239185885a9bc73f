//! Operations that the kernel refused are not tried again with each pass.
//!
//! A refused operation may leave notifications behind (a device that cannot come up still has its address set), which start the
//! next pass: without a wait between attempts the agent would never rest.

use podlane_plan::backoff::Backoff;
use podlane_plan::diff::Operation;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const WAITS: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));

#[derive(Debug)]
struct Refused {
    backoff: Backoff,
    until: Instant,
    words: String,
}

/// What was refused, and when it may be tried again.
#[derive(Debug, Default)]
pub struct Retries(BTreeMap<String, Refused>);

impl Retries {
    /// Parts operations into those to try now, and those to wait with; of the latter also why they were refused.
    pub fn due(
        &self,
        operations: Vec<Operation>,
        now: Instant,
    ) -> (Vec<Operation>, Vec<(Operation, String)>) {
        if self.0.is_empty() {
            return (operations, Vec::new());
        }
        let mut due = Vec::with_capacity(operations.len());
        let mut waiting = Vec::new();
        for operation in operations {
            match self
                .0
                .get(&operation.to_string())
                .filter(|refused| now < refused.until)
            {
                Some(refused) => waiting.push((operation, refused.words.clone())),
                None => due.push(operation),
            }
        }
        (due, waiting)
    }

    /// Notes that an operation was refused.
    pub fn refused(&mut self, operation: &Operation, words: String, now: Instant) {
        let refused = self.0.entry(operation.to_string()).or_insert_with(|| Refused {
            backoff: WAITS,
            until: now,
            words: String::new(),
        });
        // No chance in it: the only one to collide with is this kernel.
        refused.until = now + refused.backoff.fail(1.0);
        refused.words = words;
    }

    /// Keeps only what is still refused at the end of a pass.
    pub fn keep(&mut self, still: impl Fn(&str) -> bool) {
        self.0.retain(|operation, _| still(operation));
    }

    /// Forgets all waits: what the node is told has changed, and its user looks on.
    pub fn start_over(&mut self) {
        self.0.clear();
    }

    /// When the next attempt is due.
    pub fn next(&self) -> Option<Instant> {
        self.0.values().map(|refused| refused.until).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(name: &str) -> Operation {
        Operation::DeleteDevice {
            name: name.to_owned(),
        }
    }

    #[test]
    fn what_was_refused_waits_longer_each_time_and_the_rest_does_not() {
        let start = Instant::now();
        let ms = Duration::from_millis;
        let mut retries = Retries::default();
        let all = || vec![operation("a"), operation("b")];
        assert_eq!(retries.due(all(), start).0, all());
        assert_eq!(retries.next(), None);

        retries.refused(&operation("a"), "busy".to_owned(), start);
        let (due, waiting) = retries.due(all(), start + ms(99));
        assert_eq!(
            (due, waiting),
            (vec![operation("b")], vec![(operation("a"), "busy".to_owned())])
        );
        assert_eq!(retries.next(), Some(start + ms(100)));
        assert_eq!(retries.due(all(), start + ms(100)).0, all());

        retries.refused(&operation("a"), "busy".to_owned(), start + ms(100));
        assert_eq!(retries.next(), Some(start + ms(300)));
        retries.keep(|still| still != "delete device a");
        assert_eq!(retries.next(), None);
    }
}
