//! Flows that the stack has accepted.

use crate::Address;

/// A flow of IPv4, by what stands in its packets, in network byte order.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flow4 {
    /// The source address.
    pub source: u32,
    /// The destination address.
    pub destination: u32,
    /// Source and destination port, as they stand one after the other.
    pub ports: u32,
    /// The IP protocol.
    pub protocol: u32,
}

/// A flow of IPv6.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flow6 {
    /// The source address.
    pub source: [u32; 4],
    /// The destination address.
    pub destination: [u32; 4],
    /// Source and destination port, as they stand one after the other.
    pub ports: u32,
    /// The IP protocol.
    pub protocol: u32,
}

/// Which way a flow goes, and over which lane.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowKind {
    /// Noted, not stamped yet.
    Noted = 0,
    /// From a pod of this node, encapsulated.
    SentEncapsulated = 1,
    /// From a pod of this node, as it is.
    SentPlain = 2,
    /// To a pod of this node, encapsulated.
    ReceivedEncapsulated = 3,
    /// To a pod of this node, as it is.
    ReceivedPlain = 4,
}

/// What is known of a flow. Times are the lower 32 bits of the kernel's jiffies; a difference of them is right for 49 days.
///
/// A flow is noted where it enters (a pod's veth; the underlay after all checks) and stamped where the same tuple leaves the stack. A packet bypasses
/// the stack while the stamp is younger than the lease and made under the settings' generation.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowState {
    /// When a packet of it last entered the stack.
    pub noted: u32,
    /// When the stack last let one out.
    pub stamped: u32,
    /// [`crate::Settings::generation`] at that time.
    pub generation: u32,
    /// [`FlowKind`].
    pub kind: u32,
    /// The pod's device: of a flow sent, the one from which it has to come; of a flow received, where it goes.
    pub pod_interface: u32,
    /// Of a flow sent: the underlay device.
    pub underlay: u32,
    /// Of a flow sent: the next hop's family, 4 or 6; 0: ask the kernel for each packet.
    pub next_hop_family: u32,
    /// Of a flow sent: the next hop.
    pub next_hop: Address,
    /// Of an encapsulated one: the outer source, written or demanded. Of a plain one received: unused.
    pub outer_source: Address,
    /// Of an encapsulated one: the outer destination, written or demanded.
    pub outer_destination: Address,
    /// The tunnel's [`crate::Tunnel::vni`].
    pub vni: u32,
    /// The tunnel's port, in network byte order.
    pub port: u16,
    /// The tunnel's [`crate::tunnel_flag`].
    pub tunnel_flags: u16,
    /// The tunnel's slot.
    pub slot: u32,
    /// The peer's [`crate::Peer::index`].
    pub peer: u32,
    /// The largest packet that may bypass, in bytes.
    pub mtu: u32,
    /// Of an encapsulated one sent: the inner Ethernet addresses, destination first. Of one received: those with which the stack
    /// hands it to the pod. The last four octets: of a plain one received, unused.
    pub link: [u8; 12],
    /// Of a plain one received on the link: the link-layer address from which it came.
    pub came_from: [u8; 6],
    /// Zero.
    pub reserved: [u8; 2],
    /// Outer TTL or hop limit.
    pub ttl: u32,
}

impl FlowState {
    /// Of a flow of which nothing is known.
    pub const UNKNOWN: Self = Self {
        noted: 0,
        stamped: 0,
        generation: 0,
        kind: FlowKind::Noted as u32,
        pod_interface: 0,
        underlay: 0,
        next_hop_family: 0,
        next_hop: Address::NONE,
        outer_source: Address::NONE,
        outer_destination: Address::NONE,
        vni: 0,
        port: 0,
        tunnel_flags: 0,
        slot: 0,
        peer: 0,
        mtu: 0,
        link: [0; 12],
        came_from: [0; 6],
        reserved: [0; 2],
        ttl: 0,
    };
}
