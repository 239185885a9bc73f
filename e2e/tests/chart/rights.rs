//! What the chart's roles grant.

use anyhow::{Context as _, Result, ensure};
use podlane_e2e::scenario::Context;
use serde_json::Value;

use super::installed::helm_of;
use super::rendering::render;

/// The objects that the chart makes of values, those of its hooks among them.
fn objects(values: &[&str]) -> Result<Vec<Value>> {
    let text = render(&helm_of(4)?, values, &[])?;
    let documents = text.split("\n---\n").filter(|text| text.contains("kind: "));
    documents
        .map(|text| serde_saphyr::from_str(text).with_context(|| format!("cannot be read: {text}")))
        .collect()
}

fn roles(objects: &[Value]) -> Vec<&Value> {
    let is_role = |object: &&Value| matches!(object["kind"].as_str(), Some("Role" | "ClusterRole"));
    objects.iter().filter(is_role).collect()
}

pub(crate) fn least(_: &mut Context) -> Result<()> {
    // The operator's three, the agents' one, and two while it is uninstalled.
    for values in [&["firstPolicy.routingMode=native"], &["keepDatapath=true"]] {
        let objects = objects(values)?;
        let roles = roles(&objects);
        ensure!(roles.len() == 6, "{} roles", roles.len());
        check(&roles)?;
    }
    Ok(())
}

fn check(roles: &[&Value]) -> Result<()> {
    for role in roles {
        let name = role["metadata"]["name"].as_str().unwrap_or_default();
        let is_of_cluster = role["kind"] == "ClusterRole";
        for rule in role["rules"].as_array().context("no rules")? {
            let words = |key: &str| -> Vec<String> {
                let words = rule[key].as_array().into_iter().flatten();
                words.filter_map(Value::as_str).map(str::to_owned).collect()
            };
            let (groups, resources, verbs) = (words("apiGroups"), words("resources"), words("verbs"));
            ensure!(rule["nonResourceURLs"].is_null(), "{name}: {rule}");
            for word in groups.iter().chain(&resources).chain(&verbs) {
                ensure!(!word.contains('*'), "{name} has a wildcard: {rule}");
            }
            for resource in &resources {
                ensure!(
                    ![
                        "secrets",
                        "serviceaccounts",
                        "configmaps",
                        "pods/exec",
                        "nodes/proxy",
                        "roles",
                        "clusterroles"
                    ]
                    .contains(&resource.as_str()),
                    "{name} has {resource}: {rule}"
                );
            }
            for verb in &verbs {
                ensure!(
                    !["impersonate", "escalate", "bind", "deletecollection"].contains(&verb.as_str()),
                    "{name} may {verb}: {rule}"
                );
            }
            // Outside of its namespace Podlane writes only what is its own, and the condition NetworkUnavailable of Nodes.
            let writes = verbs
                .iter()
                .any(|verb| !["get", "list", "watch"].contains(&verb.as_str()));
            let is_network_condition = groups == [""] && resources == ["nodes/status"] && verbs == ["patch"];
            ensure!(
                !is_of_cluster || !writes || groups == ["podlane.io"] || is_network_condition,
                "{name} writes others' objects in all namespaces: {rule}"
            );
        }
    }
    Ok(())
}
