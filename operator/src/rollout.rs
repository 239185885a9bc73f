//! The agents' rollout: their DaemonSet is kept as configured, and their pods are replaced node after node.
//!
//! [`daemon_set`] says what the DaemonSet is to be, [`next`] which pod is replaced next, and `standing` when it is to be said that one
//! is waited for; all are pure. Here is the shell: two watches, one server-side apply, one deletion at a time.

mod before;
pub mod daemon_set;
pub mod next;
mod seen;
mod standing;

use crate::configuration::Agents;
use crate::failure::{API_SERVER, asks_to_wait, is_refusal, of_watch, words};
use crate::said::Said;
use crate::watch::Shared;
use crate::world::{self, StoppedRollout};
use before::Before;
use daemon_set::{Declared, Owner, declare};
use futures::stream::{BoxStream, select};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::apps::v1::Deployment;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::core::PartialObjectMeta;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Error, ResourceExt};
use next::{AgentPod, Known, Next, next};
use podlane_plan::backoff::Backoff;
use seen::{SeenDaemonSet, SeenPod};
use standing::{Look, Say, Standing};
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
        before: BTreeMap::new(),
        applied: None,
        seen: None,
        found: BTreeMap::new(),
        listing: None,
        is_listed: false,
        standing: None,
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
    /// What agents of another template said last of their nodes, by the node's name.
    before: BTreeMap<String, Before>,
    /// The DaemonSet as it was after the last apply: its uid and its generation.
    applied: Option<(Option<String>, i64)>,
    /// As it was seen last.
    seen: Option<SeenDaemonSet>,
    /// The agents' pods, by name.
    found: BTreeMap<String, AgentPod>,
    /// Those of a list that has yet to end.
    listing: Option<BTreeMap<String, AgentPod>>,
    is_listed: bool,
    /// How it stands; None: the cluster has yet to be seen.
    standing: Option<Standing>,
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
                let name = pod.name_any();
                match pod.agent() {
                    Some(pod) => drop(self.found.insert(name, pod)),
                    None => drop(self.found.remove(&name)),
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
            Err(Failed { what, error }) => {
                let why = format!("{what}: {}", words(&error));
                if self.said.is_news("write", &why, std::time::Instant::now()) {
                    tracing::warn!(why, "agents cannot be rolled out; trying again");
                }
                let look = if is_refusal(&error) {
                    Look::Refused
                } else {
                    Look::Waits(None)
                };
                self.look(look, why);
                self.backoff.fail(rand::random()).max(asks_to_wait(&error))
            }
        }
    }

    async fn keep(&mut self) -> Result<Duration, Failed> {
        // No agent comes to a node before it is known what the node can do.
        let Some(without) = self.without_agents() else {
            return Ok(LOOK);
        };
        self.standing.get_or_insert_with(|| {
            let has_stopped = self.shared.world().says_that_rollout_has_stopped();
            Standing::new(Duration::from_secs(self.agents.patience_seconds), has_stopped)
        });
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

    async fn find_owner(&self) -> Result<Owner, Failed> {
        let name = &self.agents.owner;
        let owner = self.deployments.get_metadata(name).await;
        let owner = owner.map_err(Failed::at(|| format!("the Deployment {name} cannot be read")))?;
        Ok(Owner {
            name: name.clone(),
            uid: owner.uid().unwrap_or_default(),
        })
    }

    /// Applies the DaemonSet unless it is as it was after the last time.
    async fn apply(&mut self) -> Result<(), Failed> {
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
            .await
            .map_err(Failed::at(|| {
                format!(
                    "the API server does not take the DaemonSet {}, which is made of the chart's values under agents",
                    self.agents.name
                )
            }))?;
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
    async fn replace(&mut self) -> Result<Duration, Failed> {
        let (Some(declared), true) = (&self.declared, self.is_listed) else {
            return Ok(LOOK);
        };
        let Some(scheduled) = self.seen.as_ref().and_then(SeenDaemonSet::scheduled) else {
            return Ok(RESYNC);
        };
        let (pod, look, why) = {
            let world = self.shared.world();
            let template = declared.template.as_str();
            for pod in self.found.values().filter(|pod| !pod.is_of(template)) {
                let before = self.before.entry(pod.node.clone()).or_default();
                before.note(pod, world.routing_nodes.get(&pod.node));
            }
            let known = Known {
                world: &world,
                before: &self.before,
            };
            match next(template, scheduled, &self.found, known) {
                Next::Done => (None, Look::Proved, String::new()),
                Next::Wait(wait) => (
                    None,
                    Look::Waits(wait.node().map(str::to_owned)),
                    wait.to_string(),
                ),
                Next::Replace { pod, is_proved } => {
                    let look = if is_proved { Look::Proved } else { Look::Begun };
                    (Some(pod.clone()), look, String::new())
                }
            }
        };
        let wait = match look {
            Look::Proved if pod.is_none() => RESYNC,
            _ => LOOK,
        };
        match &look {
            Look::Waits(node) if self.said.is_news("wait", &why, std::time::Instant::now()) => {
                tracing::info!(node, why, "the rollout of agents waits");
            }
            Look::Waits(_) => {}
            _ => {
                self.said.is_over("wait");
            }
        }
        self.look(look, why);
        if let Some(pod) = pod {
            self.delete(&pod).await?;
        }
        Ok(wait)
    }

    async fn delete(&mut self, pod: &AgentPod) -> Result<(), Failed> {
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
            other => drop(other.map_err(Failed::at(|| format!("the pod {} cannot be deleted", pod.name)))?),
        }
        tracing::info!(node = pod.node, pod = pod.name, "replacing the agent");
        // Until the watch says so.
        if let Some(found) = self.found.get_mut(&pod.name) {
            found.is_ending = true;
        }
        Ok(())
    }

    /// Takes note of what a look came to, and says so where that is due. `why`: what is waited for, or what is refused.
    fn look(&mut self, look: Look, why: String) {
        let Some(standing) = &mut self.standing else {
            return;
        };
        let node = match &look {
            Look::Waits(node) => node.clone(),
            _ => None,
        };
        let rollout = match standing.take(look, Instant::now()) {
            Say::Same => return,
            Say::Goes => world::Rollout::Goes,
            Say::Stopped => {
                let template = self
                    .declared
                    .as_ref()
                    .map_or("", |declared| declared.template.as_str());
                let is_left = |pod: &&AgentPod| !pod.is_of(template) && node.as_ref() != Some(&pod.node);
                world::Rollout::Stopped(StoppedRollout {
                    left: self.found.values().filter(is_left).count(),
                    node,
                    why,
                })
            }
        };
        self.tell(rollout);
    }

    fn tell(&self, rollout: world::Rollout) {
        let mut world = self.shared.world();
        if world.rollout == rollout {
            return;
        }
        if let world::Rollout::Stopped(StoppedRollout { node, why, left }) = &rollout {
            tracing::warn!(node, why, left, "the rollout of agents has stopped");
        }
        world.rollout = rollout;
        self.shared.changed.notify_one();
    }
}

/// What could not be done.
struct Failed {
    what: String,
    error: Error,
}

impl Failed {
    fn at(what: impl FnOnce() -> String) -> impl FnOnce(Error) -> Self {
        |error| Self { what: what(), error }
    }
}
