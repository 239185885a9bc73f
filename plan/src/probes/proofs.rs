//! Which lanes have been proved.

use super::Doubt;
use crate::lane::Lane;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What is known of a lane to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It carries full-size packets both ways.
    Proved,
    /// This speaks against it.
    Doubted(Doubt),
}

/// What is known of all lanes. The default: probes are neither sent nor asked for, because this node's programs are not loaded; every
/// lane that is open at both ends is as good as proved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proofs {
    are_asked_for: bool,
    standings: BTreeMap<Arc<str>, BTreeMap<Lane, Standing>>,
}

impl Proofs {
    /// Nothing is proved yet, and has to be.
    pub fn none_yet() -> Self {
        Self {
            are_asked_for: true,
            standings: BTreeMap::new(),
        }
    }

    /// Whether lanes have to be proved.
    pub const fn are_asked_for(&self) -> bool {
        self.are_asked_for
    }

    /// What speaks against a lane to a peer that answers probes.
    pub fn doubt(&self, peer: &str, lane: Lane) -> Option<Doubt> {
        if !self.are_asked_for {
            return None;
        }
        match self.standings.get(peer).and_then(|lanes| lanes.get(&lane)) {
            None => Some(Doubt::Untried),
            Some(Standing::Proved) => None,
            Some(Standing::Doubted(doubt)) => Some(*doubt),
        }
    }

    /// Notes what is known; `None`: nothing. Whether that is news.
    pub fn note(&mut self, peer: &Arc<str>, lane: Lane, standing: Option<Standing>) -> bool {
        let Some(standing) = standing else {
            let Some(lanes) = self.standings.get_mut(peer) else {
                return false;
            };
            let was_known = lanes.remove(&lane).is_some();
            if lanes.is_empty() {
                self.standings.remove(peer);
            }
            return was_known;
        };
        let lanes = match self.standings.get_mut(peer) {
            Some(lanes) => lanes,
            None => self.standings.entry(Arc::clone(peer)).or_default(),
        };
        lanes.insert(lane, standing) != Some(standing)
    }

    /// What is known, lane by lane.
    pub fn standings(&self) -> impl Iterator<Item = (&str, Lane, Standing)> {
        self.standings.iter().flat_map(|(peer, lanes)| {
            let of_peer = move |(lane, standing): (&Lane, &Standing)| (&**peer, *lane, *standing);
            lanes.iter().map(of_peer)
        })
    }
}
