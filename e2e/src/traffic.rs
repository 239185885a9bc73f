//! A stream of numbered packets between two pods: every one of them is accounted for, by its number.
//!
//! Both ends are subcommands of `podlane-lab`, run in the pods' namespaces. The sender numbers its packets from 0 without
//! a gap; the receiver is told in the end how many there were, and says which of them never came.

mod numbers;
pub mod raw;
mod retransmissions;
mod tcp;
mod wire;

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

pub use numbers::{Numbers, Range};
pub use retransmissions::{once_told, retransmitted};
pub use tcp::{Connection, ConnectionReport, Segments};
pub use wire::{receive, send};

use crate::capture::unused_name;
use crate::lab::Lab;
use crate::process::{Process, Program};
use crate::programs;
use crate::wait::wait_until;

/// What the sender says when it has ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SendReport {
    /// Packets numbered and handed to the kernel, also those that it refused.
    pub sent: u64,
    /// How many the kernel refused, by error; they are lost.
    pub refused: BTreeMap<String, u64>,
    /// How long it took, in milliseconds.
    pub elapsed_ms: u64,
}

/// What the receiver says when it has ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceiveReport {
    /// Different packets that came.
    pub received: u64,
    /// Packets that came again.
    pub duplicated: u64,
    /// Packets that came after one with a higher number.
    pub reordered: u64,
    /// Packets that the receiver itself was too slow for.
    pub overrun: u64,
    /// The numbers that never came, the first so many ranges of them.
    pub lost_ranges: Vec<Range>,
}

/// What became of a stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StreamReport {
    /// Packets sent, also those that the sender's kernel refused.
    pub sent: u64,
    /// Different packets that came.
    pub received: u64,
    /// Packets that never came.
    pub lost: u64,
    /// Their numbers, the first so many ranges of them.
    pub lost_ranges: Vec<Range>,
    /// Packets that came again.
    pub duplicated: u64,
    /// Packets that came after one with a higher number.
    pub reordered: u64,
    /// How many the sender's kernel refused, by error.
    pub refused: BTreeMap<String, u64>,
    /// How long the sender sent.
    pub elapsed_ms: u64,
}

/// A stream that flows.
#[derive(Debug)]
pub struct Stream {
    sender: Process,
    receiver: Process,
    sent: PathBuf,
    received: PathBuf,
}

impl Stream {
    /// Starts a stream of `rate` packets a second (at most 10,000) from one pod to another: the first one has been sent.
    pub fn start(lab: &Lab, from: &str, to: &str, rate: u32) -> Result<Self> {
        Self::start_to(lab, from, to, lab.pod_address(to)?, rate, 64)
    }

    /// Starts a stream to an address of pod `to`, with payloads of `size` bytes. The address may be one that nothing
    /// routes to.
    pub fn start_to(lab: &Lab, from: &str, to: &str, address: IpAddr, rate: u32, size: u16) -> Result<Self> {
        let program = programs::own("podlane-lab")?.display().to_string();
        let directory = lab.directory();
        let family = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let start = |role: &str, pod: &str, arguments: &[String]| -> Result<(Process, PathBuf)> {
            let name = unused_name(&directory, &format!("stream-{role}-{pod}"))?;
            let output = directory.join(format!("{name}.json"));
            let words = [program.clone(), "stream".into(), role.into()]
                .into_iter()
                .chain(arguments.iter().cloned());
            let mut program = Program::new(name, words).within(&lab.namespace(pod));
            program.output = Some(output.clone());
            program.takes_input = true;
            Ok((Process::start(program, lab.ledger())?, output))
        };
        let (receiver, received) = start("receive", to, &["--bind".into(), family.into()])?;
        let port = wait_until("the stream's receiver to listen", Duration::from_secs(10), || {
            receiver.ensure_runs()?;
            let listening: Listening = first_line(&received)?;
            Ok(listening.listening.port())
        })?;
        let target = SocketAddr::new(address, port);
        let arguments = [
            "--to",
            &target.to_string(),
            "--rate",
            &rate.to_string(),
            "--size",
            &size.to_string(),
        ];
        let (sender, sent) = start("send", from, &arguments.map(str::to_owned))?;
        wait_until("the stream's first packet", Duration::from_secs(10), || {
            sender.ensure_runs()?;
            first_line::<Sending>(&sent)
        })?;
        Ok(Self {
            sender,
            receiver,
            sent,
            received,
        })
    }

    /// Stops sending, waits for what is still on its way, and counts.
    pub fn finish(mut self) -> Result<StreamReport> {
        self.sender.write_line("stop")?;
        let sent: SendReport = report(&mut self.sender, &self.sent)?;
        self.receiver.write_line(&format!("finish {}", sent.sent))?;
        let received: ReceiveReport = report(&mut self.receiver, &self.received)?;
        if received.overrun > 0 {
            bail!(
                "the stream's receiver was too slow for {} packets: the count proves nothing",
                received.overrun
            );
        }
        Ok(StreamReport {
            sent: sent.sent,
            received: received.received,
            lost: sent.sent - received.received,
            lost_ranges: received.lost_ranges,
            duplicated: received.duplicated,
            reordered: received.reordered,
            refused: sent.refused,
            elapsed_ms: sent.elapsed_ms,
        })
    }
}

/// What the sender says when it has sent its first packet.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sending {
    /// Where to.
    pub sending: SocketAddr,
}

/// What the receiver says when it has begun.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Listening {
    /// The address and port that it listens on.
    pub listening: SocketAddr,
}

fn report<T: for<'de> Deserialize<'de>>(process: &mut Process, output: &Path) -> Result<T> {
    let status = process.wait(Duration::from_secs(20))?;
    if !status.success() {
        bail!("{} failed ({status}): {}", process.name(), process.log_tail(5));
    }
    let text = fs::read_to_string(output).with_context(|| format!("cannot read {}", output.display()))?;
    let line = text
        .lines()
        .last()
        .with_context(|| format!("{} said nothing", process.name()))?;
    serde_json::from_str(line).with_context(|| format!("{} said {line}", process.name()))
}

fn first_line<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let (line, _) = text.split_once('\n').context("no whole line yet")?;
    serde_json::from_str(line).with_context(|| line.to_owned())
}
