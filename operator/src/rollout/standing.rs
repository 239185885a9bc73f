//! How a rollout stands: whether what is waited for has taken so long that it is to be said. A pure function of what is seen, and when.

use std::time::Duration;
use tokio::time::Instant;

/// What a look at the agents came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// Agents of the template have proved themselves, no other is known not to work, and there is nothing to wait for.
    Proved,
    /// An agent is replaced by the first one of the template, or one that does not work by the next: nothing is proved by that.
    Begun,
    /// Something is waited for: at which node, if at one.
    Waits(Option<String>),
    /// The API server refuses what is asked of it, and will go on to do so.
    Refused,
}

/// What is to be said of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Say {
    /// Nothing else than before.
    Same,
    /// That it goes on.
    Goes,
    /// That it has stopped.
    Stopped,
}

/// What is remembered of a rollout.
#[derive(Clone, Debug)]
pub(super) struct Standing {
    patience: Duration,
    /// What is waited for, and since when.
    waits: Option<(Option<String>, Instant)>,
    has_stopped: bool,
}

impl Standing {
    /// `patience`: how long something may take. `has_stopped`: whether the operator that led before had said that it has stopped, which
    /// stays so until an agent has proved itself.
    pub(super) const fn new(patience: Duration, has_stopped: bool) -> Self {
        Self {
            patience,
            waits: None,
            has_stopped,
        }
    }

    /// Takes in a look.
    pub(super) fn take(&mut self, look: Look, now: Instant) -> Say {
        match look {
            Look::Proved => {
                *self = Self::new(self.patience, false);
                Say::Goes
            }
            Look::Begun => {
                self.waits = None;
                if self.has_stopped { Say::Same } else { Say::Goes }
            }
            Look::Waits(place) => {
                let since = match &self.waits {
                    Some((known, since)) if *known == place => *since,
                    _ => now,
                };
                self.waits = Some((place, since));
                self.has_stopped |= now.duration_since(since) >= self.patience;
                if self.has_stopped { Say::Stopped } else { Say::Goes }
            }
            Look::Refused => {
                self.has_stopped = true;
                Say::Stopped
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(120);

    fn waits(node: &str) -> Look {
        Look::Waits(Some(node.to_owned()))
    }

    #[test]
    fn what_takes_longer_than_patience_is_said_until_something_is_proved() {
        let mut standing = Standing::new(PATIENCE, false);
        let start = Instant::now();
        for (seconds, look, expected) in [
            (0, Look::Begun, Say::Goes),
            (1, waits("a"), Say::Goes),
            (119, waits("a"), Say::Goes),
            // The next one's own time.
            (120, waits("b"), Say::Goes),
            (239, waits("b"), Say::Goes),
            (240, waits("b"), Say::Stopped),
            // Another version comes, whose first agent has yet to show what it can do.
            (250, Look::Begun, Say::Same),
            (251, waits("b"), Say::Stopped),
            (260, Look::Proved, Say::Goes),
            (261, waits("c"), Say::Goes),
            // Pods that nobody makes are at no node.
            (300, Look::Waits(None), Say::Goes),
            (420, Look::Waits(None), Say::Stopped),
        ] {
            let now = start + Duration::from_secs(seconds);
            assert_eq!(
                standing.take(look.clone(), now),
                expected,
                "{seconds} s: {look:?}"
            );
        }
    }

    #[test]
    fn a_leader_that_takes_over_goes_on_saying_what_the_last_one_said() {
        let mut standing = Standing::new(PATIENCE, true);
        let now = Instant::now();
        assert_eq!(standing.take(waits("a"), now), Say::Stopped);
        assert_eq!(standing.take(Look::Begun, now), Say::Same);
        assert_eq!(standing.take(Look::Proved, now), Say::Goes);
        assert_eq!(standing.take(waits("a"), now), Say::Goes);
    }

    #[test]
    fn what_is_refused_is_said_at_once() {
        let mut standing = Standing::new(PATIENCE, false);
        let now = Instant::now();
        assert_eq!(standing.take(Look::Refused, now), Say::Stopped);
        assert_eq!(standing.take(Look::Proved, now), Say::Goes);
    }
}
