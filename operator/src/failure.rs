//! What the API server's refusals say, in few enough words for a log.

use kube::Error;
use kube::core::Status;
use kube::runtime::watcher;
use podlane_plan::backoff::Backoff;
use std::time::Duration;

/// How long to wait with calls to the API server that fail.
pub const API_SERVER: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(30));

/// A failed request in words.
pub fn words(error: &Error) -> String {
    match error {
        Error::Api(status) => of_status(status),
        Error::Service(error) => chain(error.as_ref()),
        error => chain(error),
    }
}

/// A failed watch in words.
pub fn of_watch(error: &watcher::Error) -> String {
    match status_of(error) {
        Ok(status) => of_status(status),
        Err(Some(error)) => words(error),
        Err(None) => error.to_string(),
    }
}

/// Whether the API server has looked at what it was given and will not take it, however often that is tried.
pub fn is_refusal(error: &Error) -> bool {
    matches!(error, Error::Api(status) if matches!(status.code, 400 | 422))
}

/// How long a refusal asks to be left alone, within reason.
pub fn asks_to_wait(error: &Error) -> Duration {
    match error {
        Error::Api(status) => retry_after(status),
        _ => Duration::ZERO,
    }
}

/// The same, of a failed watch.
pub fn watch_asks_to_wait(error: &watcher::Error) -> Duration {
    match status_of(error) {
        Ok(status) => retry_after(status),
        Err(_) => Duration::ZERO,
    }
}

/// Whether a watch has ended because what it went by is too old (410 Gone): it is to be listed anew, which nothing speaks against.
pub fn is_expiry(error: &watcher::Error) -> bool {
    status_of(error).is_ok_and(|status| status.code == 410)
}

fn status_of(error: &watcher::Error) -> Result<&Status, Option<&Error>> {
    use watcher::Error::{InitialListFailed, NoResourceVersion, WatchError, WatchFailed, WatchStartFailed};
    match error {
        WatchError(status) => Ok(status),
        InitialListFailed(error) | WatchStartFailed(error) | WatchFailed(error) => match error {
            Error::Api(status) => Ok(status),
            error => Err(Some(error)),
        },
        NoResourceVersion => Err(None),
    }
}

fn of_status(status: &Status) -> String {
    match status.message.as_str() {
        "" => format!("{} {}", status.code, status.reason),
        message => format!("{} {message}", status.code),
    }
}

fn retry_after(status: &Status) -> Duration {
    let seconds = status
        .details
        .as_ref()
        .map_or(0, |details| details.retry_after_seconds);
    Duration::from_secs(seconds.into()).min(API_SERVER.longest())
}

/// An error and what caused it: the cause is what says something.
fn chain(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !words.contains(&text) {
            words = format!("{words}: {text}");
        }
        cause = error.source();
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_refusal_is_short_and_says_how_long_to_wait() {
        let status =
            json!({"code": 429, "message": "too many requests", "details": {"retryAfterSeconds": 2}});
        let error = Error::Api(serde_json::from_value(status).expect("a status"));
        assert_eq!(words(&error), "429 too many requests");
        assert_eq!(asks_to_wait(&error), Duration::from_secs(2));
        let error = watcher::Error::WatchFailed(error);
        assert_eq!(of_watch(&error), "429 too many requests");
        assert_eq!(watch_asks_to_wait(&error), Duration::from_secs(2));
    }
}
