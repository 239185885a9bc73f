//! The eBPF datapath as the agent keeps it: programs loaded as soon as that is possible, their maps as planned, probes sent and
//! their answers taken in.

use crate::metrics::{LaneFigures, MOST_PEERS, PeerDrops, PeerTraffic};
use crate::neighbours::{Neighbours, resolve};
use podlane_datapath::{
    Counters, Failure, LaneCount, LaneName, Options, Over, PeerCount, ProbeAnswer, ProbeFailure, ProbeToSend,
    Programs, Reason, Synced,
};
use podlane_plan::datapath::Datapath as Planned;
use podlane_plan::desired::Desired;
use podlane_plan::lane::Lane;
use podlane_plan::probes::{Answer, Kind, Probe, ProbeKey, Prober, Proofs, Tally, Unsent};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long after a failure programs are loaded again: what hinders them is seldom gone by itself.
const AGAIN: Duration = Duration::from_secs(30);

/// The programs of this node, or why there are none.
pub struct Datapath {
    /// Where they are pinned; none: they are not to be loaded.
    bpffs: Option<PathBuf>,
    programs: Result<Programs, String>,
    tried: Instant,
    key: ProbeKey,
    prober: Prober,
    /// Whether something has been known of each lane in use since the start.
    has_heard: bool,
    neighbours: Neighbours,
    /// The moment from which the prober counts.
    epoch: Instant,
    dscp: u8,
    /// The lanes that the programs were last told of without fail.
    open: BTreeSet<Lane>,
    without: Proofs,
}

impl Datapath {
    /// Loads the programs, or takes over what a predecessor left. `key` is what peers may know probes to this node by already.
    ///
    /// Packets meet what they met before, until [`Datapath::sync`]. Loading takes some 10 MB of memory for a moment, for the kernel's own types are read with it: it is
    /// best done before anything else is in memory.
    pub fn open(bpffs: PathBuf, key: ProbeKey, now: Instant) -> Self {
        let programs = open(&bpffs);
        Self::of(Some(bpffs), programs, key, now)
    }

    /// Of a node that is to have no programs, for this reason: the kernel's drivers encapsulate.
    pub fn without(why: &str, now: Instant) -> Self {
        Self::of(None, Err(why.to_owned()), ProbeKey([0; 16]), now)
    }

    fn of(bpffs: Option<PathBuf>, programs: Result<Programs, String>, key: ProbeKey, now: Instant) -> Self {
        Self {
            bpffs,
            programs,
            tried: now,
            key,
            prober: Prober::new(rand::random()),
            has_heard: false,
            neighbours: Neighbours::default(),
            epoch: now,
            dscp: 0,
            open: BTreeSet::new(),
            without: Proofs::default(),
        }
    }

    /// Tries again to load programs that could not be, now and then. Whether they are loaded.
    pub fn is_loaded(&mut self, now: Instant) -> bool {
        if let Some(bpffs) = &self.bpffs
            && self.programs.is_err()
            && now.saturating_duration_since(self.tried) >= AGAIN
        {
            self.programs = open(bpffs);
            self.tried = now;
        }
        self.programs.is_ok()
    }

    /// Lets go of the programs, so that nothing of this process' keeps them in the kernel, and loads none until [`Datapath::reopen`].
    pub fn close(&mut self) {
        let key = self.key;
        *self = Self::of(
            self.bpffs.take(),
            Err("the node is to be without anything of Podlane's".to_owned()),
            key,
            Instant::now(),
        );
    }

    /// Loads programs after [`Datapath::close`].
    pub fn reopen(&mut self, now: Instant) {
        if let Some(bpffs) = &self.bpffs {
            self.programs = open(bpffs);
            self.tried = now;
        }
    }

    /// Why programs are not loaded.
    pub fn hindrance(&self) -> Option<&str> {
        self.programs.as_ref().err().map(String::as_str)
    }

    /// The hash of the loaded programs.
    pub fn hash(&self) -> Option<&str> {
        self.programs.as_ref().ok().map(Programs::hash)
    }

    /// What peers need to probe this node; none: no program would answer.
    pub fn key(&self) -> Option<ProbeKey> {
        self.programs.as_ref().ok().map(|_| self.key)
    }

    /// Goes on with the key by which peers know probes to this node already, so that no probe of theirs is refused after a restart.
    pub const fn learn_key(&mut self, key: ProbeKey) {
        self.key = key;
    }

    /// Makes maps and attachments as planned. To be called before routes are changed.
    pub fn sync(&mut self, planned: &Planned) -> Synced {
        self.dscp = planned.dscp;
        let Ok(programs) = &mut self.programs else {
            return Synced::default();
        };
        let synced = programs.sync(planned, Some(words(self.key)));
        if synced.told {
            let tunnels = planned.tunnels.keys().map(|tunnel| Lane::Tunnel(*tunnel));
            let plain = [Lane::Native, Lane::Underlay]
                .into_iter()
                .filter(|_| planned.native);
            self.open = tunnels.chain(plain).collect();
        }
        // Before peers are told that they may send natively.
        let now = Instant::now();
        self.neighbours.aim(planned, now);
        self.neighbours.resolve_due(now);
        synced
    }

