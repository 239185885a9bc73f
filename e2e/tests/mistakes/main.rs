//! What is wrong is named, and the last good state stays in force.

mod kernel;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use podlane_e2e::lab::{Lab, Options};
use podlane_e2e::scenario::{Context, Scenario, run};
use podlane_e2e::story::{
    ENDS_WITHIN, LED_AGAIN_WITHIN, POLICY, SETTLED_WITHIN, apply, condition, ensure_all_answer,
    native_and_vxlan, policy, vxlan, wait_for_condition, wait_until_ready, way,
};
use podlane_e2e::traffic::Stream;
use podlane_e2e::wait::{pause, wait_until};
use serde_json::{Value, json};

fn main() -> ExitCode {
    run(
        Options::named("mistakes"),
        [
            Scenario::new(
                "two policies of equal rank: both are named, nodes keep what they had",
                tied,
            ),
            Scenario::new(
                "of two nodes with overlapping pod CIDRs the older keeps its own",
                overlap,
            ),
            Scenario::new("a pod CIDR over a node's address is not routed", covers_node),
            Scenario::new("a node without pod CIDR or InternalIP is named", bare_node),
            Scenario::new("a node that loses its InternalIP keeps its lanes", lost_address),
            Scenario::new(
                "a foreign route in the place of ours is named and left",
                kernel::foreign_route,
            ),
            Scenario::new(
                "a foreign device with our name is named and left",
                kernel::foreign_device,
            ),
            Scenario::new(
                "a UDP socket on the tunnel's port is named, and the lane opens when it goes",
                kernel::foreign_socket,
            ),
            Scenario::new(
                "a kernel without the protocol's driver needs programs for it, and says so where there are none",
                kernel::no_driver,
            ),
            Scenario::new(
                "a policy that cannot be read is named, the others work",
                undecodable_policy,
            ),
            Scenario::new(
                "a slice that cannot be read is named, its last good version stays",
                undecodable_slice,
            ),
        ],
    )
}

fn ready_lab(context: &mut Context) -> Result<&mut Lab> {
    let lab = context.lab()?;
    apply(lab, &vxlan())?;
    wait_until_ready(lab)?;
    Ok(lab)
}

fn node(name: &str, address: Option<&str>, pod_cidr: Option<&str>) -> String {
    let addresses: Vec<Value> = address
        .into_iter()
        .map(|address| json!({"type": "InternalIP", "address": address}))
        .collect();
    let spec = pod_cidr.map_or(json!({}), |cidr| json!({"podCIDR": cidr, "podCIDRs": [cidr]}));
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "spec": spec,
        "status": {"addresses": addresses}})
    .to_string()
}

fn tied(context: &mut Context) -> Result<()> {
    let lab = ready_lab(context)?;
    let kubectl = lab.kubectl()?.clone();
    // An operator that saw one before the other would have nodes go by that one.
    lab.operator()?.stop(ENDS_WITHIN)?;
    // Rank is priority, then age in whole seconds: made until two share one.
    let mut equal = false;
    for _ in 0..10 {
        let mut spec = native_and_vxlan();
        spec["priority"] = json!(5);
        let both = json!({"apiVersion": "v1", "kind": "List", "items": [policy("tie-a", &spec), policy("tie-b", &spec)]});
        kubectl.create(&both.to_string())?;
        let made = |name| {
            Ok::<_, anyhow::Error>(kubectl.get(&["rp", name])?["metadata"]["creationTimestamp"].clone())
        };
        equal = made("tie-a")? == made("tie-b")?;
        if equal {
            break;
        }
        kubectl.run(&["delete", "rp", "tie-a", "tie-b"])?;
    }
    ensure!(equal, "no two policies of one second in ten attempts");
    lab.operator()?.restart()?;
    for (one, other) in [("tie-a", "tie-b"), ("tie-b", "tie-a")] {
        let message = wait_for_condition(lab, "routingpolicy", one, "Accepted", "False", "TiedRank")?;
        ensure!(message.contains(other) && message.contains("k8s-"), "{message}");
    }
    for node in ["k8s-ctr", "k8s-w1", "k8s-w0"] {
        let told = kubectl.get(&["routingnode", node])?;
        ensure!(
            told["spec"]["policy"]["name"] == POLICY,
            "{node} is governed by {}",
            told["spec"]["policy"]
        );
    }
    ensure!(
        way(lab, "k8s-ctr", "172.20.1.0/24")? == "encap 192.168.10.101",
        "the lane has changed"
    );
    kubectl.run(&["delete", "rp", "tie-a", "tie-b"])?;
    wait_until_ready(lab)
}

