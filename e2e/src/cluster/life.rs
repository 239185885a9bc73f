//! What becomes of nodes and policies in a cluster that is up.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{Cluster, Machine};
use crate::control_plane::{SYSTEM_NAMESPACE, node_object};
use crate::process::tail;
use crate::programs;
use crate::scenario;
use crate::story;
use crate::wait::wait_until;

const SETTLED_WITHIN: Duration = Duration::from_secs(240);

impl Cluster {
    /// Whether Podlane's chart is installed.
    pub fn has_podlane(&self) -> Result<bool> {
        Ok(self
            .helm(&["list", "--short"])?
            .lines()
            .any(|line| line == "podlane"))
    }

    /// Puts a spec in the place of the policy's, as `story::apply`.
    pub fn apply_policy(&self, spec: &Value) -> Result<()> {
        story::apply(&self.lab, spec)
    }

    /// Waits until the policy is as declared.
    pub fn wait_for_policy(&self) -> Result<()> {
        let condition = "--for=condition=Ready";
        self.wait_for(&["routingpolicies", "--all", condition])
    }

    /// Waits until every node is ready, which it is when pods can be connected.
    pub fn wait_for_nodes(&self) -> Result<()> {
        self.wait_for(&["nodes", "--all", "--for=condition=Ready"])
    }

    /// `kubectl wait`, with a limit.
    pub fn wait_for(&self, what: &[&str]) -> Result<()> {
        let limit = format!("--timeout={}s", SETTLED_WITHIN.as_secs());
        let arguments: Vec<&str> = ["wait"]
            .iter()
            .chain(what)
            .chain(&[limit.as_str()])
            .copied()
            .collect();
        self.kubectl()?.run(&arguments).map(drop)
    }

    /// Makes the story's workload, and waits until each of its pods is ready.
    pub fn start_workload(&self) -> Result<()> {
        let file = programs::sources()
            .join("manifests/webpod.yaml")
            .display()
            .to_string();
        let kubectl = self.kubectl()?;
        kubectl.run(&["apply", "-f", &file])?;
        kubectl.run(&["rollout", "status", "deployment/webpod", "--timeout=240s"])?;
        self.wait_until_running("curl-pod")
    }

    /// Has curl-pod ask `http://webpod` so many times: how often each node's pod has answered, and how often none has, as ``.
    pub fn ask(&self, times: u32) -> Result<BTreeMap<String, u32>> {
        let line = format!(
            "for i in $(seq {times}); do curl -sS -m 5 http://webpod 2>/dev/null || echo on ''; done"
        );
        let said = self
            .kubectl()?
            .run(&["exec", "curl-pod", "--", "sh", "-c", &line])?;
        let mut answers = BTreeMap::new();
        for answer in said.lines() {
            let (_, node) = answer
                .split_once("on ")
                .with_context(|| format!("curl-pod was answered {answer:?}"))?;
            *answers.entry(node.to_owned()).or_insert(0) += 1;
        }
        Ok(answers)
    }

    /// Takes a node out of the cluster: its kubelet ends, and its Node is deleted. Its containers run on, as they would. kube-proxy ends by
    /// itself when its Node is deleted.
    pub fn remove_node(&mut self, node: &str) -> Result<()> {
        let machine = self.machine(node)?;
        machine.kubelet()?.kill()?;
        machine.proxy()?.kill()?;
        self.kubectl()?.run(&["delete", "node", node]).map(drop)
    }

    /// Brings it back: its kubelet registers it anew, and kube-proxy, which ends with its Node, is started again. Its pod CIDR is the one
    /// given, else a free one of kube-controller-manager's choice.
    pub fn join_node(&mut self, node: &str, pod_cidr: Option<&str>) -> Result<()> {
        if let Some(cidr) = pod_cidr {
            let place = self.lab.topology().node(node);
            let mut object = node_object(place.with_context(|| format!("the cluster has no node {node}"))?);
            object["spec"] = json!({"podCIDR": cidr, "podCIDRs": [cidr]});
            // The kubelet's to say.
            object["status"] = json!({});
            self.kubectl()?.create(&object.to_string())?;
        }
        let machine = self.machine(node)?;
        machine.kubelet()?.restart()?;
        machine.proxy()?.restart()?;
        self.wait_until_registered(node)
    }

    /// Takes a node's power away and boots it again: what its kernel, /run and the BPF file system held is gone, what is on its disk is
    /// there, and its programs start as a machine's do. Not the node that has the control plane.
    pub fn reboot_node(&mut self, node: &str) -> Result<()> {
        let first = self.lab.topology().nodes.first();
        ensure!(
            first.is_some_and(|first| first.name != node),
            "{node} has the control plane"
        );
        let place = self.lab.topology().node(node).cloned();
        let place = place.with_context(|| format!("the cluster has no node {node}"))?;
        let machine = self.machines.remove(node);
        machine
            .with_context(|| format!("{node} was not booted"))?
            .power_off()?;
        let plugs = self.lab.unplug(node)?;
        self.lab.plug(node, &plugs)?;
        let namespace = self.lab.namespace(node);
        let mut machine = Machine::boot(&place, &namespace, &self.cgroup(), self.lab.ledger())?;
        machine.start_containerd()?;
        self.machines.insert(node.to_owned(), machine);
        self.start_programs_of(&place)?;
        self.machine(node)?.wait_for_kubelet()
    }

