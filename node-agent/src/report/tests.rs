//! What status says of worlds that the plan was asked about.

mod story;

use super::*;
use crate::pass::Unfinished;
use podlane_crds::{Bypass, Encapsulation};
use podlane_plan::policy::RoutingMode;
use podlane_plan::probes::{Doubt, ProbeKey, Standing};
use story::{Story, VXLAN, at, policy, said};

#[test]
fn a_peer_behind_a_gateway_is_named_with_what_to_do() {
    let story = Story::new(RoutingMode::Native, &[Lane::Native], &[Lane::Native]);
    let status = story.status(&RoutingNodeStatus::default(), 1);
    assert_eq!(status.lanes.as_deref(), Some("1 native, 1 refused"));
    let (ready, reason, message) = said(&status, "Ready");
    assert_eq!((ready, reason), ("False", "OffLink"));
    assert!(
        message.starts_with("k8s-w0 is off-link: ") && message.contains("offLinkPeers"),
        "{message}"
    );
    assert_eq!(said(&status, "Progressing").0, "False");
    // Who is not reached comes first.
    let names: Vec<_> = status
        .peers
        .iter()
        .map(|peer| (peer.name.as_str(), peer.lane.as_str()))
        .collect();
    assert_eq!(names, [("k8s-w0", "refused"), ("k8s-w1", "native")]);
    assert_eq!(status.peers[0].reason.as_deref(), Some("OffLink"));
    assert_eq!(status.observed_generation, Some(7));
    assert_eq!(status.underlay[0].device.as_deref(), Some("eth1"));
}

