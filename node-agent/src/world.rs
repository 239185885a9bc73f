//! What this node has been told: its own assignment, and its peers.
//!
//! Pure. It only ever holds what could be read; the last good version of what cannot be read stays in force, and is named.

use podlane_crds::{PeerSlice, RoutingNode, RoutingNodeStatus, Undecodable};
use podlane_plan::desired::{Assignment, Peer};
use std::collections::{BTreeMap, BTreeSet};

/// This node's own RoutingNode.
#[derive(Clone, Debug)]
pub struct Own {
    /// `metadata.generation`.
    pub generation: Option<i64>,
    /// Its spec in the plan's terms, or why it has none.
    pub assignment: Result<Assignment, String>,
    /// Whether nothing of Podlane's is to be on the node.
    pub clean: bool,
    /// Its status, as the API server holds it.
    pub status: RoutingNodeStatus,
}

impl From<RoutingNode> for Own {
    fn from(node: RoutingNode) -> Self {
        let name = node.metadata.name.unwrap_or_default();
        Self {
            generation: node.metadata.generation,
            clean: node.spec.clean,
            assignment: node.spec.assignment(&name).map_err(|invalid| invalid.to_string()),
            status: node.status.unwrap_or_default(),
        }
    }
}

/// A PeerSlice's peers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slice {
    /// The peers that could be read.
    pub peers: BTreeMap<String, Peer>,
    /// The others, and why.
    pub invalid: BTreeMap<String, String>,
}

impl From<PeerSlice> for Slice {
    fn from(slice: PeerSlice) -> Self {
        let mut read = Self::default();
        for entry in slice.spec.peers {
            match entry.peer() {
                Ok(mut peer) => {
                    // A list grows by room for four, and most peers have one of each.
                    peer.addresses.shrink_to_fit();
                    peer.pod_cidrs.shrink_to_fit();
                    read.peers.insert(entry.name, peer);
                }
                Err(invalid) => {
                    read.invalid.insert(entry.name, invalid.to_string());
                }
            }
        }
        read
    }
}

/// Something that the API server said.
#[derive(Debug)]
pub enum Told {
    /// This node's RoutingNode is this.
    Own(Box<Result<Own, Undecodable>>),
    /// This node's RoutingNode is gone.
    OwnGone,
    /// A PeerSlice is this.
    Slice(String, Result<Slice, Undecodable>),
    /// A PeerSlice is gone.
    SliceGone(String),
    /// These are all PeerSlices that there are.
    Slices(BTreeSet<String>),
}

/// Everything that has been told so far.
#[derive(Debug, Default)]
pub struct World {
    assignment: Option<Assignment>,
    generation: Option<i64>,
    clean: bool,
    held: Option<RoutingNodeStatus>,
    slices_listed: bool,
    /// All peers. Of one that several slices list, the first slice's version counts.
    peers: BTreeMap<String, Peer>,
    /// The names in each slice.
    slices: BTreeMap<String, BTreeSet<String>>,
    /// Versions that do not count, by peer and slice.
    shadowed: BTreeMap<(String, String), Peer>,
    /// What could not be read, by object: why.
    unreadable: BTreeMap<String, String>,
}

impl World {
    /// Takes in what was said. Whether a pass could now find something else to do, or to report.
    pub fn take(&mut self, told: Told) -> bool {
        match told {
            Told::Own(own) => self.own(*own),
            Told::OwnGone => {
                // The operator makes it anew, or the node is leaving: neither is a reason to drop its pods' packets.
                self.held = None;
                false
            }
            Told::Slice(name, slice) => self.slice(name, slice),
            Told::SliceGone(name) => self.slice_gone(&name),
            Told::Slices(names) => {
                let gone: Vec<_> = self
                    .slices
                    .keys()
                    .filter(|name| !names.contains(*name))
                    .cloned()
                    .collect();
                let mut changed = !std::mem::replace(&mut self.slices_listed, true);
                for name in gone {
                    changed |= self.slice_gone(&name);
                }
                changed
            }
        }
    }

    /// What is to be done here, once it is known: the own RoutingNode has been read and all slices have been listed. Before
    /// that nothing in the kernel may be touched: an agent that starts would take away what its predecessor left.
    pub fn assignment(&self) -> Option<&Assignment> {
        self.assignment.as_ref().filter(|_| self.slices_listed)
    }

    /// Whether nothing of Podlane's is to be on this node, whatever it is assigned.
    pub const fn is_to_be_clean(&self) -> bool {
        self.clean
    }

    /// All peers by name.
    pub const fn peers(&self) -> &BTreeMap<String, Peer> {
        &self.peers
    }

    /// The generation of the own RoutingNode that was read last.
    pub const fn generation(&self) -> Option<i64> {
        self.generation
    }

    /// The own status as the API server holds it; none while there is no RoutingNode.
    pub const fn held(&self) -> Option<&RoutingNodeStatus> {
        self.held.as_ref()
    }

    /// What could not be read, by object: why.
    pub const fn unreadable(&self) -> &BTreeMap<String, String> {
        &self.unreadable
    }

