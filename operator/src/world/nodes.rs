//! Nodes, as the plan knows them.

use super::{Change, Identity, Source, World};
use crate::seen::{NetworkUnavailable, SeenNode};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use podlane_plan::cluster::Node;
use podlane_plan::machine::Unfit;
use std::collections::{BTreeMap, BTreeSet};

/// All Nodes, in the order of their names: side by side, as [`podlane_plan::cluster::admit`] takes them.
#[derive(Debug, Default)]
pub struct Nodes {
    nodes: Vec<Node>,
    identities: Vec<Identity>,
    networks: Vec<Option<(NetworkUnavailable, Option<Time>)>>,
    /// Those that can have no agent, by name: few.
    unfit: BTreeMap<String, Unfit>,
    /// Those whose kubelets have fallen silent: few.
    away: BTreeSet<String>,
}

impl Nodes {
    /// All of them.
    pub fn all(&self) -> &[Node] {
        &self.nodes
    }

    /// The place of the node with this name.
    ///
    /// # Errors
    /// The place where it would be.
    pub fn place(&self, name: &str) -> Result<usize, usize> {
        self.nodes.binary_search_by(|node| node.name.as_str().cmp(name))
    }

    /// The `metadata.uid` of the node in this place.
    pub fn uid(&self, place: usize) -> &str {
        self.identities.get(place).map_or("", |identity| &identity.uid)
    }

    /// The condition NetworkUnavailable of the node in this place, and since when its status has been what it is.
    pub fn network_unavailable(&self, place: usize) -> Option<&(NetworkUnavailable, Option<Time>)> {
        self.networks.get(place)?.as_ref()
    }

    /// The nodes that can have no agent by what their kubelets say, and why.
    pub const fn unfit(&self) -> &BTreeMap<String, Unfit> {
        &self.unfit
    }

    /// Whether a node's kubelet has fallen silent.
    pub fn is_away(&self, node: &str) -> bool {
        self.away.contains(node)
    }

    pub(super) fn remove(&mut self, name: &str, uid: Option<&str>) -> bool {
        match self.place(name) {
            Ok(place) if uid.is_none_or(|uid| uid == self.uid(place)) => {
                self.nodes.remove(place);
                self.identities.remove(place);
                self.networks.remove(place);
                self.unfit.remove(name);
                self.away.remove(name);
                true
            }
            _ => false,
        }
    }
}

impl World {
    /// A Node was seen.
    pub fn see_node(&mut self, seen: SeenNode, source: Source) -> Change {
        let identity = Identity::of(&seen.metadata);
        let network = seen.network_unavailable();
        let unfit = seen.unfit();
        let is_away = seen.is_away();
        let node = seen.node();
        let is_otherwise_fit = self.nodes.unfit.get(&node.name) != unfit.as_ref();
        let has_come_or_gone = self.nodes.is_away(&node.name) != is_away;
        let matters = match self.nodes.place(&node.name) {
            Ok(place) => {
                let known = &mut self.nodes.identities[place];
                if identity.is_outdated(Some(known), source) {
                    return Change::default();
                }
                let matters = is_otherwise_fit
                    || has_come_or_gone
                    || known.uid != identity.uid
                    || self.nodes.nodes[place] != node
                    || self.nodes.networks[place] != network;
                *known = identity;
                set_unfit(&mut self.nodes.unfit, &node.name, unfit);
                set_away(&mut self.nodes.away, &node.name, is_away);
                self.nodes.nodes[place] = node;
                self.nodes.networks[place] = network;
                matters
            }
            Err(place) => {
                set_unfit(&mut self.nodes.unfit, &node.name, unfit);
                set_away(&mut self.nodes.away, &node.name, is_away);
                self.nodes.nodes.insert(place, node);
                self.nodes.identities.insert(place, identity);
                self.nodes.networks.insert(place, network);
                true
            }
        };
        Change {
            matters,
            unreadable: None,
        }
    }
}

fn set_away(all: &mut BTreeSet<String>, name: &str, is_away: bool) {
    if is_away {
        all.insert(name.to_owned());
    } else {
        all.remove(name);
    }
}

fn set_unfit(all: &mut BTreeMap<String, Unfit>, name: &str, unfit: Option<Unfit>) {
    match unfit {
        Some(unfit) => {
            all.insert(name.to_owned(), unfit);
        }
        None => {
            all.remove(name);
        }
    }
}
