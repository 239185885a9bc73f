//! `helm uninstall`, with what a cluster's controllers and kubelets would do beside it: run the Job, end the operator when its
//! Deployment is scaled down, and the agents when their DaemonSet is gone.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use podlane_e2e::control_plane::SYSTEM_NAMESPACE;
use podlane_e2e::kubectl::Kubectl;
use podlane_e2e::lab::Lab;
use podlane_e2e::process::{Process, Program};
use podlane_e2e::programs;
use podlane_e2e::scenario::Context;
use podlane_e2e::story::{
    condition, ensure_all_answer, ensure_none_lost, streams_between, streams_in_all_directions,
};
use podlane_e2e::wait::wait_until;
use serde_json::{Value, json};

use super::installed::{
    NODES, SOON, daemon_set, end_agents, helm, release, running, start_agents, start_operator,
    wait_until_ready,
};

/// How long a Job may take: the operator's lease, and as long as the scenarios have agents waited for.
const JOB_WITHIN: Duration = Duration::from_secs(120);

/// What an attempt to uninstall came to.
struct Attempt {
    /// Helm's own word: what it says, or why it failed.
    helm: Result<String>,
    /// What the Job says.
    result: String,
}

/// `helm uninstall`, by this Helm, and what others do meanwhile.
fn uninstall(lab: &mut Lab, major: u8) -> Result<Attempt> {
    uninstall_while(lab, major, |_| Ok(()))
}

/// The same with something that happens once the operator has ended.
fn uninstall_while(
    lab: &mut Lab,
    major: u8,
    meanwhile: impl FnOnce(&mut Lab) -> Result<()>,
) -> Result<Attempt> {
    let kubectl = lab.kubectl()?.clone();
    let kubeconfig = lab.kubeconfig();
    std::thread::scope(|scope| {
        let helm = scope.spawn(move || {
            let words = [
                "uninstall",
                "podlane",
                "--timeout",
                "4m",
                "--namespace",
                SYSTEM_NAMESPACE,
            ];
            super::installed::helm_of(major)?.run_as(Some(&kubeconfig), &words)
        });
        let result = run_job(lab, &kubectl, meanwhile);
        let result = match result {
            Ok(result) => result,
            // Helm waits for the Job.
            Err(error) => {
                let _ = end_job(&kubectl, false);
                return Err(error);
            }
        };
        let helm = helm
            .join()
            .map_err(|_| anyhow::anyhow!("Helm's thread panicked"))?;
        Ok(Attempt { helm, result })
    })
}

fn job(kubectl: &Kubectl) -> Result<Value> {
    kubectl.get(&["job", "podlane-uninstall", "-n", SYSTEM_NAMESPACE])
}

/// Runs what the Job's pod would, and says of the Job what its controller would.
fn run_job(
    lab: &mut Lab,
    kubectl: &Kubectl,
    meanwhile: impl FnOnce(&mut Lab) -> Result<()>,
) -> Result<String> {
    let is_new = |job: &Value| job["status"]["conditions"].as_array().is_none_or(Vec::is_empty);
    let job = wait_until("the Job", SOON, || {
        let job = job(kubectl)?;
        ensure!(is_new(&job), "the one of the last attempt");
        Ok(job)
    })?;
    let pod = &job["spec"]["template"]["spec"];
    let account = pod["serviceAccountName"].as_str().context("no service account")?;
    let token = kubectl.run(&["create", "token", account, "-n", SYSTEM_NAMESPACE])?;
    let place = lab.topology().node("k8s-ctr").context("no k8s-ctr")?.clone();
    let kubeconfig = lab
        .control_plane()?
        .kubeconfig_with_token("uninstall", token.trim(), Some(&place))?;
    let result = lab.directory().join("uninstall-result");
    let mut words = vec![
        programs::own("podlane-operator")?.display().to_string(),
        "--kubeconfig".to_owned(),
        kubeconfig.display().to_string(),
    ];
    let given = pod["containers"][0]["args"].as_array().context("no arguments")?;
    words.extend(given.iter().filter_map(Value::as_str).map(|word| {
        if word.starts_with("--result=") {
            format!("--result={}", result.display())
        } else {
            word.replace("$(NAMESPACE)", SYSTEM_NAMESPACE)
        }
    }));
    let program = Program::new("uninstall", words).within(&lab.namespace("k8s-ctr"));
    let mut process = Process::start(program, lab.ledger())?;
    let deployment = ["deployment", "podlane-operator", "-n", SYSTEM_NAMESPACE];
    wait_until("the operator to be scaled down", SOON, || {
        let deployment = kubectl.get(&deployment)?;
        ensure!(
            deployment["spec"]["replicas"] == 0,
            "{}",
            deployment["spec"]["replicas"]
        );
        Ok(())
    })?;
    if lab.operator()?.runs() {
        lab.operator()?.stop(SOON)?;
    }
    meanwhile(lab)?;
    let ended = process.wait(JOB_WITHIN)?;
    if daemon_set(lab).is_err() {
        end_agents(lab)?;
    }
    end_job(kubectl, ended.success())?;
    let log = fs::read_to_string(process.log())?;
    ensure!(!log.contains("orbidden"), "the Job was refused something: {log}");
    fs::read_to_string(&result).with_context(|| format!("no result; {log}"))
}

