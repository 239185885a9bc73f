//! What passes an interface, as tcpdump saw it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

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

    /// Ends the capture. An error when tcpdump could not keep up: a count out of it would prove nothing.
    pub fn stop(mut self) -> Result<Pcap> {
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
