//! The agents' rollout: their DaemonSet is kept as configured, and their pods are replaced node after node.
//!
//! [`daemon_set`] says what the DaemonSet is to be and [`next`] which pod is replaced next; both are pure. Here is the shell: two
//! watches, one server-side apply, one deletion at a time.

pub mod daemon_set;
pub mod next;
mod seen;

use crate::configuration::Agents;
use crate::failure::{API_SERVER, asks_to_wait, of_watch, words};
use crate::said::Said;
use crate::watch::Shared;
use crate::world::StoppedRollout;
use daemon_set::{Declared, Owner, declare};
use futures::stream::{BoxStream, select};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::apps::v1::Deployment;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::core::PartialObjectMeta;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Error, ResourceExt};
use next::{AgentPod, Next, has_programs, next};
use podlane_plan::backoff::Backoff;
use seen::{SeenDaemonSet, SeenPod};
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// The name under which the operator writes.
const MANAGER: &str = "podlane-operator";
/// How often it is looked whether the last agent has proved itself, while one is waited for.
const LOOK: Duration = Duration::from_secs(1);
/// How long without an event until everything is looked at all the same.
const RESYNC: Duration = Duration::from_secs(60);
/// How long an agent may take to prove itself before it is said on the policies that the rollout has stopped. Its image has to be
/// pulled in that time.
const PATIENCE: Duration = Duration::from_secs(120);

/// The labels by which agents' pods are found.
pub(crate) fn agent_labels() -> BTreeMap<&'static str, &'static str> {
    BTreeMap::from([
        ("app.kubernetes.io/component", "agent"),
        ("app.kubernetes.io/name", "podlane"),
    ])
}

/// Rolls agents out, for ever. Only whoever leads may call it; dropping the future ends what is in flight.
pub async fn run(client: &Client, namespace: &str, agents: &Agents, shared: &Shared) -> Infallible {
    let mut rollout = Rollout {
        deployments: Api::namespaced(client.clone(), namespace),
        daemon_sets: Api::namespaced(client.clone(), namespace),
        pods: Api::namespaced(client.clone(), namespace),
        namespace,
        agents,
        shared,
        owner: None,
        declared: None,
        had_programs: BTreeSet::new(),
        applied: None,
        seen: None,
        found: BTreeMap::new(),
        listing: None,
        is_listed: false,
        waits: None,
        backoff: API_SERVER,
        said: Said::default(),
    };
    let mut events = rollout.events();
    let mut due = Instant::now();
    loop {
        tokio::select! {
            // Another node: whether it is to have an agent is asked at once.
            () = shared.nodes_changed.notified() => due = due.min(Instant::now() + Duration::from_millis(20)),
            Some(event) = events.next() => {
                rollout.take(event);
                // What belongs to the same change.
                due = due.min(Instant::now() + Duration::from_millis(20));
            }
            () = sleep_until(due) => due = Instant::now() + rollout.act().await,
        }
    }
}

/// Something that a watch brings.
enum Seen {
    Pod(Event<SeenPod>),
    DaemonSet(Event<SeenDaemonSet>),
    Failed(watcher::Error),
}

struct Rollout<'a> {
    deployments: Api<PartialObjectMeta<Deployment>>,
    daemon_sets: Api<SeenDaemonSet>,
    pods: Api<SeenPod>,
    namespace: &'a str,
    agents: &'a Agents,
    shared: &'a Shared,
    /// Who owns the DaemonSet.
    owner: Option<Owner>,
    /// The DaemonSet as it is to be.
    declared: Option<Declared>,
    /// The nodes whose last agent but the present had programs that encapsulated: the present one's have to.
    had_programs: BTreeSet<String>,
    /// The DaemonSet as it was after the last apply: its uid and its generation.
    applied: Option<(Option<String>, i64)>,
    /// As it was seen last.
    seen: Option<SeenDaemonSet>,
    /// The agents' pods, by name.
    found: BTreeMap<String, AgentPod>,
    /// Those of a list that has yet to end.
    listing: Option<BTreeMap<String, AgentPod>>,
    is_listed: bool,
    /// The node that is waited for, if it is one, and since when.
    waits: Option<(Option<String>, Instant)>,
    backoff: Backoff,
    said: Said,
}

