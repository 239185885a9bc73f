//! The command line.

use crate::health::Question;
use crate::leader::Terms;
use crate::uninstall::Uninstall;
use crate::world::Settings;
use clap::{Parser, Subcommand, ValueEnum};
use ipnet::IpNet;
use podlane_plan::pool::{Family, NoPool, Pool, Pools};
use std::io::IsTerminal;
use std::path::PathBuf;
use tracing_subscriber::EnvFilter;

/// Keeps Podlane's nodes told: resolves RoutingPolicies, publishes peers, writes status.
#[derive(Clone, Debug, Parser)]
#[command(name = "podlane-operator", version)]
pub struct Options {
    /// What else to do than to run.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// How to reach the API server; default: as a pod does, or else as kubectl does.
    #[arg(long)]
    pub kubeconfig: Option<PathBuf>,
    /// The namespace of the lease that the leader holds.
    #[arg(long, default_value = "podlane-system")]
    pub namespace: String,
    /// What the whole cluster's pods are numbered from: no packet for it ever follows a node's default route.
    #[arg(long = "cluster-pod-cidr", value_name = "CIDR", value_delimiter = ',')]
    pub cluster_pod_cidrs: Vec<IpNet>,
    /// IPv4 networks out of which nodes without pod CIDRs are given blocks; none: the cluster hands out pod CIDRs itself.
    #[arg(
        long = "cluster-pool-ipv4-pod-cidr-list",
        value_name = "CIDR",
        value_delimiter = ','
    )]
    pub pool_ipv4: Vec<IpNet>,
    /// The prefix length of these blocks.
    #[arg(long = "cluster-pool-ipv4-mask-size", default_value_t = 24)]
    pub mask_size_ipv4: u8,
    /// The same of IPv6.
    #[arg(
        long = "cluster-pool-ipv6-pod-cidr-list",
        value_name = "CIDR",
        value_delimiter = ','
    )]
    pub pool_ipv6: Vec<IpNet>,
    /// The prefix length of these blocks.
    #[arg(long = "cluster-pool-ipv6-mask-size", default_value_t = 120)]
    pub mask_size_ipv6: u8,
    /// The name of the lease that the leader holds.
    #[arg(long, default_value = "podlane-operator")]
    pub leader_election_id: String,
    /// The name under which this operator leads; default: the pod's or else the host's, with something at random.
    #[arg(long)]
    pub identity: Option<String>,
    /// The pod's name. (On the node's network its host name is the node's.)
    #[arg(long, env = "POD_NAME")]
    pub pod: Option<String>,
    /// Peers in one PeerSlice, at most.
    #[arg(long, hide = true, default_value_t = podlane_plan::slices::CAPACITY, value_parser = capacity)]
    pub slice_capacity: usize,
    /// The file with what agents are rolled out with, and the first policy; absent: agents are not this operator's business.
    #[arg(long, value_name = "FILE")]
    pub configuration: Option<PathBuf>,
    /// Where to answer whether this operator is well: a Unix socket, which is made. Absent: nowhere.
    #[arg(long, value_name = "SOCKET")]
    pub health: Option<PathBuf>,
    /// How to write the log. What is logged, RUST_LOG says.
    #[arg(long, default_value = "text")]
    pub log_format: LogFormat,
}

/// Everything but running.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Take everything of Podlane's off the nodes, or only the agents, so that the rest can be deleted. Other options go before this word.
    Uninstall(Uninstall),
    /// Ask an operator whether it is well; succeeds if so.
    Health {
        /// What to ask.
        question: Question,
        /// Where it answers.
        socket: PathBuf,
    },
}

/// How the log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines.
    Json,
}

/// A PeerSlice takes 500 peers.
fn capacity(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(capacity @ 1..=500) => Ok(capacity),
        _ => Err("must be 1 to 500".to_owned()),
    }
}

