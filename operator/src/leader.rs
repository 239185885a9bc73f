//! Only one operator acts: whoever holds the Lease. The semantics are client-go's.
//!
//! A lease is held for as long as its record keeps changing, as seen on this machine's own clock: times in the record are for
//! people, since another machine's clock may say anything.

mod election;

pub use election::{Election, Lost};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use std::time::Duration;
use tokio::time::Instant;

/// How long things take, as in client-go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// How long a lease is good for after its last renewal was seen.
    pub lease: Duration,
    /// How long the holder tries to renew before it gives up: less than `lease`, so that it has stopped before another starts.
    pub renew: Duration,
    /// How long between two attempts.
    pub retry: Duration,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(15),
            renew: Duration::from_secs(10),
            retry: Duration::from_secs(2),
        }
    }
}

/// What to do about a lease.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// There is none: make it.
    Create(Box<Lease>),
    /// Take it or renew it, unless somebody else has changed it in the meantime.
    Replace(Box<Lease>),
    /// Somebody else holds it.
    Wait,
}

/// One who would lead.
#[derive(Clone, Debug)]
pub struct Candidate {
    identity: String,
    terms: Terms,
    /// The record as last seen, and when it was first seen so.
    observed: Option<(LeaseSpec, Instant)>,
}

impl Candidate {
    /// A candidate that has seen nothing yet.
    pub const fn new(identity: String, terms: Terms) -> Self {
        Self {
            identity,
            terms,
            observed: None,
        }
    }

    /// Whether the lease, as last seen, is this candidate's.
    pub fn holds(&self) -> bool {
        self.holder() == Some(&self.identity)
    }

    /// Who holds the lease, as last seen.
    pub fn holder(&self) -> Option<&str> {
        self.observed
            .as_ref()
            .and_then(|(record, _)| record.holder_identity.as_deref())
            .filter(|holder| !holder.is_empty())
    }

    /// Takes note of a lease.
    pub fn observe(&mut self, lease: &Lease, now: Instant) {
        let record = lease.spec.clone().unwrap_or_default();
        if self.observed.as_ref().is_none_or(|(known, _)| *known != record) {
            self.observed = Some((record, now));
        }
    }

    /// What to do, given the lease as it is. `clock` is what people are told.
    pub fn step(&mut self, lease: Option<&Lease>, now: Instant, clock: Timestamp) -> Step {
        let Some(lease) = lease else {
            self.observed = None;
            return Step::Create(Box::new(Lease {
                metadata: ObjectMeta::default(),
                spec: Some(self.record(None, clock)),
            }));
        };
        self.observe(lease, now);
        let seen = self.observed.as_ref().map_or(now, |(_, seen)| *seen);
        let record = lease.spec.as_ref();
        let lasts = record
            .and_then(|record| record.lease_duration_seconds)
            .and_then(|seconds| u64::try_from(seconds).ok())
            .map_or(self.terms.lease, Duration::from_secs);
        if self.holder().is_some() && !self.holds() && now < seen + lasts {
            return Step::Wait;
        }
        Step::Replace(Box::new(Lease {
            metadata: lease.metadata.clone(),
            spec: Some(self.record(record, clock)),
        }))
    }

    /// The lease as it is to be when this candidate gives it up, so that the next one starts at once.
    pub fn release(&self, lease: &Lease, clock: Timestamp) -> Lease {
        let now = MicroTime(clock);
        Lease {
            metadata: lease.metadata.clone(),
            spec: Some(LeaseSpec {
                holder_identity: Some(String::new()),
                lease_duration_seconds: Some(1),
                acquire_time: Some(now.clone()),
                renew_time: Some(now),
                ..lease.spec.clone().unwrap_or_default()
            }),
        }
    }

