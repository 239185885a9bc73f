//! The chart installed in the lab. No kubelet runs there, nor a controller: a scenario does what they would, which is to make the
//! agents' pods out of their DaemonSet, and to start operator and agents with the tokens that their pods would have.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use podlane_e2e::control_plane::SYSTEM_NAMESPACE;
use podlane_e2e::helm::{Helm, HelmPrograms, chart};
use podlane_e2e::lab::Lab;
use podlane_e2e::scenario::Context;
use podlane_e2e::wait::wait_until;
use serde_json::{Value, json};

pub(crate) const NODES: [&str; 3] = ["k8s-ctr", "k8s-w0", "k8s-w1"];
/// The operator's socket in the lab's directory.
pub(crate) const HEALTH: &str = "operator-health";
pub(crate) const SOON: Duration = Duration::from_secs(90);

/// What the lab's cluster is installed with.
pub(crate) const VALUES: [&str; 5] = [
    "clusterPodCIDRs={172.20.0.0/16}",
    "k8sServiceHost=192.168.10.100",
    "firstPolicy.routingMode=native",
    "firstPolicy.offLinkPeers=tunnel",
    "agents.logFormat=text",
];

/// Helm of that major version.
pub(crate) fn helm_of(major: u8) -> Result<Helm> {
    let helms = HelmPrograms::find()?.helms;
    let mut helms = helms.into_iter();
    helms
        .find(|helm| helm.major == major)
        .with_context(|| format!("no Helm {major}"))
}

/// Helm of that major version on the lab's cluster.
pub(crate) fn helm(lab: &Lab, major: u8, arguments: &[&str]) -> Result<String> {
    let helm = helm_of(major)?;
    let arguments: Vec<&str> = arguments
        .iter()
        .copied()
        .chain(["--namespace", SYSTEM_NAMESPACE])
        .collect();
    helm.run_as(Some(&lab.kubeconfig()), &arguments)
}

/// `helm VERB podlane charts/podlane` with the lab's values and others.
pub(crate) fn release(lab: &Lab, major: u8, verb: &[&str], more: &[&str]) -> Result<String> {
    let chart = chart().display().to_string();
    let values = VALUES.iter().chain(more).flat_map(|value| ["--set", value]);
    let arguments: Vec<&str> = verb
        .iter()
        .copied()
        .chain(["podlane", &chart])
        .chain(values)
        .collect();
    helm(lab, major, &arguments)
}

/// The shared lab with the chart installed.
pub(crate) fn install(context: &mut Context) -> Result<&mut Lab> {
    let lab = context.lab()?;
    if lab
        .kubectl()?
        .run(&["get", "deployment", "podlane-operator", "-n", SYSTEM_NAMESPACE])
        .is_err()
    {
        let notes = release(lab, 4, &["install", "--create-namespace"], &[])?;
        ensure!(
            notes.contains("kubectl wait --for=condition=Ready routingpolicies --all"),
            "the notes do not tell the next command: {notes}"
        );
    }
    Ok(lab)
}

/// The shared lab with the chart installed and everything running.
pub(crate) fn running(context: &mut Context) -> Result<&mut Lab> {
    let lab = install(context)?;
    if lab.operator().is_err() {
        start_operator(lab)?;
        start_agents(lab)?;
    }
    wait_until_ready(lab)?;
    Ok(lab)
}

/// Starts an agent on each node once there is a DaemonSet that wants them.
pub(crate) fn start_agents(lab: &mut Lab) -> Result<()> {
    wait_until("the agents' DaemonSet", SOON, || daemon_set(lab).map(drop))?;
    for node in NODES {
        let pod = make_pod(lab, node)?;
        start_agent(lab, node, &pod)?;
    }
    Ok(())
}

/// Ends every agent, also one that is stopped, and deletes its pod.
pub(crate) fn end_agents(lab: &mut Lab) -> Result<()> {
    lab.kubectl()?.run(&[
        "delete",
        "pods",
        "--all",
        "-n",
        SYSTEM_NAMESPACE,
        "--force",
        "--grace-period=0",
    ])?;
    for node in NODES {
        lab.agent(node)?.thaw()?;
        lab.agent(node)?.stop(SOON)?;
    }
    Ok(())
}

