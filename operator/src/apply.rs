//! Carrying out writes: many at a time, each with its own result, and none over what somebody else has written since.

mod request;

use crate::failure::{API_SERVER, asks_to_wait, words};
use crate::said::Said;
use crate::watch::{Kept, Shared};
use crate::world::{Kind, Source, World};
use crate::write::{Event, Write};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event as ApiEvent, EventType, Recorder, Reporter};
use kube::{Client, Error};
use podlane_plan::backoff::Backoff;
use request::{Answer, perform};
use std::collections::{BTreeMap, VecDeque};
use std::hash::{DefaultHasher, Hasher};
use std::time::Duration;
use tokio::time::Instant;

/// Writes in flight at a time, at most.
const AT_A_TIME: usize = 16;
/// How long one pass goes on writing, at most: then it is decided anew, so that a change at one node need not wait for the
/// thousands of writes that a change of policy brings.
const ENOUGH: Duration = Duration::from_millis(400);

/// Who carries out writes.
pub struct Applier {
    client: Client,
    recorder: Recorder,
    said: Said,
    targets: BTreeMap<(u8, String), Target>,
    away: Backoff,
}

/// What became of the writes to one object.
#[derive(Debug)]
struct Target {
    backoff: Backoff,
    not_before: Option<Instant>,
    written: Option<u64>,
}

impl Default for Target {
    fn default() -> Self {
        Self {
            backoff: API_SERVER,
            not_before: None,
            written: None,
        }
    }
}

/// What became of a pass' writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// How many were carried out.
    pub done: usize,
    /// How many failed, or wait for their turn after a failure.
    pub failed: usize,
    /// Whether there is more to do at once.
    pub is_cut: bool,
    /// Until when nothing is to be tried at all: the API server does not answer, or asks to be left alone.
    pub pause: Option<Instant>,
    /// When to try again what failed.
    pub retry_at: Option<Instant>,
}

/// How a write fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    /// The API server does not answer, or takes nothing now: all others would fail too.
    Away,
    /// The object is not what the decision was made from: what it is now is on its way here.
    Stale,
    /// The API server does not take this one.
    Refused,
}

fn failure(error: &Error) -> Failure {
    match error {
        Error::Api(status) => match status.code {
            404 | 409 | 422 => Failure::Stale,
            429 | 500.. => Failure::Away,
            _ => Failure::Refused,
        },
        Error::SerdeError(_) | Error::BuildRequest(_) => Failure::Refused,
        _ => Failure::Away,
    }
}

impl Applier {
    /// One that writes as `podlane-operator`; events name this very process.
    pub fn new(client: Client, identity: &str) -> Self {
        let reporter = Reporter {
            controller: request::MANAGER.to_owned(),
            instance: Some(identity.to_owned()),
        };
        Self {
            recorder: Recorder::new(client.clone(), reporter),
            client,
            said: Said::default(),
            targets: BTreeMap::new(),
            away: API_SERVER,
        }
    }

    /// Carries out writes in their order. What the API server answers is put into the picture.
    pub async fn carry_out(&mut self, shared: &Shared, writes: Vec<Write>) -> Outcome {
        let start = Instant::now();
        let mut outcome = Outcome::default();
        let mut queue: VecDeque<Write> = VecDeque::with_capacity(writes.len());
        // Of an object that there is nothing to write to any more, nothing needs to be remembered.
        let mut targets = std::mem::take(&mut self.targets);
        for write in writes {
            let key = (write.what.turn(), write.name.clone());
            let target = targets.remove(&key).unwrap_or_default();
            let waits = target.not_before.filter(|not_before| *not_before > start);
            self.targets.insert(key, target);
            match waits {
                Some(until) => {
                    outcome.failed += 1;
                    outcome.retry_at = outcome.retry_at.into_iter().chain([until]).min();
                }
                None => queue.push_back(write),
            }
        }
        drop(targets);

        let mut in_flight = FuturesUnordered::new();
        loop {
            outcome.is_cut = start.elapsed() >= ENOUGH && !queue.is_empty();
            while in_flight.len() < AT_A_TIME && !outcome.is_cut && outcome.pause.is_none() {
                let Some(write) = queue.pop_front() else { break };
                let client = self.client.clone();
                in_flight.push(async move {
                    let result = perform(&client, &write).await;
                    (write, result)
                });
            }
            let Some((write, result)) = in_flight.next().await else {
                break;
            };
            match result {
                Ok(answer) => {
                    outcome.done += 1;
                    self.succeeded(&write, &mut outcome);
                    let regarding = put(answer, &mut shared.world());
                    self.publish(write, regarding);
                }
                Err(error) => self.failed(&write, &error, &mut outcome),
            }
        }
        if outcome.pause.is_none() && outcome.done > 0 {
            self.away.reset();
            if self.said.is_over("") {
                tracing::info!("the API server takes writes again");
            }
        }
        outcome
    }

