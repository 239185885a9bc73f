//! Podlane's own programs in the lab.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use super::Lab;
use crate::control_plane::{Identity, SYSTEM_NAMESPACE};
use crate::process::{Process, Program};
use crate::programs;
use crate::topology::Node;

impl Lab {
    /// Makes Podlane's types, roles and namespace.
    pub fn install_podlane(&mut self) -> Result<()> {
        let start = Instant::now();
        self.control_plane()?.install_podlane()?;
        self.tell("Podlane's types and roles", start);
        Ok(())
    }

    /// Starts the operator and one agent a node.
    pub fn start_podlane(&mut self) -> Result<()> {
        let start = Instant::now();
        self.start_operator()?;
        let nodes: Vec<String> = self
            .options
            .topology
            .nodes
            .iter()
            .map(|node| node.name.clone())
            .collect();
        for node in nodes {
            self.start_agent(&node)?;
        }
        self.tell("Podlane's operator and one agent a node", start);
        Ok(())
    }

    /// The node where the API server and the operator are.
    fn control_plane_node(&self) -> Result<&Node> {
        let nodes = &self.options.topology.nodes;
        nodes.first().context("a control plane needs a node")
    }

    /// Starts the operator, beside the API server.
    pub fn start_operator(&mut self) -> Result<()> {
        self.start_operator_with(&[])
    }

    /// The same with further arguments of one's own.
    pub fn start_operator_with(&mut self, more: &[&str]) -> Result<()> {
        let place = self.control_plane_node()?.clone();
        let kubeconfig = self
            .control_plane()?
            .kubeconfig_for(&Identity::Operator, &place)?;
        let mut arguments = vec!["--namespace".to_owned(), SYSTEM_NAMESPACE.to_owned()];
        for cidr in &self.options.topology.cluster_pod_cidrs {
            arguments.extend(["--cluster-pod-cidr".to_owned(), cidr.to_string()]);
        }
        arguments.extend(more.iter().map(|&argument| argument.to_owned()));
        self.start_operator_as(&kubeconfig, arguments)
    }

    /// The same as whom a kubeconfig says, with arguments of one's own.
    pub fn start_operator_as(&mut self, kubeconfig: &Path, more: Vec<String>) -> Result<()> {
        let place = self.control_plane_node()?.clone();
        let mut arguments = vec![
            programs::own("podlane-operator")?.display().to_string(),
            "--kubeconfig".to_owned(),
            kubeconfig.display().to_string(),
        ];
        arguments.extend(more);
        let program = podlane_program("operator", arguments).within(&self.namespace(&place.name));
        self.operator = Some(Process::start(program, &self.ledger)?);
        Ok(())
    }

    /// Takes the agent of a node and its programs away, and starts one that can pin none (its directory is on an ordinary file system): there the
    /// kernel's drivers encapsulate.
    pub fn replace_agent_by_one_without_programs(&mut self, node: &str) -> Result<()> {
        self.agent(node)?.kill()?;
        self.clean_agent(node)?;
        let elsewhere = self.place_without_pins()?.display().to_string();
        self.start_agent_with(node, &["--bpffs", &elsewhere])
    }

    /// A directory on an ordinary file system, where an agent can pin nothing.
    pub fn place_without_pins(&self) -> Result<PathBuf> {
        let place = self.directory().join("no-bpffs");
        std::fs::create_dir_all(&place).with_context(|| place.display().to_string())?;
        Ok(place)
    }

    /// Starts the agent of a node, in the node's namespace.
    pub fn start_agent(&mut self, node: &str) -> Result<()> {
        let bpffs = self.bpffs(node)?.join("podlane").display().to_string();
        self.start_agent_with(node, &["--bpffs", &bpffs])
    }

    /// The same with arguments of one's own.
    pub fn start_agent_with(&mut self, node: &str, more: &[&str]) -> Result<()> {
        let place = self
            .topology()
            .node(node)
            .with_context(|| format!("the lab has no node {node}"))?
            .clone();
        let kubeconfig = self
            .control_plane()?
            .kubeconfig_for(&Identity::Agent(node.to_owned()), &place)?;
        self.start_agent_as(node, &kubeconfig, more)
    }

    /// The same as whom a kubeconfig says.
    pub fn start_agent_as(&mut self, node: &str, kubeconfig: &Path, more: &[&str]) -> Result<()> {
        let mut arguments = vec![
            programs::own("podlane-agent")?.display().to_string(),
            "--kubeconfig".to_owned(),
            kubeconfig.display().to_string(),
            "--node-name".to_owned(),
            node.to_owned(),
        ];
        arguments.extend(more.iter().map(|&argument| argument.to_owned()));
        let program = podlane_program(&format!("agent-{node}"), arguments).within(&self.namespace(node));
        let agent = Process::start(program, &self.ledger)?;
        self.agents.insert(node.to_owned(), agent);
        Ok(())
    }

    /// Runs `podlane-agent clean` on a node.
    pub fn clean_agent(&self, node: &str) -> Result<()> {
        self.clean_agent_with(node, &[])
    }

    /// The same with further arguments of one's own.
    pub fn clean_agent_with(&self, node: &str, more: &[&str]) -> Result<()> {
        let output = self
            .namespace(node)
            .command(&programs::own("podlane-agent")?.display().to_string())
            .arg("clean")
            .arg("--bpffs")
            .arg(self.bpffs(node)?.join("podlane"))
            .args(more)
            .output()
            .context("cannot run podlane-agent clean")?;
        if !output.status.success() {
            bail!("podlane-agent clean: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }

    /// The operator's process.
    pub fn operator(&mut self) -> Result<&mut Process> {
        self.operator.as_mut().context("the operator was not started")
    }

    /// The process of a node's agent.
    pub fn agent(&mut self, node: &str) -> Result<&mut Process> {
        self.agents
            .get_mut(node)
            .with_context(|| format!("the agent of {node} was not started"))
    }

    /// Podlane's processes that were started.
    pub fn podlane_processes(&self) -> impl Iterator<Item = &Process> {
        self.operator.iter().chain(self.agents.values())
    }
}

fn podlane_program(name: &str, arguments: Vec<String>) -> Program {
    let mut program = Program::new(name, arguments);
    program.asked_to_end = true;
    program.environment = vec![
        (
            "RUST_LOG".to_owned(),
            std::env::var("RUST_LOG").unwrap_or_else(|_| "info".to_owned()),
        ),
        ("RUST_BACKTRACE".to_owned(), "1".to_owned()),
        // The logs are files.
        ("NO_COLOR".to_owned(), "1".to_owned()),
    ];
    program
}
