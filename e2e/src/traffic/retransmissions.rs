//! What TCP sends again, and whether it was lost.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::netns::Namespace;

/// How long answers to segments that came twice may be under way.
const TOLD_WITHIN: Duration = Duration::from_secs(2);

/// Segments that a sender's kernel has sent again so far, and were lost: those of which the receiver said that it had them
/// already (D-SACK, RFC 2883) are left out. On a busy machine an answer that is late makes a sender repeat what has arrived.
/// The sender is the connection in the namespace with this port; an error where there is none.
pub fn retransmitted(namespace: &Namespace, port: u16) -> Result<u64> {
    let filter = format!("sport = :{port}");
    let output = namespace
        .command("ss")
        .args(["-tinH", &filter])
        .output()
        .context("cannot run ss")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(text.contains("cwnd:"), "ss does not know port {port}: {text}");
    // Both are there only where there was any: `retrans:NOW/TOTAL`, `dsack_dups:TOTAL`.
    let words = || text.split_whitespace();
    let total: Option<u64> =
        words().find_map(|word| word.strip_prefix("retrans:")?.split_once('/')?.1.parse().ok());
    let needless: Option<u64> = words().find_map(|word| word.strip_prefix("dsack_dups:")?.parse().ok());
    Ok(total.unwrap_or(0).saturating_sub(needless.unwrap_or(0)))
}

/// What `count` comes to by when receivers have told what was sent again without need: once it is `expected` or less, or 2 s later.
pub fn once_told(expected: u64, count: impl Fn() -> Result<u64>) -> Result<u64> {
    let begun = Instant::now();
    loop {
        let counted = count()?;
        if counted <= expected || begun.elapsed() > TOLD_WITHIN {
            return Ok(counted);
        }
        sleep(Duration::from_millis(50));
    }
}
