//! What operator and agents answer to their kubelets' probes.

use anyhow::{Context as _, Result, ensure};
use podlane_e2e::control_plane::SYSTEM_NAMESPACE;
use podlane_e2e::lab::Lab;
use podlane_e2e::metrics::get;
use podlane_e2e::process::{Process, Program};
use podlane_e2e::programs;
use podlane_e2e::scenario::Context;
use podlane_e2e::story::LED_AGAIN_WITHIN;
use podlane_e2e::wait::wait_until;
use serde_json::Value;

use super::installed::{HEALTH, SOON, daemon_set, release, running, start_operator, wait_until_ready};

/// The node whose agent is started anew.
const NODE: &str = "k8s-w1";

/// Runs a probe of the operator's container, as its kubelet would, against a socket in the lab's directory. What it says when it fails.
fn probe(lab: &Lab, container: &Value, which: &str, socket: &str) -> Result<Result<(), String>> {
    let command = container[which]["exec"]["command"]
        .as_array()
        .context("no probe")?;
    let words: Vec<&str> = command.iter().filter_map(Value::as_str).collect();
    let [program, middle @ .., place] = words.as_slice() else {
        anyhow::bail!("no command: {command:?}")
    };
    ensure!(*program == "/podlane-operator", "{program}");
    let given = format!("--health={place}");
    let arguments = container["args"].as_array().context("no arguments")?;
    ensure!(
        arguments.iter().any(|it| *it == given.as_str()),
        "no {given} among {arguments:?}"
    );
    let output = std::process::Command::new(programs::own("podlane-operator")?)
        .args(middle)
        .arg(lab.directory().join(socket))
        .output()?;
    Ok(if output.status.success() {
        Ok(())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    })
}

pub(crate) fn told(context: &mut Context) -> Result<()> {
    let lab = running(context)?;
    let kubectl = lab.kubectl()?.clone();
    let deployment = kubectl.get(&["deployment", "podlane-operator", "-n", SYSTEM_NAMESPACE])?;
    let operator = deployment["spec"]["template"]["spec"]["containers"][0].clone();
    for which in ["readinessProbe", "livenessProbe"] {
        let answer = probe(lab, &operator, which, HEALTH)?;
        ensure!(answer.is_ok(), "{which}: {answer:?}");
    }
    let agent = daemon_set(lab)?["spec"]["template"]["spec"]["containers"][0].clone();
    let path = |which: &str| -> Result<String> {
        let asked = &agent[which]["httpGet"];
        ensure!(
            (&asked["host"], &asked["port"]) == (&"127.0.0.1".into(), &9964.into()),
            "{asked}"
        );
        Ok(asked["path"].as_str().context("no path")?.to_owned())
    };
    let (ready, live) = (path("readinessProbe")?, path("livenessProbe")?);
    let ok = (200, "ok\n".to_owned());
    ensure!(get(lab, NODE, &ready)? == ok, "{:?}", get(lab, NODE, &ready)?);
    ensure!(get(lab, NODE, &live)? == ok, "{:?}", get(lab, NODE, &live)?);

    // Who starts without an API server lives, and is not ready before it has seen what it goes by.
    lab.control_plane()?.stop_apiserver()?;
    let outcome = without_apiserver(lab, &operator, (&ready, &live));
    lab.control_plane()?.start_apiserver()?;
    let mut standby = outcome?;
    // Pauses between attempts have grown meanwhile.
    wait_until("the agent to be ready", LED_AGAIN_WITHIN, || {
        let answer = get(lab, NODE, &ready)?;
        ensure!(answer == ok, "{answer:?}");
        Ok(())
    })?;
    // Whether it leads or stands by.
    wait_until("the other operator to be ready", LED_AGAIN_WITHIN, || {
        let answer = probe(lab, &operator, "readinessProbe", "standby-health")?;
        answer.map_err(anyhow::Error::msg)
    })?;
    standby.stop(SOON)?;
    if !lab.operator()?.runs() {
        lab.operator()?.restart()?;
    }
    wait_until_ready(lab)
}

