//! The packet and the kernel's helpers, with a safe face.
//!
//! What changes a packet's memory borrows the [`Packet`] mutably, so the compiler asks for what the verifier asks for: that places in
//! it are looked up anew afterwards.

use core::mem::{MaybeUninit, size_of};

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{
    __sk_buff, BPF_F_INGRESS, BPF_F_TUNINFO_IPV6, BPF_FIB_LOOKUP_OUTPUT, bpf_fib_lookup as FibParameters,
    bpf_redir_neigh, bpf_tunnel_key,
};
use aya_ebpf::helpers::{
    bpf_clone_redirect, bpf_csum_update, bpf_fib_lookup, bpf_get_hash_recalc, bpf_jiffies64,
    bpf_ktime_get_ns, bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer, bpf_skb_adjust_room,
    bpf_skb_change_proto, bpf_skb_change_tail, bpf_skb_change_type, bpf_skb_get_tunnel_key,
    bpf_skb_load_bytes, bpf_skb_pull_data, bpf_skb_set_tunnel_key,
};
use aya_ebpf::programs::TcContext;
use podlane_datapath_common::Address;

use crate::wire::Wire;

/// include/linux/socket.h; not among the constants that BTF or the UAPI's bpf.h have.
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// include/uapi/asm-generic/errno.h.
const EALREADY: i64 = -114;
const EPROTO: i64 = -71;
/// include/uapi/linux/if_packet.h.
const PACKET_HOST: u32 = 0;
const PACKET_OTHERHOST: u32 = 3;

/// The packet at hand.
pub(crate) struct Packet {
    skb: *mut __sk_buff,
}

/// What a tunnel device knows of a packet.
pub(crate) struct TunnelKey {
    /// The address that `bpf_skb_get_tunnel_key` calls local: on the way out, the peer's.
    pub(crate) local: Address,
    /// The address that it calls remote: on the way in, the peer's.
    pub(crate) remote: Address,
    /// The VNI.
    pub(crate) vni: u32,
    /// TTL or hop limit.
    pub(crate) ttl: u8,
}

/// Why room was refused.
pub(crate) enum Refusal {
    /// The packet is marked as encapsulated already.
    Encapsulated,
    /// Anything else.
    Other,
}

macro_rules! field {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[inline(always)]
        pub(crate) fn $name(&self) -> u32 {
            // SAFETY: the kernel gave the context, and the verifier knows the field.
            unsafe { (*self.skb).$name }
        }
    };
}

impl Packet {
    #[inline(always)]
    pub(crate) fn new(context: &TcContext) -> Self {
        Self {
            skb: context.as_ptr().cast(),
        }
    }

    field!(
        /// Octets, from the Ethernet header on.
        len
    );
    field!(
        /// The device at whose hook the program runs.
        ifindex
    );
    field!(
        /// Payload of each segment of a packet that stands for several; 0 for a single one.
        gso_size
    );
    field!(
        /// Whether a VLAN tag is in the metadata.
        vlan_present
    );
    field!(
        /// The mark.
        mark
    );

    /// The ethertype, in host byte order.
    #[inline(always)]
    pub(crate) fn protocol(&self) -> u16 {
        // SAFETY: as in `field`.
        u16::from_be(unsafe { (*self.skb).protocol } as u16)
    }

    /// The five words that belong to programs.
    #[inline(always)]
    pub(crate) fn words(&self) -> [u32; 5] {
        // SAFETY: as in `field`. Volatile, each for itself, for the verifier takes no computed place in the context.
        unsafe {
            let words = &raw const (*self.skb).cb;
            [
                (&raw const (*words)[0]).read_volatile(),
                (&raw const (*words)[1]).read_volatile(),
                (&raw const (*words)[2]).read_volatile(),
                (&raw const (*words)[3]).read_volatile(),
                (&raw const (*words)[4]).read_volatile(),
            ]
        }
    }

    /// A number of traffic control's own that goes with the packet from hook to hook.
    #[inline(always)]
    pub(crate) fn tc_index(&self) -> u32 {
        // SAFETY: as in `field`.
        unsafe { (*self.skb).tc_index }
    }

    #[inline(always)]
    pub(crate) fn set_tc_index(&mut self, index: u32) {
        // SAFETY: as in `field`; programs of this type may write it.
        unsafe { (*self.skb).tc_index = index }
    }

    #[inline(always)]
    fn data(&self) -> usize {
        // SAFETY: as in `field`. The kernel makes a pointer of it.
        unsafe { (*self.skb).data as usize }
    }

    #[inline(always)]
    fn data_end(&self) -> usize {
        // SAFETY: as in `field`. The kernel makes a pointer of it.
        unsafe { (*self.skb).data_end as usize }
    }

