//! What the chart's roles grant.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context as _, Result, ensure};
use podlane_e2e::programs::repository;
use podlane_e2e::scenario::Context;
use serde_json::Value;

use super::installed::helm_of;
use super::rendering::render;

/// The objects that the chart makes of values, those of its hooks among them.
fn objects(values: &[&str]) -> Result<Vec<Value>> {
    read(&render(&helm_of(4)?, values, &[])?)
}

fn read(text: &str) -> Result<Vec<Value>> {
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

/// What the roles of that name grant: each group, resource, name and verb, by the role's kind and namespace.
fn granted(roles: &[&Value], is_of: fn(&str) -> bool) -> BTreeSet<String> {
    let words = |value: &Value| -> Vec<String> {
        let words = value.as_array().into_iter().flatten().filter_map(Value::as_str);
        let words: Vec<String> = words.map(str::to_owned).collect();
        // Of all names.
        if words.is_empty() {
            vec!["*".to_owned()]
        } else {
            words
        }
    };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut all = BTreeSet::new();
    for role in roles
        .iter()
        .filter(|role| is_of(&text(&role["metadata"]["name"])))
    {
        let place = format!(
            "{} {}/{}",
            text(&role["kind"]),
            text(&role["metadata"]["namespace"]),
            text(&role["metadata"]["name"])
        );
        for rule in role["rules"].as_array().into_iter().flatten() {
            for group in words(&rule["apiGroups"]) {
                for resource in words(&rule["resources"]) {
                    for name in words(&rule["resourceNames"]) {
                        let verbs = words(&rule["verbs"]).into_iter();
                        all.extend(verbs.map(|verb| format!("{place}: {verb} {group}/{resource} {name}")));
                    }
                }
            }
        }
    }
    all
}

/// The scenarios of all other test programs run with the lab's rights: so what passes there passes with the chart's.
pub(crate) fn as_the_labs(_: &mut Context) -> Result<()> {
    let file = repository().join("e2e/manifests/rbac.yaml");
    let labs = read(&fs::read_to_string(&file)?)?;
    let charts = objects(&[])?;
    let is_of = |name: &str| name.starts_with("podlane-operator") || name == "podlane-agent";
    let (labs, charts) = (granted(&roles(&labs), is_of), granted(&roles(&charts), is_of));
    ensure!(charts.len() > 20, "{charts:?}");
    ensure!(
        labs == charts,
        "only in {}: {:#?}; only in the chart: {:#?}",
        file.display(),
        labs.difference(&charts).collect::<Vec<_>>(),
        charts.difference(&labs).collect::<Vec<_>>()
    );
    Ok(())
}
