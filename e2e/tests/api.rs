//! What the API server refuses and explains, before any of Podlane's programs sees it.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use podlane_e2e::lab::{Extent, Options};
use podlane_e2e::scenario::{Context, Scenario, run};
use podlane_e2e::wait::wait_until;
use serde_json::{Value, json};

fn main() -> ExitCode {
    let options = Options {
        extent: Extent::Types,
        ..Options::named("api")
    };
    run(
        options,
        [
            Scenario::new(
                "a value that makes no sense is refused with its field's name",
                refused,
            ),
            Scenario::new("values at their bounds are taken, and defaults filled in", taken),
            Scenario::new("an agent's answer has bounds", bounded),
            Scenario::new("kubectl explain tells what the fields mean", explained),
            Scenario::new(
                "an agent's identity writes its status and nothing else",
                agents_rights,
            ),
            Scenario::new("an agent speaks for its own node only", own_node_only),
        ],
    )
}

fn policy(spec: &Value) -> Value {
    json!({"apiVersion": "podlane.io/v1alpha1", "kind": "RoutingPolicy", "metadata": {"name": "probe"}, "spec": spec})
}

fn refused(context: &mut Context) -> Result<()> {
    let kubectl = context.lab()?.kubectl()?;
    let tunnel = |tunnel: Value| json!({"routingMode": "tunnel", "tunnel": tunnel});
    for (spec, field) in [
        (json!({}), "spec.routingMode: Required"),
        (json!({"routingMode": "bridge"}), "spec.routingMode"),
        (
            json!({"routingMode": "native", "offLinkPeers": "leak"}),
            "spec.offLinkPeers",
        ),
        (json!({"routingMode": "native", "routes": []}), "spec.routes"),
        (tunnel(json!({"protocol": "gre"})), "spec.tunnel.protocol"),
        (tunnel(json!({"port": 0})), "spec.tunnel.port"),
        (tunnel(json!({"port": 65536})), "spec.tunnel.port"),
        (tunnel(json!({"port": "8472"})), "spec.tunnel.port"),
        (tunnel(json!({"vni": -1})), "spec.tunnel.vni"),
        (tunnel(json!({"vni": 16_777_216})), "spec.tunnel.vni"),
        (json!({"routingMode": "native", "mtu": 575}), "spec.mtu"),
        (json!({"routingMode": "native", "mtu": 65536}), "spec.mtu"),
        (
            json!({"routingMode": "native", "mtu": 1279, "nativeRoutingCIDRs": ["fd00:20::/48"]}),
            "spec.mtu",
        ),
        (
            json!({"routingMode": "native", "nativeRoutingCIDRs": ["172.20.0.0"]}),
            "spec.nativeRoutingCIDRs",
        ),
        (
            json!({"routingMode": "native", "nativeRoutingCIDRs": ["172.20.1.0/16"]}),
            "spec.nativeRoutingCIDRs",
        ),
        (
            json!({"routingMode": "native", "nativeRoutingCIDRs": ["pods"]}),
            "spec.nativeRoutingCIDRs",
        ),
        (
            json!({"routingMode": "native", "datapath": {"bypass": "Always"}}),
            "spec.datapath.bypass",
        ),
        (
            json!({"routingMode": "native", "datapath": {"dscp": 64}}),
            "spec.datapath.dscp",
        ),
        (
            json!({"routingMode": "native", "datapath": {"dscp": -1}}),
            "spec.datapath.dscp",
        ),
        (
            json!({"routingMode": "native", "datapath": {"dscp": "46"}}),
            "spec.datapath.dscp",
        ),
        (
            json!({"routingMode": "native", "datapath": {"lease": 1}}),
            "spec.datapath.lease",
        ),
        (
            json!({"routingMode": "native",
                "nodeSelector": {"matchExpressions": [{"key": "zone", "operator": "Near", "values": ["a"]}]}}),
            "spec.nodeSelector",
        ),
    ] {
        match kubectl.create(&policy(&spec).to_string()) {
            Ok(_) => {
                kubectl.run(&["delete", "routingpolicy", "probe"])?;
                bail!("taken: {spec}");
            }
            Err(error) => {
                let words = format!("{error:#}");
                ensure!(
                    words.contains(field),
                    "refused, but without the name {field}: {words}"
                );
            }
        }
    }
    Ok(())
}

