//! Each write as the request that carries it out.
//!
//! What is the operator's alone (a RoutingNode's spec, a PeerSlice) is changed by a JSON patch that first tests the generation,
//! which changes with the spec only: an operator that has been superseded changes nothing, and an agent that writes its status at
//! the same moment is not in the way. Status is written by server-side apply, where each of several authors owns his own
//! conditions.

use crate::seen::{NetworkUnavailable, Seen, SeenNode};
use crate::world::Kind;
use crate::write::{Expected, What, Write};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::Request;
use kube::{Api, Client, Error, Resource};
use podlane_crds::{PeerSlice, RoutingNode, RoutingPolicy};
use serde_json::{Value, json};

/// The name under which the operator writes.
pub(super) const MANAGER: &str = "podlane-operator";

/// What the API server answered.
#[derive(Debug)]
pub(super) enum Answer {
    /// The RoutingPolicy as it is now.
    Policy(Box<Seen<RoutingPolicy>>),
    /// The Node as it is now.
    ApiNode(Box<SeenNode>),
    /// The RoutingNode as it is now.
    Node(Box<Seen<RoutingNode>>),
    /// The PeerSlice as it is now.
    Slice(Box<Seen<PeerSlice>>),
    /// There is no such object any more.
    Gone(Kind, String, String),
}

/// What a write says, as bytes.
pub(super) fn content(what: &What) -> Vec<u8> {
    let bytes = match what {
        What::CreateSlice(peers) | What::UpdateSlice { peers, .. } => serde_json::to_vec(peers),
        What::PolicyStatus { status, .. } => serde_json::to_vec(status),
        What::CreateNode { owner, spec } | What::UpdateNode { owner, spec, .. } => {
            serde_json::to_vec(&(owner, spec))
        }
        What::NodeAccepted { condition, .. } => serde_json::to_vec(condition),
        What::NodeNetwork { said, .. } => serde_json::to_vec(&[&said.status, &said.reason, &said.message]),
        What::ClearNodeNetwork { uid } => serde_json::to_vec(&[uid, "gone"]),
        What::DeleteSlice(expected) | What::DeleteNode(expected) => serde_json::to_vec(&expected.uid),
    };
    bytes.unwrap_or_default()
}

/// Carries out one write.
pub(super) async fn perform(client: &Client, write: &Write) -> Result<Answer, Error> {
    let name = write.name.as_str();
    let node = |seen| Answer::Node(Box::new(seen));
    let slice = |seen| Answer::Slice(Box::new(seen));
    match &write.what {
        What::CreateSlice(peers) => {
            let object = object::<PeerSlice>(json!({"name": name}), "spec", json!({"peers": peers}));
            create(client, &object).await.map(slice)
        }
        What::UpdateSlice { expected, peers } => patch(client, name, expected, json!({"peers": peers}), None)
            .await
            .map(slice),
        What::CreateNode { owner, spec } => {
            let metadata = json!({"name": name, "ownerReferences": owners(name, owner)});
            let object = object::<RoutingNode>(metadata, "spec", json!(spec));
            create(client, &object).await.map(node)
        }
        What::UpdateNode {
            expected,
            owner,
            spec,
        } => patch(client, name, expected, json!(spec), Some(owners(name, owner)))
            .await
            .map(node),
        What::PolicyStatus { uid, status } => {
            let object = object::<RoutingPolicy>(json!({"name": name, "uid": uid}), "status", json!(status));
            let seen = apply_status(client, name, &object).await?;
            Ok(Answer::Policy(Box::new(seen)))
        }
        What::NodeAccepted { uid, condition } => {
            let status = json!({"conditions": [condition]});
            let object = object::<RoutingNode>(json!({"name": name, "uid": uid}), "status", status);
            apply_status(client, name, &object).await.map(node)
        }
        What::NodeNetwork { uid, said, since } => {
            let condition = json!({
                "type": NetworkUnavailable::TYPE, "status": said.status, "reason": said.reason, "message": said.message,
                "lastTransitionTime": since, "lastHeartbeatTime": since,
            });
            patch_node(client, name, uid, condition).await
        }
        What::ClearNodeNetwork { uid } => {
            let gone = json!({"type": NetworkUnavailable::TYPE, "$patch": "delete"});
            patch_node(client, name, uid, gone).await
        }
        What::DeleteSlice(expected) => delete::<PeerSlice>(client, Kind::PeerSlice, name, expected).await,
        What::DeleteNode(expected) => delete::<RoutingNode>(client, Kind::RoutingNode, name, expected).await,
    }
}

