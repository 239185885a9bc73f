//! The story: the lanes that policies declare, on three nodes' kernels, by what packets do.

use std::process::ExitCode;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use podlane_e2e::capture::{Capture, Pcap};
use podlane_e2e::lab::{Lab, Options};
use podlane_e2e::probe::{ping, ping_with};
use podlane_e2e::scenario::{Context, Scenario, run};
use podlane_e2e::story::{
    POLICY, SETTLED_WITHIN, apply, ensure_all_answer, ensure_none_lost, ensure_refused, native,
    native_and_vxlan, streams_in_all_directions, vxlan, wait_for_condition, wait_until_ready, way,
};
use podlane_e2e::topology::ROUTER;
use podlane_e2e::traffic::Stream;
use podlane_e2e::wait::wait_until;
use serde_json::json;

fn main() -> ExitCode {
    run(
        Options::named("lanes"),
        [
            Scenario::new(
                "native: direct on the link, refused at once across the router, nothing leaks",
                native_lane,
            ),
            Scenario::new(
                "tunnel: every direction by vxlan, decoded on the router",
                tunnel_lane,
            ),
            Scenario::new("native with offLinkPeers: tunnel uses both lanes", both_lanes),
            Scenario::new(
                "what the lane cannot carry is answered with fragmentation needed",
                too_big,
            ),
            Scenario::new(
                "a node reaches pods on other nodes with its own router address",
                from_the_node,
            ),
            Scenario::new(
                "another port and VNI: the old device is closed once nobody sends on it",
                other_port,
            ),
            Scenario::new(
                "native to vxlan and back under traffic loses no packet",
                changes_under_traffic,
            ),
            Scenario::new(
                "offLinkPeers: underlay, by a router that knows the pod CIDRs: from vxlan and back under traffic loses no packet",
                underlay_lane,
            ),
            Scenario::new(
                "a second policy governs the node that its selector names",
                selected_node,
            ),
            Scenario::new(
                "deleting the policy takes everything of ours out of every kernel",
                deleted,
            ),
        ],
    )
}

const NODES: [(&str, &str, &str); 3] = [
    ("k8s-ctr", "192.168.10.100", "172.20.0.0/24"),
    ("k8s-w1", "192.168.10.101", "172.20.1.0/24"),
    ("k8s-w0", "192.168.20.100", "172.20.2.0/24"),
];

fn ensure_ways(lab: &Lab, wanted: impl Fn(&str, &str, &str) -> String) -> Result<()> {
    for (node, _, _) in NODES {
        for (peer, address, cidr) in NODES {
            if node != peer {
                let wanted = wanted(node, peer, address);
                wait_until(
                    &format!("{node} to reach {peer} by {wanted}"),
                    SETTLED_WITHIN,
                    || {
                        let is = way(lab, node, cidr)?;
                        ensure!(is == wanted, "it is {is}");
                        Ok(())
                    },
                )?;
            }
        }
    }
    Ok(())
}

fn native_lane(context: &mut Context) -> Result<()> {
    let lab = context.lab()?;
    apply(lab, &native())?;
    let message = wait_for_condition(lab, "routingpolicy", POLICY, "Ready", "False", "OffLink")?;
    ensure!(
        message.contains("k8s-w0") && message.contains("offLinkPeers"),
        "no advice: {message}"
    );
    let table = lab.kubectl()?.run(&["get", "routingpolicies"])?;
    let line = table
        .lines()
        .find(|line| line.starts_with(POLICY))
        .context("no line")?;
    ensure!(
        line.contains("k8s-w0 is off-link"),
        "kubectl get does not say that k8s-w0 is off-link:\n{table}"
    );
    ensure_ways(lab, |node, peer, address| {
        if node == "k8s-w0" || peer == "k8s-w0" {
            "unreachable".to_owned()
        } else {
            format!("via {address}")
        }
    })?;

    let uplink = Capture::start(lab, "router", "eth0", "net 172.20.0.0/16")?;
    let to_w1 = ping(lab, "pod-ctr-1", lab.pod_address("pod-w1-1")?, 3)?;
    ensure!(to_w1.all_answered(), "{}", to_w1.output);
    let refused = ensure_refused(lab, "pod-ctr-1", lab.pod_address("pod-w0-1")?)?;
    ensure!(
        refused.elapsed.as_millis() < 900,
        "refused only after {:?}",
        refused.elapsed
    );
    ensure_refused(lab, "pod-w0-1", lab.pod_address("pod-w1-1")?)?;
    // A pod that is not there, on this node and on another, and a pod CIDR that no node has.
    for nobody in ["172.20.0.99", "172.20.1.99", "172.20.77.1"] {
        let report = ping(lab, "pod-ctr-1", nobody.parse()?, 2)?;
        ensure!(report.replies == 0, "{nobody} answers: {}", report.output);
    }
    let leaked = uplink.stop()?;
    ensure!(
        leaked.count("")? == 0,
        "packets for pods on the uplink: {:?}",
        leaked.lines("")?
    );
    Ok(())
}