    /// Has every flow go up the stack once more, since routes have changed.
    pub fn end_stamps(&mut self) {
        if let Ok(programs) = &mut self.programs
            && let Err(why) = programs.end_stamps()
        {
            tracing::warn!(%why, "flows may go on by their old lane for a second");
        }
    }

    /// The lanes that the programs were last told of without fail.
    pub const fn open_lanes(&self) -> &BTreeSet<Lane> {
        &self.open
    }

    /// Which lanes are proved.
    pub const fn proofs(&self) -> &Proofs {
        match &self.programs {
            Ok(_) => self.prober.proofs(),
            Err(_) => &self.without,
        }
    }

    /// What the probes come to.
    pub fn tally(&self) -> Option<Tally> {
        self.programs.as_ref().ok().map(|_| self.prober.tally())
    }

    /// Takes in which lanes are to be probed from now on.
    pub fn aim(&mut self, own: &str, desired: &Desired, now: Instant) {
        let targets = desired
            .peers
            .iter()
            .map(|(name, peer)| (name.as_str(), peer.probed.as_slice()));
        self.prober
            .aim(own, targets, now.saturating_duration_since(self.epoch));
    }

    /// When [`Datapath::probe`] is to be called next; none: when it was aimed anew.
    pub fn next_probe(&self) -> Option<Instant> {
        self.programs.as_ref().ok()?;
        let probe = self.prober.next_due().map(|due| self.epoch + due);
        probe.into_iter().chain(self.neighbours.next_due()).min()
    }

    /// Takes in answers and sends what is due. Whether anything has become known that a plan goes by.
    pub fn probe(&mut self, now: Instant) -> bool {
        let Ok(programs) = &mut self.programs else {
            return false;
        };
        self.neighbours.resolve_due(now);
        let now = now.saturating_duration_since(self.epoch);
        let waiting = self.prober.waiting_for(now);
        match programs.probe_answers(&waiting) {
            Ok(answers) => {
                for answer in answers.iter().filter_map(taken) {
                    self.prober.answered(&answer, now);
                }
            }
            Err(why) => tracing::warn!(%why, "answers to probes cannot be read"),
        }
        let mut unresolved = BTreeSet::new();
        for probe in self.prober.due(now) {
            if let Err(why) = programs.send_probe(&to_send(&probe, self.dscp)) {
                tracing::debug!(peer = %probe.peer, lane = %probe.target.lane, %why, "a probe was not sent");
                self.prober.unsent(probe.id, unsent(&why));
                if let ProbeFailure::NoNeighbour(next_hop) = why {
                    unresolved.insert((next_hop, probe.target.device.clone()));
                }
            }
        }
        for (next_hop, device) in unresolved {
            resolve(&next_hop, Some(&device));
        }
        let forgotten = self.prober.take_forgotten();
        programs.forget_probes(&forgotten);
        let has_news = self.prober.take_news();
        // Once after a start: whoever replaces agents one by one waits for it.
        let is_first = !self.has_heard && self.prober.has_heard_of_all();
        self.has_heard |= is_first;
        has_news || is_first
    }

    /// What the programs have counted, by lane and by peer; empty without programs.
    pub fn counters(&mut self) -> Counters {
        self.counted(Programs::counters)
    }

    /// What the programs have counted by lane; empty without programs.
    pub fn lane_figures(&mut self) -> Vec<LaneFigures> {
        figures_of_lanes(&self.counted(Programs::lane_counters))
    }

    fn counted<T: Default>(&mut self, read: fn(&mut Programs) -> Result<T, Failure>) -> T {
        let Ok(programs) = &mut self.programs else {
            return T::default();
        };
        read(programs).unwrap_or_else(|why| {
            tracing::warn!(%why, "the counters cannot be read");
            T::default()
        })
    }
}

fn open(bpffs: &std::path::Path) -> Result<Programs, String> {
    Programs::open(bpffs, &Options::default())
        .inspect(|programs| tracing::info!(hash = programs.hash(), "the eBPF programs are loaded"))
        .map_err(|why| {
            let why = why.to_string();
            tracing::warn!(%why, "no eBPF programs: the kernel's drivers encapsulate");
            why
        })
}

/// SipHash's key is two little-endian words (Aumasson and Bernstein, section 2.1).
fn words(key: ProbeKey) -> [u64; 2] {
    let word = |from: usize| {
        let mut octets = [0; 8];
        octets.copy_from_slice(&key.0[from..from + 8]);
        u64::from_le_bytes(octets)
    };
    [word(0), word(8)]
}

