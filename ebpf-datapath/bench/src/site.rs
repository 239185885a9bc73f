//! Two nodes in different subnets, the router between them, and a pod on each: every one a network namespace, joined by veths.
//!
//! What lies between the pods' own routes and the underlay is left open: that is what a [`Way`](crate::ways::Way) adds.

mod links;
mod peer;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use podlane_e2e::interrupt;
use podlane_e2e::netns::{self, Namespace};
use podlane_e2e::wait::wait_until;
use serde::{Deserialize, Serialize};

use links::{node_lines, pod_lines, router_addresses, router_lines};
pub use peer::Peer;

/// What every namespace's name begins with.
const PREFIX: &str = "podlane-bench";

/// MTU of the pods' links, the same whatever carries their packets, so that only the carrying differs: what a VXLAN or GENEVE
/// tunnel over IPv4 leaves of [`UNDERLAY_MTU`] (50 bytes less, RFC 7348, section 4.3).
pub const POD_MTU: u32 = 1450;

/// MTU between the nodes.
pub const UNDERLAY_MTU: u32 = 1500;

/// The underlay's interface on a node, and a pod's own.
pub const ETH0: &str = "eth0";

/// The node's end of its pod's veth.
pub const POD_VETH: &str = "pod0";

/// The node's bridge, where pods hang on one.
pub const BRIDGE: &str = "cni0";

/// The router's interfaces: the first node's link and the second's.
pub const ROUTER_INTERFACES: [&str; 2] = ["eth1", "eth2"];

/// The family of the pods' packets. The tunnels' outer packets are IPv4 either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// IPv4 pods.
    Ipv4,
    /// IPv6 pods.
    Ipv6,
}

impl Family {
    /// Both, IPv4 first.
    pub const ALL: [Self; 2] = [Self::Ipv4, Self::Ipv6];

    /// As people write it.
    pub fn title(self) -> &'static str {
        match self {
            Self::Ipv4 => "IPv4",
            Self::Ipv6 => "IPv6",
        }
    }

    /// The length of a whole address.
    pub fn bits(self) -> u8 {
        match self {
            Self::Ipv4 => 32,
            Self::Ipv6 => 128,
        }
    }

    /// The length of a node's pod CIDR.
    pub fn pod_cidr_bits(self) -> u8 {
        match self {
            Self::Ipv4 => 24,
            Self::Ipv6 => 64,
        }
    }
}

/// How pods hang on their node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodNetwork {
    /// A veth each and a route each, as the CNI plugin ptp does it.
    PointToPoint,
    /// A veth each, on one bridge that has the node's router address, as the CNI plugin bridge does it.
    Bridge,
}

/// One of a site's two nodes.
#[derive(Debug)]
pub struct Node {
    /// The node's own namespace.
    pub namespace: Namespace,
    /// Its pod's.
    pub pod: Namespace,
    /// The node as others see it.
    pub identity: Peer,
    /// The router's addresses on the node's link.
    pub gateway: (Ipv4Addr, Ipv6Addr),
    /// All other nodes that it knows; the site's other node first.
    pub peers: Vec<Peer>,
}

impl Node {
    /// The router's address on the node's link.
    pub fn gateway(&self, family: Family) -> IpAddr {
        match family {
            Family::Ipv4 => self.gateway.0.into(),
            Family::Ipv6 => self.gateway.1.into(),
        }
    }
}

/// Two nodes, their pods and the router. Its namespaces go when it is dropped, and with them all that is in them.
#[derive(Debug)]
pub struct Site {
    /// The node whose pod sends, and the node whose pod receives.
    pub nodes: [Node; 2],
    /// The router between them.
    pub router: Namespace,
    made: Vec<Namespace>,
}

