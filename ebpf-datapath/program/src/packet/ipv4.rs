//! IPv4's header.

use podlane_datapath_common::headers::ETHERTYPE_IPV4;
use podlane_datapath_common::{Address, Flow4, Network4, Network6, ip_protocol};

use super::ip::{Ip, written_length};
use crate::wire::{Wire, Word16, Word32};

/// An IPv4 header without options (RFC 791, section 3.1). Numbers in network byte order.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Ipv4 {
    version_and_length: u8,
    type_of_service: u8,
    total_length: Word16,
    identification: Word16,
    fragment: Word16,
    ttl: u8,
    protocol: u8,
    checksum: Word16,
    source: Word32,
    destination: Word32,
}
// SAFETY: of what is so itself, each of alignment one, so nothing lies between.
unsafe impl Wire for Ipv4 {}

/// Folds a sum of words into sixteen bits (RFC 1071).
#[inline(always)]
fn fold(mut sum: u32) -> u16 {
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// A checksum after one of its words has changed (RFC 1624, section 3, equation 3).
#[inline(always)]
fn checksum_after(checksum: u16, old: u16, new: u16) -> u16 {
    !fold(u32::from(!checksum) + u32::from(!old) + u32::from(new))
}

impl Ipv4 {
    /// More-fragments and the offset, in network byte order.
    const FRAGMENT: u16 = 0x3fff_u16.to_be();
    const FRAGMENT_OFFSET: u16 = 0x1fff_u16.to_be();
    const DONT_FRAGMENT: u16 = 0x4000_u16.to_be();

    /// Computes the checksum of a header without options anew.
    #[inline(always)]
    fn sum_up(&mut self) {
        let (source, destination) = (self.source.get(), self.destination.get());
        let sum = u32::from(u16::from_ne_bytes([
            self.version_and_length,
            self.type_of_service,
        ])) + u32::from(self.total_length.get())
            + u32::from(self.identification.get())
            + u32::from(self.fragment.get())
            + u32::from(u16::from_ne_bytes([self.ttl, self.protocol]))
            + (source & 0xffff)
            + (source >> 16)
            + (destination & 0xffff)
            + (destination >> 16);
        self.checksum.set(!fold(sum));
    }
}

impl Ip for Ipv4 {
    type Flow = Flow4;
    const ETHERTYPE: u16 = ETHERTYPE_IPV4;
    const IS_V4: bool = true;

    #[inline(always)]
    fn is_sound(&self) -> bool {
        self.version_and_length >= 0x45 && self.version_and_length <= 0x4f
    }
    #[inline(always)]
    fn length(&self) -> u32 {
        u32::from(self.version_and_length & 0xf) * 4
    }
    #[inline(always)]
    fn is_simple(&self) -> bool {
        self.version_and_length == 0x45 && self.fragment.get() & Self::FRAGMENT == 0
    }
    #[inline(always)]
    fn is_later_fragment(&self) -> bool {
        self.fragment.get() & Self::FRAGMENT_OFFSET != 0
    }
    #[inline(always)]
    fn protocol(&self) -> u8 {
        self.protocol
    }
    #[inline(always)]
    fn source(&self) -> Address {
        Address::v4(self.source.get())
    }
    #[inline(always)]
    fn destination(&self) -> Address {
        Address::v4(self.destination.get())
    }
    #[inline(always)]
    fn source_key(&self) -> Option<Address> {
        Some(self.source())
    }
    #[inline(always)]
    fn destination_key(&self) -> Option<Address> {
        Some(self.destination())
    }
    #[inline(always)]
    fn goes(&self, source: &Address, destination: &Address) -> bool {
        self.source.get() == source.word()
            && self.destination.get() == destination.word()
            && source.is_v4()
            && destination.is_v4()
    }
    #[inline(always)]
    fn source_in(&self, v4: &[Network4; 4], _: &[Network6; 4]) -> bool {
        let source = self.source.get();
        v4[0].contains(source) || v4[1].contains(source) || v4[2].contains(source) || v4[3].contains(source)
    }
    #[inline(always)]
    fn destination_in(&self, v4: &[Network4; 4], _: &[Network6; 4]) -> bool {
        let destination = self.destination.get();
        v4[0].contains(destination)
            || v4[1].contains(destination)
            || v4[2].contains(destination)
            || v4[3].contains(destination)
    }
    #[inline(always)]
    fn source_within(&self, v4: &Network4, _: &Network6) -> bool {
        v4.contains(self.source.get())
    }
    #[inline(always)]
    fn destination_within(&self, v4: &Network4, _: &Network6) -> bool {
        v4.contains(self.destination.get())
    }
    #[inline(always)]
    fn is_to_router(&self, v4: &[Network4; 4], _: &[Network6; 4]) -> bool {
        let destination = self.destination.get();
        // An empty place has a first address, too, but does not contain it.
        let is_first = |network: &Network4| {
            network.contains(destination) && destination == network.network | 1_u32.to_be()
        };
        is_first(&v4[0]) || is_first(&v4[1]) || is_first(&v4[2]) || is_first(&v4[3])
    }
    #[inline(always)]
    fn stays_on_link(&self) -> bool {
        let destination = u32::from_be(self.destination.get());
        self.source.get() == 0 || destination == 0 || destination >> 28 == 0xe || destination == u32::MAX
    }
    #[inline(always)]
    fn hops(&self) -> u8 {
        self.ttl
    }
    #[inline(always)]
    fn class(&self) -> u8 {
        self.type_of_service
    }
    #[inline(always)]
    fn set_class(&mut self, class: u8) -> Option<(u32, u32)> {
        let old = u16::from_ne_bytes([self.version_and_length, self.type_of_service]);
        let new = u16::from_ne_bytes([self.version_and_length, class]);
        self.checksum.set(checksum_after(self.checksum.get(), old, new));
        self.type_of_service = class;
        None
    }
    #[inline(always)]
    fn take_hop(&mut self) -> Option<(u32, u32)> {
        let old = u16::from_ne_bytes([self.ttl, self.protocol]);
        self.ttl = self.ttl.wrapping_sub(1);
        let new = u16::from_ne_bytes([self.ttl, self.protocol]);
        self.checksum.set(checksum_after(self.checksum.get(), old, new));
        None
    }
    #[inline(always)]
    fn flow(&self, ports: u32) -> Flow4 {
        Flow4 {
            source: self.source.get(),
            destination: self.destination.get(),
            ports,
            protocol: u32::from(self.protocol),
        }
    }
    #[inline(always)]
    fn written(&self) -> u32 {
        u16::from_be(self.total_length.get()).into()
    }
    #[inline(always)]
    fn write(&mut self, source: &Address, destination: &Address, class: u8, hops: u8, length: u32) {
        self.version_and_length = 0x45;
        self.type_of_service = class;
        self.total_length.set(written_length(length));
        // Not fragmented and not to be: such a packet's identification says nothing (RFC 6864, section 4.1).
        self.identification.set(0);
        self.fragment.set(Self::DONT_FRAGMENT);
        self.ttl = hops;
        self.protocol = ip_protocol::UDP;
        self.source.set(source.word());
        self.destination.set(destination.word());
        self.sum_up();
    }
    #[inline(always)]
    fn turn(&mut self, cut_to: Option<u32>) {
        let (source, destination) = (self.source.get(), self.destination.get());
        self.source.set(destination);
        self.destination.set(source);
        // The checksum is a sum: of the same words in another order it is the same.
        if let Some(length) = cut_to {
            self.total_length.set(written_length(length));
            self.sum_up();
        }
    }
}
