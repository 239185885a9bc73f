//! Changes of lane, from end to end: what nodes are told, what they come to and what status says.

use super::simulation::{Cluster, Step};
use podlane_plan::lane::Lane;
use serde_json::json;

#[test]
fn the_story_is_told_in_status() {
    let mut cluster = Cluster::of_three();
    cluster.policy("default", 1, json!({"routingMode": "native"}));
    cluster.settle();
    assert_eq!(cluster.used("k8s-ctr", "k8s-w1"), "native");
    assert_eq!(cluster.used("k8s-ctr", "k8s-w0"), "OffLink");
    assert_eq!(
        cluster.summary("default"),
        "k8s-w0 is off-link: refused by 2 nodes"
    );
    let (status, reason, message) = cluster.condition("default", "Ready");
    assert_eq!((status.as_str(), reason.as_str()), ("False", "OffLink"));
    assert!(message.contains("Set offLinkPeers to tunnel"), "{message}");
    assert_eq!(cluster.condition("default", "Progressing").0, "False");
    let status = cluster.object("RoutingPolicy", "default")["status"].clone();
    assert_eq!(status["nodesReady"], "0/3");
    assert!(status.get("protocol").is_none());

    cluster.policy("default", 1, json!({"routingMode": "tunnel"}));
    cluster.settle();
    assert_eq!(cluster.used("k8s-ctr", "k8s-w0"), "vxlan:8472:1");
    let (status, reason, message) = cluster.condition("default", "Ready");
    assert_eq!((status.as_str(), reason.as_str()), ("True", "AsDeclared"));
    assert_eq!(message, "3 nodes are as declared");
    let status = &cluster.object("RoutingPolicy", "default")["status"];
    assert_eq!(
        (&status["nodesReady"], &status["protocol"]),
        (&json!("3/3"), &json!("vxlan"))
    );
    assert_eq!(cluster.summary("default"), "");

    cluster.policy(
        "default",
        1,
        json!({"routingMode": "native", "offLinkPeers": "tunnel"}),
    );
    cluster.settle();
    assert_eq!(cluster.used("k8s-ctr", "k8s-w1"), "native");
    assert_eq!(cluster.used("k8s-w1", "k8s-w0"), "vxlan:8472:1");
    assert_eq!(cluster.condition("default", "Ready").1, "AsDeclared");
    assert!(cluster.writes().is_empty());
    assert_eq!(
        cluster.events,
        ["default OffLink", "default AsDeclared", "default AsDeclared"]
    );
}

#[test]
fn lanes_that_nobody_uses_are_closed_after_a_while_without_a_word() {
    let mut cluster = Cluster::of_three();
    cluster.policy("default", 1, json!({"routingMode": "tunnel"}));
    cluster.settle();
    cluster.policy(
        "default",
        1,
        json!({"routingMode": "native", "offLinkPeers": "underlay"}),
    );
    cluster.settle();
    assert_eq!(
        cluster.routing_node("k8s-w1")["spec"]["receiveOn"],
        json!(["native", "underlay"])
    );
    assert_eq!(
        cluster.slice_entry("k8s-w1").expect("listed")["receivesOn"],
        json!(["native", "underlay"])
    );
    assert_eq!(cluster.condition("default", "Ready").1, "AsDeclared");
    assert_eq!(cluster.events, ["default AsDeclared"; 2]);
}

#[test]
fn a_lane_stays_open_for_a_node_whose_agent_does_not_answer() {
    let mut cluster = Cluster::of_three();
    cluster.policy("default", 1, json!({"routingMode": "tunnel"}));
    cluster.settle();
    cluster.policy(
        "default",
        1,
        json!({"routingMode": "native", "offLinkPeers": "underlay"}),
    );
    for _ in 0..30 {
        cluster.pass();
        for step in Step::ALL {
            cluster.step("k8s-ctr", step);
            cluster.step("k8s-w0", step);
        }
        cluster.later(1_000);
    }
    assert_eq!(
        cluster.routing_node("k8s-ctr")["spec"]["receiveOn"],
        json!(["native", "underlay", "vxlan:8472:1"])
    );
    let (_, reason, message) = cluster.condition("default", "Ready");
    assert_eq!(reason, "AgentSilent");
    assert!(message.contains("k8s-w1 has yet to answer"), "{message}");
    assert_eq!(cluster.condition("default", "Progressing").1, "DeadlineExceeded");
    assert!(cluster.losses().is_empty());
}

