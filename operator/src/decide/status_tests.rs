//! What policies say of themselves.

use super::simulation::{Cluster, Step};
use crate::world::{Rollout, StoppedRollout};
use serde_json::json;

#[test]
fn a_policy_says_what_became_of_it() {
    let mut cluster = Cluster::of_three();
    cluster.policy(
        "none",
        1,
        json!({"routingMode": "tunnel", "nodeSelector": {"matchLabels": {"name": "x"}}}),
    );
    cluster.settle();
    assert_eq!(cluster.condition("none", "Ready").1, "NoNodes");
    assert_eq!(cluster.summary("none"), "selects no node");

    cluster.policy("all", 2, json!({"routingMode": "tunnel"}));
    let far =
        json!({"routingMode": "tunnel", "priority": 1, "nodeSelector": {"matchLabels": {"name": "k8s-w0"}}});
    cluster.policy("far", 3, far);
    cluster.settle();
    let (status, _, message) = cluster.condition("all", "Accepted");
    assert_eq!(
        (status.as_str(), message.as_str()),
        ("True", "governs 2 of 3 selected nodes; far governs k8s-w0")
    );
    assert_eq!(cluster.condition("all", "Ready").1, "AsDeclared");

    cluster.policy("over", 4, json!({"routingMode": "tunnel", "priority": 9}));
    cluster.settle();
    assert_eq!(cluster.condition("all", "Ready").1, "NoNodes");
    assert_eq!(cluster.summary("all"), "gives way to over everywhere");
}

#[test]
fn a_tie_is_named_on_both_and_changes_nothing() {
    let mut cluster = Cluster::of_three();
    cluster.policy("first", 5, json!({"routingMode": "tunnel"}));
    cluster.settle();
    cluster.policy("twin", 5, json!({"routingMode": "native"}));
    cluster.settle();
    for (policy, other) in [("first", "twin"), ("twin", "first")] {
        let (status, reason, message) = cluster.condition(policy, "Accepted");
        assert_eq!((status.as_str(), reason.as_str()), ("False", "TiedRank"));
        assert!(message.contains(other) && message.contains("k8s-w0"), "{message}");
        assert_eq!(cluster.condition(policy, "Ready").1, "TiedRank");
    }
    assert_eq!(cluster.used("k8s-ctr", "k8s-w0"), "vxlan:8472:1");
    cluster.policy("twin", 5, json!({"routingMode": "native", "priority": -1}));
    cluster.settle();
    assert_eq!(cluster.condition("first", "Accepted").1, "Accepted");
    assert_eq!(cluster.condition("first", "Ready").1, "AsDeclared");
}

#[test]
fn a_policy_is_ready_when_every_node_knows_the_others_as_they_are_now() {
    let mut cluster = Cluster::of_three();
    cluster.policy("default", 1, json!({"routingMode": "tunnel"}));
    cluster.settle();
    cluster.node("k8s-w0", 2, &["192.168.20.100"], &["172.20.9.0/24"]);
    // One agent has its turn later than the others.
    for _ in 0..3 {
        cluster.pass();
        for agent in ["k8s-w0", "k8s-w1"] {
            for step in Step::ALL {
                cluster.step(agent, step);
            }
        }
    }
    assert_eq!(
        cluster.object("RoutingPolicy", "default")["status"]["nodesReady"],
        "2/3"
    );
    let (status, reason, message) = cluster.condition("default", "Ready");
    assert_eq!((status.as_str(), reason.as_str()), ("False", "Progressing"));
    assert_eq!(
        message,
        "waiting for k8s-ctr. k8s-ctr has yet to hear what the other nodes are now"
    );
    cluster.settle();
    assert_eq!(cluster.condition("default", "Ready").1, "AsDeclared");
}

