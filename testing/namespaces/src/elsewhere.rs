//! A second namespace, for a test whose packets need somewhere to go.

use crate::ip;
use nix::sched::{CloneFlags, setns, unshare};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace of its own, entered by a thread of its own, that goes with it.
pub struct Elsewhere {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    tid: i32,
}

impl Elsewhere {
    /// An empty one: its loopback device is there, and down.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "it makes a thread and a namespace")]
    pub fn new() -> Self {
        let (jobs, work) = channel::<Job>();
        let (tell, told) = channel();
        let thread = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
            tell.send(nix::unistd::gettid().as_raw()).expect("somebody waits");
            for job in work {
                job();
            }
        });
        Self {
            jobs: Some(jobs),
            thread: Some(thread),
            tid: told.recv().expect("the thread runs"),
        }
    }

    /// The thread, by which ip(8) knows the namespace: `ip link set … netns TID`.
    #[must_use]
    pub const fn tid(&self) -> i32 {
        self.tid
    }

    /// Has the calling thread enter it, for good: for work on what cannot be moved to another thread.
    pub fn enter(&self) {
        let path = format!("/proc/self/task/{}/ns/net", self.tid);
        let namespace = std::fs::File::open(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        setns(namespace, CloneFlags::CLONE_NEWNET).expect("the namespace can be entered");
    }

    /// Does something there, and waits for it.
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (tell, told) = channel();
        let job: Job = Box::new(move || {
            // Nobody waits only if this side has failed already.
            let _ = tell.send(job());
        });
        self.jobs
            .as_ref()
            .expect("not ended")
            .send(job)
            .expect("the thread runs");
        told.recv().expect("it is done")
    }

    /// Runs ip(8) there, as [`ip`].
    pub fn ip(&self, arguments: &str) -> String {
        let arguments = arguments.to_owned();
        self.run(move || ip(&arguments))
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            // A thread that has failed has said so.
            let _ = thread.join();
        }
    }
}
