//! The Services that are asked, and the pods behind them: objects that a controller manager would make, made by kubectl.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context as _, Result};
use podlane_e2e::lab::Lab;
use podlane_e2e::topology::{Node, Pod, Topology};
use serde_json::{Value, json};

use crate::servers::{PORT, Server};

/// The port of every Service.
const SERVICE_PORT: u16 = 80;

/// What a Service does with those who come from outside of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum External {
    /// `externalTrafficPolicy: Cluster`.
    Cluster,
    /// `externalTrafficPolicy: Local`.
    Local,
}

/// A Service of the type NodePort.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    pub(crate) name: String,
    pub(crate) external: External,
    /// Whether each client is answered by one of the pods alone (`sessionAffinity: ClientIP`).
    is_sticky: bool,
    /// The last octet of its address, and what its node port has above 30000.
    number: u8,
    /// The pods behind it, each with its node.
    pub(crate) backends: Vec<(Node, Pod)>,
}

impl Service {
    /// Where pods and nodes ask for it.
    pub(crate) fn cluster(&self) -> SocketAddr {
        SocketAddr::new(self.cluster_ip(), SERVICE_PORT)
    }

    /// Where it is asked for by a node's address.
    pub(crate) fn node_port(&self, node: &Node) -> Result<SocketAddr> {
        let address = node
            .internal_ip()
            .with_context(|| format!("{} has no address", node.name))?;
        Ok(SocketAddr::new(address, self.port()))
    }

    /// Of its pods' family.
    fn cluster_ip(&self) -> IpAddr {
        if self.is_ipv6() {
            let last = 0x100 + u16::from(self.number);
            IpAddr::V6(Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, last))
        } else {
            IpAddr::V4(Ipv4Addr::new(10, 96, 1, self.number))
        }
    }

    fn is_ipv6(&self) -> bool {
        self.backends
            .iter()
            .all(|(_, pod)| pod.address().is_some_and(|address| address.is_ipv6()))
    }

    /// Of its address and its pods.
    pub(crate) fn family(&self) -> &'static str {
        if self.is_ipv6() { "IPv6" } else { "IPv4" }
    }

    fn port(&self) -> u16 {
        30000 + u16::from(self.number)
    }

    fn objects(&self) -> [Value; 2] {
        let both = |port: &dyn Fn(&str) -> Value| json!([port("TCP"), port("UDP")]);
        let policy = match self.external {
            External::Cluster => "Cluster",
            External::Local => "Local",
        };
        let endpoints: Vec<Value> = self
            .backends
            .iter()
            .map(|(node, pod)| {
                json!({"addresses": [pod.address()], "nodeName": node.name, "conditions": {"ready": true}})
            })
            .collect();
        [
            json!({
                "apiVersion": "v1", "kind": "Service", "metadata": {"name": self.name, "namespace": "default"},
                "spec": {
                    "type": "NodePort", "clusterIP": self.cluster_ip(), "externalTrafficPolicy": policy,
                    "sessionAffinity": if self.is_sticky { "ClientIP" } else { "None" },
                    "ports": both(&|protocol| json!({"name": protocol.to_lowercase(), "protocol": protocol,
                        "port": SERVICE_PORT, "targetPort": PORT, "nodePort": self.port()})),
                },
            }),
            json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": self.family(),
                "metadata": {"name": self.name, "namespace": "default", "labels": {"kubernetes.io/service-name": self.name}},
                "endpoints": endpoints,
                "ports": both(&|protocol| json!({"name": protocol.to_lowercase(), "protocol": protocol, "port": PORT})),
            }),
        ]
    }
}

/// Servers and the Services that lead to them, all of one family.
#[derive(Debug)]
pub(crate) struct Workload {
    /// The lab, as far as it is of the family.
    pub(crate) topology: Topology,
    /// A Service of each policy for each node's first pod, so that it is known who is to answer.
    pub(crate) single: Vec<Service>,
    /// One that leads to all of them.
    pub(crate) spread: Service,
    /// The same, with one of them for each client.
    pub(crate) sticky: Service,
    _servers: Vec<Server>,
}

impl Workload {
    /// One for each family that the lab's pods have.
    pub(crate) fn of_families(lab: &Lab) -> Result<Vec<Self>> {
        let families = [false, true].map(|six| lab.topology().clone().of_family(six));
        families
            .into_iter()
            .filter(|topology| !topology.cluster_pod_cidrs.is_empty())
            .map(|topology| Self::deploy(lab, topology))
            .collect()
    }

    /// Starts the servers and makes the objects.
    fn deploy(lab: &Lab, topology: Topology) -> Result<Self> {
        let is_six = topology
            .cluster_pod_cidrs
            .iter()
            .any(|cidr| cidr.addr().is_ipv6());
        // Names and ports are no family's.
        let (suffix, from) = if is_six { ("-6", 100) } else { ("", 0) };
        let mut backends = Vec::new();
        for node in &topology.nodes {
            let pod = node.pods.first().context("a node without a pod")?;
            backends.push((node.clone(), pod.clone()));
        }
        let mut single = Vec::new();
        for (external, word) in [(External::Cluster, "cluster"), (External::Local, "local")] {
            for backend in &backends {
                single.push(Service {
                    name: format!("{word}-{}{suffix}", backend.1.name),
                    external,
                    is_sticky: false,
                    number: u8::try_from(single.len())? + from + 10,
                    backends: vec![backend.clone()],
                });
            }
        }
        let of_all = |name: &str, number, is_sticky| Service {
            name: format!("{name}{suffix}"),
            external: External::Cluster,
            is_sticky,
            number: from + number,
            backends: backends.clone(),
        };
        let (spread, sticky) = (of_all("spread", 80, false), of_all("sticky", 81, true));
        let items: Vec<Value> = single
            .iter()
            .chain([&spread, &sticky])
            .flat_map(Service::objects)
            .collect();
        let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
        lab.kubectl()?.apply(&list.to_string())?;
        let servers = backends
            .iter()
            .map(|(_, pod)| {
                let address = pod.address().context("a pod without an address")?;
                Server::start(lab, &pod.name, address)
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            topology,
            single,
            spread,
            sticky,
            _servers: servers,
        })
    }

    /// A pod's address.
    pub(crate) fn pod_address(&self, pod: &str) -> Result<IpAddr> {
        let pod = self.topology.pod(pod).map(|(_, pod)| pod);
        pod.and_then(Pod::address).context("no such pod")
    }

    /// The Service of a pod that is for all who ask (`externalTrafficPolicy: Cluster`).
    pub(crate) fn of(&self, pod: &str) -> Result<&Service> {
        self.single
            .iter()
            .find(|service| {
                service.external == External::Cluster && service.backends.iter().any(|(_, it)| it.name == pod)
            })
            .with_context(|| format!("{pod} has no Service"))
    }

    /// Takes the objects away.
    pub(crate) fn delete(&self, lab: &Lab) -> Result<()> {
        for service in self.single.iter().chain([&self.spread, &self.sticky]) {
            lab.kubectl()?
                .run(&["delete", "service,endpointslice", &service.name, "--wait=false"])?;
        }
        Ok(())
    }
}
