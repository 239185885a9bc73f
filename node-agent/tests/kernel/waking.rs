//! Whether the agent is woken by a change that somebody makes.

use std::sync::Arc;
use std::time::Duration;

use podlane_agent::kernel::events::{Events, Interest};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Notify;

/// Silence can only be waited for.
const SILENCE: Duration = Duration::from_millis(600);
/// What is expected may take a slow or busy machine longer.
const PATIENCE: Duration = Duration::from_secs(60);

/// The kernel's announcements, and who waits for them.
pub(crate) struct Waking {
    wake: Arc<Notify>,
    runtime: Runtime,
    /// Listens as long as it is there.
    _events: Events,
}

impl Waking {
    /// Listens, and waits until what is under way already (devices' carriers are announced in the background) has been announced.
    pub(crate) fn listen(interest: Interest) -> Self {
        let wake = Arc::new(Notify::new());
        let events = Events::listen(Arc::clone(&wake)).expect("a socket");
        events.set_interest(interest);
        let waking = Self {
            wake,
            runtime: Builder::new_current_thread()
                .enable_time()
                .build()
                .expect("a runtime"),
            _events: events,
        };
        waking.rest();
        waking
    }

    fn woken(&self, within: Duration) -> bool {
        let notified = async { tokio::time::timeout(within, self.wake.notified()).await.is_ok() };
        self.runtime.block_on(notified)
    }

    fn rest(&self) {
        while self.woken(SILENCE) {}
    }

    /// Makes a change, which has to wake or has not to.
    pub(crate) fn ensure<T>(&self, change: &str, make: impl FnOnce(&str) -> T, wakes: bool) {
        make(change);
        let within = if wakes { PATIENCE } else { SILENCE };
        assert_eq!(self.woken(within), wakes, "{change}");
        self.rest();
    }
}
