//! What the node's eBPF datapath should hold: which tunnels are open, who the peers are and which way leads to them, whose each
//! network of pods is, and on which devices the programs sit.

mod networks;
mod peers;
mod planned;
#[cfg(test)]
mod tests;
mod tunnels;

pub use planned::datapath;

use crate::kernel::MacAddress;
use crate::lane::Tunnel;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

/// Tunnels that can be open at once, all protocols, ports and VNIs together.
pub const MAX_TUNNELS: usize = 16;

/// What a node's policy says of its datapath.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct DatapathOptions {
    /// Whether flows that the node's firewall has just accepted may skip the host's stack.
    pub bypass: bool,
    /// The DSCP of outer headers, 0 to 63 (RFC 2474, section 3).
    pub dscp: u8,
}

impl Default for DatapathOptions {
    fn default() -> Self {
        Self {
            bypass: true,
            dscp: 0,
        }
    }
}

/// Everything that the programs are told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Datapath {
    /// Open tunnels, at most [`MAX_TUNNELS`].
    pub tunnels: BTreeMap<Tunnel, OpenTunnel>,
    /// Whether the native lane is open.
    pub native: bool,
    /// Whether accepted flows bypass the stack.
    pub bypass: bool,
    /// Whether plain packets on the underlay that claim a pod's source are checked.
    pub check_underlay: bool,
    /// Whether decapsulated packets enter the stack by the tunnel device.
    pub enter_by_tunnel: bool,
    /// The DSCP of outer headers, 0 to 63 (RFC 2474, section 3).
    pub dscp: u8,
    /// This node's own pod CIDRs.
    #[serde(rename = "localPodCIDRs")]
    pub local_pod_cidrs: BTreeSet<IpNet>,
    /// The peers by the address that their outer headers bear.
    pub peers: BTreeMap<IpAddr, DatapathPeer>,
    /// Whose each network of pods is; the longest prefix counts. Contains the local pod CIDRs and every peer's.
    pub networks: BTreeMap<IpNet, Owner>,
    /// The devices on which programs sit.
    pub attached: Attached,
}

/// An open tunnel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OpenTunnel {
    /// Its device.
    pub device: String,
    /// The device's link-layer address.
    pub mac: MacAddress,
    /// Whether the device is a VXLAN device in the place of a GENEVE one.
    pub stand_in: bool,
}

/// A peer, as outer headers concern it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DatapathPeer {
    /// The peer's node.
    pub name: String,
    /// This node's address toward it.
    pub source: IpAddr,
    /// The tunnels on which it is received: of most peers the same ones.
    pub tunnels: Arc<BTreeSet<Tunnel>>,
    /// The largest inner packet that a tunnel to it carries, in bytes.
    pub mtu: u32,
    /// The way to it; none: not known, its packets are left to the kernel's driver.
    pub way: Option<Way>,
    /// Its pod CIDRs, in their order.
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: Vec<IpNet>,
}

/// The way to an address, as the kernel's routes give it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Way {
    /// The underlay device of the first next hop.
    pub device: String,
    /// The first next hop: a gateway, or the address itself.
    pub next_hop: IpAddr,
    /// Whether there are several next hops (ECMP), so that the kernel has to be asked for each packet.
    pub several: bool,
}

/// Whose a network of pods is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Owner {
    /// The cluster's, assigned to no node.
    Unassigned,
    /// This node's; with a device, of the pods behind it.
    Local {
        /// The device.
        device: Option<String>,
    },
    /// A peer's.
    Peer {
        /// Its key among [`Datapath::peers`]; none: it has no address that outer headers could bear.
        outer: Option<IpAddr>,
        /// The native lane with it, where that is open or packets take it.
        native: Option<NativeLane>,
    },
}

/// The native lane with a peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NativeLane {
    /// The underlay device.
    pub device: String,
    /// The next hop: the peer itself, or a gateway that knows the pod CIDRs.
    pub next_hop: IpAddr,
    /// Whether the peer is on the link: then frames must come from its own link-layer address.
    pub on_link: bool,
    /// The largest packet, in bytes.
    pub mtu: u32,
}

/// Devices on which programs sit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attached {
    /// Tunnel devices.
    pub tunnels: BTreeSet<String>,
    /// Underlay devices.
    pub underlay: BTreeSet<String>,
    /// Whether packets may leave by the underlay as they are: only then is there something to do at these devices' egress.
    pub leaving_plain: bool,
    /// Devices that lead to pods: true where flows bypass the stack and a single pod is behind it, so that a flow to it may.
    pub pods: BTreeMap<String, bool>,
}