fn taken(context: &mut Context) -> Result<()> {
    let kubectl = context.lab()?.kubectl()?;
    for spec in [
        json!({"routingMode": "native"}),
        json!({"routingMode": "native", "mtu": 576}),
        json!({"routingMode": "tunnel", "mtu": 1280, "nativeRoutingCIDRs": ["172.20.0.0/16", "fd00:20::/48"]}),
        json!({"routingMode": "tunnel", "tunnel": {"protocol": "geneve", "port": 65535, "vni": 16_777_215}}),
        json!({"routingMode": "tunnel", "tunnel": {"port": 1, "vni": 0}}),
        json!({"routingMode": "tunnel", "datapath": {"dscp": 63}}),
        json!({"routingMode": "tunnel", "datapath": {"bypass": "Off", "dscp": 0}}),
        json!({"routingMode": "native", "nodeSelector": {"matchLabels": {"zone": "a"}}, "priority": -3}),
    ] {
        kubectl
            .create(&policy(&spec).to_string())
            .with_context(|| spec.to_string())?;
        let stored = kubectl.get(&["routingpolicy", "probe"])?;
        kubectl.run(&["delete", "routingpolicy", "probe"])?;
        ensure!(stored["spec"]["offLinkPeers"] == "refuse", "no default: {stored}");
        ensure!(
            stored["spec"]["autoDirectNodeRoutes"] == true,
            "no default: {stored}"
        );
        if let Some(datapath) = stored["spec"].get("datapath") {
            ensure!(
                datapath["bypass"].is_string() && datapath["dscp"].is_u64(),
                "no default: {stored}"
            );
        }
    }
    Ok(())
}

/// What an agent answers has bounds too: a status is read by every other part.
fn bounded(context: &mut Context) -> Result<()> {
    let kubectl = context.lab()?.kubectl()?;
    let object = json!({"apiVersion": "podlane.io/v1alpha1", "kind": "RoutingNode", "metadata": {"name": "bounded"}, "spec": {}});
    kubectl.create(&object.to_string())?;
    let patch = |status: &Value| {
        let patch = json!({"status": status}).to_string();
        let words = [
            "patch",
            "routingnode",
            "bounded",
            "--subresource=status",
            "--type=merge",
            "-p",
        ];
        kubectl.run(&[words.as_slice(), &[patch.as_str()]].concat())
    };
    let dropped = |count: usize, packets: i64| {
        let one = json!({"lane": "vxlan:8472:1", "reason": "NoPeer", "packets": packets});
        json!({"dropped": vec![one; count]})
    };
    for (status, field) in [
        (json!({"probeKey": "0".repeat(31)}), "status.probeKey"),
        (json!({"probeKey": "0".repeat(33)}), "status.probeKey"),
        (json!({"probeKey": "G".repeat(32)}), "status.probeKey"),
        (
            json!({"datapath": {"encapsulation": "XDP", "bypass": "On"}}),
            "status.datapath.encapsulation",
        ),
        (
            json!({"datapath": {"encapsulation": "eBPF", "bypass": "Auto"}}),
            "status.datapath.bypass",
        ),
        (
            json!({"datapath": {"bypass": "On"}}),
            "status.datapath.encapsulation",
        ),
        (
            json!({"probes": {"worstLossPercent": 101}}),
            "status.probes.worstLossPercent",
        ),
        (json!({"probes": {"silent": -1}}), "status.probes.silent"),
        (dropped(1, -1), "status.dropped[0].packets"),
        (dropped(65, 1), "status.dropped"),
    ] {
        match patch(&status) {
            Ok(_) => bail!("taken: {status}"),
            Err(error) => {
                let words = format!("{error:#}");
                ensure!(
                    words.contains(field),
                    "refused, but without the name {field}: {words}"
                );
            }
        }
    }
    let mut good = dropped(64, i64::MAX);
    good["probeKey"] = "0123456789abcdef0123456789abcdef".into();
    good["datapath"] = json!({"encapsulation": "eBPF", "bypass": "Off", "reason": "Policy", "message": "m", "programs": "h"});
    good["probes"] =
        json!({"probed": 2, "answering": 2, "worstRoundTripMicroseconds": 310, "worstLossPercent": 100});
    patch(&good).context("values at their bounds")?;
    kubectl.run(&["delete", "routingnode", "bounded"])?;
    Ok(())
}