/// What a Job's controller says once its pod has ended.
fn end_job(kubectl: &Kubectl, is_done: bool) -> Result<()> {
    let now = job(kubectl)?["metadata"]["creationTimestamp"].clone();
    let condition =
        |kind: &str| json!({"type": kind, "status": "True", "reason": "E2e", "lastTransitionTime": now});
    let status = if is_done {
        json!({"startTime": now, "completionTime": now, "succeeded": 1, "uncountedTerminatedPods": {},
            "conditions": [condition("SuccessCriteriaMet"), condition("Complete")]})
    } else {
        json!({"startTime": now, "failed": 1, "uncountedTerminatedPods": {},
            "conditions": [condition("FailureTarget"), condition("Failed")]})
    };
    let status = json!({"status": status}).to_string();
    let words = [
        "patch",
        "job",
        "podlane-uninstall",
        "-n",
        SYSTEM_NAMESPACE,
        "--subresource=status",
        "--type=merge",
        "-p",
    ];
    kubectl
        .run(&[words.as_slice(), &[status.as_str()]].concat())
        .map(drop)
}

/// What is left on a node that is Podlane's.
fn left_on(lab: &Lab, node: &str) -> Result<Vec<String>> {
    let namespace = lab.namespace(node);
    let mut left = Vec::new();
    for words in [
        ["-o", "route", "show", "proto", "172"].as_slice(),
        &["-o", "-6", "route", "show", "proto", "172"],
        &["-o", "link", "show", "group", "172"],
    ] {
        left.extend(namespace.ip(words)?.lines().map(str::to_owned));
    }
    let tables = namespace.command("nft").args(["list", "tables"]).output()?;
    let tables = String::from_utf8_lossy(&tables.stdout).into_owned();
    left.extend(
        tables
            .lines()
            .filter(|line| line.contains("podlane"))
            .map(str::to_owned),
    );
    let programs = lab.bpffs(node)?.join("podlane");
    if programs.exists() {
        left.push(programs.display().to_string());
    }
    for entry in fs::read_dir(lab.directory().join(format!("cni-{node}")))? {
        left.push(entry?.path().display().to_string());
    }
    Ok(left)
}

/// The condition NetworkUnavailable of a Node: its status and its reason, where there is one.
pub(crate) fn network_unavailable(kubectl: &Kubectl, node: &str) -> Result<Option<(String, String)>> {
    let node = kubectl.get(&["node", node])?;
    let conditions = node["status"]["conditions"].as_array();
    let found = conditions
        .into_iter()
        .flatten()
        .find(|condition| condition["type"] == "NetworkUnavailable");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok(found.map(|found| (text(&found["status"]), text(&found["reason"]))))
}

/// Whatever the release had made is gone, but for what is to stay, and the Job, which is to be read.
fn ensure_release_gone(kubectl: &Kubectl) -> Result<()> {
    wait_until("what is of the release to be gone", SOON, || {
        let kinds = "serviceaccounts,configmaps,deployments,daemonsets,poddisruptionbudgets,networkpolicies,roles,rolebindings,\
                     clusterroles,clusterrolebindings,validatingadmissionpolicies,validatingadmissionpolicybindings";
        let selector = "--selector=app.kubernetes.io/name=podlane";
        let left = kubectl.run(&["get", kinds, "--all-namespaces", selector, "-o", "name"])?;
        ensure!(left.trim().is_empty(), "{left}");
        let leases = kubectl.run(&["get", "leases", "-n", SYSTEM_NAMESPACE, "-o", "name"])?;
        ensure!(leases.trim().is_empty(), "{leases}");
        Ok(())
    })
}

/// The uids of a type and of a policy.
fn uids(kubectl: &Kubectl) -> Result<BTreeSet<String>> {
    [
        ["crd", "routingpolicies.podlane.io"],
        ["routingpolicy", "default"],
    ]
    .iter()
    .map(|what| {
        let object = kubectl.get(what)?;
        Ok(object["metadata"]["uid"].as_str().context("no uid")?.to_owned())
    })
    .collect()
}

