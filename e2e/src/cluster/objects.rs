//! What the cluster's administrator applies: the resolver, and pods that do nothing.

use std::path::Path;

use serde_json::{Value, json};

use super::images::LAB_IMAGE;
use crate::control_plane::KUBERNETES_DNS;

const COREFILE: &str =
    ".:53 {\n    errors\n    ready\n    kubernetes cluster.local in-addr.arpa ip6.arpa\n    cache 5\n}\n";

/// CoreDNS as a Deployment of one replica on a node. Its program is that node's file at `program`: the image of so large a program
/// would take longer to import than everything else.
pub fn resolver(node: &str, program: &Path) -> Value {
    let labels = json!({"k8s-app": "kube-dns"});
    let metadata = |name: &str| json!({"name": name, "namespace": "kube-system"});
    let rules = json!([
        {"apiGroups": [""], "resources": ["endpoints", "services", "pods", "namespaces"], "verbs": ["list", "watch"]},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
    ]);
    let pod = json!({
        "serviceAccountName": "coredns",
        "dnsPolicy": "Default",
        "nodeSelector": {"kubernetes.io/hostname": node},
        "terminationGracePeriodSeconds": 1,
        "containers": [{
            "name": "coredns",
            "image": LAB_IMAGE,
            "imagePullPolicy": "Never",
            "command": ["/coredns", "-conf", "/etc/coredns/Corefile"],
            "readinessProbe": {"httpGet": {"path": "/ready", "port": 8181}, "periodSeconds": 1},
            "volumeMounts": [
                {"name": "program", "mountPath": "/coredns", "readOnly": true},
                {"name": "configuration", "mountPath": "/etc/coredns", "readOnly": true},
            ],
        }],
        "volumes": [
            {"name": "program", "hostPath": {"path": program, "type": "File"}},
            {"name": "configuration", "configMap": {"name": "coredns"}},
        ],
    });
    list(vec![
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata("coredns")}),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
            "metadata": {"name": "coredns"}, "rules": rules,
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "coredns"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "coredns"},
            "subjects": [{"kind": "ServiceAccount", "name": "coredns", "namespace": "kube-system"}],
        }),
        json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata("coredns"), "data": {"Corefile": COREFILE},
        }),
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": metadata("kube-dns"),
            "spec": {"selector": labels, "clusterIP": KUBERNETES_DNS, "ports": [
                {"name": "dns", "port": 53, "protocol": "UDP"},
                {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
            ]},
        }),
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata("coredns"),
            "spec": {
                "replicas": 1,
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": pod},
            },
        }),
    ])
}

/// A pod that does nothing, on a node: a place to run programs in.
pub fn plain_pod(name: &str, node: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "nodeSelector": {"kubernetes.io/hostname": node},
            "terminationGracePeriodSeconds": 1,
            "containers": [{"name": name, "image": LAB_IMAGE, "imagePullPolicy": "Never"}],
        },
    })
}

fn list(items: Vec<Value>) -> Value {
    json!({"apiVersion": "v1", "kind": "List", "items": items})
}