#[test]
fn a_change_of_lane_is_progress_and_its_end_is_ready() {
    let lanes = [Lane::Native, Lane::Tunnel(VXLAN)];
    // Told to receive on vxlan; the device is not there yet.
    let story = Story::new(RoutingMode::Tunnel, &lanes, &[Lane::Native]);
    let opening = story.status(&RoutingNodeStatus::default(), 1);
    assert_eq!(said(&opening, "Progressing").1, "Opening");
    assert_eq!(said(&opening, "Ready").0, "False");
    assert_eq!(opening.receives_on, ["native"]);

    // It is there; the peers have not said that theirs is.
    let waiting = Story::new(RoutingMode::Tunnel, &lanes, &[Lane::Native])
        .with_device()
        .status(&opening, 2);
    assert_eq!(
        (said(&waiting, "Progressing").0, said(&waiting, "Progressing").1),
        ("True", "Moving")
    );
    assert_eq!(said(&waiting, "Ready").1, "PeerNotReceiving");
    let since = |status: &RoutingNodeStatus| {
        status
            .conditions
            .iter()
            .map(|it| it.last_transition_time.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(since(&waiting), [at(1), at(1)], "their status is the same");

    let done = Story::new(RoutingMode::Tunnel, &lanes, &lanes)
        .with_device()
        .status(&waiting, 3);
    assert_eq!(
        said(&done, "Ready"),
        ("True", "AsDeclared", "the kernel is as declared: 2 vxlan")
    );
    assert_eq!(since(&done), [at(3), at(3)]);
    assert_eq!(done.sends_on, ["vxlan:8472:1"]);
    assert_eq!(done.receives_on, ["native", "vxlan:8472:1"]);
}

#[test]
fn a_lane_is_moved_to_when_it_is_proved_and_a_silent_one_is_named() {
    let lanes = [Lane::Native, Lane::Tunnel(VXLAN)];
    let mut story = Story::new(RoutingMode::Tunnel, &lanes, &lanes)
        .with_device()
        .with_programs();
    let before = story.status(&RoutingNodeStatus::default(), 1);
    assert_eq!(said(&before, "Progressing").1, "Moving");
    assert_eq!(said(&before, "Ready").1, "LaneNotProved");
    assert_eq!(before.lanes.as_deref(), Some("2 refused"));
    assert_eq!(before.probe_key, Some(ProbeKey([2; 16]).to_string()));

    let silent = Standing::Doubted(Doubt::Silent { answers_on: None });
    story
        .proofs
        .note(&"k8s-w0".into(), Lane::Tunnel(VXLAN), Some(silent));
    story
        .proofs
        .note(&"k8s-w1".into(), Lane::Tunnel(VXLAN), Some(Standing::Proved));
    let status = story.status(&before, 2);
    assert_eq!(status.lanes.as_deref(), Some("1 vxlan, 1 refused"));
    let (ready, reason, message) = said(&status, "Ready");
    assert_eq!((ready, reason), ("False", "LaneSilent"));
    assert!(
        message.starts_with("k8s-w0 does not answer over vxlan:8472:1: is UDP port 8472 filtered"),
        "{message}"
    );
    assert_eq!(
        said(&status, "Progressing").0,
        "False",
        "nothing goes on by itself"
    );

    story
        .proofs
        .note(&"k8s-w0".into(), Lane::Tunnel(VXLAN), Some(Standing::Proved));
    let done = story.status(&status, 3);
    assert_eq!(said(&done, "Ready").1, "AsDeclared");
    // The lane is in use now: what the kernel holds is what was planned.
    story.observed.ours = story.outcome().desired.state;
    story
        .proofs
        .note(&"k8s-w0".into(), Lane::Tunnel(VXLAN), Some(silent));
    let status = story.status(&done, 4);
    assert_eq!(
        status.lanes.as_deref(),
        Some("2 vxlan"),
        "nothing better is known"
    );
    assert_eq!(said(&status, "Ready").1, "LaneSilent");
    let peer = &status.peers[0];
    assert_eq!(
        (peer.name.as_str(), peer.lane.as_str(), peer.reason.as_deref()),
        ("k8s-w0", "vxlan:8472:1", Some("LaneSilent"))
    );
    story
        .proofs
        .note(&"k8s-w0".into(), Lane::Tunnel(VXLAN), Some(Standing::Proved));
    // Under way from there, a lane that does not answer is waited for, and named too.
    story.assignment.policy = Some(policy(RoutingMode::Native));
    for peer in story.peers.values_mut() {
        peer.policy = Some(policy(RoutingMode::Native));
        peer.addresses[0].address = "192.168.10.101".parse().expect("an address");
    }
    story.proofs.note(&"k8s-w0".into(), Lane::Native, Some(silent));
    story
        .proofs
        .note(&"k8s-w1".into(), Lane::Native, Some(Standing::Proved));
    let status = story.status(&status, 5);
    assert_eq!(status.lanes.as_deref(), Some("1 native, 1 vxlan"));
    let (_, reason, message) = said(&status, "Ready");
    assert_eq!(reason, "LaneSilent");
    assert!(message.contains("does not answer over native"), "{message}");
    assert_eq!(status.peers[0].wanted.as_deref(), Some("native"));
}

#[test]
fn status_says_who_encapsulates_and_why_nothing_bypasses() {
    let mut story = Story::new(RoutingMode::Native, &[Lane::Native], &[Lane::Native]).with_programs();
    let told = |story: &Story| {
        let status = story.status(&RoutingNodeStatus::default(), 1);
        let datapath = status.datapath.expect("it is told");
        (
            datapath.encapsulation,
            datapath.bypass,
            datapath.reason,
            status.probe_key.is_some(),
        )
    };
    let off = |reason: &str| (Encapsulation::Ebpf, Bypass::Off, Some(reason.to_owned()), true);
    story.assignment.datapath.bypass = false;
    assert_eq!(told(&story), off("Policy"));
    story.assignment.policy = None;
    assert_eq!(told(&story), off("NoPolicy"));
    story.programs.as_mut().expect("they are there").loaded = Err("BPF is not permitted");
    assert_eq!(
        told(&story),
        (
            Encapsulation::Kernel,
            Bypass::Off,
            Some("NoPrograms".to_owned()),
            false
        )
    );
}

#[test]
fn a_device_that_cannot_be_opened_says_why_and_what_to_do() {
    let lanes = [Lane::Native, Lane::Tunnel(VXLAN)];
    let mut story = Story::new(RoutingMode::Tunnel, &lanes, &lanes);
    let why = "UDP port 8472 is already in use by another socket: stop that, or …";
    story.unavailable.insert(VXLAN.device(), why.to_owned());
    let status = story.status(&RoutingNodeStatus::default(), 1);
    let (ready, reason, message) = said(&status, "Ready");
    assert_eq!((ready, reason), ("False", "NoDevice"));
    assert!(message.contains(why), "{message}");
    assert_eq!(
        said(&status, "Progressing").0,
        "False",
        "nothing goes on by itself"
    );
}

#[test]
fn a_lane_counts_as_used_while_the_kernel_still_sends_on_it() {
    let lanes = [Lane::Native, Lane::Tunnel(VXLAN)];
    let story = Story::new(RoutingMode::Native, &lanes, &lanes);
    let mut outcome = story.outcome();
    outcome.sends_on.insert(Lane::Tunnel(VXLAN));
    let subject = Subject {
        instance: None,
        assignment: Some(&story.assignment),
        generation: Some(7),
        unreadable: &story.unreadable,
        connected: None,
        programs: None,
    };
    let status = status(subject, Some(Ok(&outcome)), &RoutingNodeStatus::default(), &at(1));
    assert_eq!(status.sends_on, ["native", "vxlan:8472:1"]);
}

#[test]
fn operations_and_objects_that_failed_are_named() {
    let mut story = Story::new(RoutingMode::Tunnel, &[Lane::Native], &[Lane::Native]);
    story.unfinished = (0..7)
        .map(|number| Unfinished {
            what: format!("add route 10.0.{number}.0/24"),
            why: "no (EPERM)".to_owned(),
        })
        .collect();
    story
        .unreadable
        .insert("PeerSlice peers-3".to_owned(), "spec.peers: no list".to_owned());
    let status = story.status(&RoutingNodeStatus::default(), 1);
    let (ready, reason, message) = said(&status, "Ready");
    assert_eq!((ready, reason), ("False", "NotApplied"));
    assert!(
        message.contains("7 operations had no effect: add route 10.0.0.0/24: no (EPERM)"),
        "{message}"
    );
    assert!(
        message.contains("PeerSlice peers-3 (spec.peers: no list)"),
        "{message}"
    );
}

#[test]
fn without_a_policy_there_is_nothing_to_be_ready_for() {
    let mut story = Story::new(RoutingMode::Native, &[], &[Lane::Native]);
    story.assignment.policy = None;
    assert_eq!(
        said(&story.status(&RoutingNodeStatus::default(), 1), "Ready").1,
        "NoPolicy"
    );

    // A peer that no policy governs does not keep this node from being ready.
    let mut story = Story::new(RoutingMode::Native, &[Lane::Native], &[Lane::Native]);
    story.peers.get_mut("k8s-w0").expect("it is there").policy = None;
    let status = story.status(&RoutingNodeStatus::default(), 1);
    assert_eq!(said(&status, "Ready").0, "True");
    assert_eq!(status.lanes.as_deref(), Some("1 native, 1 refused"));
}

#[test]
fn a_kernel_that_cannot_be_read_leaves_what_was_said_of_it() {
    let story = Story::new(RoutingMode::Native, &[Lane::Native], &[Lane::Native]);
    let before = story.status(&RoutingNodeStatus::default(), 1);
    let subject = Subject {
        instance: None,
        assignment: Some(&story.assignment),
        generation: Some(8),
        unreadable: &story.unreadable,
        connected: None,
        programs: None,
    };
    let after = status(
        subject,
        Some(Err("netlink socket, recv: ENOBUFS")),
        &before,
        &at(2),
    );
    assert_eq!((&after.peers, &after.sends_on), (&before.peers, &before.sends_on));
    assert_eq!(said(&after, "Ready").1, "KernelUnreadable");
}

#[test]
fn the_operators_condition_is_not_ours() {
    let story = Story::new(RoutingMode::Native, &[Lane::Native], &[Lane::Native]);
    let ours = story.status(&RoutingNodeStatus::default(), 1);
    let mut held = ours.clone();
    set_condition(
        &mut held.conditions,
        condition(ConditionType::Accepted, true, "Accepted", "", Some(1), &at(1)),
    );
    assert_eq!(own_part(&held), ours);
    assert_eq!(story.status(&held, 9), ours, "nothing has changed");
}

#[test]
fn a_clean_node_says_so_and_nothing_of_lanes_and_a_routed_one_nothing_of_cleaning() {
    let now = |second| Time(k8s_openapi::jiff::Timestamp::from_second(second).expect("a time"));
    let pod_network = condition(
        ConditionType::PodNetwork,
        true,
        "Configured",
        "",
        Some(1),
        &now(1),
    );
    let before = RoutingNodeStatus {
        conditions: vec![pod_network],
        receives_on: vec!["native".to_owned()],
        lanes: Some("2 native".to_owned()),
        ..RoutingNodeStatus::default()
    };
    let said = |status: &RoutingNodeStatus| -> Vec<String> {
        let conditions = status.conditions.iter();
        conditions
            .map(|it| format!("{}={} {}: {}", it.type_, it.status, it.reason, it.message))
            .collect()
    };
    let left = cleaned(
        &Err(anyhow::anyhow!("2 of Podlane's items are still in the kernel")),
        Some(4),
        Some("u"),
        &before,
        &now(2),
    );
    assert_eq!(
        said(&left)[0],
        "Cleaned=False ItemsLeft: 2 of Podlane's items are still in the kernel"
    );
    let clean = cleaned(&Ok(()), Some(4), Some("u"), &left, &now(3));
    assert_eq!(
        said(&clean),
        [
            "Cleaned=True Cleaned: nothing of Podlane's is on this node",
            "Progressing=False Settled: no lane is being opened or moved to",
            "Ready=False Uninstalled: Podlane is being uninstalled",
        ]
    );
    assert_eq!(
        (clean.observed_generation, clean.lanes.as_deref()),
        (Some(4), None)
    );
    assert!(clean.receives_on.is_empty());
    let subject = Subject {
        instance: None,
        assignment: None,
        generation: Some(5),
        unreadable: &BTreeMap::new(),
        connected: None,
        programs: None,
    };
    let routed = status(subject, None, &clean, &now(4));
    assert!(
        !said(&routed).iter().any(|said| said.starts_with("Cleaned")),
        "{routed:?}"
    );
}
