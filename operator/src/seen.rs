//! Objects as the API server sends them, reduced while they are read: no object is ever held whole, and one that cannot be
//! read does not keep the others from being read.

use k8s_openapi::api::core::v1::Node as ApiNode;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use kube::Resource;
use podlane_crds::{Undecodable, decode};
use podlane_plan::cluster::Node;
use podlane_plan::machine::{self, Machine, Unfit};
use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// An object of one of Podlane's kinds, or why it cannot be read.
#[derive(Clone, Debug)]
pub struct Seen<K> {
    /// Its metadata, without what the operator has no use for.
    pub metadata: ObjectMeta,
    /// The object.
    pub decoded: Result<K, Undecodable>,
    /// Where the object cannot be read: its status as it stands.
    pub status: serde_json::Value,
}

/// The part of an object's metadata that the operator has a use for.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LeanMeta {
    name: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    generation: Option<i64>,
    creation_timestamp: Option<Time>,
    labels: Option<BTreeMap<String, String>>,
    owner_references: Option<Vec<OwnerReference>>,
}

impl From<LeanMeta> for ObjectMeta {
    fn from(meta: LeanMeta) -> Self {
        Self {
            name: meta.name,
            uid: meta.uid,
            resource_version: meta.resource_version,
            generation: meta.generation,
            creation_timestamp: meta.creation_timestamp,
            labels: meta.labels,
            owner_references: meta.owner_references,
            ..Self::default()
        }
    }
}

impl<'de, K: Resource<DynamicType = ()> + DeserializeOwned> Deserialize<'de> for Seen<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut object = serde_json::Value::deserialize(deserializer)?;
        if let Some(metadata) = object["metadata"].as_object_mut() {
            metadata.remove("managedFields");
        }
        let metadata = LeanMeta::deserialize(&object["metadata"]).map_err(D::Error::custom)?;
        let decoded = decode(&object);
        Ok(Self {
            metadata: metadata.into(),
            status: match decoded {
                Ok(_) => serde_json::Value::Null,
                Err(_) => object["status"].take(),
            },
            decoded,
        })
    }
}

/// What is seen of an object of a kind is asked for as that kind. It wants `metadata`, and in scope `Cow`, `ObjectMeta` and `Resource`.
macro_rules! resource_as {
    ($seen:ty, $kind:ty $(, $parameter:ident)?) => {
        impl$(<$parameter: Resource<DynamicType = ()>>)? Resource for $seen {
            type DynamicType = ();
            type Scope = <$kind as Resource>::Scope;

            fn kind(_: &()) -> Cow<'_, str> {
                <$kind>::kind(&())
            }
            fn group(_: &()) -> Cow<'_, str> {
                <$kind>::group(&())
            }
            fn version(_: &()) -> Cow<'_, str> {
                <$kind>::version(&())
            }
            fn plural(_: &()) -> Cow<'_, str> {
                <$kind>::plural(&())
            }
            fn meta(&self) -> &ObjectMeta {
                &self.metadata
            }
            fn meta_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }
    };
}

pub(crate) use resource_as;

resource_as!(Seen<K>, K, K);
resource_as!(SeenNode, ApiNode);

/// A Node, as far as routing goes.
#[derive(Clone, Debug, Deserialize)]
pub struct SeenNode {
    /// Its metadata, without what the operator has no use for.
    #[serde(deserialize_with = "lean")]
    pub metadata: ObjectMeta,
    #[serde(default)]
    spec: NodeSpec,
    #[serde(default)]
    status: NodeStatus,
}

fn lean<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    LeanMeta::deserialize(deserializer).map(ObjectMeta::from)
}

#[derive(Clone, Debug, Default, Deserialize)]
struct NodeSpec {
    #[serde(rename = "podCIDR")]
    pod_cidr: Option<String>,
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Option<Vec<String>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct NodeStatus {
    addresses: Option<Vec<Address>>,
    conditions: Option<Vec<NodeCondition>>,
    node_info: Option<NodeInfo>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct NodeInfo {
    kernel_version: String,
    operating_system: String,
    architecture: String,
}

#[derive(Clone, Debug, Deserialize)]
struct NodeCondition {
    #[serde(rename = "type")]
    kind: String,
    #[serde(flatten)]
    said: NetworkUnavailable,
    #[serde(rename = "lastTransitionTime")]
    since: Option<Time>,
}

/// What a Node's condition NetworkUnavailable says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct NetworkUnavailable {
    /// True, False or Unknown.
    pub status: String,
    /// In a word.
    pub reason: String,
    /// In a sentence.
    pub message: String,
}

impl NetworkUnavailable {
    /// The condition's type.
    pub const TYPE: &str = "NetworkUnavailable";
    /// With what the reasons begin that Podlane gives.
    pub const REASON: &str = "Podlane";

