//! What passes an interface, as tcpdump saw it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use crate::lab::Lab;
use crate::process::{Process, Program, tail};
use crate::wait::wait_until;

/// tcpdump at work.
#[derive(Debug)]
pub struct Capture {
    process: Process,
    file: PathBuf,
}

impl Capture {
    /// Captures what matches `filter` on an interface; returns when tcpdump really listens.
    pub fn start(lab: &Lab, namespace: &str, interface: &str, filter: &str) -> Result<Self> {
        let name = unused_name(&lab.directory(), &format!("capture-{namespace}-{interface}"))?;
        let file = lab.directory().join(format!("{name}.pcap"));
        let mut arguments = [
            "tcpdump",
            "-nn",
            "-U",
            "--immediate-mode",
            "-B",
            "16384",
            // Headers are what is looked at. A whole packet's worth for each would leave the buffer 64 places.
            "-s",
            "2048",
            "-Z",
            "root",
            "-i",
            interface,
            "-w",
        ]
        .map(str::to_owned)
        .to_vec();
        arguments.push(file.display().to_string());
        arguments.push(filter.to_owned());
        let program = Program::new(name, arguments).within(&lab.namespace(namespace));
        let process = Process::start(program, lab.ledger())?;
        wait_until(
            &format!("tcpdump to listen on {interface} in {namespace}"),
            Duration::from_secs(10),
            || {
                let log = process.log_tail(5);
                if !process.runs() || log.contains("listening on") {
                    Ok(())
                } else {
                    bail!("{log}")
                }
            },
        )?;
        process.ensure_runs()?;
        Ok(Self { process, file })
    }

    /// Ends the capture, when all that was seen up to now is in the file. An error when tcpdump could not keep up: a count out of it would
    /// prove nothing.
    pub fn stop(mut self) -> Result<Pcap> {
        self.all_written()?;
        self.process.end_with(Signal::SIGINT, Duration::from_secs(5))?;
        let log = tail(self.process.log(), 10);
        if !log
            .lines()
            .any(|line| line.starts_with("0 packets dropped by kernel"))
        {
            bail!("tcpdump has not seen every packet: {log}");
        }
        Ok(Pcap { file: self.file })
    }

    /// Waits until tcpdump, which leaves behind what it has not read when it ends, has written as many packets as had come when this was called.
    /// On some devices (the loopback is one) the kernel counts a packet twice: then until the count has not moved for a second.
    fn all_written(&self) -> Result<()> {
        let mut wanted = None;
        let mut last = (0, Instant::now());
        wait_until(
            "tcpdump to write what it has seen",
            Duration::from_secs(10),
            || {
                // It answers with a line of its counts (tcpdump(1), "SIGUSR1").
                self.process.signal(Signal::SIGUSR1)?;
                let log = self.process.log_tail(1);
                let Some((written, seen)) = counts(&log) else {
                    bail!("{log}")
                };
                if written != last.0 {
                    last = (written, Instant::now());
                }
                if written >= *wanted.get_or_insert(seen) || last.1.elapsed() >= Duration::from_secs(1) {
                    Ok(())
                } else {
                    bail!("{log}")
                }
            },
        )
    }
}

/// Of "tcpdump: 3 packets captured, 4 packets received by filter, …" the two numbers.
fn counts(line: &str) -> Option<(u64, u64)> {
    let (written, rest) = line.strip_prefix("tcpdump: ")?.split_once(" packet")?;
    let seen = rest.split_once(", ")?.1.split_once(' ')?.0;
    Some((written.parse().ok()?, seen.parse().ok()?))
}

/// A file of captured packets.
#[derive(Clone, Debug)]
pub struct Pcap {
    file: PathBuf,
}

impl Pcap {
    /// A file that is there already.
    pub fn at(file: impl Into<PathBuf>) -> Self {
        Self { file: file.into() }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.file
    }

