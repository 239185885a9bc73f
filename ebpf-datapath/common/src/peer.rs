//! What a node's programs know of the other nodes, and whose the pods' networks are.

use crate::{Address, Network4, Network6};

/// A peer, in the map `PEERS` by its address in outer headers.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its place in the map of counters.
    pub index: u32,
    /// [`peer_flag`].
    pub flags: u32,
    /// The slots of the tunnels on which it is received, one bit each.
    pub tunnels: u32,
    /// The largest inner packet that a tunnel to it carries, in bytes.
    pub mtu: u32,
    /// This node's address toward it: the outer source of what is sent, the only outer destination that is taken from it.
    pub source: Address,
    /// The underlay device toward it; 0: not known, the packet is left to the driver.
    pub interface: u32,
    /// The next hop's address family: 4 or 6.
    pub next_hop_family: u32,
    /// The next hop on that device: a gateway, or the peer itself.
    pub next_hop: Address,
    /// Its pod CIDRs: inner packets come from there and nowhere else. Unused places are empty.
    pub networks4: [Network4; 4],
    /// The same for IPv6.
    pub networks6: [Network6; 4],
}

/// Bits of [`Peer::flags`].
pub mod peer_flag {
    /// It has more pod CIDRs of a family than a [`super::Peer`] holds: the trie knows them all.
    pub const MORE_NETWORKS: u32 = 1;
    /// Several ways lead to it (ECMP): the kernel is asked for the one that a packet's hash selects.
    pub const SEVERAL_WAYS: u32 = 2;
}

/// Whose a network is.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodNetworkKind {
    /// Of the cluster, assigned to no node.
    Unassigned = 0,
    /// This node's, or one of its pods'.
    Local = 1,
    /// A peer's.
    Peer = 2,
}

/// A network of pods, in the trie `PODS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodNetwork {
    /// [`PodNetworkKind`].
    pub kind: u32,
    /// [`pod_network_flag`].
    pub flags: u32,
    /// The peer's [`Peer::index`].
    pub peer: u32,
    /// [`PodNetworkKind::Local`]: the device that leads to the pods, the only one whose packets may have their source here; 0: none.
    pub interface: u32,
    /// The largest packet that the native lane carries, in bytes.
    pub mtu: u32,
    /// The native lane's device.
    pub underlay: u32,
    /// [`PodNetworkKind::Peer`]: the next hop of the native lane, a gateway or the peer itself; with
    /// [`pod_network_flag::ON_LINK`] packets from the network have to come from its link-layer address.
    pub next_hop: Address,
    /// [`PodNetworkKind::Peer`]: its key in `PEERS`.
    pub outer: Address,
}

/// Bits of [`PodNetwork::flags`].
pub mod pod_network_flag {
    /// Plain packets may come from it: the native lane is open with its node.
    pub const NATIVE: u32 = 1;
    /// Its node is on the link: frames must come from the node's own link-layer address.
    pub const ON_LINK: u32 = 2;
}