impl Rollout<'_> {
    fn events(&self) -> BoxStream<'static, Seen> {
        let labels: Vec<_> = agent_labels()
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        let pods = watcher::Config::default().labels(&labels.join(","));
        let name = watcher::Config::default().fields(&format!("metadata.name={}", self.agents.name));
        let pods = watcher(self.pods.clone(), pods).default_backoff();
        let daemon_sets = watcher(self.daemon_sets.clone(), name).default_backoff();
        let failed = |result: Result<Seen, watcher::Error>| result.unwrap_or_else(Seen::Failed);
        select(
            pods.map_ok(Seen::Pod).map(failed),
            daemon_sets.map_ok(Seen::DaemonSet).map(failed),
        )
        .boxed()
    }

    fn take(&mut self, seen: Seen) {
        match seen {
            Seen::Failed(error) => {
                let why = of_watch(&error);
                if self.said.is_news("watch", &why, std::time::Instant::now()) {
                    tracing::warn!(why, "watching the agents' pods fails; trying again");
                }
            }
            Seen::Pod(event) => self.take_pod(event),
            Seen::DaemonSet(Event::Apply(set) | Event::InitApply(set)) => self.seen = Some(set),
            Seen::DaemonSet(Event::Delete(_)) => {
                self.seen = None;
                self.applied = None;
            }
            Seen::DaemonSet(Event::Init | Event::InitDone) => {}
        }
    }

    fn take_pod(&mut self, event: Event<SeenPod>) {
        match event {
            Event::Init => self.listing = Some(BTreeMap::new()),
            Event::InitApply(pod) => {
                let name = pod.name_any();
                if let Some((listing, pod)) = self.listing.as_mut().zip(pod.agent()) {
                    listing.insert(name, pod);
                }
            }
            Event::InitDone => {
                self.found = self.listing.take().unwrap_or_default();
                self.is_listed = true;
                self.said.is_over("watch");
            }
            Event::Apply(pod) => {
                if let Some(pod) = pod.agent() {
                    self.found.insert(pod.name.clone(), pod);
                }
            }
            Event::Delete(pod) => {
                self.found.remove(&pod.name_any());
            }
        }
    }

    /// Does what there is to do. Returns how long until it is looked again, though nothing happens until then.
    async fn act(&mut self) -> Duration {
        match self.keep().await {
            Ok(wait) => {
                self.backoff.reset();
                if self.said.is_over("write") {
                    tracing::info!("agents can be rolled out again");
                }
                wait
            }
            Err(error) => {
                let why = words(&error);
                if self.said.is_news("write", &why, std::time::Instant::now()) {
                    tracing::warn!(why, "agents cannot be rolled out; trying again");
                }
                self.backoff.fail(rand::random()).max(asks_to_wait(&error))
            }
        }
    }

    async fn keep(&mut self) -> Result<Duration, Error> {
        // No agent comes to a node before it is known what the node can do.
        let Some(without) = self.without_agents() else {
            return Ok(LOOK);
        };
        let owner = match self.owner.take() {
            Some(owner) => owner,
            None => self.find_owner().await?,
        };
        let declared = declare(self.agents, self.namespace, &owner, &without);
        self.owner = Some(owner);
        if self.declared.as_ref() != Some(&declared) {
            if !without.is_empty() {
                tracing::warn!(nodes = ?without, "some nodes can have no agent; the policies say why");
            }
            self.declared = Some(declared);
            self.applied = None;
        }
        self.apply().await?;
        self.replace().await
    }

    fn without_agents(&self) -> Option<BTreeSet<String>> {
        let world = self.shared.world();
        world.is_whole().then(|| world.without_agents())
    }

    async fn find_owner(&self) -> Result<Owner, Error> {
        let name = &self.agents.owner;
        let owner = self.deployments.get_metadata(name).await?;
        Ok(Owner {
            name: name.clone(),
            uid: owner.uid().unwrap_or_default(),
        })
    }

    /// Applies the DaemonSet unless it is as it was after the last time.
    async fn apply(&mut self) -> Result<(), Error> {
        let is_as_applied = self.applied.as_ref().is_some_and(|(uid, generation)| {
            self.seen.as_ref().is_none_or(|seen| {
                let (seen_uid, seen_generation) = seen.identity();
                // An older one is on its way to what was applied.
                seen_uid == uid.as_deref() && seen_generation <= *generation
            })
        });
        let Some(declared) = self.declared.as_ref().filter(|_| !is_as_applied) else {
            return Ok(());
        };
        let parameters = PatchParams::apply(MANAGER).force();
        let set = self
            .daemon_sets
            .patch(&self.agents.name, &parameters, &Patch::Apply(&declared.object))
            .await?;
        let (uid, generation) = set.identity();
        tracing::info!(
            generation,
            template = declared.template,
            image = self.agents.image,
            "applied the agents' DaemonSet"
        );
        self.applied = Some((uid.map(str::to_owned), generation));
        self.seen = Some(set);
        Ok(())
    }

    /// Replaces a pod where it is time to.
    async fn replace(&mut self) -> Result<Duration, Error> {
        let (Some(declared), true) = (&self.declared, self.is_listed) else {
            return Ok(LOOK);
        };
        let Some(scheduled) = self.seen.as_ref().and_then(SeenDaemonSet::scheduled) else {
            return Ok(RESYNC);
        };
        let (pod, waits) = {
            let world = self.shared.world();
            let record = |node: &str| world.routing_nodes.get(node);
            let is_outdated = |pod: &&AgentPod| pod.template.as_deref() != Some(&declared.template);
            for pod in self.found.values().filter(is_outdated) {
                match has_programs(pod, record(&pod.node)) {
                    Some(true) => drop(self.had_programs.insert(pod.node.clone())),
                    Some(false) => drop(self.had_programs.remove(&pod.node)),
                    None => {}
                }
            }
            let had_programs = |node: &str| self.had_programs.contains(node);
            match next(
                &declared.template,
                scheduled,
                self.found.values(),
                record,
                had_programs,
            ) {
                Next::Done => (None, None),
                Next::Wait(wait) => (None, Some((wait.node().map(str::to_owned), wait.to_string()))),
                Next::Replace(pod) => (Some(pod.clone()), None),
            }
        };
        let is_over = pod.is_none() && waits.is_none();
        self.wait_for(waits);
        let Some(pod) = pod else {
            return Ok(if is_over { RESYNC } else { LOOK });
        };
        let parameters = DeleteParams {
            preconditions: Some(Preconditions {
                uid: Some(pod.uid.clone()),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        match self.pods.delete(&pod.name, &parameters).await {
            // It has gone by itself.
            Err(Error::Api(status)) if matches!(status.code, 404 | 409) => {}
            other => drop(other?),
        }
        tracing::info!(node = pod.node, pod = pod.name, "replacing the agent");
        // Until the watch says so.
        if let Some(found) = self.found.get_mut(&pod.name) {
            found.is_ending = true;
        }
        Ok(LOOK)
    }

    /// Takes note of what is waited for, and says so where that takes long.
    fn wait_for(&mut self, waits: Option<(Option<String>, String)>) {
        let Some((node, why)) = waits else {
            self.waits = None;
            self.said.is_over("wait");
            return self.tell(None);
        };
        let since = match &self.waits {
            Some((waits, since)) if *waits == node => *since,
            _ => Instant::now(),
        };
        if self.said.is_news("wait", &why, std::time::Instant::now()) {
            tracing::info!(node, why, "the rollout of agents waits");
        }
        self.waits = Some((node.clone(), since));
        if since.elapsed() < PATIENCE {
            return;
        }
        let template = self.declared.as_ref().map(|declared| declared.template.as_str());
        let left = self
            .found
            .values()
            .filter(|pod| pod.template.as_deref() != template)
            .count();
        self.tell(node.map(|node| StoppedRollout { node, why, left }));
    }

    fn tell(&self, stopped: Option<StoppedRollout>) {
        let mut world = self.shared.world();
        if world.rollout == stopped {
            return;
        }
        if let Some(StoppedRollout { node, why, left }) = &stopped {
            tracing::warn!(node, why, left, "the rollout of agents has stopped");
        }
        world.rollout = stopped;
        self.shared.changed.notify_one();
    }
}
