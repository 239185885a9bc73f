//! What the programs ask of an IP header of either family.

use podlane_datapath_common::{Address, Network4, Network6};

use crate::flow::Tuple;
use crate::wire::Wire;

/// An IP header.
pub(crate) trait Ip: Wire {
    /// The key of the map of flows.
    type Flow: Tuple;
    /// Host byte order.
    const ETHERTYPE: u16;
    /// Whether it is IPv4's.
    const IS_V4: bool;

    /// Whether it is such a header at all: its version, and for IPv4 that it is not shorter than it can be.
    fn is_sound(&self) -> bool;
    /// Octets of the header, with options, without extension headers.
    fn length(&self) -> u32;
    /// Whether it is sound, and what its protocol says follows immediately, and all of it: no fragment, and on IPv4 no options.
    fn is_simple(&self) -> bool;
    /// Whether its own header says that it is a fragment other than the first. On IPv6 that is said in an extension header.
    fn is_later_fragment(&self) -> bool;
    /// The protocol; on IPv6 the next header's.
    fn protocol(&self) -> u8;
    fn source(&self) -> Address;
    fn destination(&self) -> Address;
    /// The source as maps have it; none for what is nobody's, an IPv4-mapped address in an IPv6 header.
    fn source_key(&self) -> Option<Address>;
    fn destination_key(&self) -> Option<Address>;
    /// Whether both addresses are these.
    fn goes(&self, source: &Address, destination: &Address) -> bool;
    fn source_in(&self, v4: &[Network4; 4], v6: &[Network6; 4]) -> bool;
    fn destination_in(&self, v4: &[Network4; 4], v6: &[Network6; 4]) -> bool;
    /// Whether the source can be a pod's.
    fn source_within(&self, v4: &Network4, v6: &Network6) -> bool;
    fn destination_within(&self, v4: &Network4, v6: &Network6) -> bool;
    /// Whether the destination is the first address of one of these networks: a node's router address.
    fn is_to_router(&self, v4: &[Network4; 4], v6: &[Network6; 4]) -> bool;
    /// Whether the stack never forwards it: addresses of a link, of a group, or none.
    fn stays_on_link(&self) -> bool;
    /// TTL or hop limit.
    fn hops(&self) -> u8;
    /// Traffic class.
    fn class(&self) -> u8;
    /// Writes the traffic class, and a checksum that says so. Where there is no checksum: the word before and after.
    fn set_class(&mut self, class: u8) -> Option<(u32, u32)>;
    /// Takes one hop off, likewise.
    fn take_hop(&mut self) -> Option<(u32, u32)>;
    /// The flow's key.
    fn flow(&self, ports: u32) -> Self::Flow;
    /// What it says of the length, with all headers.
    fn written(&self) -> u32;
    /// Writes an outer header: of UDP, `length` octets long with all that follows.
    fn write(&mut self, source: &Address, destination: &Address, class: u8, hops: u8, length: u32);
    /// Turns the packet around: source for destination; cut off, it is `length` octets long.
    fn turn(&mut self, cut_to: Option<u32>);
}

/// The hops of what starts here (`ip_default_ttl`).
pub(crate) const HOPS: u8 = 64;

/// A length as IP and UDP headers have it. One too large for that stands for a packet of many segments, which the kernel writes down as 0
/// (`iph_set_totlen`, include/net/ip.h).
#[inline(always)]
pub(crate) fn written_length(length: u32) -> u16 {
    if length > 0xffff {
        0
    } else {
        (length as u16).to_be()
    }
}
