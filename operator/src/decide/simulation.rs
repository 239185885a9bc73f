//! A cluster to test decisions in: an API server that only keeps objects, and agents that only move lanes. The agents go by the
//! plan's own functions, each in four steps that may come in any order with everybody else's: see what it is told, see its
//! peers, change its kernel, answer.

mod agent;

pub(super) use agent::Step;

use super::{Decision, decide};
use crate::world::{Kind, Settings, Source, World};
use crate::write::{What, Write};
use agent::Agent;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use podlane_crds::{PeerSlice, RoutingNode, decode};
use podlane_plan::lane::Lane;
use podlane_plan::pair::Refusal;
use podlane_plan::probes::Answer;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// The cluster.
#[derive(Debug)]
pub(super) struct Cluster {
    pub(super) world: World,
    pub(super) events: Vec<String>,
    pub(super) now: Timestamp,
    objects: BTreeMap<(String, String), Value>,
    agents: BTreeMap<String, Agent>,
    version: u64,
    /// Whether the network carries the n-th probe over a lane.
    pub(super) carries: fn(Lane, u64) -> bool,
    probes: u64,
    /// Without programs a receiver takes packets as they are from wherever they come.
    pub(super) all_have_programs: bool,
}

impl Cluster {
    pub(super) fn empty() -> Self {
        Self {
            world: World::new(Settings {
                cluster_pod_cidrs: vec!["172.20.0.0/16".parse().expect("a CIDR")],
                ..Settings::default()
            }),
            events: Vec::new(),
            now: Timestamp::default(),
            objects: BTreeMap::new(),
            agents: BTreeMap::new(),
            version: 0,
            carries: |_, _| true,
            probes: 0,
            all_have_programs: true,
        }
    }

    /// The three nodes of the story.
    pub(super) fn of_three() -> Self {
        let mut cluster = Self::empty();
        cluster.node("k8s-ctr", 1, &["192.168.10.100"], &["172.20.0.0/24"]);
        cluster.node("k8s-w1", 2, &["192.168.10.101"], &["172.20.1.0/24"]);
        cluster.node("k8s-w0", 3, &["192.168.20.100"], &["172.20.2.0/24"]);
        cluster
    }

    pub(super) fn node(&mut self, name: &str, created: i64, addresses: &[&str], cidrs: &[&str]) {
        let addresses: Vec<_> = addresses
            .iter()
            .map(|address| json!({"type": "InternalIP", "address": address}))
            .collect();
        let time = Timestamp::from_second(created).expect("a time").to_string();
        self.put(
            "Node",
            name,
            json!({"metadata": {"labels": {"name": name}, "creationTimestamp": time},
                "spec": {"podCIDRs": cidrs}, "status": {"addresses": addresses}}),
        );
        let number = u8::try_from(self.agents.len() + 1).expect("few agents");
        let agent = || Agent::new(number);
        self.agents.entry(name.to_owned()).or_insert_with(agent);
    }

    pub(super) fn policy(&mut self, name: &str, created: i64, spec: Value) {
        let time = Timestamp::from_second(created).expect("a time").to_string();
        let status = self.objects.get(&("RoutingPolicy".to_owned(), name.to_owned()));
        let status = status.map_or(Value::Null, |object| object["status"].clone());
        self.put(
            "RoutingPolicy",
            name,
            json!({"metadata": {"creationTimestamp": time}, "spec": spec, "status": status}),
        );
    }

    /// Makes or changes an object, as the API server would.
    fn put(&mut self, kind: &str, name: &str, mut object: Value) {
        self.version += 1;
        let key = (kind.to_owned(), name.to_owned());
        let known = self.objects.get(&key);
        let generation = known.map_or(1, |known| {
            let generation = known["metadata"]["generation"].as_i64().expect("a generation");
            generation + i64::from(known["spec"] != object["spec"])
        });
        let uid = known.map_or_else(
            || format!("uid-{}", self.version),
            |known| known["metadata"]["uid"].as_str().expect("a uid").to_owned(),
        );
        let metadata = &mut object["metadata"];
        metadata["name"] = name.into();
        metadata["uid"] = uid.into();
        metadata["generation"] = generation.into();
        metadata["resourceVersion"] = self.version.to_string().into();
        if object["status"].is_null() {
            object.as_object_mut().expect("an object").remove("status");
        }
        self.objects.insert(key, object.clone());
        self.see(kind, object, Source::Change);
    }

