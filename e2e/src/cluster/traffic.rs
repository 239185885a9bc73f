//! Numbered packets between pods, in both directions of each pair.

use anyhow::{Result, ensure};

use super::Cluster;
use crate::traffic::Stream;

/// Packets a second of each stream.
const RATE: u32 = 500;

/// Streams that flow.
#[derive(Debug)]
pub struct Traffic {
    streams: Vec<(String, Stream)>,
    /// The first process of each pod: another one is another pod.
    processes: Vec<(String, i32)>,
}

impl Traffic {
    /// Starts it between pods that were entered.
    pub fn between(cluster: &Cluster, pods: &[&str]) -> Result<Self> {
        let mut streams = Vec::new();
        let mut processes = Vec::new();
        for from in pods {
            processes.push(((*from).to_owned(), cluster.pod_process("default", from)?));
            for to in pods.iter().filter(|to| *to != from) {
                streams.push((format!("{from} to {to}"), cluster.stream(from, to, RATE)?));
            }
        }
        Ok(Self { streams, processes })
    }

    /// Ends it: every packet has come, once, to and from pods that nobody has started again. Says how many there were while `what` happened.
    #[allow(clippy::print_stderr, reason = "a test program speaks on standard error")]
    pub fn ensure_none_lost(self, cluster: &Cluster, what: &str) -> Result<()> {
        for (pod, process) in self.processes {
            ensure!(
                cluster.pod_process("default", &pod)? == process,
                "{pod} was started again: its packets prove nothing"
            );
        }
        let mut sent = 0;
        for (direction, stream) in self.streams {
            let report = stream.finish()?;
            ensure!(
                report.sent > 100,
                "{direction}: hardly anything was sent: {report:?}"
            );
            ensure!(
                report.lost == 0 && report.duplicated == 0,
                "{direction}: {report:?}"
            );
            sent += report.sent;
        }
        eprintln!("{what}: {sent} packets, 0 lost, 0 doubled");
        Ok(())
    }
}