    fn record(&self, before: Option<&LeaseSpec>, clock: Timestamp) -> LeaseSpec {
        let now = MicroTime(clock);
        let transitions = before.and_then(|before| before.lease_transitions);
        let (acquired, transitions) = match before {
            Some(before) if self.holds() => (before.acquire_time.clone(), transitions.unwrap_or(0)),
            Some(_) => (None, transitions.unwrap_or(0).saturating_add(1)),
            None => (None, 0),
        };
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(self.terms.lease.as_secs()).ok(),
            acquire_time: acquired.or_else(|| Some(now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(transitions),
            ..before.cloned().unwrap_or_default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    fn lease(holder: &str, renewed: i64, transitions: i32) -> Lease {
        Lease {
            metadata: ObjectMeta {
                resource_version: Some(renewed.to_string()),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(holder.to_owned()),
                lease_duration_seconds: Some(15),
                acquire_time: Some(MicroTime(clock(1))),
                renew_time: Some(MicroTime(clock(renewed))),
                lease_transitions: Some(transitions),
                ..LeaseSpec::default()
            }),
        }
    }

    fn told(step: Step) -> String {
        let written = |lease: Lease| {
            let record = lease.spec.expect("a record");
            let second = |time: Option<MicroTime>| time.expect("a time").0.as_second();
            format!(
                "{} since {} renewed {} transitions {}",
                record.holder_identity.unwrap_or_default(),
                second(record.acquire_time),
                second(record.renew_time),
                record.lease_transitions.unwrap_or(-1)
            )
        };
        match step {
            Step::Create(lease) => format!("create {}", written(*lease)),
            Step::Replace(lease) => format!("replace {}", written(*lease)),
            Step::Wait => "wait".to_owned(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn steps() {
        let start = Instant::now();
        let me = || Candidate::new("me".to_owned(), Terms::default());
        // (what was seen after how many seconds …, and what is done at the last)
        for (seen, expected) in [
            (vec![(0, None)], "create me since 1000 renewed 1000 transitions 0"),
            // Free: taken at once, and counted.
            (
                vec![(0, Some(lease("", 5, 3)))],
                "replace me since 1000 renewed 1000 transitions 4",
            ),
            // Mine: renewed, and since when stays.
            (
                vec![(0, Some(lease("me", 5, 3)))],
                "replace me since 1 renewed 1000 transitions 3",
            ),
            // Another's, however long ago its clock says that it was renewed.
            (vec![(0, Some(lease("other", 5, 3)))], "wait"),
            (
                vec![(0, Some(lease("other", 5, 3))), (14, Some(lease("other", 5, 3)))],
                "wait",
            ),
            // Not renewed for as long as it is good for, on this clock.
            (
                vec![(0, Some(lease("other", 5, 3))), (15, Some(lease("other", 5, 3)))],
                "replace me since 1000 renewed 1000 transitions 4",
            ),
            // Renewed in between: counted anew.
            (
                vec![
                    (0, Some(lease("other", 5, 3))),
                    (10, Some(lease("other", 6, 3))),
                    (24, Some(lease("other", 6, 3))),
                ],
                "wait",
            ),
            // Deleted under its holder.
            (
                vec![(0, Some(lease("other", 5, 3))), (1, None)],
                "create me since 1000 renewed 1000 transitions 0",
            ),
        ] {
            let mut me = me();
            let mut last = None;
            for (second, lease) in &seen {
                last = Some(me.step(lease.as_ref(), start + Duration::from_secs(*second), clock(1000)));
            }
            assert_eq!(last.map(told).as_deref(), Some(expected), "{seen:?}");
        }
    }

    #[test]
    fn a_replacement_names_the_version_it_replaces() {
        let mut me = Candidate::new("me".to_owned(), Terms::default());
        let Step::Replace(replacement) = me.step(Some(&lease("", 7, 0)), Instant::now(), clock(9)) else {
            panic!("a free lease is taken");
        };
        assert_eq!(replacement.metadata.resource_version.as_deref(), Some("7"));
        let released = me.release(&replacement, clock(11)).spec.expect("a record");
        assert_eq!(released.holder_identity.as_deref(), Some(""));
        assert_eq!(
            (released.lease_duration_seconds, released.lease_transitions),
            (Some(1), Some(1))
        );
    }
}