/// Waits until all policies are as declared.
pub(crate) fn wait_until_ready(lab: &Lab) -> Result<()> {
    let all = [
        "wait",
        "--for=condition=Ready",
        "routingpolicies",
        "--all",
        "--timeout=30s",
    ];
    wait_until("the policies to be ready", SOON, || {
        lab.kubectl()?.run(&all).map(drop)
    })
}

/// Starts the operator as its Deployment would: by its service account, with the configuration and the arguments from there.
pub(crate) fn start_operator(lab: &mut Lab) -> Result<()> {
    let kubectl = lab.kubectl()?.clone();
    let system = ["-n", SYSTEM_NAMESPACE];
    let configuration = kubectl.get(&["configmap", "podlane-operator", system[0], system[1]])?;
    let text = configuration["data"]["configuration.yaml"]
        .as_str()
        .context("no configuration")?;
    let file = lab.directory().join("configuration.yaml");
    fs::write(&file, text)?;
    let deployment = kubectl.get(&["deployment", "podlane-operator", system[0], system[1]])?;
    let given = &deployment["spec"]["template"]["spec"]["containers"][0]["args"];
    let arguments = given
        .as_array()
        .context("no arguments")?
        .iter()
        .filter_map(Value::as_str)
        .map(|argument| match argument.split_once('=') {
            Some(("--configuration", _)) => format!("--configuration={}", file.display()),
            Some(("--health", _)) => format!("--health={}", lab.directory().join(HEALTH).display()),
            _ => argument.replace("$(NAMESPACE)", SYSTEM_NAMESPACE),
        });
    let arguments: Vec<String> = arguments.collect();
    let token = kubectl.run(&["create", "token", "podlane-operator", system[0], system[1]])?;
    let place = lab.topology().node("k8s-ctr").context("no k8s-ctr")?.clone();
    let kubeconfig =
        lab.control_plane()?
            .kubeconfig_with_token("operator-token", token.trim(), Some(&place))?;
    lab.start_operator_as(&kubeconfig, arguments)
}

/// The agents' DaemonSet.
pub(crate) fn daemon_set(lab: &Lab) -> Result<Value> {
    lab.kubectl()?
        .get(&["daemonset", "podlane-agent", "-n", SYSTEM_NAMESPACE])
}

/// Makes the pod of the agent on a node, as the DaemonSet's controller would, and says that it is well, as its kubelet would.
pub(crate) fn make_pod(lab: &Lab, node: &str) -> Result<Value> {
    let kubectl = lab.kubectl()?;
    let template = &daemon_set(lab)?["spec"]["template"];
    let mut spec = template["spec"].clone();
    spec["nodeName"] = node.into();
    let metadata = json!({
        "generateName": format!("podlane-agent-{node}-"),
        "namespace": SYSTEM_NAMESPACE,
        "labels": template["metadata"]["labels"],
        "annotations": template["metadata"]["annotations"],
    });
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec});
    let made = kubectl.run_with_input(&["create", "-f", "-", "-o", "json"], &pod.to_string())?;
    let pod: Value = serde_json::from_str(&made)?;
    let status = json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}})
        .to_string();
    let name = name(&pod)?;
    kubectl.run(&[
        "patch",
        "pod",
        name,
        "-n",
        SYSTEM_NAMESPACE,
        "--subresource=status",
        "--type=merge",
        "-p",
        &status,
    ])?;
    Ok(pod)
}

pub(crate) fn name(object: &Value) -> Result<&str> {
    object["metadata"]["name"].as_str().context("no name")
}