fn tunnel_lane(context: &mut Context) -> Result<()> {
    let lab = context.lab()?;
    apply(lab, &vxlan())?;
    lab.kubectl()?.run(&[
        "wait",
        "--for=condition=Ready",
        "--timeout=20s",
        "routingpolicy",
        POLICY,
    ])?;
    ensure_ways(lab, |_, _, address| format!("encap {address}"))?;
    let router = Capture::start(lab, "router", "eth2", "")?;
    ensure_all_answer(lab)?;
    let seen = router.stop()?;
    // By the inner protocol: nodes' probes are none of it.
    let encapsulated = seen.count("udp dst port 8472 and udp[39] = 1 and host 192.168.20.100")?;
    ensure!(
        encapsulated >= 16,
        "the router saw {encapsulated} encapsulated packets"
    );
    ensure!(
        seen.count("net 172.20.0.0/16")? == 0,
        "plain pod packets on the router: {:?}",
        seen.lines("net 172.20.0.0/16")?
    );
    let pods = lab.pod_address("pod-ctr-1")?.to_string();
    let inside = seen.decode_vxlan(8472, "icmp")?;
    ensure!(
        inside.iter().any(|line| line.contains(&pods)),
        "no pod inside: {inside:?}"
    );
    Ok(())
}

fn both_lanes(context: &mut Context) -> Result<()> {
    let lab = context.lab()?;
    apply(lab, &native_and_vxlan())?;
    wait_until_ready(lab)?;
    ensure_ways(lab, |node, peer, address| {
        let across = node == "k8s-w0" || peer == "k8s-w0";
        if across {
            format!("encap {address}")
        } else {
            format!("via {address}")
        }
    })?;
    ensure_all_answer(lab)
}

fn too_big(context: &mut Context) -> Result<()> {
    let lab = context.lab()?;
    apply(lab, &vxlan())?;
    wait_until_ready(lab)?;
    let to = lab.pod_address("pod-w0-1")?;
    // 20 bytes of IP and 8 of ICMP: 1450 in all.
    let fits = ping_with(lab, "pod-ctr-1", to, 2, &["-M", "do", "-s", "1422"])?;
    ensure!(fits.all_answered(), "1450 bytes do not pass: {}", fits.output);
    let beyond = ping_with(lab, "pod-ctr-1", to, 2, &["-M", "do", "-s", "1423"])?;
    ensure!(beyond.replies == 0, "1451 bytes pass: {}", beyond.output);
    ensure!(
        beyond.output.contains("mtu = 1450") || beyond.output.contains("mtu=1450"),
        "{}",
        beyond.output
    );
    lab.namespace("pod-ctr-1").ip(&["route", "flush", "cache"])?;
    Ok(())
}

fn from_the_node(context: &mut Context) -> Result<()> {
    let lab = context.lab()?;
    apply(lab, &vxlan())?;
    wait_until_ready(lab)?;
    let capture = Capture::start(lab, "pod-w0-1", "eth0", "icmp")?;
    let report = ping(lab, "k8s-ctr", lab.pod_address("pod-w0-1")?, 2)?;
    ensure!(report.all_answered(), "{}", report.output);
    let seen = capture.stop()?;
    ensure!(
        seen.count("src host 172.20.0.1")? >= 2,
        "another source: {:?}",
        seen.lines("")?
    );
    Ok(())
}

fn other_port(context: &mut Context) -> Result<()> {
    let lab = context.lab()?;
    apply(lab, &vxlan())?;
    wait_until_ready(lab)?;
    let stream = Stream::start(lab, "pod-ctr-1", "pod-w0-1", 1000)?;
    apply(
        lab,
        &json!({"routingMode": "tunnel", "tunnel": {"protocol": "vxlan", "port": 4789, "vni": 77}}),
    )?;
    wait_until_ready(lab)?;
    for (node, _, _) in NODES {
        wait_until(
            &format!("{node} to have closed port 8472"),
            SETTLED_WITHIN,
            || {
                let links = lab.namespace(node).ip(&["-br", "link"])?;
                ensure!(
                    links.contains("podlane_vx4789") && !links.contains("podlane_vxlan"),
                    "{links}"
                );
                Ok(())
            },
        )?;
    }
    let report = stream.finish()?;
    ensure!(report.lost == 0 && report.duplicated == 0, "{report:?}");
    ensure_all_answer(lab)
}

/// Six streams, one a direction, through all three policies and back.
fn changes_under_traffic(context: &mut Context) -> Result<()> {
    let lab = context.lab()?;
    apply(lab, &native_and_vxlan())?;
    wait_until_ready(lab)?;
    let streams = streams_in_all_directions(lab, 500)?;
    for spec in [vxlan(), native_and_vxlan(), vxlan(), native_and_vxlan()] {
        apply(lab, &spec)?;
        wait_until_ready(lab)?;
    }
    ensure_none_lost(streams)
}