#[test]
fn an_unreadable_policy_is_named_and_its_last_good_version_stays() {
    let mut cluster = Cluster::of_three();
    cluster.policy("default", 1, json!({"routingMode": "tunnel"}));
    cluster.settle();
    cluster.policy("default", 1, json!({"routingMode": ["native"]}));
    cluster.settle();
    let (status, reason, message) = cluster.condition("default", "Accepted");
    assert_eq!((status.as_str(), reason.as_str()), ("False", "Unreadable"));
    assert!(message.ends_with("generation 1 stays in force"), "{message}");
    assert_eq!(cluster.condition("default", "Ready").1, "Unreadable");
    assert_eq!(cluster.used("k8s-ctr", "k8s-w0"), "vxlan:8472:1");

    let mut cluster = cluster.restarted();
    cluster.settle();
    assert_eq!(cluster.used("k8s-ctr", "k8s-w0"), "vxlan:8472:1");
    let (_, _, message) = cluster.condition("default", "Accepted");
    assert!(
        message.ends_with("its nodes keep what they were told"),
        "{message}"
    );
}

#[test]
fn while_a_change_is_carried_out_nothing_is_called_wrong() {
    let mut cluster = Cluster::of_three();
    cluster.policy("default", 1, json!({"routingMode": "native"}));
    cluster.pass();
    let (status, reason, message) = cluster.condition("default", "Ready");
    assert_eq!((status.as_str(), reason.as_str()), ("False", "Progressing"));
    assert!(
        message.contains("has yet to be told") || message.contains("have yet to be told"),
        "{message}"
    );
    assert_eq!(cluster.condition("default", "Progressing").0, "True");
    assert!(cluster.events.is_empty());
    // One agent is away: after a while the refusals are named all the same.
    for _ in 0..30 {
        cluster.pass();
        for step in Step::ALL {
            cluster.step("k8s-ctr", step);
            cluster.step("k8s-w0", step);
        }
        cluster.later(1_000);
    }
    let (_, reason, message) = cluster.condition("default", "Ready");
    assert_eq!(reason, "OffLink");
    assert!(message.contains("waiting for k8s-w1"), "{message}");
    assert_eq!(
        cluster.summary("default"),
        "k8s-w0 is off-link: refused by 1 node; and 2 more, see kubectl describe"
    );
}

#[test]
fn each_change_of_a_policy_has_its_own_time() {
    let mut cluster = Cluster::of_three();
    for (priority, reason) in [(1, "Progressing"), (2, "Progressing"), (3, "Progressing")] {
        cluster.policy(
            "default",
            1,
            json!({"routingMode": "tunnel", "priority": priority}),
        );
        for _ in 0..3 {
            cluster.pass();
            assert_eq!(cluster.condition("default", "Ready").1, reason);
            cluster.later(3_000);
        }
    }
    cluster.later(3_000);
    cluster.pass();
    assert_eq!(cluster.condition("default", "Ready").1, "AgentSilent");
    // Once late, it stays so until somebody changes something.
    let mut cluster = cluster.restarted();
    cluster.pass();
    assert_eq!(cluster.condition("default", "Ready").1, "AgentSilent");
}

#[test]
fn a_rollout_that_has_stopped_is_said_on_the_policy_of_its_node_alone() {
    let mut cluster = Cluster::of_three();
    cluster.policy("all", 1, json!({"routingMode": "tunnel"}));
    let far =
        json!({"routingMode": "tunnel", "priority": 1, "nodeSelector": {"matchLabels": {"name": "k8s-w0"}}});
    cluster.policy("far", 2, far);
    cluster.settle();
    cluster.world.rollout = Rollout::Stopped(StoppedRollout {
        node: Some("k8s-w0".to_owned()),
        why: "the agent in pod podlane-agent-x does not run".to_owned(),
        left: 2,
    });
    cluster.settle();
    let (status, reason, message) = cluster.condition("far", "Ready");
    assert_eq!((status.as_str(), reason.as_str()), ("False", "RolloutStopped"));
    assert!(
        message.contains("does not run. 2 other agents are left as they were; roll back with helm rollback"),
        "{message}"
    );
    assert_eq!(cluster.condition("all", "Ready").1, "AsDeclared");
    // An agent that fails while nobody upgrades.
    cluster.world.rollout = Rollout::Stopped(StoppedRollout {
        node: Some("k8s-w0".to_owned()),
        why: "the agent in pod podlane-agent-x does not run".to_owned(),
        left: 0,
    });
    cluster.settle();
    let message = cluster.condition("far", "Ready").2;
    assert!(
        message.contains("does not run. No other is to be replaced: look at this one"),
        "{message}"
    );
    cluster.world.rollout = Rollout::Goes;
    cluster.settle();
    assert_eq!(cluster.condition("far", "Ready").1, "AsDeclared");
    // What is at no node concerns every policy that governs any.
    cluster.world.rollout = Rollout::Stopped(StoppedRollout {
        node: None,
        why: "the API server refuses the agents' DaemonSet".to_owned(),
        left: 0,
    });
    cluster.settle();
    for policy in ["all", "far"] {
        let (_, reason, message) = cluster.condition(policy, "Ready");
        assert_eq!(reason, "RolloutStopped");
        assert!(
            message.starts_with("the rollout of agents has stopped. the API server refuses"),
            "{message}"
        );
    }
}

