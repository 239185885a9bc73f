//! What stands in the way on a node itself.

use anyhow::{Context as _, Result, ensure};
use podlane_e2e::lab::Lab;
use podlane_e2e::probe::ping;
use podlane_e2e::process::{Process, Program};
use podlane_e2e::programs;
use podlane_e2e::scenario::Context;
use podlane_e2e::story::{
    POLICY, SETTLED_WITHIN, apply, ensure_all_answer, vxlan, wait_for_condition, wait_until_ready, way,
};
use podlane_e2e::traffic::Stream;
use podlane_e2e::wait::wait_until;
use serde_json::json;

use super::ready_lab;

/// Takes the policy away, prepares a node, and puts the policy back.
fn after(lab: &Lab, node: &str, preparation: &[&str]) -> Result<()> {
    lab.kubectl()?.run(&["delete", "routingpolicy", POLICY])?;
    wait_until("nothing of ours to be left", SETTLED_WITHIN, || {
        let ours = lab.namespace(node).ip(&["route", "show", "proto", "172"])?;
        let links = lab.namespace(node).ip(&["-br", "link"])?;
        ensure!(
            ours.trim().is_empty() && !links.contains("podlane_"),
            "{ours}{links}"
        );
        Ok(())
    })?;
    lab.namespace(node).ip(preparation)?;
    apply(lab, &vxlan())
}

pub(crate) fn foreign_route(context: &mut Context) -> Result<()> {
    let lab = ready_lab(context)?;
    let route = [
        "route",
        "add",
        "172.20.1.0/24",
        "via",
        "192.168.10.101",
        "proto",
        "static",
    ];
    after(lab, "k8s-ctr", &route)?;
    let message = wait_for_condition(lab, "routingnode", "k8s-ctr", "Ready", "False", "ForeignRoute")?;
    ensure!(
        message.contains("k8s-w1") && message.contains("172.20.1.0/24"),
        "{message}"
    );
    wait_for_condition(lab, "routingpolicy", POLICY, "Ready", "False", "ForeignRoute")?;
    ensure!(
        way(lab, "k8s-ctr", "172.20.1.0/24")? == "via 192.168.10.101",
        "the foreign route was changed"
    );
    ensure!(
        way(lab, "k8s-ctr", "172.20.2.0/24")? == "encap 192.168.20.100",
        "the other peer is not reached"
    );
    // And with ours gone again, theirs is there.
    lab.kubectl()?.run(&["delete", "routingpolicy", POLICY])?;
    wait_until("the other route of ours to go", SETTLED_WITHIN, || {
        ensure!(way(lab, "k8s-ctr", "172.20.2.0/24")? == "nothing");
        Ok(())
    })?;
    ensure!(
        way(lab, "k8s-ctr", "172.20.1.0/24")? == "via 192.168.10.101",
        "the foreign route was removed"
    );
    apply(lab, &vxlan())?;
    lab.namespace("k8s-ctr")
        .ip(&["route", "del", "172.20.1.0/24", "proto", "static"])?;
    wait_until_ready(lab)
}

pub(crate) fn foreign_device(context: &mut Context) -> Result<()> {
    let lab = ready_lab(context)?;
    after(lab, "k8s-w1", &["link", "add", "podlane_vxlan", "type", "bridge"])?;
    let message = wait_for_condition(lab, "routingnode", "k8s-w1", "Ready", "False", "ForeignDevice")?;
    ensure!(
        message.contains("podlane_vxlan") && message.contains("bridge"),
        "{message}"
    );
    let links = lab
        .namespace("k8s-w1")
        .ip(&["-d", "link", "show", "podlane_vxlan"])?;
    ensure!(
        links.contains("bridge"),
        "the foreign device was changed: {links}"
    );
    lab.namespace("k8s-w1").ip(&["link", "del", "podlane_vxlan"])?;
    wait_until_ready(lab)
}

