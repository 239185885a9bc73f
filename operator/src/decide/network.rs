//! The condition NetworkUnavailable of Nodes, kept true to what agents say of their pods' network: agents may not write Nodes.
//!
//! While it is True, Kubernetes schedules no pods to a node that cannot connect them (taint node.kubernetes.io/network-unavailable).
//! Of a node whose pods another network plugin connects, because Podlane is not to or because the other's configuration is there, nothing is
//! said, and what was said before is taken back: whoever connects them says how that stands, or leaves it to the kubelet. Of a
//! configuration in the way the policy speaks (`findings::other_plugins`).

use super::View;
use crate::seen::NetworkUnavailable;
use crate::write::{What, Write};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use podlane_plan::cni::FOREIGN;

/// Conditions that have to be written.
pub(super) fn writes(view: &View<'_>) -> Vec<Write> {
    let nodes = &view.world.nodes;
    let mut writes = Vec::new();
    for (place, node) in nodes.all().iter().enumerate() {
        let record = view.world.routing_nodes.get(&node.name);
        let report = record.and_then(|record| record.report.as_ref());
        // Its agent has yet to say anything.
        let Some(report) = report else { continue };
        let before = nodes.network_unavailable(place);
        let uid = nodes.uid(place).to_owned();
        let pods = report.pod_network.as_ref();
        let Some((is_connected, reason, message)) = pods.filter(|(_, reason, _)| **reason != *FOREIGN) else {
            if before.is_some_and(|(before, _)| before.is_ours()) {
                writes.push(Write::silent(&node.name, What::ClearNodeNetwork { uid }));
            }
            continue;
        };
        let said = NetworkUnavailable {
            status: if *is_connected { "False" } else { "True" }.to_owned(),
            reason: format!("{}{reason}", NetworkUnavailable::REASON),
            message: message.to_string(),
        };
        if before.is_some_and(|(before, _)| *before == said) {
            continue;
        }
        let since = before
            .filter(|(before, _)| before.status == said.status)
            .and_then(|(_, since)| since.clone())
            .unwrap_or(Time(view.now));
        writes.push(Write::silent(&node.name, What::NodeNetwork { uid, said, since }));
    }
    writes
}

#[cfg(test)]
mod tests {
    use super::super::simulation::Cluster;
    use super::FOREIGN;
    use serde_json::{Value, json};

    fn say(cluster: &mut Cluster, status: &str, reason: &str) {
        let said = json!({"type": "PodNetwork", "status": status, "reason": reason, "message": "m",
            "lastTransitionTime": "2026-01-01T00:00:00Z"});
        cluster.edit("RoutingNode", "k8s-w1", |object| {
            let conditions = object["status"]["conditions"].as_array_mut().expect("conditions");
            conditions.retain(|condition| condition["type"] != "PodNetwork");
            conditions.push(said);
        });
    }

    fn condition(cluster: &Cluster, node: &str) -> Option<Value> {
        let conditions = cluster.object("Node", node)["status"]["conditions"].as_array()?;
        let mut conditions = conditions.iter();
        conditions
            .find(|condition| condition["type"] == "NetworkUnavailable")
            .cloned()
    }

