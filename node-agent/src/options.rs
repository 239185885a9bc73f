//! The command line.

use crate::cni::{Directory, file_name};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::net::SocketAddr;
use std::path::PathBuf;

/// Keeps this node's pod routing as RoutingPolicies declare it.
#[derive(Debug, Parser)]
#[command(name = "podlane-agent", version, args_conflicts_with_subcommands = true)]
pub struct Options {
    /// What else to do than to run.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// How to run.
    #[command(flatten)]
    pub agent: Agent,
    /// Where the eBPF programs are pinned: a directory of Podlane's own on a BPF file system. In a container by the same path as on the
    /// node: the CNI configuration names a file in it.
    #[arg(
        long,
        env = "PODLANE_BPFFS",
        default_value = "/sys/fs/bpf/podlane",
        global = true
    )]
    pub bpffs: PathBuf,
    /// Where the container runtime looks for CNI configurations (/etc/cni/net.d): the one that connects this node's pods is kept there.
    /// Absent: another network plugin connects them.
    #[arg(long, env = "PODLANE_CNI_CONF_DIR", global = true)]
    pub cni_conf_dir: Option<PathBuf>,
    /// The name of its file: of several, the runtime takes the one that sorts first.
    #[arg(
        long,
        env = "PODLANE_CNI_CONF_NAME",
        default_value = "10-podlane.conflist",
        value_parser = file_name,
        global = true
    )]
    pub cni_conf_name: String,
    /// How the log looks.
    #[arg(long, env = "LOG_FORMAT", value_enum, default_value_t = LogFormat::Text, global = true)]
    pub log_format: LogFormat,
}

impl Options {
    /// Where the CNI configuration is kept, if it is.
    pub fn cni(&self) -> Option<Directory> {
        let path = self.cni_conf_dir.clone()?;
        Some(Directory::new(path, self.cni_conf_name.clone()))
    }
}

/// Everything but running.
#[derive(Clone, Copy, Debug, Subcommand)]
pub enum Command {
    /// Remove from this node's kernel everything that is Podlane's, and nothing else.
    Clean,
}

/// Settings of the agent.
#[derive(Clone, Debug, Args)]
pub struct Agent {
    /// The node's name.
    #[arg(long, env = "NODE_NAME", required = true)]
    pub node_name: Option<String>,
    /// What tells this very agent from those before and after it: its pod's metadata.uid. Status names it.
    #[arg(long, env = "PODLANE_INSTANCE")]
    pub instance: Option<String>,
    /// A kubeconfig file; absent: the pod's service account.
    #[arg(long)]
    pub kubeconfig: Option<PathBuf>,
    /// Seconds after which the kernel is read again though nothing has happened.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub resync: u64,
    /// Where counters are told to Prometheus (`/metrics`).
    #[arg(long, env = "PODLANE_METRICS", default_value = "127.0.0.1:9964")]
    pub metrics: SocketAddr,
    /// Where kernel parameters are, if /proc/sys cannot be written.
    #[arg(long, env = "PODLANE_SYSCTLS", default_value = "/proc/sys")]
    pub sysctls: PathBuf,
    /// Load tunnels' drivers that the kernel does not load by itself, out of this directory (/lib/modules). Takes the capability SYS_MODULE.
    #[arg(long, env = "PODLANE_LOAD_MODULES", value_name = "DIRECTORY")]
    pub load_modules: Option<PathBuf>,
}

/// How the log looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_name_is_needed_to_run_and_not_to_clean() {
        use clap::CommandFactory;
        Options::command().debug_assert();
        let clean = Options::try_parse_from(["podlane-agent", "clean"]).expect("enough");
        assert!(matches!(clean.command, Some(Command::Clean)));
        let run = Options::try_parse_from(["podlane-agent", "--node-name", "k8s-ctr"]).expect("enough");
        assert_eq!(
            (run.agent.node_name.as_deref(), run.agent.resync),
            (Some("k8s-ctr"), 30)
        );
        if std::env::var_os("NODE_NAME").is_none() {
            assert!(Options::try_parse_from(["podlane-agent"]).is_err());
        }
    }
}