    fn succeeded(&mut self, write: &Write, outcome: &mut Outcome) {
        let subject = subject(write);
        if self.said.is_over(&subject) {
            tracing::info!("could {subject} at last");
        }
        let content = fingerprint(write);
        let Some(target) = self.targets.get_mut(&(write.what.turn(), write.name.clone())) else {
            return;
        };
        if target.written.replace(content) == Some(content) {
            // It was written just so before, and is not so: the API server does not keep what it is given, perhaps because the
            // CustomResourceDefinitions are of another version.
            let wait = target.backoff.fail(rand::random());
            let until = Instant::now() + wait;
            target.not_before = Some(until);
            outcome.retry_at = outcome.retry_at.into_iter().chain([until]).min();
            let why = "the API server does not keep what it is given: are the CustomResourceDefinitions of this version?";
            if target.backoff.failures() > 2 && self.said.is_news(&subject, why, std::time::Instant::now()) {
                tracing::warn!("{subject} is in vain: {why}");
            }
        } else {
            target.backoff.reset();
            target.not_before = None;
        }
    }

    fn failed(&mut self, write: &Write, error: &Error, outcome: &mut Outcome) {
        outcome.failed += 1;
        let now = Instant::now();
        let kind = failure(error);
        if kind == Failure::Away {
            if outcome.pause.is_none() {
                let wait = self.away.fail(rand::random()).max(asks_to_wait(error));
                outcome.pause = Some(now + wait);
                if self.said.is_news("", &words(error), now.into_std()) {
                    tracing::warn!(why = words(error), "the API server takes no writes; trying again");
                }
            }
            return;
        }
        let key = (write.what.turn(), write.name.clone());
        let target = self.targets.entry(key).or_default();
        let until = now + target.backoff.fail(rand::random());
        target.not_before = Some(until);
        outcome.retry_at = outcome.retry_at.into_iter().chain([until]).min();
        // That somebody else was quicker is no news, unless it goes on.
        let subject = subject(write);
        let is_usual = kind == Failure::Stale && target.backoff.failures() < 4;
        if !is_usual && self.said.is_news(&subject, &words(error), now.into_std()) {
            tracing::warn!(why = words(error), "cannot {subject}; trying again");
        } else {
            tracing::debug!(why = words(error), "cannot {subject}; trying again");
        }
    }

    /// Tells of what was written, beside whatever else is done: an event that does not get through is no loss.
    fn publish(&self, write: Write, regarding: Option<ObjectReference>) {
        let Some(regarding) = regarding.filter(|_| !write.events.is_empty()) else {
            return;
        };
        let recorder = self.recorder.clone();
        tokio::spawn(async move {
            for event in &write.events {
                log(&write, event);
                let event = ApiEvent {
                    type_: if event.is_warning {
                        EventType::Warning
                    } else {
                        EventType::Normal
                    },
                    reason: event.reason.clone(),
                    note: Some(event.note.clone()),
                    action: "Reconcile".to_owned(),
                    secondary: None,
                };
                if let Err(error) = recorder.publish(&event, &regarding).await {
                    tracing::debug!(why = words(&error), "an event could not be written");
                }
            }
        });
    }
}

fn log(write: &Write, event: &Event) {
    let (kind, name) = (write.what.kind(), &write.name);
    if event.is_warning {
        tracing::warn!(reason = event.reason, "{kind} {name}: {}", event.note);
    } else {
        tracing::info!(reason = event.reason, "{kind} {name}: {}", event.note);
    }
}

fn subject(write: &Write) -> String {
    format!("{} {} {}", write.what.verb(), write.what.kind(), write.name)
}

/// What a write says, without what it expects to find.
fn fingerprint(write: &Write) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(write.what.verb().as_bytes());
    hasher.write(&request::content(&write.what));
    hasher.finish()
}

/// Puts the answer to a write into the picture. What an event about the object is to name.
fn put(answer: Answer, world: &mut World) -> Option<ObjectReference> {
    fn kept<K: Kept>(object: K, world: &mut World) -> Option<ObjectReference> {
        let reference = object.object_ref(&());
        object.keep(world, Source::Change);
        Some(reference)
    }
    match answer {
        Answer::Policy(object) => kept(*object, world),
        Answer::Node(object) => kept(*object, world),
        Answer::ApiNode(object) => kept(*object, world),
        Answer::Slice(object) => kept(*object, world),
        Answer::Gone(kind, name, uid) => {
            debug_assert!(matches!(kind, Kind::RoutingNode | Kind::PeerSlice));
            world.forget(kind, &name, Some(&uid));
            None
        }
    }
}

#[cfg(test)]
mod tests;
