//! What the operator's account may write of Nodes.

use anyhow::{Result, bail, ensure};
use podlane_e2e::control_plane::SYSTEM_NAMESPACE;
use podlane_e2e::kubectl::Kubectl;
use podlane_e2e::scenario::Context;
use podlane_e2e::wait::wait_until;
use serde_json::{Value, json};

use super::installed::{SOON, running};

const OWN: &str = r#"{"status":{"conditions":[{"type":"NetworkUnavailable","status":"False","reason":"PodlaneE2e","message":"m"}]}}"#;

/// A role that lets the operator write everything of Nodes, as somebody's mistake might. (kubectl reads before it writes.)
fn wide() -> Value {
    let name = json!({"name": "e2e-nodes"});
    json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": name,
            "rules": [{"apiGroups": [""], "resources": ["nodes", "nodes/status"], "verbs": ["get", "patch"]}]},
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": name,
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "e2e-nodes"},
            "subjects": [{"kind": "ServiceAccount", "name": "podlane-operator", "namespace": SYSTEM_NAMESPACE}]},
    ]})
}

pub(crate) fn enforced(context: &mut Context) -> Result<()> {
    let lab = running(context)?;
    let admin = lab.kubectl()?.clone();
    let token = admin.run(&["create", "token", "podlane-operator", "-n", SYSTEM_NAMESPACE])?;
    let kubeconfig = lab
        .control_plane()?
        .kubeconfig_with_token("operator-machine", token.trim(), None)?;
    let operator = admin.with_kubeconfig(kubeconfig);
    admin.create(&wide().to_string())?;
    let outcome = with_wide_role(&admin, &operator);
    admin.run(&["delete", "clusterrolebinding/e2e-nodes", "clusterrole/e2e-nodes"])?;
    outcome?;
    // The operator itself puts right what was written in its name.
    wait_until("the condition to be what the agent says", SOON, || {
        let node = admin.get(&["node", "k8s-w0"])?;
        ensure!(
            !node.to_string().contains("PodlaneE2e"),
            "{}",
            node["status"]["conditions"]
        );
        Ok(())
    })
}

fn with_wide_role(admin: &Kubectl, operator: &Kubectl) -> Result<()> {
    let status = ["--subresource=status"].as_slice();
    let patch = |what: &str, more: &[&str]| {
        let words = ["patch", "node", "k8s-w0", "--type=strategic", "-p", what];
        operator.run(&[words.as_slice(), more].concat())
    };
    // The API server obeys a role a moment after it is made.
    wait_until("the condition to be taken", SOON, || patch(OWN, status).map(drop))?;
    let before = admin.get(&["node", "k8s-w0"])?;
    let label = r#"{"metadata":{"labels":{"node-role.kubernetes.io/control-plane":""}}}"#;
    for (what, more) in [
        (
            r#"{"status":{"conditions":[{"type":"Ready","status":"True","reason":"E2e","message":"m"}]}}"#,
            status,
        ),
        (
            r#"{"status":{"addresses":[{"type":"InternalIP","address":"192.168.20.66"}]}}"#,
            status,
        ),
        (r#"{"status":{"capacity":{"cpu":"1000"}}}"#, status),
        (r#"{"status":{"nodeInfo":{"kernelVersion":"1.0"}}}"#, status),
        (r#"{"status":{"addresses":null}}"#, status),
        // Members that not every version of Kubernetes has.
        (r#"{"status":{"phase":"Terminated"}}"#, status),
        (
            r#"{"status":{"features":{"supplementalGroupsPolicy":true}}}"#,
            status,
        ),
        (
            r#"{"status":{"runtimeHandlers":[{"name":"e2e","features":{"userNamespaces":true}}]}}"#,
            status,
        ),
        (label, status),
        (label, &[]),
        (r#"{"metadata":{"annotations":{"e2e":"mine"}}}"#, status),
        (r#"{"spec":{"unschedulable":true}}"#, &[]),
    ] {
        match patch(what, more) {
            Ok(_) => bail!("taken: {what}"),
            Err(error) => {
                let words = format!("{error:#}");
                ensure!(
                    words.contains("may write the condition NetworkUnavailable and nothing else"),
                    "refused, but otherwise: {what}: {words}"
                );
            }
        }
    }
    let after = admin.get(&["node", "k8s-w0"])?;
    let rest = |node: &Value| {
        let mut node = node.clone();
        node["metadata"]["managedFields"] = Value::Null;
        node["metadata"]["resourceVersion"] = Value::Null;
        node["status"]["conditions"] = Value::Null;
        node
    };
    ensure!(rest(&before) == rest(&after), "before {before}, after {after}");
    Ok(())
}
