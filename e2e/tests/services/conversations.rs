//! Connections that last: questions and answers one after the other, long enough for a flow to bypass the host's stack where it may.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use podlane_e2e::lab::Lab;
use podlane_e2e::wait::{pause, wait_until};

use crate::servers::{ask_on, connect};

/// How long one answer may take: also one that a firewall held up for a while, when TCP has waited longer and longer before it tried again.
const ANSWERS_WITHIN: Duration = Duration::from_secs(60);

/// A connection on which somebody asks again and again.
#[derive(Debug)]
pub(crate) struct Conversation {
    name: String,
    answered: Arc<AtomicU64>,
    /// When the last answer came.
    last: Arc<Mutex<Instant>>,
    ends: Arc<AtomicBool>,
    thread: JoinHandle<Result<()>>,
}

impl Conversation {
    /// Connects from a namespace of the lab and begins; the first answer has come when this returns.
    pub(crate) fn start(lab: &Lab, from: &str, target: SocketAddr) -> Result<Self> {
        let name = format!("{from} to {target}");
        let (answered, ends) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let mut stream = lab
            .namespace(from)
            .within(|| connect(target, ANSWERS_WITHIN))
            .with_context(|| name.clone())?;
        let last = Arc::new(Mutex::new(Instant::now()));
        let (count, ended, at) = (Arc::clone(&answered), Arc::clone(&ends), Arc::clone(&last));
        let thread = thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                ask_on(&mut stream, 8)?;
                *at.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
                count.fetch_add(1, Ordering::Relaxed);
                thread::sleep(Duration::from_millis(1));
            }
            Ok(())
        });
        let conversation = Self {
            name,
            answered,
            last,
            ends,
            thread,
        };
        conversation.ensure_goes_on()?;
        Ok(conversation)
    }

    /// How many questions were answered.
    pub(crate) fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Waits for a further answer.
    pub(crate) fn ensure_goes_on(&self) -> Result<()> {
        let before = self.answered();
        wait_until(&format!("{} to go on", self.name), ANSWERS_WITHIN, || {
            ensure!(self.answered() > before || self.thread.is_finished(), "no answer");
            Ok(())
        })?;
        ensure!(!self.thread.is_finished(), "{} has ended", self.name);
        Ok(())
    }

    /// Waits until no answer has come for a second; how long after `since` the last one was.
    pub(crate) fn stalls(&self, since: Instant, within: Duration) -> Result<Duration> {
        /// What cannot pass for a machine that is busy with something else.
        const SILENCE: Duration = Duration::from_secs(1);
        loop {
            pause(Duration::from_millis(10))?;
            ensure!(!self.thread.is_finished(), "{} has ended", self.name);
            let last = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
            let after = last.saturating_duration_since(since);
            ensure!(
                after <= within,
                "{} goes on, {:.1} s after it was refused",
                self.name,
                after.as_secs_f64()
            );
            if last.elapsed() >= SILENCE {
                return Ok(after);
            }
        }
    }

    /// Ends it; how many questions were answered. An error when one of them was not.
    pub(crate) fn finish(self) -> Result<u64> {
        self.ends.store(true, Ordering::Relaxed);
        let result = self
            .thread
            .join()
            .map_err(|_| anyhow!("{} panicked", self.name))?;
        result.with_context(|| self.name.clone())?;
        Ok(self.answered.load(Ordering::Relaxed))
    }
}
