//! The packet and the kernel's helpers, with a safe face.
//!
//! What changes a packet's memory borrows the [`Packet`] mutably, so the compiler asks for what the verifier asks for: that places in
//! it are looked up anew afterwards.

mod clock;
mod fib;
mod redirect;
mod tunnel_key;

use core::mem::size_of;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::{
    bpf_clone_redirect, bpf_csum_update, bpf_get_hash_recalc, bpf_skb_adjust_room, bpf_skb_change_proto,
    bpf_skb_change_tail, bpf_skb_change_type, bpf_skb_load_bytes, bpf_skb_pull_data, bpf_skb_vlan_pop,
};
use aya_ebpf::programs::TcContext;
use podlane_datapath_common::headers::{ETHERNET, ETHERTYPES_VLAN};

pub(crate) use self::clock::{SECOND, jiffies, nanoseconds, ticks};
pub(crate) use self::fib::{FibQuery, fib_code, neighbour_query};
pub(crate) use self::redirect::{redirect_in, redirect_to_neighbour, redirect_to_peer};
pub(crate) use self::tunnel_key::TunnelKey;
use crate::wire::Wire;

/// include/linux/socket.h; not among the constants that BTF or the UAPI's bpf.h have.
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// include/uapi/asm-generic/errno.h.
const EALREADY: i64 = -114;
/// include/linux/errno.h.
const ENOTSUPP: i64 = -524;
/// include/uapi/linux/if_packet.h.
const PACKET_HOST: u32 = 0;
const PACKET_OTHERHOST: u32 = 3;

/// The packet at hand.
pub(crate) struct Packet {
    skb: *mut __sk_buff,
}

/// Why room was refused.
pub(crate) enum Refusal {
    /// The packet is marked as encapsulated already.
    Encapsulated,
    /// The packet is of a kind that the kernel makes no room in: of many segments, which are neither TCP's nor UDP's datagrams (`bpf_skb_net_grow`,
    /// net/core/filter.c), or too long. Nothing has been changed.
    Unsupported,
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

    /// The number of the VLAN whose tag is the frame's first; none: it is not tagged. At an ingress hook the kernel has that tag in the metadata
    /// (`skb_vlan_untag`, net/core/skbuff.c), with BPF_PROG_TEST_RUN in the frame.
    #[inline(always)]
    pub(crate) fn vlan(&self) -> Option<u16> {
        /// Beside priority and eligibility to be dropped.
        const NUMBER: u16 = 0xfff;
        if self.vlan_present() != 0 {
            // SAFETY: as in `field`.
            return Some(unsafe { (*self.skb).vlan_tci } as u16 & NUMBER);
        }
        if !ETHERTYPES_VLAN.contains(&self.protocol()) {
            return None;
        }
        self.copy::<2>(ETHERNET as u32)
            .map(|tag| u16::from_be_bytes(tag) & NUMBER)
    }

    /// Takes the first tag off; a second one is in the metadata then. False: refused.
    #[inline(always)]
    pub(crate) fn take_tag(&mut self) -> bool {
        // SAFETY: takes the context.
        unsafe { bpf_skb_vlan_pop(self.skb) == 0 }
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
            ENOTSUPP => Err(Refusal::Unsupported),
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

    /// Sends a copy out by a device, as it is. False: refused.
    #[inline(always)]
    pub(crate) fn send_copy(&mut self, interface: u32) -> bool {
        // SAFETY: takes the context and numbers.
        unsafe { bpf_clone_redirect(self.skb, interface, 0) == 0 }
    }
}

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