fn explained(context: &mut Context) -> Result<()> {
    let kubectl = context.lab()?.kubectl()?;
    for (what, words) in [
        ("rp.spec.offLinkPeers", "behind a gateway"),
        (
            "routingpolicy.spec.tunnel.port",
            "8472 for vxlan, 6081 for geneve",
        ),
        ("routingpolicy.spec.mtu", "in bytes"),
        ("routingpolicy.spec.datapath.dscp", "outer headers"),
        ("routingnode.status.probes.silent", "no probe is answered"),
        ("routingnode.status.peers.reason", "not reached as declared"),
        ("peerslice.spec.peers.receivesOn", "lanes on which it receives"),
    ] {
        let text = kubectl.run(&["explain", what])?;
        let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
        ensure!(
            flat.contains(words),
            "kubectl explain {what} does not say {words:?}: {text}"
        );
    }
    // Every field of what a user writes has a description.
    let text = kubectl.run(&["explain", "routingpolicy.spec", "--recursive"])?;
    ensure!(text.contains("autoDirectNodeRoutes"), "{text}");
    Ok(())
}

fn agents_rights(context: &mut Context) -> Result<()> {
    let kubectl = context.lab()?.kubectl()?;
    for (verb, what, allowed) in [
        ("watch", "peerslices.podlane.io", "yes"),
        ("list", "routingnodes.podlane.io", "yes"),
        ("patch", "routingnodes.podlane.io/status", "yes"),
        ("patch", "routingnodes.podlane.io", "no"),
        ("delete", "routingnodes.podlane.io", "no"),
        ("create", "peerslices.podlane.io", "no"),
        ("get", "secrets", "no"),
        ("list", "nodes", "no"),
        ("patch", "routingpolicies.podlane.io", "no"),
    ] {
        let (resource, subresource) = what.split_once('/').unwrap_or((what, ""));
        let subresource = format!("--subresource={subresource}");
        let who = ["--as", "podlane-agent:k8s-w0", "--as-group", "podlane:agents"];
        let question = ["auth", "can-i", verb, resource, &subresource];
        // Where the answer is no, kubectl says so on standard output, nothing on standard error, and ends with 1.
        let answer = match kubectl.run(&[question.as_slice(), &who].concat()) {
            Ok(text) => text.trim().to_owned(),
            Err(error) => {
                let words = format!("{error:#}");
                let complaint = words.lines().find(|line| line.contains("rror"));
                ensure!(complaint.is_none(), "{words}");
                "no".to_owned()
            }
        };
        ensure!(answer == allowed, "can an agent {verb} {what}? {answer}");
    }
    Ok(())
}

fn own_node_only(context: &mut Context) -> Result<()> {
    let kubectl = context.lab()?.kubectl()?;
    for node in ["k8s-w0", "k8s-w1"] {
        let object = json!({"apiVersion": "podlane.io/v1alpha1", "kind": "RoutingNode", "metadata": {"name": node}, "spec": {}});
        kubectl.create(&object.to_string())?;
    }
    let who = [
        "--as",
        "podlane-agent:k8s-w0",
        "--as-group",
        "podlane:agents",
        "--as-group",
        "system:authenticated",
    ];
    // As an agent writes it: without reading it first, to which it has no right.
    let patch = |node: &str| {
        let object = json!({"apiVersion": "podlane.io/v1alpha1", "kind": "RoutingNode", "metadata": {"name": node},
            "status": {"agentVersion": "probe"}});
        let words = [
            "apply",
            "--server-side",
            "--subresource=status",
            "--validate=false",
            "-f",
            "-",
        ];
        kubectl.run_with_input(&[words.as_slice(), &who].concat(), &object.to_string())
    };
    // The policy is in force a moment after it was made.
    let refused = wait_until(
        "the policy to be in force",
        Duration::from_secs(20),
        || match patch("k8s-w1") {
            Ok(answer) => bail!("taken: {answer}"),
            Err(error) => Ok(format!("{error:#}")),
        },
    )?;
    ensure!(
        refused.contains("may not write the status of node k8s-w1"),
        "{refused}"
    );
    patch("k8s-w0").context("its own status")?;
    kubectl.run(&["delete", "routingnode", "k8s-w0", "k8s-w1"])?;
    Ok(())
}