#[test]
fn a_new_leader_leaves_a_stopped_rollout_stopped_until_it_has_looked() {
    let mut cluster = Cluster::of_three();
    cluster.policy("default", 1, json!({"routingMode": "tunnel"}));
    cluster.settle();
    cluster.world.rollout = Rollout::Stopped(StoppedRollout {
        node: Some("k8s-w0".to_owned()),
        why: "the agent in pod podlane-agent-x does not run".to_owned(),
        left: 2,
    });
    cluster.settle();
    let mut cluster = cluster.restarted();
    assert_eq!(cluster.world.rollout, Rollout::Unknown);
    assert!(cluster.world.says_that_rollout_has_stopped());
    for _ in 0..3 {
        cluster.pass();
        assert_eq!(cluster.condition("default", "Ready").1, "RolloutStopped");
    }
    cluster.world.rollout = Rollout::Goes;
    cluster.settle();
    assert_eq!(cluster.condition("default", "Ready").1, "AsDeclared");
    assert!(!cluster.world.says_that_rollout_has_stopped());
}

#[test]
fn a_node_that_can_have_no_agent_is_named_until_one_shows_otherwise() {
    let mut cluster = Cluster::of_three();
    cluster.edit("Node", "k8s-w0", |node| {
        node["status"]["nodeInfo"] =
            json!({"kernelVersion": "4.19.0-27-amd64", "operatingSystem": "linux", "architecture": "amd64"});
    });
    cluster.policy("default", 1, json!({"routingMode": "tunnel"}));
    for _ in 0..20 {
        cluster.pass();
        for step in Step::ALL {
            cluster.step("k8s-ctr", step);
            cluster.step("k8s-w1", step);
        }
        cluster.later(1_000);
    }
    let (status, reason, message) = cluster.condition("default", "Ready");
    assert_eq!((status.as_str(), reason.as_str()), ("False", "NodeUnfit"));
    assert!(
        message.starts_with(
            "k8s-w0 can have no agent. k8s-w0 has kernel 4.19.0-27-amd64, and agents need Linux 5.8"
        ),
        "{message}"
    );
    assert!(!message.contains("waiting for k8s-w0"), "{message}");
    assert!(cluster.world.without_agents().contains("k8s-w0"));
    // A kernel that can more than its number says.
    cluster.settle();
    assert_eq!(cluster.condition("default", "Ready").1, "AsDeclared");
    assert!(cluster.world.without_agents().is_empty());
}

#[test]
fn where_the_kernels_drivers_carry_packets_the_policy_says_so_and_why() {
    let mut cluster = Cluster::of_three();
    cluster.policy("default", 1, json!({"routingMode": "tunnel"}));
    cluster.settle();
    cluster.edit("RoutingNode", "k8s-w1", |node| {
        node["status"]["datapath"] =
            json!({"encapsulation": "Kernel", "bypass": "Off", "reason": "NoPrograms", "message": "no BTF"});
    });
    cluster.pass();
    let (status, _, message) = cluster.condition("default", "Ready");
    assert_eq!(
        (status.as_str(), message.as_str()),
        (
            "True",
            "3 nodes are as declared. On k8s-w1 the kernel's drivers encapsulate, without eBPF programs; k8s-w1 says: no BTF"
        )
    );
}
