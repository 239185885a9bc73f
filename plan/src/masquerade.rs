//! Which packets of a node's pods take the node's own address: those that leave the networks in which pods' addresses are known.

use crate::desired::{Assignment, Peer, router_address};
use crate::kernel::Observed;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

/// The bit of a packet's mark by which kube-proxy tells itself what it has to masquerade: bit 14, unless it is told otherwise (`masqueradeBit`,
/// https://kubernetes.io/docs/reference/config-api/kube-proxy-config.v1alpha1/).
pub const KUBE_PROXY_MARK: u32 = 1 << 14;

/// Whether pods' packets are masqueraded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// On nodes whose pods are connected by Podlane's own CNI configuration; another network plugin does it itself, or has been
    /// told not to.
    #[default]
    Auto,
    /// On every node.
    Always,
    /// On none.
    Never,
}

/// What a policy says of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct MasqueradeOptions {
    /// Whether.
    pub mode: Mode,
    /// The source ports that translated packets have; none: all from 1024 on, as the kernel has it.
    pub ports: Option<Ports>,
}

/// A range of ports, both ends in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Ports {
    /// The first, from 1.
    pub first: u16,
    /// The last.
    pub last: u16,
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// What of a kernel masquerades: one nftables table of our own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Masquerade {
    /// Whose packets: this node's pods', as the fewest networks.
    pub pods: BTreeSet<IpNet>,
    /// Where they keep their own address, as the fewest networks.
    pub plain: BTreeSet<IpNet>,
    /// The source ports that they may have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: Option<Ports>,
    /// What other nodes' pods are numbered from, as the fewest networks. This node's own pods are none of them, even where these networks hold
    /// them.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub others: BTreeSet<IpNet>,
    /// This node's own addresses.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub own: BTreeSet<IpNet>,
    /// The node's router addresses, at most one a family: the source, at other nodes' pods, of what the node sends by one of its own addresses and
    /// of what kube-proxy would masquerade. A source that belongs to a lane's device (which is what `masquerade` takes) ends with the lane.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub routers: BTreeSet<IpAddr>,
    /// Whether it is as it was made: false only where a hand changed it.
    #[serde(default = "yes")]
    pub intact: bool,
}

const fn yes() -> bool {
    true
}

impl fmt::Display for Masquerade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Networks that are written out, at most.
        const FEW: usize = 8;
        let list = |networks: &BTreeSet<IpNet>| {
            let named: Vec<_> = networks.iter().take(FEW).map(IpNet::to_string).collect();
            let more = match networks.len().saturating_sub(FEW) {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            format!("{}{more}", named.join(" "))
        };
        write!(f, "from {} except to {}", list(&self.pods), list(&self.plain))?;
        if let Some(ports) = self.ports {
            write!(f, " by ports {ports}")?;
        }
        for router in &self.routers {
            let is_six = router.is_ipv6();
            let others = self.others.iter().copied();
            let others = others.filter(|other| other.addr().is_ipv6() == is_six);
            write!(f, ", the node's own as {router} to {}", list(&others.collect()))?;
        }
        Ok(())
    }
}

/// Destinations that are many hosts' at once (RFC 5771, RFC 4291 section 2.7): a translated source would be nobody's there.
const MULTICAST: [&str; 2] = ["224.0.0.0/4", "ff00::/8"];

