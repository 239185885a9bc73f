//! Which lanes are known to carry packets: what to probe and when, and what the answers mean.
//!
//! A lane carries traffic only once a full-size packet has gone over it and come back. [`Prober`] says which probes are to be sent,
//! takes in what was answered, and keeps [`Proofs`], which the plan goes by; the shell sends, and asks again when
//! [`Prober::next_due`] says. Times are the shell's, since any moment of its choice that does not change.
//!
//! * A lane **to come** is probed at once, and again after 50 ms, 100 ms and so on up to 4 s, until it answers.
//! * Lanes **in use** are watched: all of them up to [`WATCHED`] peers; beyond, those to the peers whose names follow this node's own, so
//!   that every node is watched by as many, and some of the others in turn. A watched lane that stops answering is doubted
//!   within 3 s, and one lost probe changes nothing.
//! * A lane that carries **no full-size packets** is asked for lengths in between, three a round, until it is known which fits: some seven rounds.
//! * No more than [`A_SECOND`] probes are sent in a second.

mod doubt;
mod fitting;
mod key;
mod pace;
mod prober;
mod proofs;
mod rounds;
mod series;
mod tally;
#[cfg(test)]
mod tests;

pub use doubt::{Direction, Doubt};
pub use key::{NoProbeKey, ProbeKey};
pub use pace::A_SECOND;
pub use prober::{Prober, WATCHED};
pub use proofs::{Proofs, Standing};
pub use tally::Tally;

use crate::lane::Lane;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// A lane to a peer that is to be probed, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The lane.
    pub lane: Lane,
    /// Whether packets take it now.
    pub in_use: bool,
    /// What the peer's programs know probes by.
    pub key: ProbeKey,
    /// This node's router address.
    pub source: IpAddr,
    /// The peer's.
    pub destination: IpAddr,
    /// The largest packet that the lane is to carry, in bytes without outer headers.
    pub length: u32,
    /// The outer addresses, this node's and the peer's, where the lane is a tunnel.
    pub outer: Option<(IpAddr, IpAddr)>,
    /// The underlay device by which it leaves.
    pub device: Arc<str>,
    /// The address whose link-layer address the frame is sent to: a gateway's, or the peer's.
    pub next_hop: IpAddr,
}

impl Target {
    /// Whether what was found out of the one goes for the other.
    fn is_same_way(&self, other: &Self) -> bool {
        let ends = |of: &Self| {
            (
                of.lane,
                of.source,
                of.destination,
                of.length,
                of.outer,
                of.next_hop,
            )
        };
        ends(self) == ends(other) && self.device == other.device
    }
}

/// What is asked of a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A small packet there, a small one back.
    Small,
    /// A full-size packet there, a small one back (`SHORT_REPLY`).
    There,
    /// A full-size packet there and back.
    Full,
    /// A packet of this many bytes there and back, between the two: what fits a lane that does not carry full-size ones.
    Between(u32),
}

/// Bytes of a small probe's IP packet: an IPv6 header and the probe, on IPv4 with padding to the same length. An answer to it is as long; one that was
/// asked to be short is without padding (IPv4: 44). (RFC 791 has 576 for what every host takes, so it fits every lane.)
pub const SMALL: u32 = 64;

/// A probe that is to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Its number in the packet: never the same twice in a run.
    pub id: u64,
    /// The peer.
    pub peer: Arc<str>,
    /// The way.
    pub target: Target,
    /// What is asked.
    pub kind: Kind,
}

impl Probe {
    /// The length of the IP packet that is to be sent, in bytes without outer headers.
    pub const fn length(&self) -> u32 {
        match self.kind {
            Kind::Small => SMALL,
            Kind::There | Kind::Full => self.target.length,
            Kind::Between(length) => length,
        }
    }
}

/// An answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The number of the probe that it answers.
    pub id: u64,
    /// From the probe's being sent to the answer's coming, by the kernel's clock.
    pub round_trip: Duration,
    /// The length of the answer's IP packet in bytes.
    pub length: u32,
    /// The lane on which it came.
    pub lane: Lane,
}

/// Why a probe could not be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unsent {
    /// The kernel knows no link-layer address of the next hop (yet).
    NoNeighbour,
    /// Something else: the code of `bpf_fib_lookup` (include/uapi/linux/bpf.h, `BPF_FIB_LKUP_RET_*`), or 255.
    Refused(u32),
}

impl Unsent {
    /// The device takes no packet as long (`BPF_FIB_LKUP_RET_FRAG_NEEDED`).
    pub(crate) const TOO_LONG: Self = Self::Refused(8);
}