    #[test]
    fn a_nodes_condition_is_what_its_agent_says_of_its_pods() {
        let mut cluster = Cluster::of_three();
        cluster.policy("default", 1, json!({"routingMode": "tunnel"}));
        cluster.settle();
        assert_eq!(condition(&cluster, "k8s-w1"), None, "another plugin's pods");
        for (status, reason, expected) in [
            ("False", "LaneNotProved", "True"),
            ("True", "Configured", "False"),
            ("False", "NoPolicy", "True"),
        ] {
            say(&mut cluster, status, reason);
            cluster.later(60_000);
            cluster.pass();
            let written = condition(&cluster, "k8s-w1").expect("it is written");
            assert_eq!(written["status"], expected);
            assert_eq!(written["reason"], format!("Podlane{reason}"));
            assert_eq!(written["lastTransitionTime"], json!(cluster.now));
            assert!(
                cluster
                    .writes()
                    .iter()
                    .all(|write| !write.ends_with("Node k8s-w1"))
            );
        }
        // Another word with the same status, and somebody who writes over it.
        let since = condition(&cluster, "k8s-w1").expect("it is there")["lastTransitionTime"].clone();
        cluster.later(60_000);
        say(&mut cluster, "False", "LaneSilent");
        cluster.pass();
        assert_eq!(
            condition(&cluster, "k8s-w1").expect("it is there")["lastTransitionTime"],
            since
        );
        cluster.edit("Node", "k8s-w1", |object| {
            object["status"]["conditions"][0]["status"] = json!("False");
        });
        cluster.pass();
        assert_eq!(
            condition(&cluster, "k8s-w1").expect("it is there")["status"],
            "True"
        );
    }

    #[test]
    fn what_was_said_is_taken_back_where_another_plugins_configuration_is_there_and_the_policy_says_so() {
        let mut cluster = Cluster::of_three();
        cluster.policy("default", 1, json!({"routingMode": "tunnel"}));
        cluster.settle();
        say(&mut cluster, "False", "LaneNotProved");
        cluster.pass();
        assert!(condition(&cluster, "k8s-w1").is_some());
        say(&mut cluster, "False", FOREIGN);
        cluster.pass();
        assert_eq!(condition(&cluster, "k8s-w1"), None);
        let status = cluster.object("RoutingPolicy", "default")["status"].clone();
        let ready = |status: &Value| {
            let conditions = status["conditions"].as_array().expect("conditions");
            let ready = conditions.iter().find(|condition| condition["type"] == "Ready");
            ready.cloned().expect("it is said")
        };
        let said = ready(&status);
        assert_eq!(said["status"], "True", "packets go as declared: {said}");
        let message = said["message"].as_str().expect("a text");
        assert!(
            message.contains("k8s-w1") && message.contains("--set cni.install=false"),
            "{message}"
        );
        let summary = status["summary"].as_str().expect("a text").to_owned();
        assert!(summary.contains("k8s-w1"), "{summary}");
        // Its own file is the one again.
        say(&mut cluster, "True", "Configured");
        cluster.pass();
        assert_eq!(
            condition(&cluster, "k8s-w1").expect("it is written")["status"],
            "False"
        );
        let status = cluster.object("RoutingPolicy", "default")["status"].clone();
        let message = ready(&status)["message"].as_str().expect("a text").to_owned();
        assert!(!message.contains("cni.install"), "{message}");
    }

    #[test]
    fn what_was_said_is_taken_back_where_pods_are_connected_by_another_plugin_now() {
        let mut cluster = Cluster::of_three();
        cluster.policy("default", 1, json!({"routingMode": "tunnel"}));
        cluster.settle();
        say(&mut cluster, "False", "LaneNotProved");
        cluster.pass();
        assert_eq!(
            condition(&cluster, "k8s-w1").expect("it is written")["status"],
            "True"
        );
        cluster.edit("RoutingNode", "k8s-w1", |object| {
            let conditions = object["status"]["conditions"].as_array_mut().expect("conditions");
            conditions.retain(|condition| condition["type"] != "PodNetwork");
        });
        cluster.pass();
        assert_eq!(condition(&cluster, "k8s-w1"), None);
        // What another says of it is another's.
        let others = json!({"type": "NetworkUnavailable", "status": "True", "reason": "NoRouteCreated", "message": "m"});
        cluster.edit("Node", "k8s-w1", |object| {
            object["status"]["conditions"] = json!([others])
        });
        cluster.pass();
        assert_eq!(
            condition(&cluster, "k8s-w1").expect("it stays")["reason"],
            "NoRouteCreated"
        );
    }
}