impl Options {
    /// The name under which this operator leads.
    pub fn identity(&self) -> String {
        self.identity.clone().unwrap_or_else(|| {
            let host = || hostname::get().ok().and_then(|host| host.into_string().ok());
            let name = self.pod.clone().or_else(host);
            let name = name.unwrap_or_else(|| "podlane-operator".to_owned());
            format!("{name}_{:08x}", rand::random::<u32>())
        })
    }

    /// What decisions depend on.
    ///
    /// # Errors
    /// When a pool makes no sense.
    pub fn settings(&self) -> Result<Settings, NoPool> {
        let pools = Pools::new([
            Pool::new(Family::V4, self.pool_ipv4.clone(), self.mask_size_ipv4)?,
            Pool::new(Family::V6, self.pool_ipv6.clone(), self.mask_size_ipv6)?,
        ]);
        // No packet for a block that nobody has yet may leak either.
        let mut cluster_pod_cidrs: Vec<IpNet> = self.cluster_pod_cidrs.iter().map(IpNet::trunc).collect();
        for cidr in pools.cidrs() {
            if !cluster_pod_cidrs.iter().any(|known| known.contains(cidr)) {
                cluster_pod_cidrs.push(*cidr);
            }
        }
        Ok(Settings {
            cluster_pod_cidrs,
            pools,
            slice_capacity: self.slice_capacity,
        })
    }

    /// How long leading takes.
    pub fn terms(&self) -> Terms {
        Terms::default()
    }

    /// Begins the log.
    pub fn log(&self) {
        // The client's own words on each failed request would repeat what is said here once. RUST_LOG can still ask for them by
        // name: a later directive on the same target wins.
        let asked = std::env::var(EnvFilter::DEFAULT_ENV).unwrap_or_else(|_| "info".to_owned());
        let filter = EnvFilter::new(format!("kube_client=off,kube_runtime=off,{asked}"));
        let subscriber = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_ansi(std::io::stderr().is_terminal())
            .with_writer(std::io::stderr);
        match self.log_format {
            LogFormat::Text => subscriber.with_target(false).init(),
            LogFormat::Json => subscriber.json().init(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_read() {
        let parse = |text: &str| Options::try_parse_from(text.split_whitespace());
        let options =
            parse("operator --cluster-pod-cidr 172.20.0.7/16,fd00::/48 --cluster-pod-cidr 10.0.0.0/8")
                .expect("valid");
        let cidrs: Vec<_> = options
            .settings()
            .expect("no pool")
            .cluster_pod_cidrs
            .iter()
            .map(IpNet::to_string)
            .collect();
        assert_eq!(cidrs, ["172.20.0.0/16", "fd00::/48", "10.0.0.0/8"]);
        assert_ne!(options.identity(), options.identity());
        assert!(parse("operator --cluster-pod-cidr 172.20").is_err());
        assert!(parse("operator --slice-capacity 0").is_err());
    }

    #[test]
    fn pools_are_among_the_clusters_pod_cidrs_and_nonsense_is_refused() {
        let settings = |text: &str| {
            let words = format!("operator --cluster-pod-cidr 172.20.0.0/16 {text}");
            let options = Options::try_parse_from(words.split_whitespace()).expect("valid");
            options.settings().map_err(|why| why.to_string())
        };
        let pools = "--cluster-pool-ipv4-pod-cidr-list 172.20.0.0/20,10.0.0.0/16 --cluster-pool-ipv6-pod-cidr-list fd00::/104";
        let cidrs: Vec<_> = settings(pools)
            .expect("valid")
            .cluster_pod_cidrs
            .iter()
            .map(IpNet::to_string)
            .collect();
        assert_eq!(cidrs, ["172.20.0.0/16", "10.0.0.0/16", "fd00::/104"]);
        let why = settings("--cluster-pool-ipv4-pod-cidr-list 10.0.0.0/16,10.0.9.0/24").expect_err("overlap");
        assert_eq!(
            why,
            "clusterPoolIPv4PodCIDRList: 10.0.0.0/16 and 10.0.9.0/24 overlap: leave one of them out"
        );
    }
}
