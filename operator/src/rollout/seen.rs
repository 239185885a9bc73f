//! The agents' pods and their DaemonSet as the API server sends them, reduced while they are read.

use super::daemon_set::TEMPLATE;
use super::next::AgentPod;
use crate::seen::resource_as;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::Resource;
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// A pod, as far as a rollout goes.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct SeenPod {
    #[serde(deserialize_with = "lean")]
    metadata: ObjectMeta,
    #[serde(default)]
    spec: PodSpec,
    #[serde(default)]
    status: PodStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodSpec {
    node_name: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PodStatus {
    phase: String,
    /// When its kubelet took it up.
    start_time: Option<String>,
    conditions: Vec<PodCondition>,
    container_statuses: Vec<ContainerStatus>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct ContainerStatus {
    state: ContainerState,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct ContainerState {
    running: Option<IgnoredAny>,
}

#[derive(Clone, Debug, Deserialize)]
struct PodCondition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
}

/// A DaemonSet, as far as a rollout goes.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct SeenDaemonSet {
    #[serde(deserialize_with = "lean")]
    metadata: ObjectMeta,
    #[serde(default)]
    status: DaemonSetStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct DaemonSetStatus {
    #[serde(default)]
    desired_number_scheduled: usize,
    observed_generation: Option<i64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LeanMeta {
    name: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    generation: Option<i64>,
    deletion_timestamp: Option<Time>,
    labels: Option<BTreeMap<String, String>>,
}

fn lean<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    let meta = LeanMeta::deserialize(deserializer)?;
    Ok(ObjectMeta {
        name: meta.name,
        uid: meta.uid,
        resource_version: meta.resource_version,
        generation: meta.generation,
        deletion_timestamp: meta.deletion_timestamp,
        labels: meta.labels,
        ..ObjectMeta::default()
    })
}

resource_as!(SeenPod, Pod);
resource_as!(SeenDaemonSet, DaemonSet);

impl SeenPod {
    /// In the rollout's terms; none: it is on no node yet, or over.
    pub(super) fn agent(self) -> Option<AgentPod> {
        // Evicted, for instance: the DaemonSet's controller makes another in its place.
        if matches!(self.status.phase.as_str(), "Failed" | "Succeeded") {
            return None;
        }
        let containers = &self.status.container_statuses;
        let runs = |container: &ContainerStatus| container.state.running.is_some();
        let is_ready = |condition: &PodCondition| condition.kind == "Ready" && condition.status == "True";
        Some(AgentPod {
            name: self.metadata.name?,
            uid: self.metadata.uid?,
            node: self.spec.node_name?,
            template: self
                .metadata
                .labels
                .and_then(|mut labels| labels.remove(TEMPLATE)),
            is_ready: self.status.conditions.iter().any(is_ready),
            runs: !containers.is_empty() && containers.iter().all(runs),
            has_started: self.status.start_time.is_some(),
            is_ending: self.metadata.deletion_timestamp.is_some(),
        })
    }
}

impl SeenDaemonSet {
    /// Which one, and which generation of it.
    pub(super) fn identity(&self) -> (Option<&str>, i64) {
        (
            self.metadata.uid.as_deref(),
            self.metadata.generation.unwrap_or_default(),
        )
    }

    /// The pods that there should be; none: its controller has yet to see its present generation.
    pub(super) fn scheduled(&self) -> Option<usize> {
        let has_observed = self.status.observed_generation >= self.metadata.generation;
        has_observed.then_some(self.status.desired_number_scheduled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pod_is_reduced_to_what_a_rollout_needs() {
        let pod = |change: serde_json::Value| {
            let mut pod = json!({
                "metadata": {"name": "podlane-agent-x", "uid": "u", "labels": {TEMPLATE: "t", "a": "b"}},
                "spec": {"nodeName": "k8s-w0", "containers": [{"name": "agent"}]},
                "status": {"phase": "Running", "startTime": "2026-01-01T00:00:00Z", "conditions": [
                    {"type": "Initialized", "status": "True"}, {"type": "Ready", "status": "True"},
                ], "containerStatuses": [{"name": "agent", "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}]},
            });
            for (key, value) in change.as_object().expect("an object") {
                pod[key] = value.clone();
            }
            let seen: SeenPod = serde_json::from_value(pod).expect("a pod");
            seen.agent()
        };
        let expected = AgentPod {
            name: "podlane-agent-x".to_owned(),
            uid: "u".to_owned(),
            node: "k8s-w0".to_owned(),
            template: Some("t".to_owned()),
            is_ready: true,
            runs: true,
            has_started: true,
            is_ending: false,
        };
        assert_eq!(pod(json!({})), Some(expected));
        assert_eq!(pod(json!({"spec": {}})), None);
        assert_eq!(
            pod(json!({"status": {"phase": "Failed", "reason": "Evicted"}})),
            None
        );
        let new = pod(json!({"status": {"phase": "Pending"}})).expect("a pod");
        assert!(!new.is_ready && !new.runs && !new.has_started);
        let crashing = json!({"phase": "Running", "startTime": "2026-01-01T00:00:00Z",
            "containerStatuses": [{"state": {"waiting": {"reason": "CrashLoopBackOff"}}}]});
        let crashing = pod(json!({"status": crashing})).expect("a pod");
        assert!(!crashing.runs && crashing.has_started);
        let ending =
            json!({"metadata": {"name": "x", "uid": "u", "deletionTimestamp": "2026-01-01T00:00:00Z"}});
        assert!(pod(ending).expect("a pod").is_ending);
    }

    #[test]
    fn a_count_from_before_the_present_generation_is_none() {
        for (status, expected) in [
            (json!({}), None),
            (
                json!({"observedGeneration": 1, "desiredNumberScheduled": 3}),
                None,
            ),
            (
                json!({"observedGeneration": 2, "desiredNumberScheduled": 3}),
                Some(3),
            ),
        ] {
            let set: SeenDaemonSet = serde_json::from_value(
                json!({"metadata": {"name": "a", "uid": "u", "generation": 2}, "status": status}),
            )
            .expect("a DaemonSet");
            assert_eq!(set.scheduled(), expected, "{status}");
        }
    }
}