    fn own(&mut self, own: Result<Own, Undecodable>) -> bool {
        const OWN: &str = "RoutingNode";
        let own = match own {
            Ok(own) => own,
            Err(error) => return self.cannot_read(OWN.to_owned(), error.why),
        };
        self.held = Some(own.status);
        let turned = std::mem::replace(&mut self.clean, own.clean) != own.clean;
        match own.assignment {
            Ok(assignment) => {
                let mended = self.unreadable.remove(OWN).is_some();
                let changed =
                    self.assignment.as_ref() != Some(&assignment) || self.generation != own.generation;
                self.assignment = Some(assignment);
                self.generation = own.generation;
                changed || mended || turned
            }
            Err(why) => {
                if own.clean {
                    // That is all there is to answer then.
                    self.generation = own.generation;
                }
                self.cannot_read(OWN.to_owned(), why) || turned
            }
        }
    }

    fn cannot_read(&mut self, object: String, why: String) -> bool {
        self.unreadable.insert(object, why.clone()) != Some(why)
    }

    fn slice(&mut self, name: String, slice: Result<Slice, Undecodable>) -> bool {
        let object = format!("PeerSlice {name}");
        let slice = match slice {
            Ok(slice) => slice,
            Err(error) => return self.cannot_read(object, error.why),
        };
        let mut changed = self.unreadable.remove(&object).is_some();
        let prefix = format!("{object}, peer ");
        let before = self.unreadable.len();
        self.unreadable.retain(|object, _| {
            object
                .strip_prefix(&prefix)
                .is_none_or(|peer| slice.invalid.contains_key(peer))
        });
        changed |= self.unreadable.len() != before;
        let mut members: BTreeSet<String> = slice.peers.keys().cloned().collect();
        for (peer, why) in slice.invalid {
            changed |= self.cannot_read(format!("{prefix}{peer}"), why);
            // The last good version stays, where there is one.
            if self
                .slices
                .get(&name)
                .is_some_and(|members| members.contains(&peer))
            {
                members.insert(peer);
            }
        }
        let old = self.slices.insert(name.clone(), members).unwrap_or_default();
        let gone: Vec<_> = old
            .iter()
            .filter(|peer| !self.slices[&name].contains(*peer))
            .cloned()
            .collect();
        for peer in gone {
            changed |= self.remove(&name, &peer);
        }
        for (peer, is) in slice.peers {
            changed |= self.insert(&name, peer, is);
        }
        changed
    }

    fn slice_gone(&mut self, name: &str) -> bool {
        let object = format!("PeerSlice {name}");
        let mut changed = self.unreadable.remove(&object).is_some();
        self.unreadable
            .retain(|other, _| !other.starts_with(&format!("{object}, ")));
        for peer in self.slices.remove(name).unwrap_or_default() {
            changed |= self.remove(name, &peer);
        }
        changed
    }

    /// The other slices that list a peer, first one first.
    fn elsewhere(&self, slice: &str, peer: &str) -> Option<String> {
        let lists = |(name, members): &(&String, &BTreeSet<String>)| *name != slice && members.contains(peer);
        self.slices.iter().find(lists).map(|(name, _)| name.clone())
    }

    fn insert(&mut self, slice: &str, peer: String, is: Peer) -> bool {
        match self.elsewhere(slice, &peer) {
            Some(other) if other.as_str() < slice => {
                self.shadowed.insert((peer, slice.to_owned()), is);
                false
            }
            Some(other) => {
                self.shadowed.remove(&(peer.clone(), slice.to_owned()));
                let changed = self.peers.get(&peer) != Some(&is);
                if let Some(was) = self.peers.insert(peer.clone(), is) {
                    // Only the other slice's own version is of use to it later.
                    self.shadowed.entry((peer, other)).or_insert(was);
                }
                changed
            }
            None => {
                let changed = self.peers.get(&peer) != Some(&is);
                self.peers.insert(peer, is);
                changed
            }
        }
    }

