//! A real kube-proxy on every node, in one of its modes.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use podlane_e2e::cluster::settings::proxy_arguments;
use podlane_e2e::control_plane::Identity;
use podlane_e2e::lab::Lab;
use podlane_e2e::process::{Process, Program};
use podlane_e2e::programs::{self, ClusterPrograms};
use podlane_e2e::story::ENDS_WITHIN;

/// How kube-proxy translates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// By nftables of its own.
    Nftables,
    /// By the iptables that the machine takes: Debian's is the one that writes nftables.
    Iptables,
    /// By the kernel's older tables.
    IptablesLegacy,
}

impl Mode {
    fn argument(self) -> &'static str {
        match self {
            Self::Nftables => "nftables",
            Self::Iptables | Self::IptablesLegacy => "iptables",
        }
    }
}

/// How long a kube-proxy may take to take its rules away and end.
const CLEANED_WITHIN: Duration = Duration::from_secs(240);

/// One kube-proxy a node.
#[derive(Debug)]
pub(crate) struct Proxies {
    mode: Mode,
    processes: Vec<Process>,
}

impl Proxies {
    /// Starts them; their rules come soon after.
    pub(crate) fn start(lab: &mut Lab, mode: Mode) -> Result<Self> {
        let topology = lab.topology().clone();
        let mut processes = Vec::new();
        for node in &topology.nodes {
            let kubeconfig = lab.control_plane()?.kubeconfig_for(&Identity::Proxy, node)?;
            let arguments = proxy_arguments(&kubeconfig, mode.argument(), node, &topology);
            let program = program(lab, &node.name, mode, "", arguments)?;
            processes.push(Process::start(program, lab.ledger())?);
        }
        Ok(Self { mode, processes })
    }

    /// An error with the log of one that has ended.
    pub(crate) fn ensure_run(&self) -> Result<()> {
        self.processes.iter().try_for_each(Process::ensure_runs)
    }

    /// Ends them, and has each node's rules taken away by kube-proxy itself.
    pub(crate) fn clean(mut self, lab: &Lab) -> Result<()> {
        for process in &mut self.processes {
            process.stop(ENDS_WITHIN)?;
        }
        let mut cleaning = Vec::new();
        for node in &lab.topology().nodes {
            let program = program(lab, &node.name, self.mode, "-cleanup", ["--cleanup".to_owned()])?;
            cleaning.push(Process::start(program, lab.ledger())?);
        }
        for mut process in cleaning {
            let status = process.wait(CLEANED_WITHIN)?;
            ensure!(status.success(), "{}: {}", process.name(), process.log_tail(10));
        }
        Ok(())
    }
}

fn program(
    lab: &Lab,
    node: &str,
    mode: Mode,
    what: &str,
    arguments: impl IntoIterator<Item = String>,
) -> Result<Program> {
    let words = [ClusterPrograms::find()?.kube_proxy.display().to_string()]
        .into_iter()
        .chain(arguments);
    let mut program = Program::new(format!("kube-proxy-{node}{what}"), words).within(&lab.namespace(node));
    if mode == Mode::IptablesLegacy {
        let path = std::env::var("PATH").unwrap_or_default();
        let first = legacy_programs(lab)?;
        program.environment = vec![("PATH".to_owned(), format!("{}:{path}", first.display()))];
    }
    Ok(program)
}

/// A folder in which `iptables` is the one of the older tables.
fn legacy_programs(lab: &Lab) -> Result<PathBuf> {
    let folder = lab.directory().join("iptables-legacy");
    if !folder.exists() {
        fs::create_dir_all(&folder)?;
        let all = fs::canonicalize(programs::on_path("iptables-legacy").context("no iptables-legacy")?)?;
        for name in ["iptables", "ip6tables"] {
            for what in ["", "-save", "-restore"] {
                symlink(&all, folder.join(format!("{name}{what}")))?;
            }
        }
    }
    Ok(folder)
}
