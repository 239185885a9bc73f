//! Saying a thing once: a failure that repeats is logged when it begins, when it changes, rarely while it lasts, and when it
//! ends.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How often a failure that lasts is said again.
const AGAIN: Duration = Duration::from_secs(600);

/// What was said last, by subject.
#[derive(Debug, Default)]
pub struct Said(BTreeMap<String, (String, Instant)>);

impl Said {
    /// Whether to say this now.
    pub fn is_news(&mut self, subject: &str, text: &str, now: Instant) -> bool {
        match self.0.get(subject) {
            Some((said, when)) if said == text && now.duration_since(*when) < AGAIN => false,
            _ => {
                self.0.insert(subject.to_owned(), (text.to_owned(), now));
                true
            }
        }
    }

    /// The subject is well again: whether anything had been said of it.
    pub fn is_over(&mut self, subject: &str) -> bool {
        self.0.remove(subject).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_said_when_it_begins_changes_lasts_and_ends() {
        let mut said = Said::default();
        let start = Instant::now();
        assert!(said.is_news("watch", "refused", start));
        assert!(!said.is_news("watch", "refused", start + Duration::from_secs(5)));
        assert!(said.is_news("watch", "429", start + Duration::from_secs(6)));
        assert!(said.is_news("watch", "429", start + AGAIN * 2));
        assert!(said.is_over("watch") && !said.is_over("watch"));
        assert!(said.is_news("watch", "429", start + AGAIN * 2));
    }
}
