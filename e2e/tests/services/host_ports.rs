//! Pods with a hostPort: connected as a container runtime does it, by the real plugins and the configuration that the agent wrote.

use std::fs;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use podlane_e2e::cluster::cni_folder;
use podlane_e2e::lab::Lab;
use podlane_e2e::story::SETTLED_WITHIN;
use podlane_e2e::topology::{INTERNET, Node, Pod, Topology};
use podlane_e2e::wait::wait_until;
use serde_json::{Value, json};

use crate::asks::{Ask, Asker, router_address};
use crate::servers::{Answer, PORT, Server, Sizes, ask_tcp};

/// The nodes' port that leads to the pod.
const HOST_PORT: u16 = 8088;

/// What this machine lacks for it.
pub(crate) fn missing() -> Option<String> {
    plugins().err().map(|error| format!("{error:#}"))
}

fn plugins() -> Result<&'static Path> {
    cni_folder(&["ptp", "host-local", "portmap"]).map(Path::new)
}

/// Where a node's agent writes the CNI configuration.
pub(crate) fn configurations(lab: &Lab, node: &str) -> PathBuf {
    lab.directory().join("cni").join(node)
}

/// A pod that a node's port leads to.
#[derive(Debug)]
pub(crate) struct Hosted {
    node: Node,
    pod: Pod,
    attempt: Attachment,
    _servers: Vec<Server>,
}

/// What a runtime keeps of a pod that it has connected.
#[derive(Debug)]
struct Attachment {
    list: Value,
    result: Value,
    id: String,
}

impl Hosted {
    /// Makes a pod on a node, connects it and has it serve.
    pub(crate) fn start(lab: &Lab, node: &str) -> Result<Self> {
        let node = lab.topology().node(node).context("a node")?.clone();
        let name = format!("hosted-{}", node.name);
        let namespace = lab.namespace(&name);
        lab.ledger()
            .change(|state| state.namespaces.push(namespace.name().to_owned()))?;
        namespace.add()?;
        namespace.ip(&["link", "set", "lo", "up"])?;
        let file = configurations(lab, &node.name).join("10-podlane.conflist");
        let list: Value = wait_until("the agent to write the CNI configuration", SETTLED_WITHIN, || {
            Ok(serde_json::from_str(&fs::read_to_string(&file)?)?)
        })?;
        let mut attempt = Attachment {
            list,
            result: Value::Null,
            id: name.clone(),
        };
        attempt.add(lab, &node.name)?;
        let given = attempt.result["ips"].as_array().context("no addresses")?;
        let addresses = given
            .iter()
            .map(|given| {
                let address: ipnet::IpNet = given["address"].as_str().context("no address")?.parse()?;
                Ok(address.addr())
            })
            .collect::<Result<Vec<_>>>()?;
        let servers = addresses
            .iter()
            .map(|address| Server::start(lab, &name, *address));
        let servers = servers.collect::<Result<_>>()?;
        let pod = Pod { name, addresses };
        Ok(Self {
            node,
            pod,
            attempt,
            _servers: servers,
        })
    }

    /// Everybody asks by the node's port, and the pod itself; the node by its loopback, too. All by the addresses of a topology of one family.
    pub(crate) fn asks(&self, topology: &Topology) -> Result<Vec<Ask>> {
        let own_node = topology.node(&self.node.name).context("a node")?;
        let at = own_node.internal_ip().context("an address")?;
        let own = Pod {
            addresses: self.pod.address_of(at.is_ipv6()).into_iter().collect(),
            ..self.pod.clone()
        };
        let mut askers = Asker::all(topology)?;
        askers.push(Asker::Pod(own_node.clone(), own));
        let ask = |asker: &Asker, to: IpAddr, source: IpAddr| Ask {
            asker: asker.name().to_owned(),
            what: format!("hostPort of {}", self.pod.name),
            target: SocketAddr::new(to, HOST_PORT),
            wanted: Some(Answer {
                pod: self.pod.name.clone(),
                source,
            }),
        };
        let mut asks = Vec::new();
        for asker in &askers {
            let source = match asker {
                // portmap masquerades who is in the pod's own network, so that the answer comes back by way of the node.
                Asker::Pod(node, _) if node.name == own_node.name => router_address(own_node)?,
                // Another node's address is beyond the cluster: Podlane masquerades.
                Asker::Pod(node, _) => node.internal_ip().context("an address")?,
                _ => asker.address()?,
            };
            asks.push(ask(asker, at, source));
        }
        // For IPv6 no kernel routes what is from its loopback address elsewhere.
        if at.is_ipv4() {
            let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
            asks.push(ask(
                &Asker::Node(own_node.clone()),
                loopback,
                router_address(own_node)?,
            ));
        }
        Ok(asks)
    }

    /// Disconnects the pod: the port leads nowhere any more.
    pub(crate) fn end(self, lab: &Lab) -> Result<()> {
        self.attempt.delete(lab, &self.node.name)?;
        for address in &self.node.addresses {
            let at = SocketAddr::new(address.addr(), HOST_PORT);
            let again = lab
                .namespace(INTERNET)
                .within(|| Ok(ask_tcp(at, Sizes::SMALL, Duration::from_secs(1))))?;
            ensure!(again.is_err(), "{at} still answers: {again:?}");
        }
        let namespace = lab.namespace(&self.pod.name);
        namespace.delete()?;
        lab.ledger()
            .change(|state| state.namespaces.retain(|name| name != namespace.name()))
    }
}

impl Attachment {
    /// Runs the list's plugins one after the other, each told what the one before made (CNI specification 1.0.0, section 4).
    fn add(&mut self, lab: &Lab, node: &str) -> Result<()> {
        for plugin in self.plugins()? {
            let output = self.run(lab, node, "ADD", plugin)?;
            self.result = serde_json::from_str(&output).context("a plugin's result")?;
        }
        Ok(())
    }

    /// The same backwards.
    fn delete(&self, lab: &Lab, node: &str) -> Result<()> {
        for plugin in self.plugins()?.into_iter().rev() {
            self.run(lab, node, "DEL", plugin)?;
        }
        Ok(())
    }

    fn plugins(&self) -> Result<Vec<Value>> {
        self.list["plugins"].as_array().cloned().context("no plugins")
    }

    fn run(&self, lab: &Lab, node: &str, command: &str, mut plugin: Value) -> Result<String> {
        for field in ["name", "cniVersion"] {
            plugin[field] = self.list[field].clone();
        }
        if !self.result.is_null() {
            plugin["prevResult"] = self.result.clone();
        }
        if plugin["capabilities"]["portMappings"] == true {
            let mapping =
                |protocol: &str| json!({"hostPort": HOST_PORT, "containerPort": PORT, "protocol": protocol});
            plugin["runtimeConfig"] = json!({"portMappings": [mapping("tcp"), mapping("udp")]});
        }
        if plugin["ipam"].is_object() {
            // The lab's nodes share the machine's disk.
            plugin["ipam"]["dataDir"] = json!(lab.directory().join("cni-data").join(node));
        }
        let place = plugins()?;
        let kind = plugin["type"].as_str().context("a plugin without a type")?;
        let program = place.join(kind);
        let mut child = lab
            .namespace(node)
            .command(&program.display().to_string())
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", &self.id)
            .env("CNI_NETNS", lab.namespace(&self.id).path())
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", place)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {kind}"))?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(plugin.to_string().as_bytes())?;
        }
        let output = child.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            bail!(
                "{kind} {command}: {said} {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(said)
    }
}