/// The router has a route to each node's pods, as a network has that learns them by BGP.
fn underlay_lane(context: &mut Context) -> Result<()> {
    let lab = context.lab()?;
    let router = lab.namespace(ROUTER);
    for (_, address, cidr) in NODES {
        router.ip(&["route", "add", cidr, "via", address])?;
    }
    let result = between_vxlan_and_underlay(lab);
    apply(lab, &vxlan()).and_then(|()| wait_until_ready(lab))?;
    for (_, _, cidr) in NODES {
        router.ip(&["route", "delete", cidr])?;
    }
    result
}

fn between_vxlan_and_underlay(lab: &Lab) -> Result<()> {
    let underlay = json!({"routingMode": "native", "offLinkPeers": "underlay"});
    // By the inner protocol: nodes' probes are none of it.
    let wrapped = "udp dst port 8472 and udp[39] = 17";
    let plain = "net 172.20.0.0/16 and udp";
    apply(lab, &vxlan())?;
    wait_until_ready(lab)?;
    let streams = streams_in_all_directions(lab, 500)?;
    for _ in 0..2 {
        apply(lab, &underlay)?;
        wait_until_ready(lab)?;
        ensure_ways(lab, |node, peer, address| match (node, peer) {
            ("k8s-w0", _) => "via 192.168.20.200".to_owned(),
            (_, "k8s-w0") => "via 192.168.10.200".to_owned(),
            _ => format!("via {address}"),
        })?;
        for (node, _, _) in NODES {
            let status = lab.kubectl()?.get(&["routingnode", node])?;
            let sends_on = &status["status"]["sendsOn"];
            let uses_underlay = sends_on
                .as_array()
                .is_some_and(|lanes| lanes.contains(&json!("underlay")));
            ensure!(uses_underlay, "{node} sends on {sends_on}");
        }
        let seen = at_the_router(lab)?;
        ensure!(
            seen.count(plain)? > 100 && seen.count(wrapped)? == 0,
            "of the pods' packets the router saw {} plain and {} wrapped ones",
            seen.count(plain)?,
            seen.count(wrapped)?
        );
        apply(lab, &vxlan())?;
        wait_until_ready(lab)?;
        ensure_ways(lab, |_, _, address| format!("encap {address}"))?;
        let seen = at_the_router(lab)?;
        ensure!(
            seen.count(wrapped)? > 100 && seen.count(plain)? == 0,
            "of the pods' packets the router saw {} wrapped and {} plain ones",
            seen.count(wrapped)?,
            seen.count(plain)?
        );
    }
    ensure_none_lost(streams)
}

/// What passes between the router and k8s-w0 for a while.
fn at_the_router(lab: &Lab) -> Result<Pcap> {
    let router = Capture::start(lab, ROUTER, "eth2", "")?;
    sleep(Duration::from_millis(300));
    router.stop()
}

fn selected_node(context: &mut Context) -> Result<()> {
    let lab = context.lab()?;
    apply(lab, &native())?;
    wait_for_condition(lab, "routingpolicy", POLICY, "Ready", "False", "OffLink")?;
    let mut edge = vxlan();
    edge["priority"] = json!(10);
    edge["nodeSelector"] = json!({"matchLabels": {"kubernetes.io/hostname": "k8s-w0"}});
    lab.kubectl()?
        .create(&podlane_e2e::story::policy("edge", &edge).to_string())?;
    let result = wait_for_condition(lab, "routingpolicy", "edge", "Ready", "True", "AsDeclared")
        .and_then(|_| wait_until_ready(lab))
        .and_then(|()| ensure_all_answer(lab))
        .and_then(|()| {
            ensure_ways(lab, |node, peer, address| {
                let edge = node == "k8s-w0" || peer == "k8s-w0";
                if edge {
                    format!("encap {address}")
                } else {
                    format!("via {address}")
                }
            })
        });
    lab.kubectl()?.run(&["delete", "routingpolicy", "edge"])?;
    result?;
    wait_for_condition(lab, "routingpolicy", POLICY, "Ready", "False", "OffLink").map(drop)
}

fn deleted(context: &mut Context) -> Result<()> {
    let lab = context.lab()?;
    apply(lab, &native_and_vxlan())?;
    wait_until_ready(lab)?;
    lab.kubectl()?.run(&["delete", "routingpolicy", POLICY])?;
    for (node, _, _) in NODES {
        wait_until(&format!("{node} to hold nothing of ours"), SETTLED_WITHIN, || {
            let namespace = lab.namespace(node);
            let ours = namespace.ip(&["route", "show", "table", "all", "proto", "172"])?;
            let links = namespace.ip(&["-br", "link"])?;
            ensure!(
                ours.trim().is_empty() && !links.contains("podlane_"),
                "{ours}{links}"
            );
            Ok(())
        })?;
    }
    Ok(())
}
