//! Waiting for a state, with the last state seen in the error when it does not come.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use crate::interrupt;

const PAUSE: Duration = Duration::from_millis(20);

/// Calls `attempt` until it succeeds. Its error says what was seen instead; the last one is in the error returned when
/// `limit` has passed.
pub fn wait_until<T>(what: &str, limit: Duration, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        interrupt::check()?;
        match attempt() {
            Ok(value) => return Ok(value),
            Err(seen) if start.elapsed() >= limit => {
                return Err(anyhow!(
                    "waited {:.1} s for: {what}; last seen: {seen:#}",
                    start.elapsed().as_secs_f64()
                ));
            }
            Err(_) => sleep(PAUSE),
        }
    }
}

/// Sleeps, but returns early with an error when the program is asked to end.
pub fn pause(duration: Duration) -> Result<()> {
    let end = Instant::now() + duration;
    loop {
        interrupt::check()?;
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        sleep(left.min(PAUSE));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_names_what_was_waited_for_and_what_was_seen() {
        let error = wait_until("a full moon", Duration::from_millis(1), || -> Result<()> {
            Err(anyhow!("a crescent"))
        });
        let text = error.unwrap_err().to_string();
        assert!(text.contains("for: a full moon; last seen: a crescent"), "{text}");
    }

    #[test]
    fn a_value_that_comes_late_is_returned() {
        let mut calls = 0;
        let value = wait_until("the third call", Duration::from_secs(5), || {
            calls += 1;
            if calls < 3 {
                Err(anyhow!("call {calls}"))
            } else {
                Ok(calls)
            }
        });
        assert_eq!(value.unwrap(), 3);
    }
}
