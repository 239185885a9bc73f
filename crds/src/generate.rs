//! The CustomResourceDefinitions as YAML, generated from the types.

use crate::{PeerSlice, RoutingNode, RoutingPolicy};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::Value;

/// Where the definitions are kept, from this crate's folder: for `kubectl apply`, and in the Helm chart, which can read only what is
/// below its own folder.
pub const CRD_FOLDERS: [&str; 2] = ["yaml", "../charts/podlane/files/crds"];

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
        let files = crd_files().expect("YAML");
        for folder in CRD_FOLDERS {
            let folder = format!("{}/{folder}", env!("CARGO_MANIFEST_DIR"));
            for (name, yaml) in &files {
                let committed = std::fs::read_to_string(format!("{folder}/{name}")).unwrap_or_default();
                assert!(
                    committed == *yaml,
                    "{folder}/{name} differs from the types: run `make crds`"
                );
            }
            let count = std::fs::read_dir(&folder).expect("a folder").count();
            assert_eq!(count, files.len(), "{folder} has files that no type is in");
        }
    }

    /// Where the chart puts in that a definition stays when the release goes (templates/crds.yaml).
    #[test]
    fn the_chart_finds_the_place_of_metadata() {
        for (name, yaml) in crd_files().expect("YAML") {
            assert_eq!(yaml.matches("\nmetadata:\n").count(), 1, "{name}");
        }
    }
}
