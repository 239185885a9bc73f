//! Keeps the node's status in the API server as it should be.

use crate::report::own_part;
use crate::watch::API_SERVER;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, Resource};
use podlane_crds::{RoutingNode, RoutingNodeStatus};
use std::time::Duration;
use tokio::sync::watch::Receiver;

/// As which the API server knows what the agent writes.
const FIELD_MANAGER: &str = "podlane-agent";

/// How long one call may take.
const PATIENCE: Duration = Duration::from_secs(15);

/// Between two writes: a change that comes in parts is written once.
const REST: Duration = Duration::from_millis(200);

/// Writes the status whenever it differs from what the API server holds, until both senders are gone. `held` is that, none while
/// there is no RoutingNode; nothing is written then.
pub async fn keep(
    mut clients: Receiver<Client>,
    node: &str,
    mut wanted: Receiver<Option<RoutingNodeStatus>>,
    mut held: Receiver<Option<RoutingNodeStatus>>,
) {
    let mut backoff = API_SERVER;
    let mut said: Option<String> = None;
    let mut is = None;
    loop {
        if held.has_changed().unwrap_or(false) {
            held.mark_unchanged();
            is = held.borrow().as_ref().map(own_part);
        }
        let to_write = match (wanted.borrow_and_update().as_ref(), &is) {
            (Some(wanted), Some(is)) if wanted != is => Some(wanted.clone()),
            _ => None,
        };
        let Some(status) = to_write else {
            tokio::select! {
                changed = wanted.changed() => if changed.is_err() { return },
                // Its value is taken at the top.
                changed = held.changed() => if changed.is_err() { return } else { held.mark_changed() },
            }
            continue;
        };
        let api = Api::all(clients.borrow_and_update().clone());
        let holds = held.borrow().clone().unwrap_or_default();
        let written = tokio::select! {
            written = write(&api, node, &status, &holds) => written,
            // The old one's answer would be waited for in vain.
            Ok(()) = clients.changed() => continue,
        };
        match written {
            Ok(()) => {
                is = Some(status);
                backoff.reset();
                if said.take().is_some() {
                    tracing::info!("status is written again");
                }
                tokio::time::sleep(REST).await;
            }
            Err(error) => {
                if said.as_ref() != Some(&error) {
                    tracing::warn!(%error, "status cannot be written");
                    said = Some(error);
                }
                tokio::select! {
                    Ok(()) = clients.changed() => {}
                    () = tokio::time::sleep(backoff.fail(rand::random())) => {}
                }
            }
        }
    }
}

/// Writes it; once more where somebody else's hand in the same conditions is all that is in the way.
async fn write(
    api: &Api<RoutingNode>,
    node: &str,
    status: &RoutingNodeStatus,
    held: &RoutingNodeStatus,
) -> Result<(), String> {
    match apply(api, node, status).await {
        // Of a condition that is not said any more, fields that somebody else has written (kubectl edit, say) would stay, and a part is no condition.
        Err(Refusal::Invalid(_)) if !own_part(held).conditions.is_empty() => {
            withdraw(api, node, held).await.map_err(Refusal::words)?;
            apply(api, node, status).await.map_err(Refusal::words)
        }
        written => written.map_err(Refusal::words),
    }
}

/// Why a status was not written.
enum Refusal {
    /// It makes no valid object.
    Invalid(String),
    Other(String),
}

impl Refusal {
    fn words(self) -> String {
        match self {
            Self::Invalid(words) | Self::Other(words) => words,
        }
    }
}

/// Server-side apply: what the operator writes into the same status (the condition Accepted) is left alone.
async fn apply(api: &Api<RoutingNode>, node: &str, status: &RoutingNodeStatus) -> Result<(), Refusal> {
    let patch = serde_json::json!({
        "apiVersion": RoutingNode::api_version(&()),
        "kind": RoutingNode::kind(&()),
        "metadata": { "name": node },
        "status": status,
    });
    let parameters = PatchParams::apply(FIELD_MANAGER).force();
    patched(api.patch_status(node, &parameters, &Patch::Apply(&patch))).await
}

/// Takes this agent's conditions back, whoever else has written in them.
async fn withdraw(api: &Api<RoutingNode>, node: &str, held: &RoutingNodeStatus) -> Result<(), Refusal> {
    let own = own_part(held).conditions;
    let others: Vec<_> = held.conditions.iter().filter(|one| !own.contains(one)).collect();
    let patch = serde_json::json!({ "status": { "conditions": others } });
    let parameters = PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    patched(api.patch_status(node, &parameters, &Patch::Merge(&patch))).await
}

async fn patched(call: impl Future<Output = kube::Result<RoutingNode>>) -> Result<(), Refusal> {
    match tokio::time::timeout(PATIENCE, call).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(kube::Error::Api(refused))) if refused.code == 422 => {
            Err(Refusal::Invalid(refused.to_string()))
        }
        Ok(Err(error)) => Err(Refusal::Other(error.to_string())),
        Err(_) => Err(Refusal::Other(format!(
            "no answer within {} s",
            PATIENCE.as_secs()
        ))),
    }
}

#[cfg(test)]
mod tests;
