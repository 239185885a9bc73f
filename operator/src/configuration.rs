//! The configuration file: what the Helm chart tells the operator (charts/podlane/templates/_configuration.tpl).

use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Configuration {
    /// The spec of a RoutingPolicy that is made in a cluster where there has never been one.
    #[serde(default)]
    pub first_policy: Option<Value>,
    /// The agents; absent: they are not this operator's business.
    #[serde(default)]
    pub agents: Option<Agents>,
}

/// What the agents' DaemonSet is made out of. Kubernetes' own words have Kubernetes' own meaning, and are handed on as they are.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Agents {
    /// The DaemonSet's name.
    pub name: String,
    /// The Deployment that it goes with, in the same namespace: the operator's own.
    pub owner: String,
    /// Who agents are to the API server.
    pub service_account: String,
    /// The image.
    pub image: String,
    /// When to pull it.
    pub image_pull_policy: String,
    /// With what.
    #[serde(default)]
    pub image_pull_secrets: Vec<Value>,
    /// The API server as agents reach it; absent: the in-cluster Service.
    #[serde(default)]
    pub api_server: Option<ApiServer>,
    /// The CNI configuration that each agent keeps; absent: another network plugin connects pods.
    #[serde(default)]
    pub cni: Option<Cni>,
    /// Whether agents load tunnels' drivers that the kernel does not load by itself: a right over the whole node.
    #[serde(default)]
    pub load_modules: bool,
    /// How long an agent may take to prove itself, in seconds, its image pulled, before it is said on the policies that the rollout has
    /// stopped.
    pub patience_seconds: u64,
    /// text or json.
    pub log_format: String,
    /// As RUST_LOG is written.
    pub log_level: String,
    /// Where each agent serves its metrics.
    pub metrics: String,
    /// How much pods matter to the scheduler; empty: as the cluster's default.
    #[serde(default)]
    pub priority_class_name: String,
    /// Labels of the DaemonSet.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Labels of pods, besides those by which they are found.
    #[serde(default)]
    pub pod_labels: BTreeMap<String, String>,
    /// Annotations of pods.
    #[serde(default)]
    pub pod_annotations: BTreeMap<String, String>,
    /// What a pod asks for.
    #[serde(default)]
    pub resources: Value,
    /// The nodes that have an agent.
    #[serde(default)]
    pub node_selector: BTreeMap<String, String>,
    /// The taints that do not keep it away.
    #[serde(default)]
    pub tolerations: Vec<Value>,
}

/// Where the API server is.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApiServer {
    /// An address, or a name that the node's resolver knows.
    pub host: String,
    /// Its port.
    pub port: u16,
}

/// Where the CNI configuration is kept on each node.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Cni {
    /// The directory.
    pub conf_dir: String,
    /// The file's name.
    pub conf_name: String,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum CannotRead {
    /// The file cannot be read.
    #[error("cannot read {0}: {1}")]
    File(PathBuf, std::io::Error),
    /// It says nothing that makes sense.
    #[error("{0} makes no sense: {1}")]
    Content(PathBuf, String),
}

impl Configuration {
    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read, or has a word that this version does not know.
    pub fn read(file: &Path) -> Result<Self, CannotRead> {
        let text = std::fs::read_to_string(file).map_err(|why| CannotRead::File(file.to_owned(), why))?;
        Self::parse(&text).map_err(|why| CannotRead::Content(file.to_owned(), why))
    }

    /// Reads a text.
    ///
    /// # Errors
    /// When it has a word that this version does not know: which, and where.
    pub fn parse(text: &str) -> Result<Self, String> {
        serde_saphyr::from_str(text).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// As the chart renders it.
    pub(crate) const TEXT: &str = r#"
firstPolicy:
  routingMode: native
agents:
  name: podlane-agent
  owner: podlane-operator
  serviceAccount: podlane-agent
  image: "podlane/agent:0.1.0"
  imagePullPolicy: IfNotPresent
  imagePullSecrets: [{"name":"registry"}]
  apiServer: {host: "192.168.10.100", port: 6443}
  cni: {confDir: "/etc/cni/net.d", confName: "10-podlane.conflist"}
  patienceSeconds: 120
  logFormat: json
  logLevel: "info"
  metrics: "127.0.0.1:9964"
  priorityClassName: "system-node-critical"
  labels:
    app.kubernetes.io/version: "0.1.0"
  podLabels: {"team":"network"}
  podAnnotations: {}
  resources: {"limits":{"memory":"128Mi"},"requests":{"cpu":"10m"}}
  nodeSelector: {"kubernetes.io/os":"linux"}
  tolerations: [{"operator":"Exists"}]
"#;

    pub(crate) fn agents() -> Agents {
        let configuration = Configuration::parse(TEXT).expect("readable");
        configuration.agents.expect("agents")
    }

    #[test]
    fn what_is_not_known_is_refused() {
        let configuration = Configuration::parse(TEXT).expect("readable");
        assert_eq!(
            configuration.first_policy.expect("a policy")["routingMode"],
            "native"
        );
        assert_eq!(agents().resources["limits"]["memory"], "128Mi");
        let mistaken = TEXT.replace("logLevel", "loglevel");
        let why = Configuration::parse(&mistaken).expect_err("refused");
        assert!(why.contains("loglevel"), "{why}");
        assert_eq!(Configuration::parse("{}"), Ok(Configuration::default()));
    }
}
