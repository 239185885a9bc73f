use super::*;
use crate::seen::Seen;
use crate::world::{Source, World};
use podlane_crds::RoutingNode;
use serde_json::{Value, json};

fn pod(node: &str, template: &str) -> AgentPod {
    AgentPod {
        name: format!("podlane-agent-{node}"),
        uid: format!("{node}-{template}"),
        node: node.to_owned(),
        template: Some(template.to_owned()),
        is_ready: true,
        runs: true,
        has_started: true,
        is_ending: false,
    }
}

/// A node's status as the agent in a pod writes it when all is well.
fn well(pod: &AgentPod) -> Value {
    json!({
        "observedGeneration": 1,
        "agentInstance": pod.uid,
        "counts": {"total": 2, "vxlan": 2},
        "datapath": {"encapsulation": "eBPF", "bypass": "On"},
        "probes": {"probed": 2, "answering": 2},
        "conditions": [condition("Ready", "True", "AsDeclared"), condition("Progressing", "False", "Settled")],
    })
}

fn condition(kind: &str, status: &str, reason: &str) -> Value {
    json!({"type": kind, "status": status, "reason": reason, "message": "m", "lastTransitionTime": "2026-01-01T00:00:00Z"})
}

/// What is known of a cluster.
#[derive(Default)]
struct Cluster {
    world: World,
    before: BTreeMap<String, Before>,
}

impl Cluster {
    fn new(statuses: &[(&str, Value)]) -> Self {
        let mut cluster = Self::default();
        for (name, status) in statuses {
            cluster.say(name, status);
        }
        cluster
    }

    fn say(&mut self, name: &str, status: &Value) {
        let seen: Seen<RoutingNode> = serde_json::from_value(json!({
            "metadata": {"name": name, "uid": name, "generation": 1, "resourceVersion": "1"}, "spec": {}, "status": status,
        }))
        .expect("metadata");
        self.world.see_routing_node(seen, Source::List);
    }