    fn see(&mut self, kind: &str, object: Value, source: Source) {
        let read = "metadata";
        match kind {
            "Node" => self
                .world
                .see_node(serde_json::from_value(object).expect(read), source),
            "RoutingPolicy" => self
                .world
                .see_policy(serde_json::from_value(object).expect(read), source),
            "RoutingNode" => self
                .world
                .see_routing_node(serde_json::from_value(object).expect(read), source),
            _ => self
                .world
                .see_slice(serde_json::from_value(object).expect(read), source),
        };
    }

    pub(super) fn edit(&mut self, kind: &str, name: &str, edit: impl FnOnce(&mut Value)) {
        let mut object = self.object(kind, name).clone();
        edit(&mut object);
        self.put(kind, name, object);
    }

    pub(super) fn gone(&mut self, kind: &str, name: &str) {
        self.objects.remove(&(kind.to_owned(), name.to_owned()));
        let kind = Kind::ALL
            .into_iter()
            .find(|known| known.to_string() == kind)
            .expect("a kind");
        self.world.forget(kind, name, None);
        if kind == Kind::Node {
            self.agents.remove(name);
        }
    }

    /// The same cluster with an operator that has just been started.
    pub(super) fn restarted(mut self) -> Self {
        self.world = World::new(self.world.settings.clone());
        for ((kind, _), object) in self.objects.clone() {
            self.see(&kind, object, Source::List);
        }
        self
    }

    pub(super) fn object(&self, kind: &str, name: &str) -> &Value {
        self.objects
            .get(&(kind.to_owned(), name.to_owned()))
            .unwrap_or_else(|| panic!("no {kind} {name}"))
    }

    pub(super) fn routing_node(&self, name: &str) -> &Value {
        self.object("RoutingNode", name)
    }

    fn all(&self, kind: &str) -> Vec<&Value> {
        let of_kind = self.objects.iter().filter(|((known, _), _)| known == kind);
        of_kind.map(|(_, object)| object).collect()
    }

    pub(super) fn slices(&self) -> Vec<&str> {
        let slices = self.all("PeerSlice");
        slices
            .iter()
            .map(|slice| slice["metadata"]["name"].as_str().expect("a name"))
            .collect()
    }

    pub(super) fn slice_entry(&self, name: &str) -> Option<Value> {
        self.all("PeerSlice")
            .iter()
            .flat_map(|slice| slice["spec"]["peers"].as_array().into_iter().flatten())
            .find(|peer| peer["name"] == name)
            .cloned()
    }

    pub(super) fn accepted(&self, node: &str) -> (String, String) {
        let (status, reason, _) = condition_of(self.routing_node(node), "Accepted");
        (status, reason)
    }

    pub(super) fn condition(&self, policy: &str, kind: &str) -> (String, String, String) {
        condition_of(self.object("RoutingPolicy", policy), kind)
    }

    pub(super) fn summary(&self, policy: &str) -> String {
        let summary = &self.object("RoutingPolicy", policy)["status"]["summary"];
        summary.as_str().unwrap_or_default().to_owned()
    }

    pub(super) fn later(&mut self, milliseconds: i64) {
        self.now += SignedDuration::from_millis(milliseconds);
    }

    /// Decides, and says what would be written.
    pub(super) fn writes(&self) -> Vec<String> {
        let decision = decide(&self.world, self.now);
        decision
            .writes
            .iter()
            .map(|write| format!("{} {} {}", write.what.verb(), write.what.kind(), write.name))
            .collect()
    }

    /// Decides, and writes. Says whether there was anything to write.
    pub(super) fn pass(&mut self) -> Decision {
        let decision = decide(&self.world, self.now);
        self.world.note_decided(decision.is_settled, self.now);
        for write in decision.writes.clone() {
            self.write(write);
        }
        decision
    }

