//! Nodes that come and change under traffic: another address, and one more node.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use podlane_e2e::control_plane::node_object;
use podlane_e2e::lab::{Lab, Options};
use podlane_e2e::probe::ping;
use podlane_e2e::scenario::{Context, Scenario, run};
use podlane_e2e::story::{
    apply, ensure_none_lost, in_both_directions, native_and_vxlan, vxlan, wait_until_ready,
};
use podlane_e2e::topology::Topology;
use podlane_e2e::traffic::Stream;
use podlane_e2e::wait::wait_until;
use serde_json::json;

/// Milliseconds. Not what is wanted, but what a machine with other things to do keeps, too.
const FAR_TOO_LONG: u64 = 15_000;

/// The node that joins later, on the link of k8s-ctr and k8s-w1.
const LATER: &str = "k8s-w2";

fn main() -> ExitCode {
    let mut topology = Topology::seed(1);
    topology.add_node(
        LATER,
        "link1",
        "192.168.10.102/24".parse().expect("an address"),
        1,
    );
    run(
        Options {
            topology,
            ..Options::named("nodes")
        },
        [
            Scenario::new(
                "a node that joins under traffic is reached, and no packet between the others is lost",
                joins,
            ),
            Scenario::new(
                "a node that changes its address is reached at the new one",
                another_address,
            ),
        ],
    )
}

/// Streams of numbered packets between the pods of three nodes, which all were there before.
fn streams(lab: &Lab, between: &[&str]) -> Result<Vec<(String, Stream)>> {
    in_both_directions(between, |from, to| Stream::start(lab, from, to, 500))
}

fn joins(context: &mut Context) -> Result<()> {
    let lab = context.lab()?;
    let node = lab.topology().node(LATER).context("no such node")?.clone();
    lab.kubectl()?.run(&["delete", "node", LATER])?;
    lab.agent(LATER)?.kill()?;
    lab.clean_agent(LATER)?;
    apply(lab, &native_and_vxlan())?;
    wait_until_ready(lab)?;
    let pods = ["pod-ctr-1", "pod-w1-1", "pod-w0-1"];
    let flowing = streams(lab, &pods)?;
    let start = Instant::now();
    lab.kubectl()?.create(&node_object(&node).to_string())?;
    lab.agent(LATER)?.restart()?;
    let address = lab.pod_address("pod-w2-1")?;
    for from in pods {
        wait_until(
            &format!("an answer from {address}"),
            Duration::from_secs(30),
            || {
                let report = ping(lab, from, address, 1)?;
                ensure!(report.all_answered(), "{report:?}");
                Ok(())
            },
        )?;
    }
    tell(&format!(
        "figure: a node that joins is reached from all others after {:.1} s",
        start.elapsed().as_secs_f64()
    ));
    wait_until_ready(lab)?;
    ensure_none_lost(flowing)
}

/// As when a lease of its address ends: the old one is gone when the new one is there, and its Node object says so.
fn another_address(context: &mut Context) -> Result<()> {
    for (lane, spec) in [("tunnel", vxlan()), ("native and tunnel", native_and_vxlan())] {
        let lab = context.lab()?;
        apply(lab, &spec)?;
        wait_until_ready(lab)?;
        let [old, new] = if lane == "tunnel" {
            ["101", "111"]
        } else {
            ["111", "101"]
        };
        let others = streams(lab, &["pod-ctr-1", "pod-w0-1"])?;
        let touched = streams(lab, &["pod-w1-1", "pod-ctr-1"])?;
        let across = streams(lab, &["pod-w1-1", "pod-w0-1"])?;
        let node = lab.namespace("k8s-w1");
        // Else the kernel takes the second addresses of a network with its first.
        node.set_parameters(&[("ipv4/conf/eth0/promote_secondaries", "1")])?;
        node.ip_batch(&[
            format!("address add 192.168.10.{new}/24 dev eth0"),
            format!("address del 192.168.10.{old}/24 dev eth0"),
        ])?;
        let addresses = json!({ "status": { "addresses": [
            { "type": "InternalIP", "address": format!("192.168.10.{new}") },
            { "type": "Hostname", "address": "k8s-w1" },
        ] } });
        lab.kubectl()?.run(&[
            "patch",
            "node",
            "k8s-w1",
            "--subresource=status",
            "--type=merge",
            "--patch",
            &addresses.to_string(),
        ])?;
        let address = lab.pod_address("pod-w1-1")?;
        for from in ["pod-ctr-1", "pod-w0-1"] {
            wait_until(
                &format!("an answer from {address}"),
                Duration::from_secs(30),
                || {
                    let report = ping(lab, from, address, 1)?;
                    ensure!(report.all_answered(), "{from}: {report:?}");
                    Ok(())
                },
            )?;
        }
        wait_until_ready(lab)?;
        let mut longest = 0;
        for (direction, stream) in touched.into_iter().chain(across) {
            let report = stream.finish()?;
            // Numbers follow each other at 500 a second: so many in a row are that long an outage.
            let outage = report
                .lost_ranges
                .iter()
                .map(|range| range.last - range.first + 1)
                .max()
                .unwrap_or(0)
                * 2;
            longest = longest.max(outage);
            tell(&format!(
                "{lane}, {direction}: {} of {} lost, longest outage {outage} ms",
                report.lost, report.sent
            ));
        }
        tell(&format!(
            "figure: {lane}: back {longest} ms after a node's address changed; wanted: 2000 ms"
        ));
        ensure!(longest < FAR_TOO_LONG, "an outage of {longest} ms");
        ensure_none_lost(others)?;
    }
    Ok(())
}

#[allow(clippy::print_stderr, reason = "a test program speaks on standard error")]
fn tell(words: &str) {
    eprintln!("{words}");
}
