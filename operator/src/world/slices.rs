//! PeerSlices, as they were written.

use super::{Change, Identity, Source, World};
use crate::seen::Seen;
use kube::ResourceExt;
use podlane_crds::{PeerEntry, PeerSlice};

/// A PeerSlice. One that cannot be read counts as empty: everything in it follows from other objects, and is written anew.
#[derive(Clone, Debug, PartialEq)]
pub struct SliceRecord {
    /// Which version.
    pub identity: Identity,
    /// Its peers; None: it cannot be read.
    pub peers: Option<Vec<PeerEntry>>,
}

impl World {
    /// A PeerSlice was seen.
    pub fn see_slice(&mut self, seen: Seen<PeerSlice>, source: Source) -> Change {
        let name = seen.name_any();
        let identity = Identity::of(&seen.metadata);
        let known = self.slices.get(&name);
        if identity.is_outdated(known.map(|known| &known.identity), source) {
            return Change::default();
        }
        let (peers, unreadable) = match seen.decoded {
            Ok(slice) => (Some(slice.spec.peers), None),
            Err(why) => (None, Some(why)),
        };
        let matters = known
            .is_none_or(|known| known.identity.generation != identity.generation || known.peers != peers);
        self.slices.insert(name, SliceRecord { identity, peers });
        Change { matters, unreadable }
    }
}