/// Adds a Node, waits for what is said of it, looks that the lanes are as before, and takes it away.
fn with_bad_node(
    context: &mut Context,
    manifest: &str,
    name: &str,
    reason: &str,
    named: &[&str],
) -> Result<()> {
    let lab = ready_lab(context)?;
    let kubectl = lab.kubectl()?;
    kubectl.create(manifest)?;
    let result = wait_for_condition(lab, "routingnode", name, "Accepted", "False", reason)
        .and_then(|message| {
            ensure!(
                named.iter().all(|word| message.contains(word)),
                "{named:?} are not in: {message}"
            );
            let message = wait_for_condition(lab, "routingpolicy", POLICY, "Ready", "False", reason)?;
            ensure!(message.contains(name), "{name} is not in: {message}");
            ensure_all_answer(lab)
        })
        .and_then(|()| {
            for (peer, cidr) in [
                ("encap 192.168.10.101", "172.20.1.0/24"),
                ("encap 192.168.20.100", "172.20.2.0/24"),
            ] {
                let is = way(lab, "k8s-ctr", cidr)?;
                ensure!(is == peer, "k8s-ctr reaches {cidr} by {is}");
            }
            Ok(())
        });
    kubectl.run(&["delete", "node", name])?;
    result?;
    wait_until(
        &format!("the RoutingNode of {name} to go"),
        SETTLED_WITHIN,
        || {
            ensure!(kubectl.run(&["get", "routingnode", name]).is_err(), "it is there");
            Ok(())
        },
    )?;
    wait_until_ready(lab)
}

fn overlap(context: &mut Context) -> Result<()> {
    // Younger than the others by at least a second.
    pause(Duration::from_millis(1100))?;
    let late = node("k8s-late", Some("192.168.10.150"), Some("172.20.1.128/25"));
    with_bad_node(
        context,
        &late,
        "k8s-late",
        "PodCIDROverlap",
        &["172.20.1.128/25", "172.20.1.0/24", "k8s-w1"],
    )
}

fn covers_node(context: &mut Context) -> Result<()> {
    let odd = node("k8s-odd", Some("192.168.10.151"), Some("192.168.20.0/24"));
    with_bad_node(
        context,
        &odd,
        "k8s-odd",
        "PodCIDRCoversNode",
        &["192.168.20.0/24", "192.168.20.100", "k8s-w0"],
    )
}

fn bare_node(context: &mut Context) -> Result<()> {
    with_bad_node(
        context,
        &node("k8s-bare", Some("192.168.10.152"), None),
        "k8s-bare",
        "NoPodCIDR",
        &["spec.podCIDR"],
    )?;
    with_bad_node(
        context,
        &node("k8s-nowhere", None, Some("172.20.9.0/24")),
        "k8s-nowhere",
        "NoInternalIP",
        &["--node-ip"],
    )
}

fn lost_address(context: &mut Context) -> Result<()> {
    let lab = ready_lab(context)?;
    let kubectl = lab.kubectl()?;
    let stream = Stream::start(lab, "pod-ctr-1", "pod-w0-1", 500)?;
    let set = |addresses: Value| {
        let patch = json!({"status": {"addresses": addresses}}).to_string();
        kubectl.run(&[
            "patch",
            "node",
            "k8s-w0",
            "--subresource=status",
            "--type=merge",
            "-p",
            &patch,
        ])
    };
    set(json!([{"type": "Hostname", "address": "k8s-w0"}]))?;
    wait_for_condition(lab, "routingnode", "k8s-w0", "Accepted", "False", "NoInternalIP")?;
    ensure!(
        way(lab, "k8s-ctr", "172.20.2.0/24")? == "encap 192.168.20.100",
        "the lane has changed"
    );
    set(
        json!([{"type": "InternalIP", "address": "192.168.20.100"}, {"type": "Hostname", "address": "k8s-w0"}]),
    )?;
    wait_until_ready(lab)?;
    let report = stream.finish()?;
    ensure!(report.lost == 0 && report.duplicated == 0, "{report:?}");
    Ok(())
}

