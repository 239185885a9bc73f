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
        let written = tokio::select! {
            written = write(&api, node, &status) => written,
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

/// Server-side apply: what the operator writes into the same status (the condition Accepted) is left alone.
async fn write(api: &Api<RoutingNode>, node: &str, status: &RoutingNodeStatus) -> Result<(), String> {
    let patch = serde_json::json!({
        "apiVersion": RoutingNode::api_version(&()),
        "kind": RoutingNode::kind(&()),
        "metadata": { "name": node },
        "status": status,
    });
    let parameters = PatchParams::apply(FIELD_MANAGER).force();
    let patch = Patch::Apply(&patch);
    match tokio::time::timeout(PATIENCE, api.patch_status(node, &parameters, &patch)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
    }
}

#[cfg(test)]
mod tests;
