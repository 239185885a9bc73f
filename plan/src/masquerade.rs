//! Which packets of a node's pods take the node's own address: those that leave the networks in which pods' addresses are known.

use crate::desired::{Assignment, Peer};
use crate::kernel::Observed;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

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
    Some(Masquerade {
        pods: fewest(assignment.pod_cidrs.iter().copied()),
        plain: fewest(plain),
        ports: options.ports,
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
                "from 172.20.0.0/24 fd20::/64 except to {plain} by ports 32768-60999"
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