/// Lets the API server take anything as an object's spec, as an older or a broken definition would.
fn with_any_spec(lab: &Lab, plural: &str, then: impl FnOnce() -> Result<()>) -> Result<()> {
    let kubectl = lab.kubectl()?;
    let name = format!("{plural}.podlane.io");
    let crd = kubectl.get(&["crd", &name])?;
    let anything = json!([{"op": "replace", "path": "/spec/versions/0/schema/openAPIV3Schema", "value":
        {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}]);
    kubectl.run(&["patch", "crd", &name, "--type=json", "-p", &anything.to_string()])?;
    // The API server takes a moment to serve by the new definition.
    wait_until("the API server to take anything", SETTLED_WITHIN, || {
        takes_anything(lab, &crd)
    })?;
    let result = then();
    let schema = json!([{"op": "replace", "path": "/spec/versions/0/schema/openAPIV3Schema",
        "value": crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]}]);
    kubectl.run(&["patch", "crd", &name, "--type=json", "-p", &schema.to_string()])?;
    wait_until(
        "the API server to look again at what it takes",
        SETTLED_WITHIN,
        || {
            ensure!(takes_anything(lab, &crd).is_err(), "it takes anything");
            Ok(())
        },
    )?;
    result
}

/// An error where the API server refuses an object with a spec that is none.
fn takes_anything(lab: &Lab, crd: &Value) -> Result<()> {
    let version = &crd["spec"]["versions"][0]["name"];
    let object = json!({
        "apiVersion": format!("podlane.io/{}", version.as_str().unwrap_or_default()),
        "kind": crd["spec"]["names"]["kind"],
        "metadata": {"name": "anything"},
        "spec": {"peers": "gone", "routingMode": {}},
    });
    lab.kubectl()?
        .run_with_input(&["create", "--dry-run=server", "-f", "-"], &object.to_string())
        .map(drop)
}

fn undecodable_policy(context: &mut Context) -> Result<()> {
    let lab = ready_lab(context)?;
    with_any_spec(lab, "routingpolicies", || {
        let kubectl = lab.kubectl()?;
        kubectl.create(&policy("odd", &json!({"routingMode": 7, "priority": 9})).to_string())?;
        let message = wait_for_condition(lab, "routingpolicy", "odd", "Accepted", "False", "Unreadable")?;
        ensure!(message.contains("cannot be read"), "{message}");
        ensure!(
            condition(lab, "routingpolicy", POLICY, "Ready")?.0 == "True",
            "the other policy is not ready"
        );

        // A policy in force that becomes unreadable stays in force as it was, also after the operator started anew.
        let patch = json!({"spec": {"tunnel": {"port": "many"}}}).to_string();
        kubectl.run(&["patch", "routingpolicy", POLICY, "--type=merge", "-p", &patch])?;
        wait_for_condition(lab, "routingpolicy", POLICY, "Accepted", "False", "Unreadable")?;
        ensure!(
            way(lab, "k8s-ctr", "172.20.2.0/24")? == "encap 192.168.20.100",
            "the lane has changed"
        );
        Ok(())
    })?;
    lab.operator()?.kill()?;
    lab.operator()?.restart()?;
    pause(Duration::from_secs(3))?;
    ensure!(
        way(lab, "k8s-ctr", "172.20.2.0/24")? == "encap 192.168.20.100",
        "the lane has changed"
    );
    lab.kubectl()?.run(&["delete", "routingpolicy", "odd"])?;
    apply(lab, &vxlan())?;
    wait_until("the policy to be ready", LED_AGAIN_WITHIN, || {
        wait_until_ready(lab)
    })
}

fn undecodable_slice(context: &mut Context) -> Result<()> {
    let lab = ready_lab(context)?;
    lab.operator()?.freeze()?;
    let slices = lab.kubectl()?.get(&["peerslices"])?;
    let Some(name) = slices["items"][0]["metadata"]["name"].as_str() else {
        bail!("no slice: {slices}")
    };
    let result = with_any_spec(lab, "peerslices", || {
        let kubectl = lab.kubectl()?;
        let broken = json!({"spec": {"peers": "gone"}}).to_string();
        kubectl.run(&["patch", "peerslice", name, "--type=merge", "-p", &broken])?;
        wait_until("the agent of k8s-ctr to name the slice", SETTLED_WITHIN, || {
            let (_, reason, message) = condition(lab, "routingnode", "k8s-ctr", "Ready")?;
            ensure!(
                message.contains(name) && message.contains("cannot be read"),
                "{reason}: {message}"
            );
            Ok(())
        })?;
        ensure!(
            way(lab, "k8s-ctr", "172.20.2.0/24")? == "encap 192.168.20.100",
            "the lane has changed"
        );
        ensure_all_answer(lab)
    });
    lab.operator()?.thaw()?;
    result?;
    // The operator writes the slice anew.
    wait_until_ready(lab)
}
