//! What the programs of a node are told: the container runtime, the kubelet and kube-proxy.

use std::path::Path;

use serde_json::{Value, json};

use crate::control_plane::KUBERNETES_DNS;
use crate::topology::{Node, Topology};

/// kube-proxy's arguments. Limits of connection tracking are the whole machine's, not the network namespace's: it sets none.
pub fn proxy_arguments(kubeconfig: &Path, mode: &str, node: &Node, topology: &Topology) -> Vec<String> {
    let cidrs: Vec<String> = topology
        .cluster_pod_cidrs
        .iter()
        .map(ToString::to_string)
        .collect();
    vec![
        format!("--kubeconfig={}", kubeconfig.display()),
        format!("--hostname-override={}", node.name),
        format!("--proxy-mode={mode}"),
        format!("--cluster-cidr={}", cidrs.join(",")),
        "--conntrack-max-per-core=0".to_owned(),
        "--conntrack-min=0".to_owned(),
        "--conntrack-tcp-timeout-established=0s".to_owned(),
        "--conntrack-tcp-timeout-close-wait=0s".to_owned(),
    ]
}

/// The runtime's socket, as every program on a node sees it.
pub const RUNTIME_SOCKET: &str = "/run/containerd/containerd.sock";

/// The image that holds a pod's namespaces.
pub const PAUSE_IMAGE: &str = super::images::LAB_IMAGE;

/// containerd's configuration (version 2 of it, as Debian 12's 1.6 and later read it).
///
/// `restrict_oom_score_adj`: without CAP_SYS_RESOURCE nobody goes below his own. Namespaces of pods are among the node's own mounts, so
/// that they go with the node.
pub fn containerd(cni_plugins: &str) -> String {
    let plugin = "plugins.\"io.containerd.grpc.v1.cri\"";
    format!(
        r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
]
[grpc]
  address = "{RUNTIME_SOCKET}"
[{plugin}]
  sandbox_image = "{PAUSE_IMAGE}"
  disable_apparmor = true
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
[{plugin}.containerd]
  snapshotter = "overlayfs"
  default_runtime_name = "runc"
[{plugin}.containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[{plugin}.containerd.runtimes.runc.options]
  SystemdCgroup = false
[{plugin}.cni]
  bin_dir = "{cni_plugins}"
  conf_dir = "/etc/cni/net.d"
"#
    )
}

/// What a kubelet's configuration is made of.
#[derive(Clone, Debug)]
pub struct Kubelet<'a> {
    /// The control group below which its pods' are.
    pub cgroup: &'a str,
    /// The certificate of those whom it believes.
    pub authority: &'a Path,
    /// Its serving certificate and key.
    pub serving: (&'a Path, &'a Path),
    /// The resolver of pods that take the node's.
    pub resolver: &'a Path,
}

impl Kubelet<'_> {
    /// The configuration, as the file that `--config` names.
    pub fn configuration(&self) -> Value {
        let file = |path: &Path| path.display().to_string();
        json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "containerRuntimeEndpoint": format!("unix://{RUNTIME_SOCKET}"),
            "authentication": {
                "anonymous": {"enabled": false},
                "webhook": {"enabled": true},
                "x509": {"clientCAFile": file(self.authority)},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": file(self.serving.0),
            "tlsPrivateKeyFile": file(self.serving.1),
            "readOnlyPort": 0,
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": format!("/{}", self.cgroup),
            "failCgroupV1": false,
            "enforceNodeAllocatable": [],
            "localStorageCapacityIsolation": false,
            "failSwapOn": false,
            "evictionHard": {},
            "imageGCHighThresholdPercent": 100,
            "makeIPTablesUtilChains": false,
            "clusterDomain": "cluster.local",
            "clusterDNS": [KUBERNETES_DNS],
            "resolvConf": file(self.resolver),
            "volumePluginDir": "/var/lib/kubelet/volume-plugins",
            "syncFrequency": "10s",
            "maxPods": 60,
        })
    }
}