    /// Whether it was Podlane that said this.
    pub fn is_ours(&self) -> bool {
        self.reason.starts_with(Self::REASON)
    }
}

#[derive(Clone, Debug, Deserialize)]
struct Address {
    #[serde(rename = "type")]
    kind: String,
    address: String,
}

impl SeenNode {
    /// Its condition NetworkUnavailable, where somebody has set one, and since when its status has been what it is.
    pub fn network_unavailable(&self) -> Option<(NetworkUnavailable, Option<Time>)> {
        let mut conditions = self.status.conditions.iter().flatten();
        let found = conditions.find(|condition| condition.kind == NetworkUnavailable::TYPE)?;
        Some((found.said.clone(), found.since.clone()))
    }

    /// Whether its kubelet has fallen silent: the node is down, or out of the API server's reach. (Whose node is not ready for another
    /// reason still starts and ends pods.)
    pub fn is_away(&self) -> bool {
        let mut conditions = self.status.conditions.iter().flatten();
        conditions.any(|condition| condition.kind == "Ready" && condition.said.status == "Unknown")
    }

    /// Why it can have no agent, by what its kubelet says of the machine.
    pub fn unfit(&self) -> Option<Unfit> {
        let info = self.status.node_info.as_ref()?;
        let machine = Machine {
            kernel_version: &info.kernel_version,
            operating_system: &info.operating_system,
            architecture: &info.architecture,
        };
        machine::check(machine).err()
    }

    /// In the plan's terms.
    pub fn node(self) -> Node {
        let mut unreadable = Vec::new();
        let addresses = self.status.addresses.into_iter().flatten();
        let addresses = addresses
            .filter(|address| address.kind == "InternalIP")
            .filter_map(|address| parsed(address.address, &mut unreadable))
            .collect();
        // podCIDR is the first of podCIDRs, where the API server has filled in both.
        let pod_cidrs = match self.spec.pod_cidrs {
            Some(pod_cidrs) if !pod_cidrs.is_empty() => pod_cidrs,
            _ => self
                .spec
                .pod_cidr
                .into_iter()
                .filter(|cidr| !cidr.is_empty())
                .collect(),
        };
        let pod_cidrs = pod_cidrs
            .into_iter()
            .filter_map(|cidr| parsed::<ipnet::IpNet>(cidr, &mut unreadable))
            .map(|cidr| cidr.trunc())
            .collect();
        Node {
            name: self.metadata.name.unwrap_or_default(),
            created: self
                .metadata
                .creation_timestamp
                .map_or(0, |time| time.0.as_second()),
            labels: self.metadata.labels.unwrap_or_default(),
            addresses,
            pod_cidrs,
            unreadable,
        }
    }
}

fn parsed<T: std::str::FromStr>(text: String, unreadable: &mut Vec<String>) -> Option<T> {
    match text.parse() {
        Ok(value) => Some(value),
        Err(_) => {
            unreadable.push(text);
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use podlane_crds::PeerSlice;
    use serde_json::json;

    #[test]
    fn a_node_is_reduced_to_what_routing_needs() {
        let node: SeenNode = serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": "k8s-w0", "uid": "u", "creationTimestamp": "1970-01-01T00:01:40Z",
                "labels": {"zone": "b"}, "managedFields": [{"manager": "kubelet"}]},
            "spec": {"podCIDR": "172.20.2.0/24", "podCIDRs": ["172.20.2.0/24", "fd00:2::7/64", "none"]},
            "status": {"addresses": [
                {"type": "InternalIP", "address": "192.168.20.100"},
                {"type": "Hostname", "address": "k8s-w0"},
                {"type": "InternalIP", "address": "192.168.20"},
            ], "images": [{"names": ["large"]}]},
        }))
        .expect("a node");
        let node = node.node();
        assert_eq!((node.name.as_str(), node.created), ("k8s-w0", 100));
        assert_eq!(node.addresses.len(), 1);
        assert_eq!(node.pod_cidrs[1].to_string(), "fd00:2::/64");
        assert_eq!(node.unreadable, ["192.168.20", "none"]);
    }

    #[test]
    fn a_node_that_has_just_registered_is_read_too() {
        let node: SeenNode =
            serde_json::from_value(json!({"metadata": {"name": "new"}, "spec": {}})).expect("a node");
        assert_eq!(node.node().name, "new");
    }

    #[test]
    fn a_node_is_away_once_its_kubelet_is_silent() {
        for (status, expected) in [("True", false), ("False", false), ("Unknown", true)] {
            let conditions =
                json!([{"type": "DiskPressure", "status": "Unknown"}, {"type": "Ready", "status": status}]);
            let node = json!({"metadata": {"name": "a"}, "status": {"conditions": conditions}});
            let node: SeenNode = serde_json::from_value(node).expect("a node");
            assert_eq!(node.is_away(), expected, "{status}");
        }
    }

    #[test]
    fn an_object_that_cannot_be_read_still_has_a_name() {
        let seen: Seen<PeerSlice> = serde_json::from_value(json!({
            "metadata": {"name": "peers-0", "uid": "u", "resourceVersion": "7"}, "spec": {"peers": 3},
        }))
        .expect("metadata");
        assert_eq!(seen.metadata.name.as_deref(), Some("peers-0"));
        assert!(
            seen.decoded
                .expect_err("peers is no list")
                .to_string()
                .contains("peers-0")
        );
    }
}