/// A kubeconfig with the token that the agent in a pod would find there, for itself on its node or for the machine.
pub(crate) fn kubeconfig_of(lab: &mut Lab, pod: &Value, on: Option<&str>) -> Result<PathBuf> {
    let name = name(pod)?;
    let uid = pod["metadata"]["uid"].as_str().context("no uid")?;
    let bound = format!("--bound-object-name={name}");
    let uid = format!("--bound-object-uid={uid}");
    let token = lab.kubectl()?.run(&[
        "create",
        "token",
        "podlane-agent",
        "-n",
        SYSTEM_NAMESPACE,
        "--bound-object-kind=Pod",
        &bound,
        &uid,
    ])?;
    let place = match on {
        Some(node) => Some(
            lab.topology()
                .node(node)
                .with_context(|| format!("no {node}"))?
                .clone(),
        ),
        None => None,
    };
    let file = format!("{name}-{}", on.unwrap_or("machine"));
    lab.control_plane()?
        .kubeconfig_with_token(&file, token.trim(), place.as_ref())
}

/// Starts the agent of a pod, with the pod's arguments, except for where its container has mounted what.
pub(crate) fn start_agent(lab: &mut Lab, node: &str, pod: &Value) -> Result<()> {
    let kubeconfig = kubeconfig_of(lab, pod, Some(node))?;
    let bpffs = format!("--bpffs={}", lab.bpffs(node)?.join("podlane").display());
    let instance = format!(
        "--instance={}",
        pod["metadata"]["uid"].as_str().context("no uid")?
    );
    let container = &pod["spec"]["containers"][0];
    let given = container["args"]
        .as_array()
        .context("no arguments")?
        .iter()
        .filter_map(Value::as_str);
    let directory = lab.directory().join(format!("cni-{node}"));
    fs::create_dir_all(&directory)?;
    let cni = format!("--cni-conf-dir={}", directory.display());
    let mut arguments = vec![bpffs.as_str(), &instance];
    arguments.extend(given.filter_map(|argument| match argument.split_once('=') {
        Some(("--sysctls", _)) => None,
        Some(("--cni-conf-dir", _)) => Some(cni.as_str()),
        _ => Some(argument),
    }));
    lab.start_agent_as(node, &kubeconfig, &arguments)
}

pub(crate) fn routed(context: &mut Context) -> Result<()> {
    let lab = running(context)?;
    let kubectl = lab.kubectl()?;
    // The first policy was made, and routes as it says.
    let policy = kubectl.get(&["routingpolicy", "default"])?;
    ensure!(policy["status"]["nodesReady"] == "3/3", "{}", policy["status"]);
    for (from, to) in [("k8s-ctr", "k8s-w1"), ("k8s-ctr", "k8s-w0"), ("k8s-w0", "k8s-w1")] {
        let pod = |node: &str| -> Result<String> {
            let node = lab.topology().node(node).context("no such node")?;
            Ok(node.pods.first().context("no pod")?.name.clone())
        };
        let to = lab.pod_address(&pod(to)?)?.to_string();
        let ping = lab
            .namespace(&pod(from)?)
            .command("ping")
            .args(["-c", "1", "-W", "2", &to])
            .output()?;
        ensure!(ping.status.success(), "{from} does not reach {to}");
    }
    // The DaemonSet goes with the Deployment.
    let set = daemon_set(lab)?;
    let deployment = kubectl.get(&["deployment", "podlane-operator", "-n", SYSTEM_NAMESPACE])?;
    ensure!(
        set["metadata"]["ownerReferences"][0]["uid"] == deployment["metadata"]["uid"],
        "{}",
        set["metadata"]
    );
    // Whoever was refused anything has said so.
    for process in lab.podlane_processes() {
        let log = fs::read_to_string(process.log())?;
        if let Some(line) = log.lines().find(|line| line.contains("orbidden")) {
            bail!("{} was refused something: {line}", process.name());
        }
    }
    // What it says of itself on objects got through as well.
    wait_until("an event about the policy", SOON, || {
        let events = kubectl.get(&["events.v1.events.k8s.io", "-n", "default"])?;
        let is_ours = |event: &&Value| event["reportingController"] == "podlane-operator";
        let ours = events["items"]
            .as_array()
            .and_then(|events| events.iter().find(is_ours));
        ours.map(drop).context("none")
    })
}