    /// The kubelets of these nodes have fallen silent.
    fn away(mut self, names: &[&str]) -> Self {
        for name in names {
            let node = json!({"metadata": {"name": name, "uid": name, "resourceVersion": "1"},
                "status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}});
            let node = serde_json::from_value(node).expect("a node");
            self.world.see_node(node, Source::List);
        }
        self
    }

    /// Takes note of what agents say before they are replaced.
    fn noted(mut self, pods: &[AgentPod]) -> Self {
        for pod in pods {
            let before = self.before.entry(pod.node.clone()).or_default();
            before.note(pod, self.world.routing_nodes.get(&pod.node));
        }
        self
    }

    fn next(&self, scheduled: usize, pods: &[AgentPod]) -> String {
        let pods = pods.iter().map(|pod| (pod.name.clone(), pod.clone())).collect();
        let known = Known {
            world: &self.world,
            before: &self.before,
        };
        match next("new", scheduled, &pods, known) {
            Next::Done => "done".to_owned(),
            Next::Replace { pod, .. } => format!("replace {}", pod.node),
            Next::Wait(wait) => format!("wait: {wait}"),
        }
    }
}

fn decide(scheduled: usize, pods: &[AgentPod], statuses: &[(&str, Value)]) -> String {
    Cluster::new(statuses).next(scheduled, pods)
}

fn ending(pod: &AgentPod) -> AgentPod {
    AgentPod {
        is_ending: true,
        ..pod.clone()
    }
}

/// A node's status when it does not reach some peers as declared.
fn troubled(pod: &AgentPod, troubles: &[(&str, &str)]) -> Value {
    let mut status = well(pod);
    let peers = troubles.iter().map(
        |(peer, reason)| json!({"name": peer, "lane": "vxlan", "reason": reason, "message": "is not reached"}),
    );
    status["peers"] = peers.collect();
    let silent = troubles.iter().filter(|(_, reason)| reason.starts_with("Lane"));
    status["probes"] = json!({"probed": 2, "answering": 2 - silent.count()});
    if let Some((_, reason)) = troubles.first() {
        status["conditions"][0] = condition("Ready", "False", reason);
    }
    status
}

#[test]
fn one_after_the_other_each_once_the_last_one_is_proved() {
    let (a, b, c) = (pod("a", "old"), pod("b", "old"), pod("c", "old"));
    let (new_a, new_b, new_c) = (pod("a", "new"), pod("b", "new"), pod("c", "new"));
    let all_old = [("a", well(&a)), ("b", well(&b)), ("c", well(&c))];
    let a_new = [("a", well(&new_a)), ("b", well(&b)), ("c", well(&c))];
    for (pods, statuses, expected) in [
        (vec![a.clone(), b.clone(), c.clone()], &all_old, "replace a"),
        (
            vec![ending(&a), b.clone(), c.clone()],
            &all_old,
            "wait: the pod podlane-agent-a has yet to end",
        ),
        // It has gone, and its successor is not there yet.
        (
            vec![b.clone(), c.clone()],
            &all_old,
            "wait: 1 of the agents' pods have yet to be made, or to be given their nodes (kubectl describe daemonset says why)",
        ),
        // What the status says is still what the predecessor wrote.
        (
            vec![new_a.clone(), b.clone(), c.clone()],
            &all_old,
            "wait: the agent in pod podlane-agent-a has yet to write the node's status",
        ),
        (vec![new_a.clone(), b.clone(), c.clone()], &a_new, "replace b"),
        // What is left to be proved when all are replaced is said, too.
        (
            vec![new_a.clone(), new_b.clone(), new_c.clone()],
            &a_new,
            "wait: the agent in pod podlane-agent-b has yet to write the node's status",
        ),
        (
            vec![new_a.clone(), new_b.clone()],
            &a_new,
            "wait: 1 of the agents' pods have yet to be made, or to be given their nodes (kubectl describe daemonset says why)",
        ),
        (
            vec![new_a.clone(), new_b.clone(), new_c.clone()],
            &[("a", well(&new_a)), ("b", well(&new_b)), ("c", well(&new_c))],
            "done",
        ),
    ] {
        assert_eq!(decide(3, &pods, statuses), expected, "{pods:?}");
    }
}

#[test]
fn an_agent_that_does_not_prove_itself_stops_the_rollout() {
    let (new_a, b) = (pod("a", "new"), pod("b", "old"));
    let status = |change: fn(&mut Value)| {
        let mut status = well(&new_a);
        change(&mut status);
        status
    };
    let ready =
        |status: &mut Value, reason: &str| status["conditions"][0] = condition("Ready", "False", reason);
    for (status, expected) in [
        (status(|_| {}), "replace b"),
        (
            status(|status| status["observedGeneration"] = 0.into()),
            "has yet to answer",
        ),
        (
            status(|status| status["conditions"][1] = condition("Progressing", "True", "Moving")),
            "is opening a lane or moving",
        ),
        (
            status(|status| status["probes"]["answering"] = 1.into()),
            "on 1 of 2 that it has probed",
        ),
        // Right after its start.
        (status(|status| status["probes"] = Value::Null), "on 0 of 0"),
        (
            status(|status| status["datapath"]["encapsulation"] = "Kernel".into()),
            "replace b",
        ),
        (
            status(|status| {
                *status = json!({"observedGeneration": 1, "agentInstance": status["agentInstance"].clone()})
            }),
            "not as declared",
        ),
    ] {
        let said = decide(
            2,
            &[new_a.clone(), b.clone()],
            &[("a", status.clone()), ("b", well(&b))],
        );
        assert!(said.contains(expected), "{status}: {said}");
    }
    for (reason, expected) in [
        ("OffLink", "replace b"),
        ("NoDevice", "wait"),
        ("KernelUnreadable", "wait"),
    ] {
        let mut status = well(&new_a);
        ready(&mut status, reason);
        let said = decide(2, &[new_a.clone(), b.clone()], &[("a", status), ("b", well(&b))]);
        assert!(said.starts_with(expected), "{reason}: {said}");
    }
    let broken = AgentPod {
        is_ready: false,
        ..new_a.clone()
    };
    let said = decide(2, &[broken, b.clone()], &[("a", well(&new_a)), ("b", well(&b))]);
    assert!(said.contains("does not run"), "{said}");
}

#[test]
fn the_last_agent_that_does_no_work_is_told_and_a_node_that_lacks_something_is_not() {
    let a = pod("a", "new");
    let broken = AgentPod {
        is_ready: false,
        runs: false,
        ..a.clone()
    };
    let mut behind = well(&a);
    behind["observedGeneration"] = 0.into();
    for (pod, status, expected) in [
        (&a, well(&a), "done"),
        (&broken, well(&a), "does not run"),
        (&a, json!({}), "has yet to write"),
        (&a, behind, "has yet to answer"),
        // The policy says so itself.
        (&a, troubled(&a, &[("b", "LaneSilent")]), "done"),
        (&broken, troubled(&a, &[("b", "LaneSilent")]), "done"),
    ] {
        let said = decide(1, std::slice::from_ref(pod), &[("a", status.clone())]);
        assert!(said.contains(expected), "{status}: {said}");
    }
}

#[test]
fn a_node_that_is_away_holds_no_other_up() {
    let (a, b, c) = (pod("a", "old"), pod("b", "old"), pod("c", "old"));
    let (new_a, new_b, new_c) = (pod("a", "new"), pod("b", "new"), pod("c", "new"));
    let never = |pod: &AgentPod| AgentPod {
        is_ready: false,
        runs: false,
        has_started: false,
        ..pod.clone()
    };
    let gone = |pod: &AgentPod| AgentPod {
        is_ready: false,
        ..pod.clone()
    };
    let (b_well, c_well) = (("b", well(&b)), ("c", well(&c)));
    for (pods, status, expected) in [
        // It would never end, so it is not told to.
        ([&a, &b, &c].map(AgentPod::clone), well(&a), "replace b"),
        // It was told to before the node fell silent.
        ([ending(&a), b.clone(), c.clone()], well(&a), "replace b"),
        // Its successor has never begun, or had shown what it can do.
        ([never(&new_a), b.clone(), c.clone()], well(&a), "replace b"),
        ([gone(&new_a), b.clone(), c.clone()], well(&new_a), "replace b"),
        // It may be the new agent that has cut it off.
        (
            [gone(&new_a), b.clone(), c.clone()],
            well(&a),
            "wait: the agent in pod podlane-agent-a does not run, or is not ready",
        ),
    ] {
        let cluster = Cluster::new(&[("a", status.clone()), b_well.clone(), c_well.clone()]);
        assert_eq!(cluster.away(&["a"]).next(3, &pods), expected, "{pods:?}");
    }
    // One at a time among the others, whose lanes to the node that is away are silent.
    let silent = [("a", "LaneSilent")];
    let b_silent = [("a", well(&a)), ("b", troubled(&new_b, &silent)), c_well.clone()];
    let pods = [a.clone(), new_b.clone(), c.clone()];
    let cluster = Cluster::new(&b_silent).away(&["a"]);
    assert_eq!(
        cluster.next(3, &[a.clone(), ending(&b), c.clone()]),
        "wait: the pod podlane-agent-b has yet to end"
    );
    assert_eq!(cluster.next(3, &pods), "replace c");
    let both = troubled(&new_b, &[("a", "LaneSilent"), ("c", "LaneSilent")]);
    let cluster = Cluster::new(&[("a", well(&a)), ("b", both), c_well]).away(&["a"]);
    assert!(cluster.next(3, &pods).contains("LaneSilent"));
    // All that can be is done, until it is back.
    let statuses = [("a", well(&a)), ("b", well(&new_b)), ("c", well(&new_c))];
    let pods = [a, new_b, new_c];
    assert_eq!(Cluster::new(&statuses).away(&["a"]).next(3, &pods), "done");
    assert_eq!(Cluster::new(&statuses).next(3, &pods), "replace a");
}

#[test]
fn what_was_so_before_is_not_the_new_agents_doing() {
    let (a, b, c) = (pod("a", "old"), pod("b", "old"), pod("c", "old"));
    let (new_a, new_c) = (pod("a", "new"), pod("c", "new"));
    let unwell = AgentPod {
        is_ready: false,
        ..new_a.clone()
    };
    for (said, says, expected) in [
        // Nothing was wrong.
        (vec![], vec![("c", "LaneSilent")], "wait"),
        (vec![], vec![("c", "NoCommonFamily")], "wait"),
        // The same was, of the same peer.
        (vec![("c", "LaneSilent")], vec![("c", "LaneSilent")], "replace b"),
        (
            vec![("c", "LaneSilent")],
            vec![("c", "LaneTooSmall")],
            "replace b",
        ),
        (vec![("c", "LaneTooSmall")], vec![("c", "LaneSilent")], "wait"),
        (vec![("c", "LaneSilent")], vec![("b", "LaneSilent")], "wait"),
        (
            vec![("c", "LaneSilent")],
            vec![("b", "LaneSilent"), ("c", "LaneSilent")],
            "wait",
        ),
        (
            vec![("c", "NoCommonFamily")],
            vec![("c", "NoCommonFamily")],
            "replace b",
        ),
        (
            vec![("c", "NoUnderlayRoute")],
            vec![("c", "NoUnderlayRoute")],
            "replace b",
        ),
        (vec![("c", "NoDevice")], vec![("c", "NoDevice")], "wait"),
        // Whatever was before: but no lane hides behind it.
        (vec![], vec![("c", "OffLink")], "replace b"),
        (vec![], vec![("c", "OffLink"), ("b", "LaneSilent")], "wait"),
    ] {
        let old = [a.clone(), b.clone(), c.clone()];
        let mut cluster = Cluster::new(&[("a", troubled(&a, &said)), ("b", well(&b)), ("c", well(&c))]);
        cluster = cluster.noted(&old);
        cluster.say("a", &troubled(&new_a, &says));
        // The new agent says so itself to its kubelet.
        let pods = [unwell.clone(), b.clone(), c.clone()];
        let next = cluster.next(3, &pods);
        assert!(next.starts_with(expected), "{said:?}, {says:?}: {next}");
        // Unless it does not run.
        let crashing = AgentPod {
            runs: false,
            ..unwell.clone()
        };
        assert!(
            cluster
                .next(3, &[crashing, b.clone(), c.clone()])
                .starts_with("wait")
        );
    }
    // With a new agent at the other end it may well be the new version's doing.
    let mut cluster = Cluster::new(&[("a", troubled(&a, &[("c", "LaneSilent")])), ("b", well(&b))]);
    cluster = cluster.noted(&[a]);
    cluster.say("a", &troubled(&new_a, &[("c", "LaneSilent")]));
    cluster.say("c", &well(&new_c));
    let next = cluster.next(3, &[new_a, b, new_c]);
    assert!(next.contains("LaneSilent"), "{next}");
}

#[test]
fn an_agent_that_loses_the_programs_of_the_last_one_stops_the_rollout() {
    let (a, b) = (pod("a", "new"), pod("b", "old"));
    let old = pod("a", "old");
    let mut status = well(&a);
    status["datapath"] =
        json!({"encapsulation": "Kernel", "bypass": "Off", "message": "the verifier refuses it"});
    let pods = [a.clone(), b.clone()];
    let mut cluster = Cluster::new(&[("a", well(&old)), ("b", well(&b))]).noted(&[old]);
    for pods in [pods.as_slice(), &pods[..1]] {
        cluster.say("a", &status);
        let said = cluster.next(pods.len(), pods);
        assert!(
            said.contains("could not load its eBPF programs") && said.contains("the verifier refuses it"),
            "{said}"
        );
    }
    cluster.say("a", &well(&a));
    assert_eq!(cluster.next(2, &pods), "replace b");
}

#[test]
fn a_version_that_mends_begins_where_the_last_one_stopped() {
    let (a, b) = (pod("a", "old"), pod("b", "broken"));
    let silent = json!({"observedGeneration": 1});
    assert_eq!(
        decide(2, &[a.clone(), b.clone()], &[("a", well(&a)), ("b", silent)]),
        "replace b"
    );
    // Node b cannot be routed at all, and is told nothing.
    assert_eq!(decide(2, &[a.clone(), b], &[("a", well(&a))]), "replace a");
}

#[test]
fn nothing_is_proved_while_an_agent_is_left_that_does_not_work() {
    let (old, broken) = (pod("a", "old"), pod("a", "broken"));
    let (new_b, old_b) = (pod("b", "new"), pod("b", "old"));
    let crashing = AgentPod {
        is_ready: false,
        runs: false,
        ..broken.clone()
    };
    let [a_well, broken_well, new_well, b_well] = [&old, &broken, &new_b, &old_b].map(well);
    for (pods, said, expected) in [
        // The first one.
        ([&old, &old_b], [&a_well, &b_well], false),
        ([&old, &new_b], [&a_well, &new_well], true),
        // As after a rollback: the others have proved themselves long ago.
        ([&crashing, &new_b], [&a_well, &new_well], false),
        ([&broken, &new_b], [&broken_well, &new_well], true),
    ] {
        let cluster = Cluster::new(&[("a", said[0].clone()), ("b", said[1].clone())]);
        let pods = pods.map(|pod| (pod.name.clone(), pod.clone())).into();
        let known = Known {
            world: &cluster.world,
            before: &cluster.before,
        };
        let Next::Replace { pod, is_proved } = next("new", 2, &pods, known) else {
            panic!("{pods:?}");
        };
        assert_eq!((pod.node.as_str(), is_proved), ("a", expected), "{pods:?}");
    }
}
