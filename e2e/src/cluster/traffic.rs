//! Numbered packets between pods, in both directions of each pair.

use anyhow::{Result, ensure};

use super::Cluster;
use crate::story;
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
        let process = |pod: &&str| Ok(((*pod).to_owned(), cluster.pod_process("default", pod)?));
        let processes = pods.iter().map(process).collect::<Result<_>>()?;
        let streams = story::in_both_directions(pods, |from, to| cluster.stream(from, to, RATE))?;
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
        let sent = story::count_unless_lost(self.streams)?;
        eprintln!("{what}: {sent} packets, 0 lost, 0 doubled");
        Ok(())
    }
}
