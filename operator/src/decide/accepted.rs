//! The condition Accepted of each RoutingNode: whether its Node's addresses and pod CIDRs can be routed.

use super::View;
use crate::world::NodeRecord;
use crate::write::{Event, What, Write};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use podlane_crds::{ConditionType, condition, set_condition};

/// Events about nodes in one pass, at most: a fault of the whole cluster's is named at its policies.
const EVENTS: usize = 16;

/// Conditions that have to be written.
pub(super) fn writes(view: &View<'_>) -> Vec<Write> {
    let mut writes = Vec::new();
    let mut events_left = EVENTS;
    for node in view.world.nodes.all() {
        let Some(record) = view.world.routing_nodes.get(&node.name) else {
            continue;
        };
        let new = accepted(view, &node.name, record);
        if record.unreadable.is_some() || record.accepted.as_ref() == Some(&new) {
            continue;
        }
        let events: Vec<Event> = event(&node.name, record.accepted.as_ref(), &new)
            .into_iter()
            .take(events_left)
            .collect();
        events_left -= events.len();
        writes.push(Write {
            name: node.name.clone(),
            what: What::NodeAccepted {
                uid: record.identity.uid.clone(),
                condition: Box::new(new),
            },
            events,
        });
    }
    writes
}

/// The condition of a node. Without an observedGeneration: it speaks of the Node, and not of what the operator tells it.
fn accepted(view: &View<'_>, name: &str, record: &NodeRecord) -> Condition {
    let problems = view.admission.problems.get(name);
    let (reason, message) = match problems.and_then(|problems| problems.first()) {
        None => ("Accepted", String::new()),
        Some(first) => {
            let all = problems.into_iter().flatten();
            let all: Vec<_> = all.map(|problem| format!("{name} {problem}")).collect();
            (first.reason(), all.join("; "))
        }
    };
    let new = condition(
        ConditionType::Accepted,
        problems.is_none(),
        reason,
        &message,
        None,
        &Time(view.now),
    );
    let mut conditions: Vec<_> = record.accepted.iter().cloned().collect();
    set_condition(&mut conditions, new.clone());
    conditions.pop().unwrap_or(new)
}

/// What somebody should hear of.
fn event(name: &str, old: Option<&Condition>, new: &Condition) -> Option<Event> {
    let is_warning = new.status != "True";
    let is_news = old.map_or(is_warning, |old| old.reason != new.reason);
    is_news.then(|| Event {
        is_warning,
        reason: new.reason.clone(),
        note: if is_warning {
            new.message.clone()
        } else {
            format!("{name} can be routed")
        },
    })
}

#[cfg(test)]
mod tests {
    use super::super::simulation::Cluster;
    use serde_json::json;

    #[test]
    fn the_newer_of_two_overlapping_nodes_is_told_and_both_are_named() {
        let mut cluster = Cluster::of_three();
        cluster.policy("default", 1, json!({"routingMode": "tunnel"}));
        cluster.node("k8s-w9", 90, &["192.168.10.109"], &["172.20.1.0/24"]);
        cluster.settle();
        assert_eq!(
            cluster.accepted("k8s-w9"),
            ("False".into(), "PodCIDROverlap".into())
        );
        assert_eq!(cluster.accepted("k8s-w1"), ("True".into(), "Accepted".into()));
        assert_eq!(cluster.routing_node("k8s-w9")["spec"]["podCIDRs"], json!([]));
        let (status, reason, message) = cluster.condition("default", "Ready");
        assert_eq!((status.as_str(), reason.as_str()), ("False", "PodCIDROverlap"));
        assert!(
            message.contains("k8s-w9") && message.contains("k8s-w1"),
            "{message}"
        );
        assert!(
            cluster
                .events
                .iter()
                .any(|event| event.contains("k8s-w9 PodCIDROverlap"))
        );

        cluster.node("k8s-w9", 90, &["192.168.10.109"], &["172.20.9.0/24"]);
        cluster.settle();
        assert_eq!(cluster.accepted("k8s-w9"), ("True".into(), "Accepted".into()));
        assert_eq!(cluster.condition("default", "Ready").1, "AsDeclared");
    }
}
