//! How flannel carries packets (its backend `vxlan`, documented in Documentation/backends.md of flannel-io/flannel): a VXLAN
//! device without learning; for every peer a route by way of an address of the peer's device, that address's MAC address as a
//! permanent neighbour, and the MAC address's node in the forwarding database.

use anyhow::{Result, bail};
use std::io::Write;
use std::process::Stdio;

use podlane_e2e::netns::Namespace;

use super::{Installed, Way, Wire};
use crate::site::{ETH0, Family, POD_MTU, Peer, PodNetwork, Site};

const DEVICE: &str = "flannel.1";
const PORT: u16 = 8472;

/// The kernel's VXLAN device with a forwarding database.
pub(super) struct Flannel {
    pods: PodNetwork,
}

impl Flannel {
    /// With pods on point-to-point links, or on a bridge as flannel's own CNI plugin has them.
    pub(super) fn on(pods: PodNetwork) -> Self {
        Self { pods }
    }
}

impl Way for Flannel {
    fn name(&self) -> &'static str {
        match self.pods {
            PodNetwork::PointToPoint => "flannel-ptp",
            PodNetwork::Bridge => "flannel-bridge",
        }
    }

    fn title(&self) -> &'static str {
        match self.pods {
            PodNetwork::PointToPoint => "flannel's way, ptp",
            PodNetwork::Bridge => "flannel's way, bridge",
        }
    }

    fn description(&self) -> &'static str {
        match self.pods {
            PodNetwork::PointToPoint => {
                "kernel VXLAN device without learning; a peer is a route, a permanent neighbour and an FDB entry; pods on \
                 point-to-point links"
            }
            PodNetwork::Bridge => {
                "kernel VXLAN device without learning; a peer is a route, a permanent neighbour and an FDB entry; pods on a \
                 bridge, as flannel itself has them"
            }
        }
    }

    fn pods(&self) -> PodNetwork {
        self.pods
    }

    fn wire(&self) -> Wire {
        Wire::Udp(PORT)
    }

    fn set_up(&self, site: &Site) -> Result<Box<dyn Installed>> {
        for node in &site.nodes {
            let own = &node.identity;
            let mut lines = vec![
                format!(
                    "link add {DEVICE} address {} mtu {POD_MTU} type vxlan id 1 local {} dev {ETH0} dstport {PORT} nolearning",
                    own.tunnel_mac(),
                    own.address()
                ),
                format!("address add {}/32 dev {DEVICE}", own.network(Family::Ipv4)),
                format!("address add {}/128 dev {DEVICE} nodad", own.network(Family::Ipv6)),
                format!("link set {DEVICE} up"),
            ];
            for peer in &node.peers {
                for family in Family::ALL {
                    let (network, mac) = (peer.network(family), peer.tunnel_mac());
                    lines.push(format!(
                        "neigh add {network} lladdr {mac} dev {DEVICE} nud permanent"
                    ));
                    let cidr = peer.pod_cidr(family);
                    lines.push(format!("route add {cidr} via {network} dev {DEVICE} onlink"));
                }
            }
            node.namespace.ip_batch(&lines)?;
            add_to_database(&node.namespace, &node.peers)?;
        }
        Ok(Box::new(Installation))
    }
}

struct Installation;

impl Installed for Installation {
    fn tear_down(self: Box<Self>, site: &Site) -> Result<()> {
        for node in &site.nodes {
            // Addresses, routes, neighbours and the database's entries go with it.
            node.namespace.ip(&["link", "delete", DEVICE])?;
        }
        Ok(())
    }
}

/// Tells the device at which node each MAC address is.
fn add_to_database(namespace: &Namespace, peers: &[Peer]) -> Result<()> {
    let mut child = namespace
        .command("bridge")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let lines: String = peers
        .iter()
        .map(|peer| {
            let (mac, node) = (peer.tunnel_mac(), peer.address());
            format!("fdb append {mac} dev {DEVICE} dst {node} self permanent\n")
        })
        .collect();
    if let Some(mut input) = child.stdin.take() {
        // One that stops early says why itself.
        let _ = input.write_all(lines.as_bytes());
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        bail!("in {}: bridge fdb: {}", namespace.name(), words.trim());
    }
    Ok(())
}