    /// One line for each packet that matches a tcpdump filter (empty: all).
    pub fn lines(&self, filter: &str) -> Result<Vec<String>> {
        let file = self.file.display().to_string();
        Ok(join_continuations(lines_of(
            "tcpdump",
            &["-nn", "-r", &file, filter],
        )?))
    }

    /// The number of packets that match a tcpdump filter (empty: all).
    pub fn count(&self, filter: &str) -> Result<usize> {
        Ok(self.lines(filter)?.len())
    }

    /// One line for each packet that matches a tshark display filter, with UDP port `port` decoded as VXLAN.
    pub fn decode_vxlan(&self, port: u16, filter: &str) -> Result<Vec<String>> {
        let file = self.file.display().to_string();
        let decode = format!("udp.port=={port},vxlan");
        lines_of("tshark", &["-n", "-r", &file, "-d", &decode, "-Y", filter])
    }

    /// For each packet that matches a tshark display filter, the values of fields such as `vxlan.vni` or `ip.src`; a
    /// field that a packet has twice (an outer and an inner one) has both values with a comma between.
    pub fn fields(&self, port: u16, filter: &str, fields: &[&str]) -> Result<Vec<Vec<String>>> {
        let file = self.file.display().to_string();
        let decode = format!("udp.port=={port},vxlan");
        let mut arguments = vec!["-n", "-r", &file, "-d", &decode, "-Y", filter, "-T", "fields"];
        arguments.extend(fields.iter().flat_map(|field| ["-e", field]));
        let lines = lines_of("tshark", &arguments)?;
        Ok(lines
            .iter()
            .map(|line| line.split('\t').map(str::to_owned).collect())
            .collect())
    }
}

/// One line for each packet: tcpdump shows what a packet has inside on a line of its own, which begins with no time.
fn join_continuations(lines: Vec<String>) -> Vec<String> {
    let mut packets: Vec<String> = Vec::new();
    for line in lines {
        match packets.last_mut() {
            Some(packet) if !line.starts_with(|first: char| first.is_ascii_digit()) => {
                packet.push_str(" / ");
                packet.push_str(line.trim());
            }
            _ => packets.push(line),
        }
    }
    packets
}

fn lines_of(program: &str, arguments: &[&str]) -> Result<Vec<String>> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    if !output.status.success() {
        bail!(
            "{program} {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(str::to_owned)
        .collect())
}

/// A name that no file in `directory` has yet: `name`, `name-2`, …
pub(crate) fn unused_name(directory: &Path, name: &str) -> Result<String> {
    let logs = crate::lab::logs(directory);
    (1..10_000)
        .map(|number| {
            if number == 1 {
                name.to_owned()
            } else {
                format!("{name}-{number}")
            }
        })
        .find(|name| !logs.join(format!("{name}.log")).exists())
        .with_context(|| format!("too many logs called {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_and_what_was_seen_is_read() {
        let line = "tcpdump: 1 packet captured, 12 packets received by filter, 0 packets dropped by kernel";
        assert_eq!(counts(line), Some((1, 12)));
        assert_eq!(counts("tcpdump: listening on eth0, link-type EN10MB"), None);
    }

    #[test]
    fn a_packet_inside_of_another_is_not_counted_twice() {
        let lines = [
            "03:16:30.657267 IP 192.168.10.100.43682 > 192.168.20.100.8472: OTV, instance 1",
            "IP 172.20.0.10 > 172.20.2.10: ICMP echo request, id 29113, seq 1, length 64",
            "03:16:30.657545 IP 192.168.10.100 > 192.168.20.100: ICMP echo request, id 3, seq 1, length 64",
        ];
        let packets = join_continuations(lines.map(str::to_owned).to_vec());
        assert_eq!(packets.len(), 2);
        assert!(packets[0].ends_with(
            "OTV, instance 1 / IP 172.20.0.10 > 172.20.2.10: ICMP echo request, id 29113, seq 1, length 64"
        ));
    }
}
