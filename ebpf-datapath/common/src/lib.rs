//! What Podlane's eBPF programs and their loader share: the keys and values of the maps, the forms of packets.
//!
//! Everything here is plain data of fixed size and without padding that could leak or differ: the kernel compares keys byte by
//! byte. Numbers that come out of packets are kept as they stand there, in network byte order; the rest is native.
#![no_std]

mod address;
mod counters;
mod flow;
pub mod headers;
mod peer;
#[cfg(feature = "loader")]
mod pod;
pub mod probe;
mod settings;

pub use address::{Address, Network4, Network6, TrieKey};
pub use counters::{LANE_SLOTS, LaneCounters, NATIVE_SLOT, NO_LANE_SLOT, PeerCounters, REASONS, Reason};
pub use flow::{Flow4, Flow6, FlowKind, FlowState};
pub use peer::{Peer, PodNetwork, PodNetworkKind, peer_flag, pod_network_flag};
pub use settings::{MAX_TUNNELS, Settings, Tunnel, settings_flag, tunnel_flag};

/// The version of the maps' layout. Programs share pinned maps only with programs of the same number; it goes up with every
/// change of a key, a value or what a field means.
pub const ABI: u32 = 1;

/// IP protocol numbers (IANA, Assigned Internet Protocol Numbers).
pub mod ip_protocol {
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
    /// Use for experimentation and testing (RFC 3692, section 2.1): Podlane's probes between nodes.
    pub const PROBE: u8 = 253;
}