    /// A slice no longer lists a peer.
    fn remove(&mut self, slice: &str, peer: &str) -> bool {
        if self
            .shadowed
            .remove(&(peer.to_owned(), slice.to_owned()))
            .is_some()
        {
            return false;
        }
        match self.elsewhere(slice, peer) {
            Some(heir) => match self.shadowed.remove(&(peer.to_owned(), heir)) {
                Some(is) => self.peers.insert(peer.to_owned(), is.clone()) != Some(is),
                None => false,
            },
            None => self.peers.remove(peer).is_some(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(peers: &[(&str, u32)]) -> Result<Slice, Undecodable> {
        let peers = peers
            .iter()
            .map(|(name, mtu)| {
                let peer = Peer {
                    mtu: Some(*mtu),
                    ..Peer::default()
                };
                ((*name).to_owned(), peer)
            })
            .collect();
        Ok(Slice {
            peers,
            ..Slice::default()
        })
    }

    fn unreadable() -> Undecodable {
        Undecodable {
            kind: "PeerSlice".to_owned(),
            name: "peers-0".to_owned(),
            why: "spec.peers: no list".to_owned(),
        }
    }

    fn told(name: &str, peers: &[(&str, u32)]) -> Told {
        Told::Slice(name.to_owned(), slice(peers))
    }

    fn own(assignment: Result<Assignment, String>) -> Told {
        Told::Own(Box::new(Ok(Own {
            clean: false,
            generation: Some(1),
            assignment,
            status: RoutingNodeStatus::default(),
        })))
    }

    fn peers(world: &World) -> Vec<(&str, u32)> {
        world
            .peers
            .iter()
            .map(|(name, peer)| (name.as_str(), peer.mtu.unwrap_or_default()))
            .collect()
    }

    #[test]
    fn a_node_is_to_be_clean_as_soon_as_that_is_told_and_no_longer_than_that() {
        let told = |clean, assignment| {
            Told::Own(Box::new(Ok(Own {
                generation: Some(7),
                clean,
                assignment,
                status: RoutingNodeStatus::default(),
            })))
        };
        let mut world = World::default();
        assert!(world.take(told(true, Err("no address".to_owned()))));
        assert!(world.is_to_be_clean() && world.assignment().is_none());
        assert_eq!(world.generation(), Some(7));
        world.take(Told::OwnGone);
        assert!(world.is_to_be_clean(), "the answer was taken in, and it is over");
        assert!(world.take(told(false, Ok(Assignment::default()))));
        assert!(!world.is_to_be_clean());
    }

    #[test]
    fn nothing_is_assigned_before_everything_has_been_read_once() {
        let mut world = World::default();
        assert!(world.take(own(Ok(Assignment::default()))));
        assert!(world.assignment().is_none());
        world.take(told("peers-0", &[("a", 1)]));
        assert!(world.take(Told::Slices(["peers-0".to_owned()].into())));
        assert!(world.assignment().is_some());
        assert!(
            !world.take(own(Ok(Assignment::default()))),
            "the same again is no news"
        );
        assert!(!world.take(Told::OwnGone));
        assert!(world.assignment().is_some() && world.held().is_none());
    }

    #[test]
    fn what_cannot_be_read_is_named_and_its_last_good_version_stays() {
        let mut world = World::default();
        world.take(told("peers-0", &[("a", 1), ("b", 1)]));
        assert!(world.take(Told::Slice("peers-0".to_owned(), Err(unreadable()))));
        assert!(
            !world.take(Told::Slice("peers-0".to_owned(), Err(unreadable()))),
            "said already"
        );
        assert_eq!(peers(&world), [("a", 1), ("b", 1)]);
        assert_eq!(world.unreadable()["PeerSlice peers-0"], "spec.peers: no list");

        let mut partly = slice(&[("a", 2)]).expect("readable");
        partly
            .invalid
            .insert("b".to_owned(), "podCIDRs: \"x\"".to_owned());
        partly
            .invalid
            .insert("c".to_owned(), "podCIDRs: \"y\"".to_owned());
        assert!(world.take(Told::Slice("peers-0".to_owned(), Ok(partly))));
        assert_eq!(peers(&world), [("a", 2), ("b", 1)]);
        let named: Vec<_> = world.unreadable().keys().collect();
        assert_eq!(named, ["PeerSlice peers-0, peer b", "PeerSlice peers-0, peer c"]);

        assert!(world.take(told("peers-0", &[("a", 2), ("b", 1)])));
        assert!(world.unreadable().is_empty());

        world.take(own(Ok(Assignment::default())));
        assert!(world.take(own(Err("spec.podCIDRs: \"x\"".to_owned()))));
        assert_eq!(world.unreadable()["RoutingNode"], "spec.podCIDRs: \"x\"");
        assert!(world.assignment.is_some());
        assert!(world.take(own(Ok(Assignment::default()))));
    }

    #[test]
    fn a_peer_in_two_slices_is_the_first_ones() {
        let mut world = World::default();
        assert!(world.take(told("peers-1", &[("a", 1)])));
        assert!(world.take(told("peers-0", &[("a", 0)])));
        assert!(!world.take(told("peers-2", &[("a", 2)])));
        assert_eq!(peers(&world), [("a", 0)]);
        assert!(world.take(Told::SliceGone("peers-0".to_owned())));
        assert_eq!(peers(&world), [("a", 1)]);
        assert!(!world.take(told("peers-2", &[])));
        assert!(world.take(told("peers-1", &[])));
        assert_eq!(peers(&world), []);
        assert!(world.shadowed.is_empty());
    }

    #[test]
    fn slices_that_a_new_listing_lacks_are_gone() {
        let mut world = World::default();
        world.take(told("peers-0", &[("a", 1)]));
        world.take(told("peers-1", &[("b", 1)]));
        assert!(world.take(Told::Slices(["peers-1".to_owned()].into())));
        assert_eq!(peers(&world), [("b", 1)]);
        assert!(!world.take(Told::Slices(["peers-1".to_owned()].into())));
    }
}
