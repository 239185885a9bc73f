//! IPv6's header.

use core::mem::size_of;

use podlane_datapath_common::headers::ETHERTYPE_IPV6;
use podlane_datapath_common::{Address, Flow6, Network4, Network6, ip_protocol};

use super::ip::{Ip, written_length};
use crate::wire::{Address6, Wire, Word16, Word32};

/// An IPv6 header (RFC 8200, section 3). Numbers in network byte order.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Ipv6 {
    /// Version, traffic class, flow label.
    first: Word32,
    /// Payload length, next header, hop limit.
    second: Second,
    source: Address6,
    destination: Address6,
}
// SAFETY: of what is so itself, each of alignment one, so nothing lies between.
unsafe impl Wire for Ipv6 {}

/// The second word of an IPv6 header.
#[repr(C)]
#[derive(Clone, Copy)]
struct Second {
    payload_length: Word16,
    next_header: u8,
    hop_limit: u8,
}
// SAFETY: of what is so itself, each of alignment one, so nothing lies between.
unsafe impl Wire for Second {}

impl Second {
    /// As it stands there.
    #[inline(always)]
    fn word(&self) -> u32 {
        let [a, b] = self.payload_length.get().to_ne_bytes();
        u32::from_ne_bytes([a, b, self.next_header, self.hop_limit])
    }
}

/// The two highest octets of an IPv6 address, as a number.
#[inline(always)]
fn prefix16(address: &[u32; 4]) -> u32 {
    u32::from_be(address[0]) >> 16
}

/// Unspecified, link-local or of a group (RFC 4291, section 2.4).
#[inline(always)]
fn is_of_link(address: &[u32; 4]) -> bool {
    let prefix = prefix16(address);
    prefix >> 8 == 0xff || prefix & 0xffc0 == 0xfe80 || address[0] | address[1] | address[2] | address[3] == 0
}

impl Ip for Ipv6 {
    type Flow = Flow6;
    const ETHERTYPE: u16 = ETHERTYPE_IPV6;
    const IS_V4: bool = false;

    #[inline(always)]
    fn is_sound(&self) -> bool {
        u32::from_be(self.first.get()) >> 28 == 6
    }
    #[inline(always)]
    fn length(&self) -> u32 {
        size_of::<Self>() as u32
    }
    #[inline(always)]
    fn is_simple(&self) -> bool {
        self.is_sound()
    }
    #[inline(always)]
    fn is_later_fragment(&self) -> bool {
        false
    }
    #[inline(always)]
    fn protocol(&self) -> u8 {
        self.second.next_header
    }
    #[inline(always)]
    fn source(&self) -> Address {
        Address(self.source.get())
    }
    #[inline(always)]
    fn destination(&self) -> Address {
        Address(self.destination.get())
    }
    #[inline(always)]
    fn source_key(&self) -> Option<Address> {
        Some(self.source()).filter(|source| !source.is_v4())
    }
    #[inline(always)]
    fn destination_key(&self) -> Option<Address> {
        Some(self.destination()).filter(|destination| !destination.is_v4())
    }
    #[inline(always)]
    fn goes(&self, source: &Address, destination: &Address) -> bool {
        self.source() == *source && self.destination() == *destination && !source.is_v4()
    }
    #[inline(always)]
    fn source_in(&self, _: &[Network4; 4], v6: &[Network6; 4]) -> bool {
        let source = self.source.get();
        v6[0].contains(&source)
            || v6[1].contains(&source)
            || v6[2].contains(&source)
            || v6[3].contains(&source)
    }
    #[inline(always)]
    fn destination_in(&self, _: &[Network4; 4], v6: &[Network6; 4]) -> bool {
        let destination = self.destination.get();
        v6[0].contains(&destination)
            || v6[1].contains(&destination)
            || v6[2].contains(&destination)
            || v6[3].contains(&destination)
    }
    #[inline(always)]
    fn source_within(&self, _: &Network4, v6: &Network6) -> bool {
        let source = self.source.get();
        v6.contains(&source)
    }
    #[inline(always)]
    fn destination_within(&self, _: &Network4, v6: &Network6) -> bool {
        let destination = self.destination.get();
        v6.contains(&destination)
    }
    #[inline(always)]
    fn is_to_router(&self, _: &[Network4; 4], v6: &[Network6; 4]) -> bool {
        let destination = self.destination.get();
        // An empty place has a first address, too, but does not contain it.
        let is_first = |network: &Network6| {
            let [a, b, c, d] = network.network;
            network.contains(&destination) && destination == [a, b, c, d | 1_u32.to_be()]
        };
        is_first(&v6[0]) || is_first(&v6[1]) || is_first(&v6[2]) || is_first(&v6[3])
    }
    #[inline(always)]
    fn stays_on_link(&self) -> bool {
        let (source, destination) = (self.source.get(), self.destination.get());
        is_of_link(&source) || is_of_link(&destination)
    }
    #[inline(always)]
    fn hops(&self) -> u8 {
        self.second.hop_limit
    }
    #[inline(always)]
    fn class(&self) -> u8 {
        (u32::from_be(self.first.get()) >> 20) as u8
    }
    #[inline(always)]
    fn set_class(&mut self, class: u8) -> Option<(u32, u32)> {
        let old = self.first.get();
        let new = (u32::from_be(old) & !0x0ff0_0000 | u32::from(class) << 20).to_be();
        self.first.set(new);
        Some((old, new))
    }
    #[inline(always)]
    fn take_hop(&mut self) -> Option<(u32, u32)> {
        let old = self.second.word();
        self.second.hop_limit = self.second.hop_limit.wrapping_sub(1);
        Some((old, self.second.word()))
    }
    #[inline(always)]
    fn flow(&self, ports: u32) -> Flow6 {
        Flow6 {
            source: self.source.get(),
            destination: self.destination.get(),
            ports,
            protocol: u32::from(self.second.next_header),
        }
    }
    #[inline(always)]
    fn written(&self) -> u32 {
        size_of::<Self>() as u32 + u32::from(u16::from_be(self.second.payload_length.get()))
    }
    #[inline(always)]
    fn write(&mut self, source: &Address, destination: &Address, class: u8, hops: u8, length: u32) {
        self.first.set((0x6000_0000 | u32::from(class) << 20).to_be());
        self.second
            .payload_length
            .set(written_length(length - size_of::<Self>() as u32));
        self.second.next_header = ip_protocol::UDP;
        self.second.hop_limit = hops;
        self.source.set(source.0);
        self.destination.set(destination.0);
    }
    #[inline(always)]
    fn turn(&mut self, cut_to: Option<u32>) {
        let (source, destination) = (self.source.get(), self.destination.get());
        self.source.set(destination);
        self.destination.set(source);
        if let Some(length) = cut_to {
            self.second
                .payload_length
                .set(written_length(length - size_of::<Self>() as u32));
        }
    }
}