/// Installs again, by this Helm, and waits until everything is as declared.
fn reinstall(lab: &mut Lab, major: u8) -> Result<()> {
    release(lab, major, &["install"], &[])?;
    start_operator(lab)?;
    start_agents(lab)?;
    wait_until_ready(lab)
}

pub(crate) fn cleans(context: &mut Context) -> Result<()> {
    let lab = running(context)?;
    let kubectl = lab.kubectl()?.clone();
    release(lab, 4, &["upgrade"], &["uninstall.patienceSeconds=15"])?;
    let before = uids(&kubectl)?;
    // Pods of a node reach each other all the time, whatever becomes of the lanes.
    let mut streams = Vec::new();
    for node in NODES {
        let pods = lab.topology().node(node).context("no such node")?.pods.clone();
        let [first, second, ..] = pods.as_slice() else {
            bail!("{node} has too few pods")
        };
        streams.extend(streams_between(lab, first, second, 500)?);
    }
    // A node that does not answer holds nothing up but for as long as it is waited for.
    lab.agent("k8s-w0")?.freeze()?;
    ensure!(
        !left_on(lab, "k8s-ctr")?.is_empty(),
        "nothing of Podlane's on k8s-ctr to begin with"
    );
    let attempt = uninstall(lab, 4)?;
    attempt.helm.context(attempt.result.clone())?;
    let result = &attempt.result;
    for line in [
        "k8s-ctr  cleaned",
        "k8s-w1   cleaned",
        "k8s-w0   unreachable: its agent has not answered within 15 s",
        "2 of 3 nodes are clean; did not answer: k8s-w0",
    ] {
        ensure!(result.lines().any(|is| is == line), "{line} is not in\n{result}");
    }
    for node in ["k8s-ctr", "k8s-w1"] {
        let left = left_on(lab, node)?;
        ensure!(left.is_empty(), "left on {node}: {left:?}");
        ensure!(network_unavailable(&kubectl, node)?.is_none(), "said of {node}");
    }
    ensure!(
        network_unavailable(&kubectl, "k8s-w0")? == Some(("True".to_owned(), "PodlaneNotCleaned".to_owned())),
        "{:?}",
        network_unavailable(&kubectl, "k8s-w0")?
    );
    ensure!(
        !left_on(lab, "k8s-w0")?.is_empty(),
        "k8s-w0 is clean, though nobody was there to do that"
    );
    ensure_release_gone(&kubectl)?;
    let objects = kubectl.run(&["get", "routingnodes,peerslices", "-o", "name"])?;
    ensure!(objects.trim().is_empty(), "{objects}");
    // Types and policies are the user's, and say how it stands.
    ensure!(uids(&kubectl)? == before, "types or policies were made anew");
    let (status, reason, message) = condition(lab, "routingpolicy", "default", "Ready")?;
    ensure!(
        (status.as_str(), reason.as_str()) == ("False", "Uninstalled")
            && message.ends_with("2 of 3 nodes are clean; did not answer: k8s-w0"),
        "{status} {reason}: {message}"
    );
    let directory = lab.directory().join("cni-k8s-w0").display().to_string();
    lab.clean_agent_with("k8s-w0", &["--cni-conf-dir", &directory])?;
    ensure!(
        left_on(lab, "k8s-w0")?.is_empty(),
        "{:?}",
        left_on(lab, "k8s-w0")?
    );
    ensure_none_lost(streams)?;
    reinstall(lab, 3)?;
    ensure!(uids(&kubectl)? == before, "types or policies were made anew");
    wait_until("pods to be connected", SOON, || {
        let said = network_unavailable(&kubectl, "k8s-w0")?;
        ensure!(
            said == Some(("False".to_owned(), "PodlaneConfigured".to_owned())),
            "{said:?}"
        );
        Ok(())
    })
}

/// A stand-in for an agent that cannot remove something: it says so, by a hand that is not the agent's.
fn say_left(lab: &mut Lab, node: &str) -> Result<()> {
    let kubectl = lab.kubectl()?.clone();
    let told = wait_until("the node to be told", SOON, || {
        let object = kubectl.get(&["routingnode", node])?;
        ensure!(object["spec"]["clean"] == true, "{}", object["spec"]);
        Ok(object)
    })?;
    let status = json!({"status": {
        "observedGeneration": told["metadata"]["generation"],
        "conditions": [{"type": "Cleaned", "status": "False", "reason": "ItemsLeft", "message": "1 of Podlane's items is left",
            "lastTransitionTime": told["metadata"]["creationTimestamp"]}],
    }});
    let words = [
        "patch",
        "routingnode",
        node,
        "--subresource=status",
        "--type=merge",
        "-p",
    ];
    kubectl
        .run(&[words.as_slice(), &[status.to_string().as_str()]].concat())
        .map(drop)
}