/// What is to be masqueraded on a node that a policy governs; none: nothing.
pub(crate) fn masquerade(
    assignment: &Assignment,
    peers: &BTreeMap<String, Peer>,
    observed: &Observed,
) -> Option<Masquerade> {
    let options = assignment.masquerade;
    let wanted = match options.mode {
        Mode::Auto => observed.capabilities.connects_pods,
        Mode::Always => true,
        Mode::Never => false,
    };
    if !wanted || assignment.pod_cidrs.is_empty() {
        return None;
    }
    let native = if assignment.native_routing_cidrs.is_empty() {
        &assignment.cluster_pod_cidrs
    } else {
        &assignment.native_routing_cidrs
    };
    // Peers' pods know the address that a packet was sent from, whatever is declared.
    let plain = native
        .iter()
        .chain(&assignment.pod_cidrs)
        .chain(peers.values().flat_map(|peer| &peer.pod_cidrs))
        .copied()
        .chain(MULTICAST.iter().filter_map(|network| network.parse().ok()))
        .filter(|network| {
            let is_six = network.addr().is_ipv6();
            assignment
                .pod_cidrs
                .iter()
                .any(|cidr| cidr.addr().is_ipv6() == is_six)
        });
    let others = fewest(
        assignment
            .cluster_pod_cidrs
            .iter()
            .chain(peers.values().flat_map(|peer| &peer.pod_cidrs))
            .copied(),
    );
    let routers: BTreeSet<IpAddr> = [false, true]
        .into_iter()
        .filter(|is_six| others.iter().any(|other| other.addr().is_ipv6() == *is_six))
        .filter_map(|is_six| {
            let mut of_family = assignment.pod_cidrs.iter();
            of_family.find(|cidr| cidr.addr().is_ipv6() == is_six)
        })
        .map(router_address)
        .collect();
    let is_routed = |address: IpAddr| routers.iter().any(|router| router.is_ipv6() == address.is_ipv6());
    Some(Masquerade {
        pods: fewest(assignment.pod_cidrs.iter().copied()),
        plain: fewest(plain),
        ports: options.ports,
        own: fewest(
            assignment
                .addresses
                .iter()
                .filter(|own| is_routed(**own))
                .map(|own| IpNet::from(*own)),
        ),
        others: others
            .into_iter()
            .filter(|other| is_routed(other.addr()))
            .collect(),
        routers,
        intact: true,
    })
}

/// The fewest networks that hold the same addresses.
pub fn fewest(networks: impl IntoIterator<Item = IpNet>) -> BTreeSet<IpNet> {
    let all: Vec<IpNet> = networks.into_iter().collect();
    IpNet::aggregate(&all).into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Capabilities;

    fn nets(text: &str) -> Vec<IpNet> {
        text.split_whitespace()
            .map(|cidr| cidr.parse().expect("a CIDR"))
            .collect()
    }

    fn told(mode: Mode, connects_pods: bool, native: &str) -> Option<String> {
        let assignment = Assignment {
            addresses: vec![IpAddr::from([192, 168, 10, 100])],
            pod_cidrs: nets("172.20.0.0/24 fd20::/64"),
            cluster_pod_cidrs: nets("172.20.0.0/16"),
            native_routing_cidrs: nets(native),
            masquerade: MasqueradeOptions {
                mode,
                ports: Some(Ports {
                    first: 32768,
                    last: 60999,
                }),
            },
            ..Assignment::default()
        };
        let peer = Peer {
            pod_cidrs: nets("172.20.1.0/24 fd20:0:0:1::/64"),
            ..Peer::default()
        };
        let observed = Observed {
            capabilities: Capabilities {
                connects_pods,
                ..Capabilities::default()
            },
            ..Observed::default()
        };
        masquerade(&assignment, &[("peer".to_owned(), peer)].into(), &observed).map(|it| it.to_string())
    }

    #[test]
    fn pods_keep_their_address_in_the_cluster_and_where_it_is_declared() {
        let words = |plain: &str| {
            Some(format!(
                "from 172.20.0.0/24 fd20::/64 except to {plain} by ports 32768-60999, the node's own as 172.20.0.1 to 172.20.0.0/16, \
                 the node's own as fd20::1 to fd20:0:0:1::/64"
            ))
        };
        assert_eq!(
            told(Mode::Always, false, ""),
            words("172.20.0.0/16 224.0.0.0/4 fd20::/63 ff00::/8")
        );
        // Peers' pods are pods, whatever is declared.
        assert_eq!(
            told(Mode::Always, false, "10.0.0.0/8"),
            words("10.0.0.0/8 172.20.0.0/23 224.0.0.0/4 fd20::/63 ff00::/8")
        );
    }

    #[test]
    fn automatically_where_podlane_connects_the_pods() {
        for (mode, connects_pods, masquerades) in [
            (Mode::Auto, true, true),
            (Mode::Auto, false, false),
            (Mode::Always, false, true),
            (Mode::Never, true, false),
        ] {
            assert_eq!(told(mode, connects_pods, "").is_some(), masquerades, "{mode:?}");
        }
    }
}
