//! Looks at the lab as somebody at a shell would: ping, ip route.

use std::net::IpAddr;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::lab::Lab;

/// What became of a ping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PingReport {
    /// Requests sent.
    pub sent: u32,
    /// Replies that came.
    pub replies: u32,
    /// ICMP errors that came, as ping words them: `From 172.20.0.1 icmp_seq=1 Destination Net Unreachable`.
    pub errors: Vec<String>,
    /// How long all of it took.
    pub elapsed: Duration,
    /// All that ping printed.
    pub output: String,
}

impl PingReport {
    /// Whether every request was answered.
    pub fn all_answered(&self) -> bool {
        self.sent > 0 && self.replies == self.sent
    }

    /// Whether every request was refused by an ICMP unreachable.
    pub fn all_refused(&self) -> bool {
        let refused = self
            .errors
            .iter()
            .filter(|line| line.to_lowercase().contains("unreachable"))
            .count();
        self.sent > 0 && self.replies == 0 && refused >= self.sent as usize
    }
}

/// Pings an address from a pod, a node or the router; each request waits one second for its answer.
pub fn ping(lab: &Lab, from: &str, to: IpAddr, count: u32) -> Result<PingReport> {
    ping_with(lab, from, to, count, &[])
}

/// The same with further arguments for ping, such as `-M do -s 1372`.
pub fn ping_with(lab: &Lab, from: &str, to: IpAddr, count: u32, more: &[&str]) -> Result<PingReport> {
    let start = Instant::now();
    let output = lab
        .namespace(from)
        .command("ping")
        .args(["-n", "-i", "0.2", "-W", "1", "-c", &count.to_string()])
        .args(more)
        .arg(to.to_string())
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .context("cannot run ping")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let Some((sent, replies)) = parse_counts(&text) else {
        bail!(
            "ping {to} from {from}: {} {}",
            text.trim(),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    };
    let errors = text
        .lines()
        .filter(|line| line.starts_with("From "))
        .map(str::to_owned)
        .collect();
    Ok(PingReport {
        sent,
        replies,
        errors,
        elapsed: start.elapsed(),
        output: text.into_owned(),
    })
}

fn parse_counts(output: &str) -> Option<(u32, u32)> {
    let line = output
        .lines()
        .find(|line| line.contains(" packets transmitted, "))?;
    let mut parts = line
        .split(", ")
        .map(|part| part.split(' ').next().and_then(|number| number.parse().ok()));
    Some((parts.next()??, parts.next()??))
}

/// The routes of a node's main table to precisely a destination such as `172.20.2.0/24`, as `ip -j -d route` shows them.
/// Of a route with an encapsulation ip writes `dst`, `src`, `id` and `ttl` of the encapsulation in the same object; the
/// route's own source is `prefsrc`.
pub fn routes_to(lab: &Lab, node: &str, destination: &str) -> Result<Vec<Value>> {
    json_list(
        lab,
        node,
        &["-j", "-d", "route", "show", "table", "main", "exact", destination],
    )
}

/// `ip -j -d link` of a node: an array with one object for each interface.
pub fn links(lab: &Lab, node: &str) -> Result<Vec<Value>> {
    json_list(lab, node, &["-j", "-d", "link", "show"])
}

fn json_list(lab: &Lab, node: &str, arguments: &[&str]) -> Result<Vec<Value>> {
    let output = lab.namespace(node).ip(arguments)?;
    if output.trim().is_empty() {
        return Ok(Vec::new());
    }
    serde_json::from_str(&output)
        .with_context(|| format!("ip {} answered with no JSON list", arguments.join(" ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_with_and_without_errors() {
        let plain = "2 packets transmitted, 1 received, 50% packet loss, time 201ms";
        assert_eq!(parse_counts(plain), Some((2, 1)));
        let errors = "3 packets transmitted, 0 received, +3 errors, 100% packet loss, time 2ms";
        assert_eq!(parse_counts(errors), Some((3, 0)));
        assert_eq!(parse_counts("ping: connect: Network is unreachable"), None);
    }
}