    /// What lies at an offset, if all of it is in the packet's linear part.
    #[inline(always)]
    pub(crate) fn at<T: Wire>(&self, offset: usize) -> Option<&T> {
        let start = self.data() + offset;
        if start + size_of::<T>() > self.data_end() {
            return None;
        }
        // SAFETY: within the packet, as just compared; `Wire` asks for no alignment; nothing changes the packet while it is borrowed.
        Some(unsafe { &*(start as *const T) })
    }

    /// The same, to write.
    #[inline(always)]
    pub(crate) fn at_mut<T: Wire>(&mut self, offset: usize) -> Option<&mut T> {
        let start = self.data() + offset;
        if start + size_of::<T>() > self.data_end() {
            return None;
        }
        // SAFETY: as above, and borrowed mutably.
        Some(unsafe { &mut *(start as *mut T) })
    }

    /// Has the first octets in the linear part, as many of them as there are.
    #[inline(always)]
    pub(crate) fn pull(&mut self, octets: u32) {
        let len = self.len();
        let linear = (self.data_end() - self.data()) as u32;
        if linear < octets && linear < len {
            let wanted = if len < octets { len } else { octets };
            // SAFETY: takes the context and a number. When it fails, nothing has changed, and what is missing is not found.
            unsafe { bpf_skb_pull_data(self.skb, wanted) };
        }
    }

    /// Copies what lies at an offset not known to the compiler; for what is seldom read.
    #[inline(always)]
    pub(crate) fn copy<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let mut octets = [0; N];
        // SAFETY: the helper writes N octets or fails.
        let failed =
            unsafe { bpf_skb_load_bytes(self.skb.cast(), offset, octets.as_mut_ptr().cast(), N as u32) };
        (failed == 0).then_some(octets)
    }

    /// Makes room behind the Ethernet header, or with a negative length takes it away.
    #[inline(always)]
    pub(crate) fn adjust_room(&mut self, length: i32, flags: u64) -> Result<(), Refusal> {
        const BEHIND_ETHERNET: u32 = 1;
        // SAFETY: takes the context and numbers.
        match unsafe { bpf_skb_adjust_room(self.skb, length, BEHIND_ETHERNET, flags) } {
            0 => Ok(()),
            EALREADY => Err(Refusal::Encapsulated),
            _ => Err(Refusal::Other),
        }
    }

    /// Makes an IPv4 packet one of IPv6, or the other way round, by twenty octets behind the Ethernet header. False: refused.
    #[inline(always)]
    pub(crate) fn change_protocol(&mut self, ethertype: u16) -> bool {
        // SAFETY: takes the context and numbers.
        unsafe { bpf_skb_change_proto(self.skb, ethertype.to_be(), 0) == 0 }
    }

    /// Cuts the packet off or fills it up with zeros. False: refused.
    #[inline(always)]
    pub(crate) fn change_length(&mut self, octets: u32) -> bool {
        // SAFETY: takes the context and numbers.
        unsafe { bpf_skb_change_tail(self.skb, octets, 0) == 0 }
    }

    /// Marks the packet as this host's where it is marked as another's.
    #[inline(always)]
    pub(crate) fn claim(&mut self) {
        // SAFETY: as in `field`.
        if unsafe { (*self.skb).pkt_type } == PACKET_OTHERHOST {
            // SAFETY: takes the context and a number. It fails for no type that a received packet has.
            unsafe { bpf_skb_change_type(self.skb, PACKET_HOST) };
        }
    }

    /// Tells a checksum over the whole packet (CHECKSUM_COMPLETE) that a word of it, as it stands there, was changed outside of what a
    /// checksum of its own makes good.
    #[inline(always)]
    pub(crate) fn word_changed(&mut self, old: u32, new: u32) {
        let (sum, carried) = new.overflowing_add(!old);
        // SAFETY: takes the context and a number.
        unsafe { bpf_csum_update(self.skb, sum + u32::from(carried)) };
    }

    /// A hash of the flow, the same for all its packets.
    #[inline(always)]
    pub(crate) fn hash(&mut self) -> u32 {
        // SAFETY: takes the context.
        unsafe { bpf_get_hash_recalc(self.skb) }
    }

    /// What the tunnel device knows of the packet.
    #[inline(always)]
    pub(crate) fn tunnel_key(&self) -> Option<TunnelKey> {
        let mut key = MaybeUninit::<bpf_tunnel_key>::uninit();
        let size = size_of::<bpf_tunnel_key>() as u32;
        // SAFETY: the helper writes as many octets as it is told.
        match unsafe { bpf_skb_get_tunnel_key(self.skb, key.as_mut_ptr(), size, 0) } {
            // SAFETY: the helper has written all of it, integers only; IPv4 addresses in host byte order.
            0 => Some(unsafe {
                let key = key.assume_init_ref();
                TunnelKey {
                    local: Address::v4(key.__bindgen_anon_3.local_ipv4.to_be()),
                    remote: Address::v4(key.__bindgen_anon_1.remote_ipv4.to_be()),
                    vni: key.tunnel_id,
                    ttl: key.tunnel_ttl,
                }
            }),
            EPROTO => {
                // SAFETY: as above.
                let failed = unsafe {
                    bpf_skb_get_tunnel_key(self.skb, key.as_mut_ptr(), size, BPF_F_TUNINFO_IPV6.into())
                };
                if failed != 0 {
                    return None;
                }
                // SAFETY: as above; IPv6 addresses come as they stand in packets.
                Some(unsafe {
                    let key = key.assume_init_ref();
                    TunnelKey {
                        local: Address(key.__bindgen_anon_3.local_ipv6),
                        remote: Address(key.__bindgen_anon_1.remote_ipv6),
                        vni: key.tunnel_id,
                        ttl: key.tunnel_ttl,
                    }
                })
            }
            _ => None,
        }
    }

    /// Has the packet forget the route that brought it here. Where the next hop's link-layer address is yet to be resolved the kernel keeps the
    /// packet, and sends it later to the neighbour of the packet's own route (`neigh_update`, net/core/neighbour.c): the tunnel's, by the wrong
    /// device. With a tunnel key in the route's place (nothing reads it any more) there is no such neighbour.
    #[inline(always)]
    pub(crate) fn forget_route(&mut self) {
        // The oldest form of a key, in words: the VNI, and an IPv4 address.
        let mut key = [0_u32; 2];
        // SAFETY: the kernel takes a key of that size, and copies it. It does not fail for lack of memory.
        unsafe { bpf_skb_set_tunnel_key(self.skb, key.as_mut_ptr().cast(), size_of::<[u32; 2]>() as u32, 0) };
    }

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

    /// Sends a copy out by a device, as it is. False: refused.
    #[inline(always)]
    pub(crate) fn send_copy(&mut self, interface: u32) -> bool {
        // SAFETY: takes the context and numbers.
        unsafe { bpf_clone_redirect(self.skb, interface, 0) == 0 }
    }
}

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

