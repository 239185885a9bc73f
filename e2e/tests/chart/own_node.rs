//! What an agent's token may write.

use anyhow::{Context as _, Result, bail, ensure};
use podlane_e2e::control_plane::SYSTEM_NAMESPACE;
use podlane_e2e::kubectl::Kubectl;
use podlane_e2e::scenario::Context;
use podlane_e2e::wait::wait_until;
use serde_json::{Value, json};

use super::installed::{SOON, kubeconfig_of, running};

const STATUS: &str = r#"{"status":{"agentVersion":"probe"}}"#;
const SPEC: &str = r#"{"spec":{"mtu":1400}}"#;

/// A role that grants agents everything of Podlane's, as somebody's mistake might: what is left is what admission allows.
fn wide() -> Value {
    let name = json!({"name": "e2e-wide"});
    json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": name,
            "rules": [{"apiGroups": ["podlane.io"], "resources": ["*"], "verbs": ["*"]}]},
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": name,
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "e2e-wide"},
            "subjects": [{"kind": "ServiceAccount", "name": "podlane-agent", "namespace": SYSTEM_NAMESPACE}]},
    ]})
}

fn refusal(kubectl: &Kubectl, words: &[&str], input: &str) -> Result<String> {
    match kubectl.run_with_input(words, input) {
        Ok(answer) => bail!("taken: kubectl {}: {answer}", words.join(" ")),
        Err(error) => Ok(format!("{error:#}")),
    }
}

fn patch<'a>(node: &'a str, what: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let words = ["patch", "routingnode", node, "--type=merge", "-p", what];
    words.iter().chain(more).copied().collect()
}

pub(crate) fn enforced(context: &mut Context) -> Result<()> {
    let lab = running(context)?;
    let selector = "--field-selector=spec.nodeName=k8s-w0";
    let pods = lab.kubectl()?.get(&["pods", "-n", SYSTEM_NAMESPACE, selector])?;
    let pod = pods["items"][0].clone();
    let kubeconfig = kubeconfig_of(lab, &pod, None)?;
    let admin = lab.kubectl()?.clone();
    let agent = admin.with_kubeconfig(kubeconfig);
    let unbound = admin.run(&["create", "token", "podlane-agent", "-n", SYSTEM_NAMESPACE])?;
    let unbound = lab
        .control_plane()?
        .kubeconfig_with_token("agent-unbound", unbound.trim(), None)?;
    let unbound = admin.with_kubeconfig(unbound);

    let who = agent.run(&["auth", "whoami", "-o", "json"])?;
    ensure!(
        who.contains("authentication.kubernetes.io/node-name"),
        "no node in the token: {who}"
    );
    granted(&agent)?;

    let before = admin.get(&["routingnodes"])?;
    admin.create(&wide().to_string())?;
    let outcome = with_wide_role(&agent, &unbound);
    admin.run(&["delete", "clusterrolebinding/e2e-wide", "clusterrole/e2e-wide"])?;
    outcome?;
    let after = admin.get(&["routingnodes"])?;
    let specs = |list: &Value| -> Vec<Value> {
        let items = list["items"].as_array().into_iter().flatten();
        items
            .map(|item| json!([item["metadata"]["uid"], item["spec"]]))
            .collect()
    };
    ensure!(specs(&before) == specs(&after), "before {before}, after {after}");
    Ok(())
}

/// What the roles themselves grant.
fn granted(agent: &Kubectl) -> Result<()> {
    for (verb, what, allowed) in [
        ("watch", "peerslices.podlane.io", true),
        ("watch", "routingnodes.podlane.io", true),
        ("patch", "routingnodes.podlane.io/status", true),
        ("patch", "routingnodes.podlane.io", false),
        ("delete", "routingnodes.podlane.io", false),
        ("deletecollection", "routingnodes.podlane.io", false),
        ("create", "peerslices.podlane.io", false),
        ("list", "routingpolicies.podlane.io", false),
        ("get", "secrets", false),
        ("list", "nodes", false),
        ("list", "pods", false),
    ] {
        let (resource, subresource) = what.split_once('/').unwrap_or((what, ""));
        let subresource = format!("--subresource={subresource}");
        // Where the answer is no, kubectl ends with 1.
        let is_allowed = agent
            .run(&["auth", "can-i", verb, resource, &subresource, "--quiet"])
            .is_ok();
        ensure!(is_allowed == allowed, "may an agent {verb} {what}: {is_allowed}");
    }
    Ok(())
}

fn with_wide_role(agent: &Kubectl, unbound: &Kubectl) -> Result<()> {
    // The API server obeys a role a moment after it is made.
    wait_until("its own status to be taken", SOON, || {
        agent
            .run(&patch("k8s-w0", STATUS, &["--subresource=status"]))
            .map(drop)
    })?;
    let only = "may write the status of its RoutingNode and nothing else";
    let new = |kind: &str, spec: Value| {
        json!({"apiVersion": "podlane.io/v1alpha1", "kind": kind, "metadata": {"name": "e2e"}, "spec": spec})
            .to_string()
    };
    let collection = |plural: &str| format!("/apis/podlane.io/v1alpha1/{plural}");
    let (nodes, slices, policies) = (
        collection("routingnodes"),
        collection("peerslices"),
        collection("routingpolicies"),
    );
    let create = ["create", "-f", "-"];
    let other = "the agent on node k8s-w0 may not write the status of node k8s-w1";
    for (words, input, expected) in [
        (
            patch("k8s-w1", STATUS, &["--subresource=status"]),
            String::new(),
            other,
        ),
        (patch("k8s-w0", SPEC, &[]), String::new(), only),
        (patch("k8s-w1", SPEC, &[]), String::new(), only),
        (
            patch("k8s-w0", r#"{"metadata":{"labels":{"a":"b"}}}"#, &[]),
            String::new(),
            only,
        ),
        (vec!["delete", "routingnode", "k8s-w0"], String::new(), only),
        (vec!["delete", "routingnode", "k8s-w1"], String::new(), only),
        (vec!["delete", "--raw", &nodes], String::new(), only),
        (vec!["delete", "--raw", &slices], String::new(), only),
        (vec!["delete", "--raw", &policies], String::new(), only),
        (create.to_vec(), new("RoutingNode", json!({})), only),
        (create.to_vec(), new("PeerSlice", json!({"peers": []})), only),
        (
            create.to_vec(),
            new("RoutingPolicy", json!({"routingMode": "native"})),
            only,
        ),
        (
            vec!["patch", "routingpolicy", "default", "--type=merge", "-p", SPEC],
            String::new(),
            only,
        ),
    ] {
        let said = refusal(agent, &words, &input)?;
        ensure!(
            said.contains(expected),
            "refused, but otherwise: {words:?}: {said}"
        );
    }
    // A token that is no pod's says nothing of a node: it may not even write what somebody claims to be its own.
    let said = refusal(unbound, &patch("k8s-w0", STATUS, &["--subresource=status"]), "")?;
    ensure!(said.contains("does not say on which node"), "{said}");
    agent
        .run(&patch("k8s-w0", STATUS, &["--subresource=status"]))
        .map(drop)
        .context("its own status, at the end")
}
