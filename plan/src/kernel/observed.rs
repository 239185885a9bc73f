//! What a dump of a node's kernel found: ours, and what of everybody else's a decision needs.

use super::KernelState;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// What a dump found: ours, and the parts of everybody else's that a decision needs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Observed {
    /// What bears our marks. `sysctls` holds every parameter that the shell read (see [`crate::desired::sysctls_to_read`]).
    #[serde(default)]
    pub ours: KernelState,
    /// The addresses of the other devices (global scope, device up), sorted.
    #[serde(default)]
    pub underlay: Vec<UnderlayAddress>,
    /// The main table's routes that are not ours.
    #[serde(default)]
    pub foreign_routes: Vec<ForeignRoute>,
    /// Devices that bear the name of one of ours without our group: name, and what they are.
    #[serde(default)]
    pub foreign_devices: BTreeMap<String, String>,
    /// Whether there is an nftables table with the name of ours and without our mark.
    #[serde(default)]
    pub foreign_table: bool,
    /// What the node can do.
    #[serde(default)]
    pub capabilities: Capabilities,
}

/// What a node can do, as far as its shell has found out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Capabilities {
    /// Whether the eBPF programs are loaded, or can be: they sit on every device that the plan names before a route leads there.
    pub programs: bool,
    /// Whether the kernel has a GENEVE driver; none: nobody has tried yet.
    pub geneve_driver: Option<bool>,
    /// Whether the agent keeps the CNI configuration that connects this node's pods.
    pub connects_pods: bool,
}

/// An address of a device that is not ours.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct UnderlayAddress {
    /// The device.
    pub device: String,
    /// The address with its on-link prefix length, e.g. 192.168.10.100/24.
    pub address: IpNet,
    /// The device's MTU in bytes.
    pub mtu: u32,
}

/// A route of the main table that is not ours.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ForeignRoute {
    /// The destination.
    pub destination: IpNet,
    /// The metric.
    #[serde(default)]
    pub metric: u32,
    /// The protocol number (`rtm_protocol`): 2 kernel, 3 boot, 4 static, 186 bgp …
    pub protocol: u8,
    /// Its next hops; none for unreachable, blackhole and prohibit.
    #[serde(default)]
    pub next_hops: Vec<NextHop>,
}

/// A next hop of a [`ForeignRoute`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NextHop {
    /// The gateway; none: the destination is on the link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// The device.
    pub device: String,
}