    fn write(&mut self, write: Write) {
        let name = write.name.as_str();
        let events = write
            .events
            .iter()
            .map(|event| format!("{name} {}", event.reason));
        self.events.extend(events);
        let owned = |owner: &str| json!([{"apiVersion": "v1", "kind": "Node", "name": name, "uid": owner}]);
        match &write.what {
            What::CreateSlice(peers) | What::UpdateSlice { peers, .. } => {
                self.put(
                    "PeerSlice",
                    name,
                    json!({"metadata": {}, "spec": {"peers": peers}}),
                );
            }
            What::DeleteSlice(_) => self.gone("PeerSlice", name),
            What::DeleteNode(_) => self.gone("RoutingNode", name),
            What::CreateNode { owner, spec } => self.put(
                "RoutingNode",
                name,
                json!({"metadata": {"ownerReferences": owned(owner)}, "spec": spec}),
            ),
            What::UpdateNode {
                expected,
                owner,
                spec,
            } => {
                let generation = &self.routing_node(name)["metadata"]["generation"];
                assert_eq!(*generation, expected.generation, "a decision from an old picture");
                let owner = owned(owner);
                self.edit("RoutingNode", name, |object| {
                    object["metadata"]["ownerReferences"] = owner;
                    object["spec"] = json!(spec);
                });
            }
            What::PolicyStatus { status, .. } => {
                self.edit("RoutingPolicy", name, |object| object["status"] = json!(status));
            }
            What::NodeNetwork { said, since, .. } => {
                self.edit("Node", name, |object| {
                    object["status"]["conditions"] = json!([{"type": "NetworkUnavailable", "status": said.status,
                        "reason": said.reason, "message": said.message, "lastTransitionTime": since}]);
                });
            }
            What::ClearNodeNetwork { .. } => {
                self.edit("Node", name, |object| object["status"]["conditions"] = json!([]));
            }
            What::NodeAccepted { condition, .. } => {
                self.edit("RoutingNode", name, |object| {
                    let conditions = object["status"]["conditions"]
                        .as_array()
                        .cloned()
                        .unwrap_or_default();
                    let others = conditions.into_iter().filter(|other| other["type"] != "Accepted");
                    object["status"]["conditions"] = others.chain([json!(condition)]).collect();
                });
            }
        }
    }

    /// Lets everybody do all that there is to do, and time pass.
    pub(super) fn settle(&mut self) {
        for _ in 0..50 {
            let before = self.version;
            self.pass();
            let names: Vec<String> = self.agents.keys().cloned().collect();
            // What is proved is acted upon before it is told.
            for step in Step::ALL[..4].iter().chain(&[Step::Act, Step::Answer]) {
                for name in &names {
                    self.step(name, *step);
                }
            }
            let is_proving = |agent: &Agent| {
                let mut troubles = agent.troubles.values();
                troubles.any(|why| matches!(why, Refusal::NotProved { .. }))
            };
            let is_proving = self.agents.values().any(is_proving);
            if !is_proving && self.version == before && self.pass().again_at.is_none() {
                return;
            }
            self.later(3_000);
        }
        panic!("the cluster does not come to rest: {:?}", self.writes());
    }

    pub(super) fn agents(&self) -> Vec<String> {
        self.agents.keys().cloned().collect()
    }

    pub(super) fn step(&mut self, name: &str, step: Step) {
        let Some(mut agent) = self.agents.remove(name) else {
            panic!("no agent on {name}");
        };
        match step {
            Step::SeeSpec => {
                let object = self.objects.get(&("RoutingNode".to_owned(), name.to_owned()));
                if let Some(Ok(object)) = object.map(decode::<RoutingNode>) {
                    agent.generation = object.metadata.generation.unwrap_or_default();
                    agent.spec = object.spec;
                }
            }
            Step::SeePeers => {
                let slices = self.all("PeerSlice");
                let slices = slices.iter().filter_map(|slice| decode::<PeerSlice>(slice).ok());
                let peers = slices.flat_map(|slice| slice.spec.peers);
                agent.has_listed = true;
                agent.peers = peers
                    .filter(|peer| peer.name != name)
                    .map(|peer| (peer.name.clone(), peer.peer().expect("a peer")))
                    .collect();
            }
            Step::Act => agent.act(self.since_epoch()),
            Step::Probe => self.probe(&mut agent),
            Step::Answer => self.answer(name, &agent),
        }
        self.agents.insert(name.to_owned(), agent);
    }

    fn since_epoch(&self) -> Duration {
        Duration::from_millis(u64::try_from(self.now.as_millisecond()).expect("after 1970"))
    }