pub(crate) fn first_policy_refused(context: &mut Context) -> Result<()> {
    let lab = running(context)?;
    let kubectl = lab.kubectl()?.clone();
    // As in a cluster that has never had an operator.
    lab.operator()?.stop(SOON)?;
    kubectl.run(&["delete", "routingpolicies,routingnodes", "--all"])?;
    let before = daemon_set(lab)?["metadata"]["uid"].clone();
    kubectl.run(&["delete", "daemonset", "podlane-agent", "-n", SYSTEM_NAMESPACE])?;
    // Host bits, which only the API server sees.
    release(
        lab,
        4,
        &["upgrade"],
        &["firstPolicy.nativeRoutingCIDRs={172.20.0.1/16}"],
    )?;
    start_operator(lab)?;
    let deployment = kubectl.get(&["deployment", "podlane-operator", "-n", SYSTEM_NAMESPACE])?;
    let operator = deployment["spec"]["template"]["spec"]["containers"][0].clone();
    wait_until("the operator to say what is wrong", SOON, || {
        let answer = probe(lab, &operator, "readinessProbe", HEALTH)?;
        let said = answer.err().context("it is ready")?;
        for words in [
            "the first RoutingPolicy is refused: 422",
            "without host bits",
            "correct firstPolicy",
        ] {
            ensure!(said.contains(words), "{words} is not in: {said}");
        }
        Ok(())
    })?;
    let live = probe(lab, &operator, "livenessProbe", HEALTH)?;
    ensure!(live.is_ok(), "{live:?}");
    wait_until("the agents' DaemonSet all the same", SOON, || {
        let now = daemon_set(lab)?["metadata"]["uid"].clone();
        ensure!(now != before, "still the old one");
        Ok(())
    })?;
    let told = kubectl.run(&["get", "routingnodes", "-o", "name"])?;
    ensure!(
        told.is_empty(),
        "the corrected policy would not be the first: {told}"
    );

    release(lab, 4, &["upgrade"], &[])?;
    lab.operator()?.stop(SOON)?;
    start_operator(lab)?;
    wait_until("the first policy", SOON, || {
        kubectl.get(&["routingpolicy", "default"]).map(drop)
    })?;
    wait_until_ready(lab)?;
    let ready = probe(lab, &operator, "readinessProbe", HEALTH)?;
    ensure!(ready.is_ok(), "{ready:?}");
    Ok(())
}

/// Starts an agent and an operator without an API server, and asks them. Returns the operator.
fn without_apiserver(lab: &mut Lab, operator: &Value, (ready, live): (&str, &str)) -> Result<Process> {
    lab.agent(NODE)?.stop(SOON)?;
    lab.agent(NODE)?.restart()?;
    wait_until("the agent to live", SOON, || {
        let (code, said) = get(lab, NODE, live)?;
        ensure!(code == 200, "{code}: {said}");
        Ok(())
    })?;
    let (code, said) = get(lab, NODE, ready)?;
    ensure!(
        code == 503 && said.contains("has yet to be read"),
        "{code}: {said}"
    );

    let socket = lab.directory().join("standby-health");
    let words = [
        programs::own("podlane-operator")?.display().to_string(),
        "--kubeconfig".to_owned(),
        lab.directory()
            .join("operator-token.kubeconfig")
            .display()
            .to_string(),
        format!("--namespace={SYSTEM_NAMESPACE}"),
        format!("--health={}", socket.display()),
    ];
    let program = Program::new("standby", words).within(&lab.namespace("k8s-ctr"));
    let standby = Process::start(program, lab.ledger())?;
    wait_until("the other operator to live", SOON, || {
        probe(lab, operator, "livenessProbe", "standby-health")?.map_err(anyhow::Error::msg)
    })?;
    let answer = probe(lab, operator, "readinessProbe", "standby-health")?;
    let said = answer.err().context("ready, though it has seen nothing")?;
    ensure!(said.contains("not all of these have been seen yet"), "{said}");
    Ok(standby)
}
