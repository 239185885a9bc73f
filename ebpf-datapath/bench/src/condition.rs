//! What else the nodes' kernels have to do: the rules that packets pass, on both nodes alike.

mod forward;
mod kube_proxy;

use std::io::Write;
use std::process::Stdio;

use anyhow::{Context, Result, bail, ensure};
use podlane_e2e::netns::Namespace;
use serde::{Deserialize, Serialize};

use crate::site::Site;

/// A condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Condition {
    /// Nothing: no rule, no connection tracking.
    None,
    /// kube-proxy's rules in its nftables mode, for a few Services, and connection tracking.
    KubeProxy,
    /// 500 rules in the forward hook, none of which matches, and connection tracking.
    Rules500,
}

impl Condition {
    /// All, from the least work to the most.
    pub const ALL: [Self; 3] = [Self::None, Self::KubeProxy, Self::Rules500];

    /// A few words for a heading.
    pub fn title(self) -> &'static str {
        match self {
            Self::None => "no rules",
            Self::KubeProxy => "kube-proxy's rules",
            Self::Rules500 => "500 rules in forward",
        }
    }

    /// What it is, in one line.
    pub fn description(self) -> String {
        match self {
            Self::None => "no nftables rule on the nodes, no connection tracking".to_owned(),
            Self::KubeProxy => format!(
                "connection tracking, and {} nftables rules a family laid out as kube-proxy's nftables mode lays them out: NAT \
                 in prerouting, output and postrouting, Services' checks in input, forward and output, Service maps",
                kube_proxy::RULES
            ),
            Self::Rules500 => format!(
                "connection tracking, and {} nftables rules a family in the forward hook that every packet passes and none \
                 matches",
                forward::RULES
            ),
        }
    }

    /// Loads it on both nodes of a site that has no rules.
    ///
    /// # Errors
    /// What nft says.
    pub fn apply(self, site: &Site) -> Result<()> {
        let rules = match self {
            Self::None => return Ok(()),
            Self::KubeProxy => kube_proxy::rules(),
            Self::Rules500 => forward::rules(),
        };
        for node in &site.nodes {
            load(&node.namespace, &rules)?;
            // So that thousands of short connections do not fill the table, which is the machine's.
            node.namespace.set_parameters(&[
                ("netfilter/nf_conntrack_tcp_timeout_time_wait", "2"),
                ("netfilter/nf_conntrack_tcp_timeout_close", "2"),
            ])?;
        }
        Ok(())
    }

    /// Fails where packets should have met connection tracking and have not. Call it after traffic.
    ///
    /// # Errors
    /// The node that has tracked nothing.
    pub fn check(self, site: &Site) -> Result<()> {
        if self == Self::None {
            return Ok(());
        }
        for node in &site.nodes {
            let tracked = node.namespace.within(|| {
                let file = "/proc/sys/net/netfilter/nf_conntrack_count";
                let text = std::fs::read_to_string(file).with_context(|| file.to_owned())?;
                text.trim().parse::<u32>().with_context(|| file.to_owned())
            })?;
            ensure!(tracked > 0, "{} tracks no connection", node.namespace.name());
        }
        Ok(())
    }
}

/// Has nft read rules in a namespace.
pub(crate) fn load(namespace: &Namespace, rules: &str) -> Result<()> {
    let mut child = namespace
        .command("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run nft")?;
    if let Some(mut input) = child.stdin.take() {
        // One that stops early says why itself.
        let _ = input.write_all(rules.as_bytes());
    }
    let output = child.wait_with_output().context("cannot wait for nft")?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        bail!("in {}: nft: {}", namespace.name(), words.trim());
    }
    Ok(())
}