/// `struct bpf_redir_neigh` (include/uapi/linux/bpf.h), likewise.
#[repr(C)]
struct NeighbourWords {
    family: u32,
    address: [u32; 4],
}
const _: () = assert!(size_of::<NeighbourWords>() == size_of::<bpf_redir_neigh>());

/// Sends the packet out by a device, to the link-layer address of a next hop there. The verdict.
#[inline(always)]
pub(crate) fn redirect_to_neighbour(interface: u32, next_hop: &Address) -> i32 {
    let mut words = if next_hop.is_v4() {
        NeighbourWords {
            family: AF_INET.into(),
            address: [next_hop.word(), 0, 0, 0],
        }
    } else {
        NeighbourWords {
            family: AF_INET6.into(),
            address: next_hop.0,
        }
    };
    let size = size_of::<NeighbourWords>() as i32;
    // SAFETY: the words are laid out as the kernel's structure, whose size it is told.
    unsafe { bpf_redirect_neigh(interface, (&raw mut words).cast(), size, 0) as i32 }
}

/// Puts the packet into the network namespace at a veth's other end. The verdict.
#[inline(always)]
pub(crate) fn redirect_to_peer(interface: u32) -> i32 {
    // SAFETY: takes numbers.
    unsafe { bpf_redirect_peer(interface, 0) as i32 }
}

/// Has the packet come in by another device. The verdict.
#[inline(always)]
pub(crate) fn redirect_in(interface: u32) -> i32 {
    // SAFETY: takes numbers.
    unsafe { bpf_redirect(interface, BPF_F_INGRESS.into()) as i32 }
}

/// The lower half of the jiffies.
#[inline(always)]
pub(crate) fn jiffies() -> u32 {
    // SAFETY: takes nothing.
    unsafe { bpf_jiffies64() as u32 }
}

/// The monotonic clock, in ns.
#[inline(always)]
pub(crate) fn nanoseconds() -> u64 {
    // SAFETY: takes nothing.
    unsafe { bpf_ktime_get_ns() }
}

/// The monotonic clock in units of 2²⁰ ns, of which [`SECOND`] are one second; right in differences of up to 52 days.
#[inline(always)]
pub(crate) fn ticks() -> u32 {
    (nanoseconds() >> 20) as u32
}

/// A second in [`ticks`], rounded up.
pub(crate) const SECOND: u32 = 954;

/// The same number, of which the verifier no longer knows what it is: it then follows what comes next once, not once for each number.
/// For numbers up to 254.
#[inline(always)]
pub(crate) fn forget(number: u32) -> u32 {
    let mut place = 0_u32;
    let place = &raw mut place;
    // SAFETY: the place is this function's own. The verifier knows what lies in a place of the stack only as long as it is read as it was written:
    // from its beginning.
    unsafe {
        place.write_volatile((number + 1) << 8);
        u32::from(place.cast::<u8>().add(1).read_volatile()) - 1
    }
}
