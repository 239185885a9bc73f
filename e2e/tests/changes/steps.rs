//! The steps by which a lane is changed (docs/architecture.md), each seen as it is made: by what operator and agents publish, and by the devices in the
//! nodes' kernels.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use podlane_e2e::interrupt;
use podlane_e2e::kubectl::Watch;
use podlane_e2e::lab::Lab;
use podlane_e2e::netns::Namespace;
use podlane_e2e::story::LED_AGAIN_WITHIN;
use serde_json::Value;

/// How long nothing may change before a change is taken to be at its end.
const AT_REST_FOR: Duration = Duration::from_millis(500);

/// A step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// A node's spec is another: whatever has changed, this is its first step.
    Heard,
    /// A node is to receive on the new lane.
    Told,
    /// It does.
    Opened,
    /// Its peers are told so.
    Published,
    /// A node sends on it.
    Moved,
    /// Peers are told no more of the old lane.
    Withdrawn,
    /// A node is to receive on it no more.
    Dismissed,
    /// Its device is gone.
    Closed,
}

impl Step {
    /// Those of a change by which a tunnel comes and another goes.
    pub(crate) const OF_A_TUNNEL: [Self; 7] = [
        Self::Told,
        Self::Opened,
        Self::Published,
        Self::Moved,
        Self::Withdrawn,
        Self::Dismissed,
        Self::Closed,
    ];
}

/// Something of each node.
type Each<T> = BTreeMap<String, T>;

/// What is published, and what the kernels hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Seen {
    generation: Each<i64>,
    receive_on: Each<BTreeSet<String>>,
    receives_on: Each<BTreeSet<String>>,
    listed: Each<BTreeSet<String>>,
    sends_on: Each<BTreeSet<String>>,
    devices: Each<BTreeSet<String>>,
}

impl Seen {
    fn take(&mut self, object: &Value) {
        let lanes = |of: &Value| {
            let lanes = of.as_array().into_iter().flatten().filter_map(Value::as_str);
            lanes.map(str::to_owned).collect::<BTreeSet<_>>()
        };
        let name = |of: &Value| of["name"].as_str().unwrap_or_default().to_owned();
        if object["kind"] == "PeerSlice" {
            for peer in object["spec"]["peers"].as_array().into_iter().flatten() {
                self.listed.insert(name(peer), lanes(&peer["receivesOn"]));
            }
            return;
        }
        let node = || name(&object["metadata"]);
        let (spec, status) = (&object["spec"], &object["status"]);
        self.generation.insert(
            node(),
            object["metadata"]["generation"].as_i64().unwrap_or_default(),
        );
        self.receive_on.insert(node(), lanes(&spec["receiveOn"]));
        self.receives_on.insert(node(), lanes(&status["receivesOn"]));
        self.sends_on.insert(node(), lanes(&status["sendsOn"]));
    }

    /// Whether all nodes are known, and each is to receive, receives, and is said to receive on the same lanes.
    fn is_at_rest(&self, nodes: usize) -> bool {
        self.listed.len() == nodes && self.receive_on == self.receives_on && self.receive_on == self.listed
    }

    /// The node that has made a step since `before`.
    fn made(&self, step: Step, before: &Self) -> Option<&str> {
        match step {
            Step::Heard => first(&self.generation, &before.generation, |now, before| now > before),
            Step::Told => first(&self.receive_on, &before.receive_on, has_more),
            Step::Opened => first(&self.receives_on, &before.receives_on, has_more),
            Step::Published => first(&self.listed, &before.listed, has_more),
            Step::Moved => first(&self.sends_on, &before.sends_on, has_more),
            Step::Withdrawn => first(&self.listed, &before.listed, has_less),
            Step::Dismissed => first(&self.receive_on, &before.receive_on, has_less),
            Step::Closed => first(&self.devices, &before.devices, has_less),
        }
    }
}

fn first<'a, T>(now: &'a Each<T>, before: &Each<T>, is: impl Fn(&T, &T) -> bool) -> Option<&'a str> {
    let has_changed = |(node, now): &(&String, &T)| before.get(*node).is_some_and(|before| is(now, before));
    now.iter().find(has_changed).map(|(node, _)| node.as_str())
}

fn has_more(now: &BTreeSet<String>, before: &BTreeSet<String>) -> bool {
    !now.is_subset(before)
}

fn has_less(now: &BTreeSet<String>, before: &BTreeSet<String>) -> bool {
    !before.is_subset(now)
}

/// Sees steps.
pub(crate) struct Steps {
    told: Receiver<Value>,
    _watches: [Watch; 2],
    nodes: Vec<(String, Namespace)>,
    now: Seen,
    before: Seen,
}

impl Steps {
    pub(crate) fn watch(lab: &Lab) -> Result<Self> {
        let (tell, told) = channel();
        let watch = |kind| {
            let tell = tell.clone();
            // Nobody listens any more only when the scenario has ended.
            lab.kubectl()?.watch(kind, move |object| drop(tell.send(object)))
        };
        let nodes = lab.topology().nodes.iter();
        Ok(Self {
            told,
            _watches: [watch("routingnodes")?, watch("peerslices")?],
            nodes: nodes
                .map(|node| (node.name.clone(), lab.namespace(&node.name)))
                .collect(),
            now: Seen::default(),
            before: Seen::default(),
        })
    }

    /// From now on steps are those made after this. Waits until the change before is at its end, for its last steps come when its policy is
    /// ready already: lanes that are to be opened may be open yet, and those of it that are closed would be taken for steps of the next.
    pub(crate) fn begin(&mut self) -> Result<()> {
        let end = Instant::now() + LED_AGAIN_WITHIN;
        let mut since = Instant::now();
        loop {
            self.look(Duration::from_millis(20))?;
            self.look_at_devices()?;
            if self.now != self.before || !self.now.is_at_rest(self.nodes.len()) {
                since = Instant::now();
            }
            self.before = self.now.clone();
            if since.elapsed() >= AT_REST_FOR {
                return Ok(());
            }
            if Instant::now() >= end {
                bail!("a change does not come to its end: {:?}", self.now);
            }
        }
    }

    /// Waits until one of these steps is seen: its place among them, and the node that has made it.
    pub(crate) fn next(&mut self, steps: &[Step]) -> Result<(usize, String)> {
        // The operator may just have been killed.
        let end = Instant::now() + LED_AGAIN_WITHIN;
        loop {
            for (place, step) in steps.iter().enumerate() {
                if let Some(node) = self.now.made(*step, &self.before) {
                    return Ok((place, node.to_owned()));
                }
            }
            if Instant::now() >= end {
                bail!(
                    "none of {steps:?} was seen: before {:?}, now {:?}",
                    self.before,
                    self.now
                );
            }
            self.look(Duration::from_millis(2))?;
            if steps.contains(&Step::Closed) {
                self.look_at_devices()?;
            }
        }
    }

    /// Takes what is told within a time, one object at least where there is one.
    fn look(&mut self, within: Duration) -> Result<()> {
        interrupt::check()?;
        match self.told.recv_timeout(within) {
            Ok(object) => self.now.take(&object),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => bail!("kubectl tells nothing any more"),
        }
        Ok(())
    }

    fn look_at_devices(&mut self) -> Result<()> {
        for (name, namespace) in &self.nodes {
            let devices = namespace.within(|| {
                let all = nix::net::if_::if_nameindex().context("the node's devices")?;
                let names = all.iter().map(|one| one.name().to_string_lossy().into_owned());
                Ok(names.filter(|name| name.starts_with("podlane_")).collect())
            })?;
            self.now.devices.insert(name.clone(), devices);
        }
        Ok(())
    }
}
