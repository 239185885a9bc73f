//! Headers as they lie in packets, and what the programs ask of them, whichever family they are of.

mod ip;
mod ipv4;
mod ipv6;
mod transport;

use core::mem::size_of;

use podlane_datapath_common::headers;

pub(crate) use self::ip::{HOPS, Ip, written_length};
pub(crate) use self::ipv4::Ipv4;
pub(crate) use self::ipv6::Ipv6;
pub(crate) use self::transport::{Transport, transport};
use crate::wire::{LinkAddress, Wire, Word16, Word32, octets};

/// An Ethernet header.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Ethernet {
    pub(crate) destination: LinkAddress,
    pub(crate) source: LinkAddress,
    pub(crate) ethertype: Word16,
}
// SAFETY: of what is so itself, each of alignment one, so nothing lies between.
unsafe impl Wire for Ethernet {}

impl Ethernet {
    /// Its addresses, destination first, as a flow's state has them.
    #[inline(always)]
    pub(crate) fn link(&self) -> [u8; 12] {
        let ([a, b, c, d, e, f], [g, h, i, j, k, l]) =
            (octets(self.destination.get()), octets(self.source.get()));
        [a, b, c, d, e, f, g, h, i, j, k, l]
    }

    /// Exchanges the addresses.
    #[inline(always)]
    pub(crate) fn turn(&mut self) {
        let (destination, source) = (self.destination.get(), self.source.get());
        self.destination.set(source);
        self.source.set(destination);
    }

    /// Writes addresses and ethertype (host byte order).
    #[inline(always)]
    pub(crate) fn write(&mut self, link: &[u8; 12], ethertype: u16) {
        let word = |at: usize| u16::from_ne_bytes([link[at], link[at + 1]]);
        self.destination.set([word(0), word(2), word(4)]);
        self.source.set([word(6), word(8), word(10)]);
        self.ethertype.set(ethertype.to_be());
    }
}

/// A UDP header. Numbers in network byte order.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Udp {
    pub(crate) source: Word16,
    pub(crate) destination: Word16,
    pub(crate) length: Word16,
    pub(crate) checksum: Word16,
}
// SAFETY: of what is so itself, each of alignment one, so nothing lies between.
unsafe impl Wire for Udp {}

/// A VXLAN or GENEVE header, as it stands there.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Tunnel {
    pub(crate) first: Word32,
    pub(crate) vni: Word32,
}
// SAFETY: of what is so itself, each of alignment one, so nothing lies between.
unsafe impl Wire for Tunnel {}

/// A frame's link-layer and network-layer header.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Plain<I> {
    pub(crate) ethernet: Ethernet,
    pub(crate) ip: I,
}
// SAFETY: of what is so itself, each of alignment one, so nothing lies between.
unsafe impl<I: Ip> Wire for Plain<I> {}

/// All that encapsulation puts around an IP packet, and the frame's own Ethernet header.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Encapsulation<O> {
    pub(crate) ethernet: Ethernet,
    pub(crate) outer: O,
    pub(crate) udp: Udp,
    pub(crate) tunnel: Tunnel,
}
// SAFETY: of what is so itself, each of alignment one, so nothing lies between.
unsafe impl<O: Ip> Wire for Encapsulation<O> {}

/// An encapsulated packet's headers.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Encapsulated<O, I> {
    pub(crate) around: Encapsulation<O>,
    pub(crate) inner: Plain<I>,
}
// SAFETY: of what is so itself, each of alignment one, so nothing lies between.
unsafe impl<O: Ip, I: Ip> Wire for Encapsulated<O, I> {}

/// Up to where a packet is looked at whose IP header stands at an offset: that header, and TCP's behind it. What is beyond is not to be moved into the
/// linear part: a TCP packet's payload that lies there can no longer be merged with others where it is received (`tcp_try_coalesce`,
/// net/ipv4/tcp_input.c), and moving it may copy the whole head.
#[inline(always)]
pub(crate) const fn looked_at<I: Ip>(at: usize) -> u32 {
    (at + size_of::<I>() + headers::TCP) as u32
}

/// Octets of an Ethernet frame before its IP packet, and of an encapsulated one before the inner IP packet.
pub(crate) const PLAIN: usize = headers::ETHERNET;
/// See [`PLAIN`].
pub(crate) const fn encapsulated<O: Ip>() -> usize {
    size_of::<Encapsulation<O>>() + headers::ETHERNET
}

/// What encapsulation adds.
pub(crate) const fn overhead<O: Ip>() -> usize {
    encapsulated::<O>() - headers::ETHERNET
}
