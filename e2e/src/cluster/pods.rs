//! Pods of the cluster as places to send from: their addresses, their namespaces, streams of numbered packets between them.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::Cluster;
use super::objects;
use crate::netns::{self, Namespace};
use crate::traffic::Stream;
use crate::wait::wait_until;

const RUNS_WITHIN: Duration = Duration::from_secs(240);

impl Cluster {
    /// Makes a pod that does nothing on a node and waits until it runs: a place to send from. Pods' namespaces have names of their own in
    /// the lab, so a pod is to be called as no node and no other pod is.
    pub fn add_pod(&mut self, name: &str, node: &str) -> Result<Namespace> {
        let manifest = objects::plain_pod(name, node).to_string();
        self.kubectl()?.apply(&manifest)?;
        self.wait_until_running(name)?;
        self.enter_pod(name)
    }

    /// Waits until a pod of namespace `default` is ready.
    pub fn wait_until_running(&self, pod: &str) -> Result<()> {
        wait_until(&format!("the pod {pod} to be ready"), RUNS_WITHIN, || {
            let object = self.pod(pod)?;
            let ready = object["status"]["conditions"]
                .as_array()
                .into_iter()
                .flatten()
                .any(|one| one["type"] == "Ready" && one["status"] == "True");
            ensure!(ready, "{}", object["status"]);
            Ok(())
        })
    }

    /// A pod of namespace `default`.
    pub fn pod(&self, name: &str) -> Result<Value> {
        self.kubectl()?.get(&["pod", name])
    }

    /// The first address of a pod.
    pub fn pod_address(&self, pod: &str) -> Result<IpAddr> {
        let object = self.pod(pod)?;
        let address = object["status"]["podIP"]
            .as_str()
            .with_context(|| format!("{pod} has no address"))?;
        address.parse().with_context(|| address.to_owned())
    }

    /// Names a running pod's network namespace as the lab names those of its own pods: `ping`, captures and streams then take it by the
    /// pod's name. A pod that was replaced by another of its name is to be entered again.
    pub fn enter_pod(&mut self, pod: &str) -> Result<Namespace> {
        let process = self.pod_process("default", pod)?;
        let namespace = self.lab.namespace(pod);
        if namespace.exists() {
            namespace.delete()?;
        } else {
            let name = namespace.name().to_owned();
            self.lab.ledger().change(|state| state.namespaces.push(name))?;
        }
        netns::ip(None, &["netns", "attach", namespace.name(), &process.to_string()])?;
        Ok(namespace)
    }

    /// The number of the first process of a pod's first container, on the machine itself.
    pub fn pod_process(&self, namespace: &str, pod: &str) -> Result<i32> {
        let object = self.kubectl()?.get(&["pod", pod, "--namespace", namespace])?;
        let node = object["spec"]["nodeName"]
            .as_str()
            .with_context(|| format!("{pod} is on no node"))?;
        let container = object["status"]["containerStatuses"][0]["containerID"]
            .as_str()
            .and_then(|id| id.strip_prefix("containerd://"))
            .with_context(|| format!("{pod} has no container"))?;
        let machine = self
            .machines
            .get(node)
            .with_context(|| format!("the cluster has no node {node}"))?;
        machine
            .tasks()?
            .into_iter()
            .find_map(|(task, process)| (task == container).then_some(process))
            .with_context(|| format!("{node} does not run {pod}'s container {container}"))
    }

    /// A stream of `rate` numbered packets a second from one pod to another, both of which were entered.
    pub fn stream(&self, from: &str, to: &str, rate: u32) -> Result<Stream> {
        Stream::start_to(&self.lab, from, to, self.pod_address(to)?, rate, 64)
    }
}