pub(crate) fn foreign_socket(context: &mut Context) -> Result<()> {
    let lab = ready_lab(context)?;
    lab.kubectl()?.run(&["delete", "routingpolicy", POLICY])?;
    wait_until("the device to go", SETTLED_WITHIN, || {
        ensure!(!lab.namespace("k8s-w0").ip(&["-br", "link"])?.contains("podlane_"));
        Ok(())
    })?;
    let holder = programs::own("podlane-lab")?.display().to_string();
    let mut program = Program::new(
        "holder",
        [holder.as_str(), "stream", "receive", "--bind", "0.0.0.0:8472"],
    )
    .within(&lab.namespace("k8s-w0"));
    program.takes_input = true;
    let mut socket = Process::start(program, lab.ledger())?;
    wait_until("the socket to be bound", SETTLED_WITHIN, || {
        socket.ensure_runs()?;
        let table = lab
            .namespace("k8s-w0")
            .within(|| Ok(std::fs::read_to_string("/proc/thread-self/net/udp")?))?;
        // 8472 in hexadecimal.
        ensure!(table.contains(":2118 "), "{table}");
        Ok(())
    })?;
    apply(lab, &vxlan())?;
    let message = wait_for_condition(lab, "routingnode", "k8s-w0", "Ready", "False", "NoDevice")?;
    ensure!(message.contains("8472"), "{message}");
    socket
        .ensure_runs()
        .context("the foreign socket's owner was ended")?;
    let refused = ping(lab, "pod-ctr-1", lab.pod_address("pod-w0-1")?, 2)?;
    ensure!(refused.all_refused(), "{}", refused.output);
    socket.kill()?;
    wait_until_ready(lab)?;
    ensure_all_answer(lab)
}

/// A kernel without the driver: the programs do without it, and an agent that has no programs says what is missing.
pub(crate) fn no_driver(context: &mut Context) -> Result<()> {
    let lab = ready_lab(context)?;
    let node = lab.namespace("k8s-ctr");
    let driver = node
        .ip(&["link", "add", "probe0", "type", "geneve", "external"])
        .is_ok();
    if driver {
        node.ip(&["link", "del", "probe0"])?;
    }
    let geneve = json!({"routingMode": "tunnel", "tunnel": {"protocol": "geneve"}});
    let stream = Stream::start(lab, "pod-ctr-1", "pod-w0-1", 500)?;
    apply(lab, &geneve)?;
    wait_until_ready(lab)?;
    apply(lab, &vxlan())?;
    wait_until_ready(lab)?;
    let report = stream.finish()?;
    ensure!(report.lost == 0 && report.duplicated == 0, "{report:?}");
    if driver {
        return Ok(());
    }

    lab.replace_agent_by_one_without_programs("k8s-ctr")?;
    wait_until_ready(lab)?;
    let stream = Stream::start(lab, "pod-ctr-1", "pod-w0-1", 500)?;
    apply(lab, &geneve)?;
    let message = wait_for_condition(lab, "routingnode", "k8s-ctr", "Ready", "False", "NoDevice")?;
    ensure!(
        message.contains("geneve") && message.contains("driver"),
        "{message}"
    );
    let modules = std::fs::exists("/proc/modules")?;
    ensure!(message.contains("modprobe geneve") == modules, "{message}");
    wait_for_condition(lab, "routingpolicy", POLICY, "Ready", "False", "NoDevice")?;
    ensure!(
        way(lab, "k8s-ctr", "172.20.2.0/24")? == "encap 192.168.20.100",
        "the lane in use was left"
    );
    apply(lab, &vxlan())?;
    wait_until_ready(lab)?;
    let report = stream.finish()?;
    ensure!(report.lost == 0 && report.duplicated == 0, "{report:?}");
    lab.agent("k8s-ctr")?.kill()?;
    lab.start_agent("k8s-ctr")?;
    wait_until_ready(lab)
}