    /// Probes what is due. A node's programs answer over the lanes that it has open, if the network lets both packets pass.
    fn probe(&mut self, agent: &mut Agent) {
        let now = self.since_epoch();
        if agent.key.is_none() {
            return;
        }
        for probe in agent.prober.due(now) {
            self.probes += 1;
            let lane = probe.target.lane;
            let answers = |there: &&Agent| there.key == Some(probe.target.key) && there.open.contains(&lane);
            let passes = (self.carries)(lane, self.probes) && agent.open.contains(&lane);
            if passes && self.agents.get(&*probe.peer).filter(answers).is_some() {
                let answer = Answer {
                    id: probe.id,
                    round_trip: Duration::from_micros(200),
                    length: probe.length(),
                    lane,
                };
                agent.prober.answered(&answer, now);
            }
        }
    }

    /// Another agent starts on a node, as the last one left the kernel: with programs, or without.
    pub(super) fn restart_agent(&mut self, name: &str, with_programs: bool) {
        let number = u8::try_from(self.agents.len()).expect("few agents") + self.version as u8;
        let before = &self.agents[name];
        let mut agent = Agent {
            open: before.open.clone(),
            used: before.used.clone(),
            ..Agent::new(number)
        };
        if !with_programs {
            agent.key = None;
        }
        self.agents.insert(name.to_owned(), agent);
    }

    fn answer(&mut self, name: &str, agent: &Agent) {
        if agent.acted_on == 0
            || !self
                .objects
                .contains_key(&("RoutingNode".to_owned(), name.to_owned()))
        {
            return;
        }
        let troubles = &agent.troubles;
        let sends_on: BTreeSet<_> = agent.used.values().flatten().map(Lane::to_string).collect();
        let ready = match troubles.first_key_value() {
            None => json!({"type": "Ready", "status": "True", "reason": "AsDeclared", "message": ""}),
            Some((peer, why)) => json!({"type": "Ready", "status": "False", "reason": why.reason(),
                "message": format!("{peer} {why}")}),
        };
        let status = json!({
            "observedGeneration": agent.acted_on, "probeKey": agent.key.map(|key| key.to_string()), "sendsOn": sends_on, "receivesOn": agent.open,
            "counts": {"total": agent.used.len()}, "membership": agent.membership.to_string(),
            "underlay": agent.spec.addresses.iter().map(|address|
                json!({"address": address, "prefixLength": 24, "device": "eth0", "mtu": 1500})).collect::<Vec<_>>(),
            "peers": troubles.iter().map(|(peer, why)| json!({"name": peer, "lane": "refused",
                "reason": why.reason(), "message": format!("{peer} {why}")})).collect::<Vec<_>>(),
        });
        let mut object = self.routing_node(name).clone();
        let accepted = object["status"]["conditions"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let accepted = accepted
            .into_iter()
            .filter(|condition| condition["type"] == "Accepted");
        let mut ready = ready;
        ready["lastTransitionTime"] = "2026-01-01T00:00:00Z".into();
        let conditions: Vec<_> = accepted.chain([ready]).collect();
        object["status"] = status;
        object["status"]["conditions"] = conditions.into();
        if object != *self.routing_node(name) {
            self.put("RoutingNode", name, object);
        }
    }

    /// Nodes that send on a lane which the receiver does not have open: packets are lost.
    pub(super) fn losses(&self) -> Vec<String> {
        let mut losses = Vec::new();
        for (name, agent) in &self.agents {
            for (peer, lane) in &agent.used {
                let (Ok(lane), Some(there)) = (lane, self.agents.get(peer)) else {
                    continue;
                };
                let lane = if self.all_have_programs {
                    *lane
                } else {
                    lane.arrives_as()
                };
                if !there.open.contains(&lane) {
                    losses.push(format!("{name} sends to {peer} on {lane}, which is closed there"));
                }
            }
        }
        losses
    }

    /// How a node reaches a peer.
    pub(super) fn used(&self, name: &str, peer: &str) -> String {
        match &self.agents[name].used[peer] {
            Ok(lane) => lane.to_string(),
            Err(why) => why.reason().to_owned(),
        }
    }
}

fn condition_of(object: &Value, kind: &str) -> (String, String, String) {
    let conditions = object["status"]["conditions"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let found = conditions.iter().find(|condition| condition["type"] == kind);
    let found = found.unwrap_or_else(|| panic!("no condition {kind} in {object}"));
    let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
    (text("status"), text("reason"), text("message"))
}
