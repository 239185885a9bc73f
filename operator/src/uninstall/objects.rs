//! What is left to be said and deleted once nodes are clean, or are to stay as they are.

use super::AT_A_TIME;
use crate::seen::{NetworkUnavailable, Seen, SeenNode};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::core::PartialObjectMeta;
use kube::{Api, Client, Error, Resource, ResourceExt};
use podlane_crds::{ConditionType, RoutingPolicy, RoutingPolicyStatus, condition, reason, set_condition};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fmt::Debug;

/// The name under which the operator writes, and who takes its place.
const MANAGER: &str = "podlane-operator";
/// Objects in one page of a list.
const PAGE: u32 = 250;

/// What is left of a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// What it declared is on the nodes, and nobody keeps it so.
    Kept,
    /// Nothing, or what this says.
    Cleaned(String),
}

/// A whole list, page by page.
pub(super) async fn list<K>(api: &Api<K>, parameters: ListParams) -> Result<Vec<K>, Error>
where
    K: Clone + DeserializeOwned + Debug,
{
    let mut parameters = parameters.limit(PAGE);
    let mut all = Vec::new();
    loop {
        let page = api.list(&parameters).await?;
        all.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => parameters.continue_token = Some(token),
            None => return Ok(all),
        }
    }
}

/// What has gone by itself needs nothing done to it.
pub(super) fn unless_gone<T>(result: Result<T, Error>) -> Result<(), Error> {
    match result {
        Err(Error::Api(status)) if status.code == 404 => Ok(()),
        other => other.map(drop),
    }
}

/// Deletes all objects of a kind.
pub(super) async fn delete_all<K>(client: &Client) -> Result<(), Error>
where
    K: Resource<DynamicType = ()> + Clone + Debug,
{
    let api: Api<PartialObjectMeta<K>> = Api::all(client.clone());
    let all = list(&api, ListParams::default()).await?;
    stream::iter(all)
        .map(|object| {
            let api = &api;
            async move { unless_gone(api.delete(&object.name_any(), &DeleteParams::default()).await) }
        })
        .buffer_unordered(AT_A_TIME)
        .try_collect()
        .await
}

/// Says on every policy that nobody carries it out.
pub(super) async fn tell_policies(client: &Client, left: &Left) -> Result<(), Error> {
    let api: Api<Seen<RoutingPolicy>> = Api::all(client.clone());
    for policy in list(&api, ListParams::default()).await? {
        let name = policy.name_any();
        let Ok(policy) = policy.decoded else { continue };
        let generation = policy.metadata.generation;
        let status = policy_status(policy.status.unwrap_or_default(), generation, left, &now());
        let object = json!({
            "apiVersion": RoutingPolicy::api_version(&()),
            "kind": RoutingPolicy::kind(&()),
            "metadata": {"name": name},
            "status": status,
        });
        let parameters = PatchParams::apply(MANAGER).force();
        unless_gone(api.patch_status(&name, &parameters, &Patch::Apply(&object)).await)?;
    }
    Ok(())
}

fn policy_status(
    before: RoutingPolicyStatus,
    generation: Option<i64>,
    left: &Left,
    now: &Time,
) -> RoutingPolicyStatus {
    let (words, ready) = match left {
        Left::Kept => (
            "Podlane is uninstalled: nodes are as this policy declared them last, and nobody keeps them so"
                .to_owned(),
            before.nodes_ready.clone(),
        ),
        Left::Cleaned(nodes) => (format!("Podlane is uninstalled: {nodes}"), None),
    };
    let mut status = RoutingPolicyStatus {
        summary: Some(words.clone()),
        nodes_ready: ready,
        nodes: None,
        ..before
    };
    for (kind, message) in [
        (ConditionType::Progressing, ""),
        (ConditionType::Ready, words.as_str()),
    ] {
        let new = condition(kind, false, reason::UNINSTALLED, message, generation, now);
        set_condition(&mut status.conditions, new);
    }
    status
}

/// Makes the condition NetworkUnavailable of Nodes whose pods Podlane has connected true to what is there now. Of a node that is clean
/// nothing is said any more: its runtime has no network, which its kubelet says itself until there is another. A node that is not clean has
/// a CNI configuration and no lanes, so that its kubelet takes it for well.
pub(super) async fn tell_nodes(client: &Client, clean: &BTreeSet<&str>) -> Result<(), Error> {
    let api: Api<SeenNode> = Api::all(client.clone());
    let nodes = list(&api, ListParams::default()).await?;
    let ours = nodes.iter().filter(|node| {
        let said = node.network_unavailable();
        said.is_some_and(|(said, _)| said.is_ours())
    });
    let writes: Vec<(String, Value)> = ours
        .map(|node| {
            let name = node.name_any();
            let condition = if clean.contains(name.as_str()) {
                json!({"type": NetworkUnavailable::TYPE, "$patch": "delete"})
            } else {
                not_clean(&name, &now())
            };
            (name, json!({"status": {"conditions": [condition]}}))
        })
        .collect();
    stream::iter(writes)
        .map(|(name, patch)| {
            let api = &api;
            async move {
                let parameters = PatchParams {
                    field_manager: Some(MANAGER.to_owned()),
                    ..PatchParams::default()
                };
                unless_gone(
                    api.patch_status(&name, &parameters, &Patch::Strategic(patch))
                        .await,
                )
            }
        })
        .buffer_unordered(AT_A_TIME)
        .try_collect()
        .await
}

fn not_clean(name: &str, now: &Time) -> Value {
    json!({
        "type": NetworkUnavailable::TYPE, "status": "True", "reason": "PodlaneNotCleaned",
        "message": format!("Podlane was uninstalled while {name} did not answer: take what is left off the node with `podlane-agent clean`"),
        "lastTransitionTime": now, "lastHeartbeatTime": now,
    })
}

/// As the API server keeps times.
fn now() -> Time {
    Time(Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_that_nobody_carries_out_says_so_and_what_it_has_left() {
        let now = now();
        let before = RoutingPolicyStatus {
            nodes_ready: Some("3/3".to_owned()),
            conditions: vec![
                condition(ConditionType::Accepted, true, "Accepted", "", Some(1), &now),
                condition(ConditionType::Ready, true, "AsDeclared", "", Some(1), &now),
            ],
            ..RoutingPolicyStatus::default()
        };
        let nodes = "2 of 3 nodes are clean; did not answer: k8s-w0";
        let status = policy_status(before.clone(), Some(2), &Left::Cleaned(nodes.to_owned()), &now);
        let said: Vec<_> = status
            .conditions
            .iter()
            .map(|it| (it.type_.as_str(), it.status.as_str(), it.reason.as_str()))
            .collect();
        assert_eq!(
            said,
            [
                ("Accepted", "True", "Accepted"),
                ("Progressing", "False", "Uninstalled"),
                ("Ready", "False", "Uninstalled")
            ]
        );
        assert!(status.summary.expect("a summary").ends_with(nodes));
        assert_eq!(status.nodes_ready, None);
        let kept = policy_status(before, Some(2), &Left::Kept, &now);
        assert_eq!(kept.nodes_ready.as_deref(), Some("3/3"));
    }
}