fn to_send(probe: &Probe, dscp: u8) -> ProbeToSend {
    let target = &probe.target;
    let over = match (target.lane, target.outer) {
        (Lane::Tunnel(tunnel), Some((source, destination))) => Over::Tunnel {
            tunnel,
            source,
            destination,
            dscp,
        },
        _ => Over::Native,
    };
    ProbeToSend {
        number: probe.id,
        over,
        source: target.source,
        destination: target.destination,
        device: target.device.to_string(),
        next_hop: target.next_hop,
        length: u16::try_from(probe.length()).unwrap_or(u16::MAX),
        short_reply: probe.kind == Kind::There,
        key: words(target.key),
    }
}

fn unsent(why: &ProbeFailure) -> Unsent {
    match why {
        ProbeFailure::NoNeighbour(_) => Unsent::NoNeighbour,
        ProbeFailure::NoWay { code, .. } => Unsent::Refused(*code),
        ProbeFailure::NotSent(_) | ProbeFailure::Impossible(_) | ProbeFailure::Refused(_) => {
            Unsent::Refused(255)
        }
    }
}

fn taken(answer: &ProbeAnswer) -> Option<Answer> {
    Some(Answer {
        id: answer.number,
        round_trip: answer.round_trip,
        length: answer.length,
        lane: match answer.over? {
            LaneName::Tunnel(tunnel) => Lane::Tunnel(tunnel),
            LaneName::Native => Lane::Native,
            LaneName::None => return None,
        },
    })
}

/// The peers with the most packets, the most first.
pub fn traffic(counters: &Counters) -> Vec<PeerTraffic> {
    let packets = |count: &PeerCount| count.sent_packets + count.received_packets;
    most(counters, packets)
        .map(|(peer, count)| PeerTraffic {
            peer: peer.clone(),
            packets: [count.sent_packets, count.received_packets],
            bytes: [count.sent_bytes, count.received_bytes],
        })
        .collect()
}

/// The peers with the most packets dropped, the most first.
pub fn drops(counters: &Counters) -> Vec<PeerDrops> {
    most(counters, |count| count.dropped.values().sum())
        .map(|(peer, count)| PeerDrops {
            peer: peer.clone(),
            dropped: reasons(&count.dropped),
        })
        .collect()
}

/// The peers that have the most of something, as many as are told of; those that have none of it left out.
fn most(counters: &Counters, of: fn(&PeerCount) -> u64) -> impl Iterator<Item = (&String, &PeerCount)> {
    let mut peers: Vec<_> = counters.peers.iter().filter(|(_, count)| of(count) > 0).collect();
    peers.sort_by_key(|(_, count)| Reverse(of(count)));
    peers.into_iter().take(MOST_PEERS)
}

/// The lanes' counters as metrics have them.
pub fn figures_of_lanes(lanes: &BTreeMap<LaneName, LaneCount>) -> Vec<LaneFigures> {
    lanes
        .iter()
        .map(|(name, count)| LaneFigures {
            lane: lane_text(*name),
            sent: [count.sent_packets, count.sent_bypassing],
            received: [count.received_packets, count.received_bypassing],
            bytes: [count.sent_bytes, count.received_bytes],
            dropped: reasons(&count.dropped),
        })
        .collect()
}

/// A lane as status and metrics name it.
pub fn lane_text(name: LaneName) -> String {
    match name {
        LaneName::Tunnel(tunnel) => Lane::Tunnel(tunnel).to_string(),
        LaneName::Native => Lane::Native.to_string(),
        LaneName::None => "none".to_owned(),
    }
}

fn reasons(dropped: &BTreeMap<Reason, u64>) -> Vec<(&'static str, u64)> {
    dropped
        .iter()
        .map(|(reason, count)| (reason.name(), *count))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peers_with_the_most_are_told_of() {
        let count = |number: u64| PeerCount {
            sent_packets: number,
            dropped: [(Reason::ForgedInner, 100 - number)]
                .into_iter()
                .filter(|(_, count)| *count > 0)
                .collect(),
            ..PeerCount::default()
        };
        let peers = (0..=100).map(|number| (format!("node-{number:03}"), count(number)));
        let counters = Counters {
            peers: peers.collect(),
            ..Counters::default()
        };
        let traffic = traffic(&counters);
        assert_eq!((traffic.len(), traffic[0].packets), (MOST_PEERS, [100, 0]));
        assert_eq!(traffic[63].peer, "node-037");
        let drops = drops(&counters);
        assert_eq!((drops.len(), drops[0].peer.as_str()), (MOST_PEERS, "node-000"));
        assert_eq!(drops[63].dropped, [("ForgedInner", 37)]);
        let none = Counters {
            peers: [("node".to_owned(), PeerCount::default())].into(),
            ..Counters::default()
        };
        assert_eq!((super::traffic(&none), super::drops(&none)), (vec![], vec![]));
    }

    #[test]
    fn a_key_is_two_little_endian_words() {
        let key = ProbeKey([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
        assert_eq!(words(key), [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908]);
    }
}
