//! What a node's programs have to know of the node.

use crate::{Network4, Network6};

/// Tunnels that a node can have open at once, all protocols, ports and VNIs together.
pub const MAX_TUNNELS: usize = 16;

/// One open tunnel: its place in [`Settings::tunnels`] is its slot, by which counters and [`crate::Peer::tunnels`] name it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tunnel {
    /// The UDP port, in network byte order; 0: the slot is empty.
    pub port: u16,
    /// [`tunnel_flag`].
    pub flags: u16,
    /// The VNI in the upper 24 bits, in network byte order: the last word of both protocols' headers as it stands in a packet.
    pub vni: u32,
    /// The index of the tunnel device: the one whose egress hands packets to us, and where the driver's arrive.
    pub device: u32,
    /// The tunnel device's link-layer address, which is the inner destination of what is received; the last two octets are zero.
    pub mac: [u8; 8],
}

/// Bits of [`Tunnel::flags`].
pub mod tunnel_flag {
    /// GENEVE (RFC 8926); without it VXLAN (RFC 7348).
    pub const GENEVE: u16 = 1;
    /// The device is a VXLAN device on a GENEVE tunnel's port, where the kernel has no GENEVE driver. It serves for its egress hook, for GRO
    /// (the two headers are of one length), and takes what has to go through a driver once the header is rewritten.
    pub const STAND_IN: u16 = 2;
}

/// The one value of the map `SETTINGS` that `ACTIVE` names. The loader writes the other one, changes `ACTIVE`, and waits until the programs that run then
/// have ended, so that no program sees a half.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Changes whenever anything in any map changes on which a stamped flow rests: a flow stamped under another number goes up the
    /// stack once more.
    pub generation: u32,
    /// [`settings_flag`].
    pub flags: u32,
    /// How long a stamp lets a flow bypass the stack, in jiffies.
    pub lease: u32,
    /// The outer traffic class without its ECN bits (RFC 2474, section 3): DSCP, shifted left by two. 0 to 252.
    pub traffic_class: u32,
    /// The least network that contains every pod CIDR of the cluster: a packet from outside it claims no pod's source.
    pub pods4: Network4,
    /// The same for IPv6.
    pub pods6: Network6,
    /// This node's own pod CIDRs: decapsulated packets go there and nowhere else. Unused places are empty.
    pub local4: [Network4; 4],
    /// The same for IPv6.
    pub local6: [Network6; 4],
    /// Open tunnels. No two have one port and one VNI, nor one port and different protocols.
    pub tunnels: [Tunnel; MAX_TUNNELS],
    /// The key of probes to this node ([`crate::probe`]).
    pub probe_key: [u64; 2],
}

/// Bits of [`Settings::flags`].
pub mod settings_flag {
    /// Accepted flows bypass the stack.
    pub const BYPASS: u32 = 1;
    /// The native lane is open: peers' pods may reach this node's as they are.
    pub const NATIVE: u32 = 2;
    /// Decapsulated packets enter the stack by the tunnel device, not by the underlay device (whose reverse path filter is strict).
    pub const ENTER_BY_TUNNEL: u32 = 4;
    /// There is a key, so probes are answered.
    pub const PROBES: u32 = 8;
    /// Plain packets on the underlay that claim a pod's source are checked.
    pub const CHECK_UNDERLAY: u32 = 16;
    /// This node has more pod CIDRs of a family than [`Settings::local4`] or `local6` hold: the trie knows them all.
    pub const MORE_LOCAL: u32 = 32;
    /// The kernel knows BPF_F_ADJ_ROOM_DECAP_L3_IPV4 and _IPV6 (Linux 6.3).
    pub const DECAP_FLAGS: u32 = 64;
}

impl Settings {
    /// Of a node on which nothing is open.
    pub const CLOSED: Self = Self {
        generation: 0,
        flags: 0,
        lease: 0,
        traffic_class: 0,
        pods4: Network4::EMPTY,
        pods6: Network6::EMPTY,
        local4: [Network4::EMPTY; 4],
        local6: [Network6::EMPTY; 4],
        tunnels: [Tunnel {
            port: 0,
            flags: 0,
            vni: 0,
            device: 0,
            mac: [0; 8],
        }; MAX_TUNNELS],
        probe_key: [0; 2],
    };
}