pub(crate) fn fails_loudly(context: &mut Context) -> Result<()> {
    let lab = running(context)?;
    let kubectl = lab.kubectl()?.clone();
    release(lab, 4, &["upgrade"], &["uninstall.patienceSeconds=10"])?;
    lab.agent("k8s-w1")?.freeze()?;
    let attempt = uninstall_while(lab, 4, |lab| say_left(lab, "k8s-w1"))?;
    ensure!(
        attempt.helm.is_err(),
        "Helm takes it for uninstalled: {}",
        attempt.result
    );
    for line in [
        "k8s-w1   failed: 1 of Podlane's items is left",
        "2 of 3 nodes are clean; could not be cleaned: k8s-w1",
    ] {
        ensure!(
            attempt.result.lines().any(|is| is == line),
            "{line} is not in\n{}",
            attempt.result
        );
    }
    ensure!(
        attempt.result.contains("helm uninstall --no-hooks"),
        "{}",
        attempt.result
    );
    // Agents and what they are told are there for another attempt.
    daemon_set(lab)?;
    kubectl.get(&["routingnode", "k8s-w1"])?;
    let (_, reason, message) = condition(lab, "routingpolicy", "default", "Ready")?;
    ensure!(
        reason == "Uninstalled" && message.contains("could not be cleaned: k8s-w1"),
        "{reason}: {message}"
    );

    lab.agent("k8s-w1")?.thaw()?;
    goes_back(lab, &kubectl)?;
    let attempt = uninstall(lab, 4)?;
    attempt.helm.context(attempt.result.clone())?;
    ensure!(
        attempt.result.contains("3 of 3 nodes are clean"),
        "{}",
        attempt.result
    );
    for node in NODES {
        ensure!(
            left_on(lab, node)?.is_empty(),
            "left on {node}: {:?}",
            left_on(lab, node)?
        );
    }
    ensure_release_gone(&kubectl)?;
    reinstall(lab, 4)
}

/// Whoever thinks better of an attempt that failed goes back to the release as it was: nodes that are clean already are routed again.
fn goes_back(lab: &mut Lab, kubectl: &Kubectl) -> Result<()> {
    helm(lab, 4, &["rollback", "podlane"])?;
    let deployment = kubectl.get(&["deployment", "podlane-operator", "-n", SYSTEM_NAMESPACE])?;
    ensure!(
        deployment["spec"]["replicas"].as_u64() > Some(0),
        "nobody starts an operator: {}",
        deployment["spec"]
    );
    start_operator(lab)?;
    wait_until_ready(lab)?;
    for node in NODES {
        ensure!(!left_on(lab, node)?.is_empty(), "{node} is clean still");
        ensure!(
            kubectl.get(&["routingnode", node])?["spec"]["clean"].is_null(),
            "{node} is told to be clean still"
        );
    }
    ensure_all_answer(lab)
}

pub(crate) fn keeps_datapath(context: &mut Context) -> Result<()> {
    let lab = running(context)?;
    let kubectl = lab.kubectl()?.clone();
    release(lab, 4, &["upgrade"], &["keepDatapath=true"])?;
    let before = uids(&kubectl)?;
    let nodes = |kubectl: &Kubectl| kubectl.run(&["get", "routingnodes,peerslices", "-o", "name"]);
    let told = nodes(&kubectl)?;
    let held: Vec<_> = NODES
        .iter()
        .map(|node| left_on(lab, node))
        .collect::<Result<_>>()?;
    let streams = streams_in_all_directions(lab, 500)?;
    let attempt = uninstall(lab, 3)?;
    attempt.helm.context(attempt.result.clone())?;
    ensure!(
        attempt.result == "the agents are gone; nodes stay as they are",
        "{}",
        attempt.result
    );
    ensure_release_gone(&kubectl)?;
    ensure!(
        nodes(&kubectl)? == told,
        "nodes are told something else: {}",
        nodes(&kubectl)?
    );
    let (status, reason, _) = condition(lab, "routingpolicy", "default", "Ready")?;
    ensure!(
        (status.as_str(), reason.as_str()) == ("False", "Uninstalled"),
        "{status} {reason}"
    );
    let holds: Vec<_> = NODES
        .iter()
        .map(|node| left_on(lab, node))
        .collect::<Result<_>>()?;
    ensure!(holds == held, "before {held:#?}, after {holds:#?}");
    reinstall(lab, 4)?;
    ensure_none_lost(streams)?;
    ensure!(uids(&kubectl)? == before, "types or policies were made anew");
    helm(lab, 4, &["status", "podlane"]).map(drop)
}
