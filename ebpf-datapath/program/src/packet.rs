//! Headers as they lie in packets, and what the programs ask of them, whichever family they are of.

use core::mem::size_of;

use podlane_datapath_common::headers::{self, ETHERTYPE_IPV4, ETHERTYPE_IPV6};
use podlane_datapath_common::{Address, Flow4, Flow6, Network4, Network6, ip_protocol};

use crate::flow::Tuple;
use crate::kernel::Packet;
use crate::wire::{Address6, LinkAddress, Wire, Word16, Word32, octets};

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

/// The twelve octets of a TCP header that matter here.
#[repr(C)]
#[derive(Clone, Copy)]
struct Tcp {
    ports: Word32,
    sequence: [u8; 8],
    /// The header's length in words of 32 bits, in the upper half.
    offset: u8,
    flags: u8,
    rest: [u8; 6],
}
// SAFETY: of what is so itself, each of alignment one, so nothing lies between.
unsafe impl Wire for Tcp {}

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

/// What any packet is looked at for: an IPv6 header in one of IPv6, and TCP's behind it.
pub(crate) const LOOKED_AT: u32 =
    (headers::ETHERNET + headers::OVERHEAD6 + headers::IPV6 + headers::IPV4) as u32;

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
        let first = |network: &Network4| network.network | 1_u32.to_be();
        destination == first(&v4[0])
            || destination == first(&v4[1])
            || destination == first(&v4[2])
            || destination == first(&v4[3])
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
        let [a, b, c, d] = self.destination.get();
        let is_first = |network: &Network6| {
            let [e, f, g, h] = network.network;
            a == e && b == f && c == g && d == h | 1_u32.to_be()
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

/// What is behind an IP header, of a packet that can belong to a flow.
#[derive(Clone, Copy)]
pub(crate) struct Transport {
    /// Source and destination port, as they stand there.
    pub(crate) ports: u32,
    /// Octets of its header.
    pub(crate) length: u32,
    /// Neither SYN nor FIN nor RST.
    pub(crate) is_steady: bool,
    /// Whether it is TCP.
    pub(crate) is_tcp: bool,
}

/// Looks behind the IP header that stands at an offset.
#[inline(always)]
pub(crate) fn transport<I: Ip>(packet: &Packet, at: usize) -> Option<Transport> {
    const FIN_SYN_RST: u8 = 0b111;
    let ip: &I = packet.at(at)?;
    if !ip.is_simple() {
        return None;
    }
    match ip.protocol() {
        ip_protocol::TCP => {
            let tcp: &Tcp = packet.at(at + size_of::<I>())?;
            Some(Transport {
                ports: tcp.ports.get(),
                length: u32::from(tcp.offset >> 4) * 4,
                is_steady: tcp.flags & FIN_SYN_RST == 0,
                is_tcp: true,
            })
        }
        ip_protocol::UDP => {
            let udp: &Udp = packet.at(at + size_of::<I>())?;
            let ([a, b], [c, d]) = (
                udp.source.get().to_ne_bytes(),
                udp.destination.get().to_ne_bytes(),
            );
            Some(Transport {
                ports: u32::from_ne_bytes([a, b, c, d]),
                length: size_of::<Udp>() as u32,
                is_steady: true,
                is_tcp: false,
            })
        }
        _ => None,
    }
}