    /// The pod CIDR that a node has now.
    pub fn pod_cidr(&self, node: &str) -> Result<String> {
        let object = self.kubectl()?.get(&["node", node])?;
        let cidr = object["spec"]["podCIDR"].as_str();
        Ok(cidr
            .with_context(|| format!("{node} has no pod CIDR"))?
            .to_owned())
    }

    /// The names of Podlane's pods of a component (`agent`, `operator`), each with its node.
    pub fn podlane_pods(&self, component: &str) -> Result<Vec<(String, String)>> {
        let label = format!("app.kubernetes.io/component={component}");
        let list = self
            .kubectl()?
            .get(&["pods", "--namespace", SYSTEM_NAMESPACE, "--selector", &label])?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let pods: Vec<(String, String)> = list["items"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|pod| (text(&pod["metadata"]["name"]), text(&pod["spec"]["nodeName"])))
            .collect();
        ensure!(!pods.is_empty(), "Podlane has no pods of component {component}");
        Ok(pods)
    }

    /// Has one of Podlane's pods deleted, without waiting for its end; `more` are further words to kubectl.
    pub fn delete_podlane_pod(&self, pod: &str, more: &[&str]) -> Result<()> {
        let delete = [
            "delete",
            "pod",
            pod,
            "--namespace",
            SYSTEM_NAMESPACE,
            "--wait=false",
        ];
        self.kubectl()?.run(&[&delete, more].concat()).map(drop)
    }

    /// The name of the agent's pod on a node, of one that is not about to go.
    pub fn agent_of(&self, node: &str) -> Result<String> {
        let on = format!("--field-selector=spec.nodeName={node}");
        let list = self.kubectl()?.get(&[
            "pods",
            "--namespace",
            SYSTEM_NAMESPACE,
            "--selector=app.kubernetes.io/component=agent",
            &on,
        ])?;
        let name = list["items"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|pod| pod["metadata"]["deletionTimestamp"].is_null())
            .and_then(|pod| pod["metadata"]["name"].as_str());
        Ok(name
            .with_context(|| format!("no agent's pod on {node}"))?
            .to_owned())
    }

    /// Waits until every node has one agent that runs, and the operator has proved it.
    pub fn wait_for_agents(&self) -> Result<()> {
        wait_until("every agent to run", SETTLED_WITHIN, || {
            let what = ["daemonset", "podlane-agent", "--namespace", SYSTEM_NAMESPACE];
            let status = &self.kubectl()?.get(&what)?["status"];
            let count = |field: &str| status[field].as_u64().unwrap_or_default();
            let nodes = self.machines.len() as u64;
            ensure!(
                count("numberReady") == nodes && count("currentNumberScheduled") == nodes,
                "{status}"
            );
            Ok(())
        })
    }

    /// What the cluster looks like, for a failure's message.
    pub fn describe(&self) -> String {
        let mut text = scenario::describe(&self.lab);
        let looks: [&[&str]; 5] = [
            &["get", "nodes", "-o", "wide"],
            &["get", "pods", "--all-namespaces", "-o", "wide"],
            &["get", "events", "--all-namespaces", "--sort-by=.lastTimestamp"],
            &[
                "logs",
                "--namespace",
                SYSTEM_NAMESPACE,
                "--selector=app.kubernetes.io/component=agent",
                "--prefix",
                "--tail=30",
            ],
            &[
                "logs",
                "--namespace",
                SYSTEM_NAMESPACE,
                "--selector=app.kubernetes.io/component=operator",
                "--prefix",
                "--tail=30",
            ],
        ];
        for what in looks {
            let answer = self
                .kubectl()
                .and_then(|kubectl| {
                    let limited: Vec<&str> = what.iter().chain(&["--request-timeout=5s"]).copied().collect();
                    kubectl.run(&limited)
                })
                .unwrap_or_else(|error| format!("{error:#}\n"));
            let _ = write!(text, "--- kubectl {}\n{answer}", what.join(" "));
        }
        for process in self
            .components
            .iter()
            .chain(self.machines.values().flat_map(Machine::processes))
        {
            let state = if process.runs() { "runs" } else { "has ended" };
            let _ = writeln!(
                text,
                "--- {} ({state})\n{}",
                process.name(),
                tail(process.log(), 8)
            );
        }
        text
    }
}
