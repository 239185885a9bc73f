//! Keeping the picture: one watch a kind. While a watch fails, what was seen last stays.

use crate::failure::{API_SERVER, is_expiry, of_watch, watch_asks_to_wait};
use crate::health::{Obstacle, Pulse};
use crate::said::Said;
use crate::seen::{Seen, SeenNode};
use crate::world::{Change, Kind, Source, World};
use futures::StreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use podlane_crds::{PeerSlice, RoutingNode, RoutingPolicy};
use serde::de::DeserializeOwned;
use std::collections::BTreeSet;
use std::fmt::Debug;
use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::sync::Notify;

/// Objects in one page of a list: few enough that none of a cluster's Nodes take much memory while they are read.
const PAGE: u32 = 250;

/// The picture, and a bell for when it changes.
#[derive(Debug, Default)]
pub struct Shared {
    world: Mutex<World>,
    /// Rung at each change that matters.
    pub changed: Notify,
    /// The same where it is of a Node: for whoever decides which nodes have an agent.
    pub nodes_changed: Notify,
    /// The leader's loop turns.
    pub pulse: Pulse,
    /// What the leader cannot do, and nobody but a user can mend.
    pub obstacle: Obstacle,
}

impl Shared {
    /// Shares a picture.
    pub fn new(world: World) -> Self {
        Self {
            world: Mutex::new(world),
            changed: Notify::new(),
            nodes_changed: Notify::new(),
            pulse: Pulse::default(),
            obstacle: Obstacle::default(),
        }
    }

    /// The picture. Never held across an await.
    pub fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A kind of object that the picture is made of.
pub trait Kept:
    Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug + Send + Sync + 'static
{
    /// Which one.
    const KIND: Kind;
    /// Puts it into the picture.
    fn keep(self, world: &mut World, source: Source) -> Change;
}

impl Kept for SeenNode {
    const KIND: Kind = Kind::Node;
    fn keep(self, world: &mut World, source: Source) -> Change {
        world.see_node(self, source)
    }
}

impl Kept for Seen<RoutingPolicy> {
    const KIND: Kind = Kind::RoutingPolicy;
    fn keep(self, world: &mut World, source: Source) -> Change {
        world.see_policy(self, source)
    }
}

impl Kept for Seen<RoutingNode> {
    const KIND: Kind = Kind::RoutingNode;
    fn keep(self, world: &mut World, source: Source) -> Change {
        world.see_routing_node(self, source)
    }
}

impl Kept for Seen<PeerSlice> {
    const KIND: Kind = Kind::PeerSlice;
    fn keep(self, world: &mut World, source: Source) -> Change {
        world.see_slice(self, source)
    }
}

/// Follows all objects of a kind, for ever.
pub async fn follow<K: Kept>(client: Client, shared: &Shared) {
    let config = watcher::Config::default().page_size(PAGE);
    let mut stream = pin!(watcher(Api::<K>::all(client), config));
    let mut listing: BTreeSet<String> = BTreeSet::new();
    let mut backoff = API_SERVER;
    let mut said = Said::default();
    let mut has_expired = false;
    while let Some(event) = stream.next().await {
        match event {
            Ok(event) => {
                // That a list begins says nothing yet of the API server.
                if !matches!(event, Event::Init) {
                    has_expired = false;
                    backoff.reset();
                    if said.is_over("watch") {
                        tracing::info!(kind = %K::KIND, "watching works again");
                    }
                }
                if take(event, shared, &mut listing, &mut said) {
                    shared.changed.notify_one();
                    if K::KIND == Kind::Node {
                        shared.nodes_changed.notify_one();
                    }
                }
            }
            // As after the API server was away: a list that expires, too, has to wait.
            Err(error) if is_expiry(&error) && !std::mem::replace(&mut has_expired, true) => {}
            Err(error) => {
                let why = of_watch(&error);
                if said.is_news("watch", &why, Instant::now()) {
                    tracing::warn!(kind = %K::KIND, why, "watching fails: what was seen last stays; trying again");
                }
                let wait = backoff.fail(rand::random());
                tokio::time::sleep(wait.max(watch_asks_to_wait(&error))).await;
            }
        }
    }
}

/// Takes in one event. Says whether anything that matters is different now.
fn take<K: Kept>(event: Event<K>, shared: &Shared, listing: &mut BTreeSet<String>, said: &mut Said) -> bool {
    let mut world = shared.world();
    match event {
        Event::Init => {
            listing.clear();
            false
        }
        Event::InitApply(object) => {
            listing.insert(object.name_any());
            keep(object, &mut world, Source::List, said)
        }
        Event::InitDone => {
            let gone: Vec<_> = world.names_of(K::KIND).difference(listing).cloned().collect();
            for name in &gone {
                world.forget(K::KIND, name, None);
            }
            listing.clear();
            world.is_listed(K::KIND);
            tracing::debug!(kind = %K::KIND, count = world.names_of(K::KIND).len(), "listed");
            true
        }
        Event::Apply(object) => keep(object, &mut world, Source::Change, said),
        Event::Delete(object) => {
            said.is_over(&object.name_any());
            world.forget(K::KIND, &object.name_any(), object.uid().as_deref())
        }
    }
}

fn keep<K: Kept>(object: K, world: &mut World, source: Source, said: &mut Said) -> bool {
    let name = object.name_any();
    let change = object.keep(world, source);
    match change.unreadable {
        Some(why) if said.is_news(&name, &why.to_string(), Instant::now()) => {
            tracing::warn!("{why}; its last version that could be read stays in force");
        }
        Some(_) => {}
        None => {
            if said.is_over(&name) {
                tracing::info!(kind = %K::KIND, name, "can be read again");
            }
        }
    }
    change.matters
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn node(name: &str) -> SeenNode {
        serde_json::from_value(json!({"metadata": {"name": name, "uid": name, "resourceVersion": "1"}}))
            .expect("a node")
    }

    #[test]
    fn a_list_that_breaks_off_takes_nothing_away() {
        let shared = Shared::default();
        let (mut listing, mut said) = (BTreeSet::new(), Said::default());
        let mut take = |event| take(event, &shared, &mut listing, &mut said);
        for event in [
            Event::Init,
            Event::InitApply(node("a")),
            Event::InitApply(node("b")),
            Event::InitDone,
        ] {
            take(event);
        }
        let names = || {
            shared
                .world()
                .names_of(Kind::Node)
                .into_iter()
                .collect::<Vec<_>>()
        };
        assert_eq!(names(), ["a", "b"]);
        // Compacted: a new list begins, breaks off, and begins once more.
        for event in [
            Event::Init,
            Event::InitApply(node("b")),
            Event::Init,
            Event::InitApply(node("b")),
        ] {
            take(event);
        }
        assert_eq!(names(), ["a", "b"]);
        take(Event::InitDone);
        assert_eq!(names(), ["b"]);
        assert!(take(Event::Delete(node("b"))) && names().is_empty());
    }
}
