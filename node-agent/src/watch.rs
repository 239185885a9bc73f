//! What the API server says of this node's RoutingNode and of all PeerSlices, one object at a time.

use crate::world::{Own, Slice, Told};
use futures::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, Resource};
use podlane_crds::{PeerSlice, RoutingNode, Undecodable, decode};
use podlane_plan::backoff::Backoff;
use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer};
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::marker::PhantomData;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::Sender;
use tokio::sync::watch::Receiver;

/// Objects a page of a listing: a slice is some 40 KiB of JSON, and a page is held as a whole while it is read.
const PAGE: u32 = 8;

/// How long to wait with calls to the API server that fail.
pub(crate) const API_SERVER: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(20));

/// How long a watch must have gone well for its next failure to count as the first.
const WELL: Duration = Duration::from_secs(60);

/// Follows this node's RoutingNode. Ends when nobody listens any more.
pub async fn own(clients: Receiver<Client>, node: &str, told: Sender<Told>) {
    let config = watcher::Config::default().fields(&format!("metadata.name={node}"));
    let mut listed = false;
    follow::<RoutingNode, Own>("RoutingNode", clients, config, told, move |event| match event {
        Event::Init => {
            listed = false;
            None
        }
        Event::Apply(seen) | Event::InitApply(seen) => {
            listed = true;
            Some(Told::Own(Box::new(seen.content)))
        }
        Event::Delete(_) => Some(Told::OwnGone),
        Event::InitDone => (!listed).then_some(Told::OwnGone),
    })
    .await;
}

/// Follows all PeerSlices. Ends when nobody listens any more.
pub async fn slices(clients: Receiver<Client>, told: Sender<Told>) {
    let mut listed = BTreeSet::new();
    follow::<PeerSlice, Slice>(
        "PeerSlices",
        clients,
        watcher::Config::default().page_size(PAGE),
        told,
        move |event| match event {
            Event::Init => {
                listed.clear();
                None
            }
            Event::InitApply(seen) => {
                listed.insert(seen.name());
                Some(Told::Slice(seen.name(), seen.content))
            }
            Event::Apply(seen) => Some(Told::Slice(seen.name(), seen.content)),
            Event::Delete(seen) => Some(Told::SliceGone(seen.name())),
            Event::InitDone => Some(Told::Slices(std::mem::take(&mut listed))),
        },
    )
    .await;
}

/// Follows objects through every failure: the API server away, slow, overloaded or compacted. What was told stays in force; the
/// log says when it begins and when it ends. With a new client it begins anew.
async fn follow<K, T>(
    what: &'static str,
    mut clients: Receiver<Client>,
    config: watcher::Config,
    told: Sender<Told>,
    mut translate: impl FnMut(Event<Seen<K, T>>) -> Option<Told>,
) where
    K: Resource<DynamicType = ()> + DeserializeOwned + Clone + std::fmt::Debug + 'static,
    T: From<K> + Clone + std::fmt::Debug + Send + 'static,
{
    let config = config.timeout(240);
    let listen = |client: Client| Box::pin(watcher::watcher(Api::<Seen<K, T>>::all(client), config.clone()));
    let mut events = listen(clients.borrow_and_update().clone());
    let mut backoff = API_SERVER;
    let mut last_failure: Option<Instant> = None;
    let mut said: Option<String> = None;
    let mut has_expired = false;
    loop {
        let event = tokio::select! {
            biased;
            Ok(()) = clients.changed() => {
                events = listen(clients.borrow_and_update().clone());
                continue;
            }
            event = events.next() => event,
        };
        let Some(event) = event else { return };
        match event {
            Ok(event) => {
                // The beginning of a listing says nothing about its success.
                if !matches!(event, Event::Init) && said.take().is_some() {
                    tracing::info!("{what} are heard again");
                }
                has_expired &= matches!(event, Event::Init);
                let Some(message) = translate(event) else { continue };
                if told.send(message).await.is_err() {
                    return;
                }
            }
            // As after the API server was away: listed anew at once. A list that expires, too, has to wait.
            Err(error) if is_expiry(&error) && !std::mem::replace(&mut has_expired, true) => {}
            Err(error) => {
                let text = error.to_string();
                if last_failure
                    .replace(Instant::now())
                    .is_some_and(|last| last.elapsed() > WELL)
                {
                    backoff.reset();
                }
                // A watch that ends with its resource version compacted is listed anew: no failure by itself.
                if said.as_ref() != Some(&text) && !is_expiry(&error) {
                    tracing::warn!(error = %text, "{what} cannot be heard; what was told stays in force");
                    said = Some(text);
                }
                tokio::select! {
                    Ok(()) = clients.changed() => clients.mark_changed(),
                    () = tokio::time::sleep(backoff.fail(rand::random())) => {}
                }
            }
        }
    }
}

/// 410 Gone.
fn is_expiry(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::WatchError(status) if status.code == 410)
}

/// An object, reduced to what the agent needs while it is read: its JSON is not kept, and one that cannot be read does not keep
/// the others of its page from being read.
#[derive(Clone, Debug)]
pub struct Seen<K, T> {
    metadata: ObjectMeta,
    content: Result<T, Undecodable>,
    kind: PhantomData<fn() -> K>,
}

impl<K, T> Seen<K, T> {
    fn name(&self) -> String {
        self.metadata.name.clone().unwrap_or_default()
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LeanMeta {
    name: Option<String>,
    resource_version: Option<String>,
}

impl<'de, K, T> Deserialize<'de> for Seen<K, T>
where
    K: Resource<DynamicType = ()> + DeserializeOwned,
    T: From<K>,
{
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut object = serde_json::Value::deserialize(deserializer)?;
        if let Some(metadata) = object["metadata"].as_object_mut() {
            metadata.remove("managedFields");
        }
        let LeanMeta {
            name,
            resource_version,
        } = LeanMeta::deserialize(&object["metadata"]).map_err(D::Error::custom)?;
        Ok(Self {
            metadata: ObjectMeta {
                name,
                resource_version,
                ..ObjectMeta::default()
            },
            content: decode::<K>(&object).map(T::from),
            kind: PhantomData,
        })
    }
}

impl<K: Resource<DynamicType = ()>, T> Resource for Seen<K, T> {
    type DynamicType = ();
    type Scope = K::Scope;

    fn kind((): &()) -> Cow<'_, str> {
        K::kind(&())
    }
    fn group((): &()) -> Cow<'_, str> {
        K::group(&())
    }
    fn version((): &()) -> Cow<'_, str> {
        K::version(&())
    }
    fn plural((): &()) -> Cow<'_, str> {
        K::plural(&())
    }
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

#[cfg(test)]
mod tests;