/// A Node's conditions are merged by their type: others' stay.
async fn patch_node(client: &Client, name: &str, uid: &str, condition: Value) -> Result<Answer, Error> {
    let patch = json!({"metadata": {"uid": uid}, "status": {"conditions": [condition]}});
    let parameters = PatchParams {
        field_manager: Some(MANAGER.to_owned()),
        ..PatchParams::default()
    };
    let seen = Api::<SeenNode>::all(client.clone())
        .patch_status(name, &parameters, &Patch::Strategic(patch))
        .await?;
    Ok(Answer::ApiNode(Box::new(seen)))
}

fn object<K: Resource<DynamicType = ()>>(metadata: Value, part: &str, value: Value) -> Value {
    json!({"apiVersion": K::api_version(&()), "kind": K::kind(&()), "metadata": metadata, part: value})
}

/// Kubernetes' garbage collector deletes what the Node leaves behind.
fn owners(name: &str, owner: &str) -> Value {
    json!([{"apiVersion": "v1", "kind": "Node", "name": name, "uid": owner}])
}

async fn create<K>(client: &Client, object: &Value) -> Result<Seen<K>, Error>
where
    K: Resource<DynamicType = ()> + serde::de::DeserializeOwned,
{
    let parameters = PostParams {
        field_manager: Some(MANAGER.to_owned()),
        ..PostParams::default()
    };
    let body = serde_json::to_vec(object).map_err(Error::SerdeError)?;
    let request = Request::new(K::url_path(&(), None))
        .create(&parameters, body)
        .map_err(Error::BuildRequest)?;
    client.request(request).await
}

async fn patch<K>(
    client: &Client,
    name: &str,
    expected: &Expected,
    spec: Value,
    owners: Option<Value>,
) -> Result<Seen<K>, Error>
where
    K: Resource<DynamicType = ()> + serde::de::DeserializeOwned + Clone + std::fmt::Debug,
{
    let mut operations = vec![
        json!({"op": "test", "path": "/metadata/uid", "value": expected.uid}),
        json!({"op": "test", "path": "/metadata/generation", "value": expected.generation}),
        json!({"op": "add", "path": "/spec", "value": spec}),
    ];
    operations.extend(
        owners.map(|owners| json!({"op": "add", "path": "/metadata/ownerReferences", "value": owners})),
    );
    let patch = serde_json::from_value(Value::Array(operations)).map_err(Error::SerdeError)?;
    let parameters = PatchParams {
        field_manager: Some(MANAGER.to_owned()),
        ..PatchParams::default()
    };
    Api::<Seen<K>>::all(client.clone())
        .patch(name, &parameters, &Patch::Json::<()>(patch))
        .await
}

async fn apply_status<K>(client: &Client, name: &str, object: &Value) -> Result<Seen<K>, Error>
where
    K: Resource<DynamicType = ()> + serde::de::DeserializeOwned + Clone + std::fmt::Debug,
{
    Api::<Seen<K>>::all(client.clone())
        .patch_status(name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(object))
        .await
}

async fn delete<K>(client: &Client, kind: Kind, name: &str, expected: &Expected) -> Result<Answer, Error>
where
    K: Resource<DynamicType = ()> + serde::de::DeserializeOwned + Clone + std::fmt::Debug,
{
    let parameters = DeleteParams {
        preconditions: Some(Preconditions {
            uid: Some(expected.uid.clone()),
            resource_version: None,
        }),
        ..DeleteParams::default()
    };
    let gone = Answer::Gone(kind, name.to_owned(), expected.uid.clone());
    match Api::<Seen<K>>::all(client.clone())
        .delete(name, &parameters)
        .await
    {
        Err(Error::Api(status)) if status.code == 404 => Ok(gone),
        other => other.map(|_| gone),
    }
}