/// Nothing is lost, whoever does what in whatever order, with the operator and agents started anew in between and policies that
/// change before the last change is done. The agents go by new slices within a second, and whatever else when they please.
#[test]
fn no_order_of_steps_loses_a_packet() {
    for seed in 0..30 {
        any_order(seed, true, |_, _| true);
    }
}

/// The same where probes get lost: lanes are moved to later, and no packet is lost for it.
#[test]
fn no_order_of_steps_loses_a_packet_where_probes_are() {
    for seed in 30..42 {
        any_order(seed, true, |_, number| number % 3 != 0);
    }
}

/// The same where agents come and go that have no programs, and neither probe nor answer.
#[test]
fn no_order_of_steps_loses_a_packet_among_agents_without_programs() {
    for seed in 50..62 {
        any_order(seed, false, |_, _| true);
    }
}

fn any_order(seed: u64, always_programs: bool, carries: fn(Lane, u64) -> bool) {
    let specs = [
        json!({"routingMode": "native", "offLinkPeers": "underlay"}),
        json!({"routingMode": "tunnel"}),
        json!({"routingMode": "tunnel", "tunnel": {"protocol": "geneve"}}),
        json!({"routingMode": "native", "offLinkPeers": "tunnel"}),
    ];
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) + 1;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    let mut cluster = Cluster::of_three();
    cluster.policy("default", 1, specs[0].clone());
    cluster.settle();
    cluster.carries = carries;
    cluster.all_have_programs = always_programs;
    for turn in 0..1_500 {
        cluster.later(20);
        let names = cluster.agents();
        let name = &names[random(names.len())];
        match random(40) {
            0 if random(3) == 0 => cluster.policy("default", 1, specs[random(specs.len())].clone()),
            1 if random(10) == 0 => cluster = cluster.restarted(),
            2..12 => {
                cluster.pass();
            }
            12 if random(8) == 0 => cluster.restart_agent(name, always_programs || random(2) == 0),
            _ => cluster.step(name, Step::ALL[random(Step::ALL.len())]),
        }
        if turn % 40 == 0 {
            for name in &names {
                for step in [Step::SeePeers, Step::Act] {
                    cluster.step(name, step);
                }
            }
        }
        let losses = cluster.losses();
        assert!(losses.is_empty(), "seed {seed}, turn {turn}: {losses:?}");
    }
    cluster.carries = |_, _| true;
    cluster.settle();
    assert_eq!(cluster.condition("default", "Ready").1, "AsDeclared");
}

#[test]
fn a_lane_that_the_network_filters_is_not_moved_to_and_is_named() {
    let mut cluster = Cluster::of_three();
    cluster.policy(
        "default",
        1,
        json!({"routingMode": "native", "offLinkPeers": "underlay"}),
    );
    cluster.settle();
    cluster.carries = |lane, _| lane.tunnel().is_none();
    cluster.policy("default", 1, json!({"routingMode": "tunnel"}));
    for _ in 0..60 {
        cluster.pass();
        for name in cluster.agents() {
            for step in Step::ALL {
                cluster.step(&name, step);
            }
        }
        cluster.later(400);
        assert!(cluster.losses().is_empty());
    }
    assert_eq!(cluster.used("k8s-ctr", "k8s-w1"), "native");
    assert_eq!(cluster.used("k8s-ctr", "k8s-w0"), "underlay");
    let (status, reason, message) = cluster.condition("default", "Ready");
    assert_eq!((status.as_str(), reason.as_str()), ("False", "LaneSilent"));
    assert!(message.contains("UDP port 8472"), "{message}");
    let summary = cluster.summary("default");
    assert!(
        summary.contains("do not answer on their lanes: seen by 2 nodes"),
        "{summary}"
    );

    cluster.carries = |_, _| true;
    cluster.settle();
    assert_eq!(cluster.used("k8s-ctr", "k8s-w0"), "vxlan:8472:1");
    assert_eq!(cluster.condition("default", "Ready").1, "AsDeclared");
}
