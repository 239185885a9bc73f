//! Reading one object: one that cannot be read is named, and the others are read all the same.

use serde::de::DeserializeOwned;

/// An object that could not be read.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
#[error("{kind} {name} cannot be read: {why}")]
pub struct Undecodable {
    /// The object's kind.
    pub kind: String,
    /// The object's name.
    pub name: String,
    /// Where and why, e.g. `spec.tunnel.port: invalid value: integer `70000`, expected u16`.
    pub why: String,
}

/// Reads an object out of the JSON that the API server sent.
///
/// # Errors
/// Names the object, and the place in it that could not be read.
pub fn decode<K>(object: &serde_json::Value) -> Result<K, Undecodable>
where
    K: kube::Resource<DynamicType = ()> + DeserializeOwned,
{
    serde_path_to_error::deserialize(object).map_err(|error| Undecodable {
        kind: K::kind(&()).into_owned(),
        name: object["metadata"]["name"]
            .as_str()
            .unwrap_or("(without a name)")
            .to_owned(),
        why: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use crate::{PeerSlice, decode};
    use serde_json::json;

    #[test]
    fn an_object_that_cannot_be_read_is_named() {
        let object = json!({
            "apiVersion": "podlane.io/v1alpha1", "kind": "PeerSlice", "metadata": {"name": "peers-0"},
            "spec": {"peers": [{"name": "a", "podCIDRs": "172.20.0.0/24"}]},
        });
        let error = decode::<PeerSlice>(&object)
            .expect_err("podCIDRs is no list")
            .to_string();
        assert!(
            error.starts_with("PeerSlice peers-0 cannot be read: spec.peers[0].podCIDRs: "),
            "{error}"
        );
    }
}
