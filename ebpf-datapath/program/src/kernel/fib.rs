//! The kernel's FIB: its routes and neighbours.

use core::mem::size_of;

use aya_ebpf::bindings::{BPF_FIB_LOOKUP_OUTPUT, bpf_fib_lookup as FibParameters};
use aya_ebpf::helpers::bpf_fib_lookup;
use podlane_datapath_common::Address;

use super::{AF_INET, AF_INET6, Packet};

/// What the FIB says of a query (`BPF_FIB_LKUP_RET_*`, include/uapi/linux/bpf.h).
pub(crate) mod fib_code {
    pub(crate) const SUCCESS: i32 = 0;
    /// A way, and no link-layer address yet.
    pub(crate) const NO_NEIGHBOUR: i32 = 7;
    /// All of it, and that the packet at hand is longer than the device takes.
    pub(crate) const TOO_LONG: i32 = 8;
}

/// What the FIB is asked.
pub(crate) struct FibQuery<'a> {
    pub(crate) source: &'a Address,
    pub(crate) destination: &'a Address,
    pub(crate) protocol: u8,
    /// Ports in network byte order.
    pub(crate) source_port: u16,
    pub(crate) destination_port: u16,
    /// The device: the one by which the packet has to leave, or else the one by which it came.
    pub(crate) interface: u32,
    pub(crate) output: bool,
}

/// What the FIB is to be asked about to tell of a next hop to a destination. Of an address of a link, as IPv6 routers have on it, it tells nothing, for nothing
/// is ever forwarded to one (`bpf_ipv6_fib_lookup`, net/core/filter.c); of what is reached by way of it, it does.
#[inline(always)]
pub(crate) fn neighbour_query<'a>(next_hop: &'a Address, destination: &'a Address) -> &'a Address {
    if next_hop.is_link_local() {
        destination
    } else {
        next_hop
    }
}

/// What it says.
pub(crate) struct FibAnswer {
    pub(crate) code: i32,
    pub(crate) interface: u32,
    pub(crate) next_hop: Address,
    pub(crate) source_link: [u16; 3],
    pub(crate) destination_link: [u16; 3],
}

/// `struct bpf_fib_lookup` (include/uapi/linux/bpf.h) in words of 32 bits: the verifier takes no word from the stack, nor puts one there, but at a
/// multiple of its size, and of smaller fields the compiler may make a word that is not.
#[repr(C)]
struct FibWords {
    /// Family, protocol, source port.
    first: u32,
    /// Destination port, and the packet's length: 0 compares the packet itself with the device's MTU.
    second: u32,
    interface: u32,
    class: u32,
    source: [u32; 4],
    destination: [u32; 4],
    vlan: u32,
    /// Source and destination link-layer address, six octets each.
    links: [u16; 6],
}
const _: () = assert!(size_of::<FibWords>() == size_of::<FibParameters>());

impl Packet {
    /// Asks the FIB.
    #[inline(always)]
    pub(crate) fn fib(&self, query: &FibQuery<'_>) -> FibAnswer {
        let is_v4 = query.destination.is_v4();
        let (family, source, destination) = if is_v4 {
            (
                AF_INET,
                [query.source.word(), 0, 0, 0],
                [query.destination.word(), 0, 0, 0],
            )
        } else {
            (AF_INET6, query.source.0, query.destination.0)
        };
        let [a, b] = query.source_port.to_ne_bytes();
        let [c, d] = query.destination_port.to_ne_bytes();
        let mut words = FibWords {
            first: u32::from_ne_bytes([family, query.protocol, a, b]),
            second: u32::from_ne_bytes([c, d, 0, 0]),
            interface: query.interface,
            class: 0,
            source,
            destination,
            vlan: 0,
            links: [0; 6],
        };
        let flags = if query.output { BPF_FIB_LOOKUP_OUTPUT } else { 0 };
        // SAFETY: the words are laid out as the kernel's structure, whose size it is told.
        let code = unsafe {
            bpf_fib_lookup(
                self.skb.cast(),
                (&raw mut words).cast(),
                size_of::<FibWords>() as i32,
                flags,
            )
        };
        let [family, ..] = words.first.to_ne_bytes();
        let next_hop = if family == AF_INET {
            Address::v4(words.destination[0])
        } else {
            Address(words.destination)
        };
        FibAnswer {
            code: code as i32,
            interface: words.interface,
            next_hop,
            source_link: [words.links[0], words.links[1], words.links[2]],
            destination_link: [words.links[3], words.links[4], words.links[5]],
        }
    }
}
