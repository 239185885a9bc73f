//! The first policy: made when there has never been one, so that a fresh cluster can be installed in one command.
//!
//! A cluster without policies and without RoutingNodes has never had a leading operator, since RoutingNodes are the first thing
//! that one makes. Whoever deletes the last policy later on gets none back.

use crate::failure::{API_SERVER, asks_to_wait, is_refusal, words};
use crate::said::Said;
use crate::watch::Shared;
use kube::api::{ListParams, PostParams};
use kube::core::{ApiResource, DynamicObject, PartialObjectMeta};
use kube::{Api, Client, Error, Resource};
use podlane_crds::{RoutingNode, RoutingPolicy};
use serde_json::{Value, json};
use std::time::Instant;

/// The first policy's name.
const NAME: &str = "default";

/// Makes it if it is to be made. Goes on until that is clear: no RoutingNode may be written before. A spec that the API server does not
/// take keeps the operator from being ready, in words; whoever makes a policy by hand ends that.
pub async fn make(client: &Client, spec: &Value, shared: &Shared) {
    let mut backoff = API_SERVER;
    let mut said = Said::default();
    loop {
        match attempt(client, spec).await {
            Ok(is_made) => {
                shared.obstacle.set(None);
                if is_made {
                    tracing::info!("made the first RoutingPolicy, {NAME}");
                }
                return;
            }
            Err(error) => {
                let why = words(&error);
                if said.is_news("", &why, Instant::now()) {
                    tracing::error!(why, "cannot make the first RoutingPolicy; trying again");
                }
                let is_refused = is_refusal(&error);
                shared.obstacle.set(is_refused.then(|| {
                    format!(
                        "the first RoutingPolicy is refused: {why}: correct firstPolicy and upgrade the release, or apply a policy"
                    )
                }));
                let wait = backoff.fail(rand::random()).max(asks_to_wait(&error));
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    // Perhaps somebody has made one.
                    () = shared.changed.notified(), if is_refused => {}
                }
            }
        }
    }
}

/// Whether it was made; if not, the cluster has had one.
async fn attempt(client: &Client, spec: &Value) -> Result<bool, Error> {
    if !is_empty::<RoutingPolicy>(client).await? || !is_empty::<RoutingNode>(client).await? {
        return Ok(false);
    }
    let object = json!({
        "apiVersion": RoutingPolicy::api_version(&()),
        "kind": RoutingPolicy::kind(&()),
        "metadata": {"name": NAME},
        "spec": spec,
    });
    let object = serde_json::from_value(object).map_err(Error::SerdeError)?;
    let policies: Api<DynamicObject> =
        Api::all_with(client.clone(), &ApiResource::erase::<RoutingPolicy>(&()));
    match policies.create(&PostParams::default(), &object).await {
        // Somebody else was quicker.
        Err(Error::Api(status)) if status.code == 409 => Ok(false),
        other => other.map(|_| true),
    }
}

async fn is_empty<K>(client: &Client) -> Result<bool, Error>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug,
{
    let one = ListParams::default().limit(1);
    let list = Api::<PartialObjectMeta<K>>::all(client.clone())
        .list_metadata(&one)
        .await?;
    Ok(list.items.is_empty())
}