impl Site {
    /// Makes a site. `name` tells it from this process's other sites; every node knows `peers` others (at least 1).
    ///
    /// # Errors
    /// What `ip` says, and "interrupted" after a signal. Nothing is left then.
    pub fn up(name: &str, pods: PodNetwork, peers: u16) -> Result<Self> {
        let namespace =
            |part: &str| Namespace::named(format!("{PREFIX}-{}-{name}-{part}", std::process::id()));
        let node = |index: u8| Node {
            namespace: namespace(["node-a", "node-b"][usize::from(index)]),
            pod: namespace(["pod-a", "pod-b"][usize::from(index)]),
            identity: Peer::of_node(index),
            gateway: router_addresses(index),
            peers: std::iter::once(Peer::of_node(1 - index))
                .chain((0..peers.saturating_sub(1)).map(Peer::further))
                .collect(),
        };
        let mut site = Self {
            nodes: [node(0), node(1)],
            router: namespace("router"),
            made: Vec::new(),
        };
        for namespace in site.namespaces() {
            interrupt::check()?;
            namespace.add()?;
            site.made.push(namespace.clone());
            namespace.set_parameters(PARAMETERS)?;
        }
        site.router.ip_batch(&router_lines(&site.nodes))?;
        for node in &site.nodes {
            node.namespace.ip_batch(&node_lines(node, pods))?;
            node.pod.ip_batch(&pod_lines(node, pods))?;
            node.pod.set_parameters(POD_PARAMETERS)?;
        }
        site.wait_for_neighbours()?;
        Ok(site)
    }

    /// A link that has just come up takes its time to answer neighbour solicitations, and the first packets would be lost to that.
    fn wait_for_neighbours(&self) -> Result<()> {
        for node in &self.nodes {
            let (underlay, pod) = (
                node.identity.address_v6().into(),
                node.identity.pod_address(Family::Ipv6),
            );
            let links: [(&Namespace, IpAddr); 3] = [
                (&self.router, underlay),
                (&node.namespace, pod),
                (&node.namespace, node.gateway.1.into()),
            ];
            for (namespace, neighbour) in links {
                let what = format!("{neighbour} to answer in {}", namespace.name());
                wait_until(&what, Duration::from_secs(5), || ping(namespace, neighbour))?;
            }
        }
        Ok(())
    }

    /// All namespaces.
    fn namespaces(&self) -> Vec<Namespace> {
        let [a, b] = &self.nodes;
        [&self.router, &a.namespace, &a.pod, &b.namespace, &b.pod]
            .map(Clone::clone)
            .into()
    }

    /// The address that the first node's pod sends to.
    pub fn destination(&self, family: Family) -> IpAddr {
        self.nodes[1].identity.pod_address(family)
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        for namespace in &self.made {
            // What cannot be deleted is seen in `ip netns list`, and the next run sweeps it.
            let _ = namespace.delete();
        }
    }
}

fn ping(namespace: &Namespace, address: IpAddr) -> Result<()> {
    let output = namespace
        .command("ping")
        .args(["-c", "1", "-W", "0.2", &address.to_string()])
        .stdin(Stdio::null())
        .output()
        .context("cannot run ping")?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout).trim()
    );
    Ok(())
}

/// Deletes the namespaces of runs that were killed before they could do so themselves.
///
/// # Errors
/// Where the names of namespaces cannot be read.
pub fn sweep() -> Result<()> {
    let Ok(names) = std::fs::read_dir(netns::DIRECTORY) else {
        return Ok(());
    };
    for entry in names {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if made_by(&name).is_some_and(|pid| !std::path::Path::new(&format!("/proc/{pid}")).exists()) {
            Namespace::named(name).delete()?;
        }
    }
    Ok(())
}

/// The process that made a namespace of this name; none when it is no site's.
fn made_by(name: &str) -> Option<u32> {
    let rest = name.strip_prefix(PREFIX)?.strip_prefix('-')?;
    rest.split('-').next()?.parse().ok()
}

/// Forwarding everywhere costs a pod nothing; waiting for duplicate addresses would cost every site seconds.
const PARAMETERS: &[(&str, &str)] = &[
    ("ipv4/ip_forward", "1"),
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
    ("ipv6/conf/all/accept_dad", "0"),
    ("ipv6/conf/default/accept_dad", "0"),
    ("ipv6/conf/default/accept_ra", "0"),
    ("ipv6/conf/all/forwarding", "1"),
    // A run of short connections uses the ports up otherwise.
    ("ipv4/ip_local_port_range", "1024 65535"),
];

/// So that what one measurement learnt of a path is nothing to the next one.
const POD_PARAMETERS: &[(&str, &str)] = &[("ipv4/tcp_no_metrics_save", "1")];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_own_namespaces_are_swept() {
        assert_eq!(made_by("podlane-bench-17-native-router"), Some(17));
        assert_eq!(made_by("podlane-bench"), None);
        assert_eq!(made_by("router"), None);
        assert_eq!(made_by("podlane-benchmark-17"), None);
    }
}
