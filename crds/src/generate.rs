//! The CustomResourceDefinitions as YAML, generated from the types.

use crate::{PeerSlice, RoutingNode, RoutingPolicy};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::Value;

/// Why a definition could not be written.
#[derive(Debug, thiserror::Error)]
pub enum CannotWrite {
    /// Not as JSON.
    #[error("a definition cannot be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// Not as YAML.
    #[error("a definition cannot be written as YAML: {0}")]
    Yaml(#[from] serde_saphyr::ser::Error),
}

/// A definition as YAML, headed by where it comes from.
///
/// # Errors
/// When it cannot be written.
pub fn crd_yaml(crd: &CustomResourceDefinition) -> Result<String, CannotWrite> {
    let mut value = serde_json::to_value(crd)?;
    remove_unsigned_formats(&mut value);
    let yaml = serde_saphyr::to_string(&value)?;
    Ok(format!(
        "# Generated from the types in crds/src by `make crds`.\n{yaml}"
    ))
}

/// Kubernetes knows int32 and int64 alone, and warns of every other format of an integer at each apply. The ranges that
/// unsigned types imply are in the schema besides.
fn remove_unsigned_formats(value: &mut Value) {
    match value {
        Value::Object(members) => {
            if members
                .get("format")
                .and_then(Value::as_str)
                .is_some_and(|format| format.starts_with("uint"))
            {
                members.remove("format");
            }
            members.values_mut().for_each(remove_unsigned_formats);
        }
        Value::Array(items) => items.iter_mut().for_each(remove_unsigned_formats),
        _ => {}
    }
}

/// File names and contents of all definitions.
///
/// # Errors
/// When one cannot be written.
pub fn crd_files() -> Result<Vec<(String, String)>, CannotWrite> {
    [RoutingPolicy::crd(), RoutingNode::crd(), PeerSlice::crd()]
        .iter()
        .map(|crd| Ok((format!("{}.yaml", crd.spec.names.plural), crd_yaml(crd)?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_yaml_is_what_the_types_say() {
        for (name, yaml) in crd_files().expect("YAML") {
            let path = format!("{}/yaml/{name}", env!("CARGO_MANIFEST_DIR"));
            let committed = std::fs::read_to_string(&path).unwrap_or_default();
            assert!(
                committed == yaml,
                "crds/yaml/{name} differs from the types: run `make crds`"
            );
        }
    }
}
