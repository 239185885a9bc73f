//! The CustomResourceDefinitions as YAML, generated from the types.

use crate::{PeerSlice, RoutingNode, RoutingPolicy};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

/// A definition as YAML, headed by where it comes from.
///
/// # Errors
/// When it cannot be written as YAML.
pub fn crd_yaml(crd: &CustomResourceDefinition) -> Result<String, serde_saphyr::ser::Error> {
    let yaml = serde_saphyr::to_string(crd)?;
    Ok(format!(
        "# Generated from the types in crds/src by `make crds`.\n{yaml}"
    ))
}

/// File names and contents of all definitions.
///
/// # Errors
/// When one cannot be written as YAML.
pub fn crd_files() -> Result<Vec<(String, String)>, serde_saphyr::ser::Error> {
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
