//! Ctrl-C and SIGTERM as a flag that every wait of the lab looks at, so that an interrupted lab returns through the
//! ordinary error path and is taken down by it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result, bail};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

static INTERRUPTED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// From now on SIGINT, SIGTERM and SIGHUP raise the flag instead of ending the program.
pub fn watch() -> Result<()> {
    let flag = INTERRUPTED.get_or_init(|| Arc::new(AtomicBool::new(false)));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(flag)).context("cannot watch for signals")?;
    }
    Ok(())
}

/// Whether a signal has asked the program to end.
pub fn raised() -> bool {
    INTERRUPTED.get().is_some_and(|flag| flag.load(Ordering::SeqCst))
}

/// An error when a signal has asked the program to end.
pub fn check() -> Result<()> {
    if raised() {
        bail!("interrupted");
    }
    Ok(())
}
