//! How Cilium carries a pod's packets in tunnel mode, reduced to what every packet needs: no policy, no connection tracking,
//! no Services. Podlane's own datapath is compared with it.
//!
//! `to_overlay` stands at the ingress of a pod's veth: the destination's prefix names the peer, `bpf_skb_set_tunnel_key` tells
//! a flow-based VXLAN device of it, `bpf_redirect` hands the packet over. `from_overlay` stands at the ingress of that device:
//! the tunnel key is checked, and `bpf_redirect_peer` puts the packet into its pod. The facts are those of Cilium's
//! documentation (docs.cilium.io, "Life of a Packet", "Encapsulation") and of bpf-helpers(7); the code is Podlane's.
#![no_std]
#![no_main]

use core::mem;

use aya_ebpf::bindings::{BPF_F_ZERO_CSUM_TX, TC_ACT_OK, TC_ACT_SHOT, bpf_tunnel_key};
use aya_ebpf::helpers::{
    bpf_redirect, bpf_redirect_peer, bpf_skb_change_type, bpf_skb_get_tunnel_key, bpf_skb_set_tunnel_key,
};
use aya_ebpf::macros::{classifier, map};
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::maps::{HashMap, LpmTrie};
use aya_ebpf::programs::TcContext;

/// The VNI of every packet; in its place Cilium puts the identity of the sender.
const VNI: u32 = 1;
const ETHERNET: usize = 14;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
/// `BPF_F_NO_PREALLOC`, without which an LPM trie cannot be made.
const NO_PREALLOCATION: u32 = 1;
const PACKET_HOST: u32 = 0;

/// The tunnel device. The loader writes it.
#[unsafe(no_mangle)]
static OVERLAY: u32 = 0;

/// Pod prefixes of other nodes and those nodes' IPv4 addresses, as numbers.
#[map]
static PEERS_IPV4: LpmTrie<[u8; 4], u32> = LpmTrie::with_max_entries(16_384, NO_PREALLOCATION);

/// The same for IPv6 pods. The tunnel's outer addresses are IPv4 all the same.
#[map]
static PEERS_IPV6: LpmTrie<[u8; 16], u32> = LpmTrie::with_max_entries(16_384, NO_PREALLOCATION);

/// Local pods by address: their veth's index on the node's side (native byte order, bytes 0 to 3), their own MAC address (4 to
/// 9), and that of the veth's node side (10 to 15).
#[map]
static PODS_IPV4: HashMap<[u8; 4], [u8; 16]> = HashMap::with_max_entries(256, 0);

/// The same for IPv6.
#[map]
static PODS_IPV6: HashMap<[u8; 16], [u8; 16]> = HashMap::with_max_entries(256, 0);

/// At the ingress of a pod's veth, on the node's side.
#[classifier]
pub fn to_overlay(ctx: TcContext) -> i32 {
    encapsulate(&ctx).unwrap_or(TC_ACT_OK)
}

/// At the ingress of the tunnel device.
#[classifier]
pub fn from_overlay(ctx: TcContext) -> i32 {
    deliver(&ctx).unwrap_or(TC_ACT_SHOT)
}

/// A pointer to `T` at `offset`, if all of it is in the packet's linear part.
#[inline(always)]
fn at<T>(ctx: &TcContext, offset: usize) -> Option<*mut T> {
    let start = ctx.data() + offset;
    (start + mem::size_of::<T>() <= ctx.data_end()).then_some(start as *mut T)
}

#[inline(always)]
fn read<T: Copy>(ctx: &TcContext, offset: usize) -> Option<T> {
    let place: *mut T = at(ctx, offset)?;
    // SAFETY: `at` has compared the bounds, and the verifier insists on it; packet memory has no alignment to keep here.
    Some(unsafe { place.read_unaligned() })
}

/// None leaves the packet to the node's stack.
#[inline(always)]
fn encapsulate(ctx: &TcContext) -> Option<i32> {
    let peer = match u16::from_be(read(ctx, 12)?) {
        IPV4 => *PEERS_IPV4.get(Key::new(32, read(ctx, ETHERNET + 16)?))?,
        IPV6 => *PEERS_IPV6.get(Key::new(128, read(ctx, ETHERNET + 24)?))?,
        _ => return None,
    };
    // SAFETY: all-zero is a valid key, of integers alone.
    let mut key: bpf_tunnel_key = unsafe { mem::zeroed() };
    key.tunnel_id = VNI;
    key.tunnel_ttl = 64;
    key.__bindgen_anon_1.remote_ipv4 = peer;
    let size = mem::size_of::<bpf_tunnel_key>() as u32;
    // SAFETY: the key lives on the stack with that size; the helper copies it.
    let failed = unsafe { bpf_skb_set_tunnel_key(ctx.skb.skb, &mut key, size, BPF_F_ZERO_CSUM_TX.into()) };
    if failed != 0 {
        return Some(TC_ACT_SHOT);
    }
    // SAFETY: the loader has replaced the value before loading; a volatile read keeps the zero from being folded in.
    let overlay = unsafe { (&raw const OVERLAY).read_volatile() };
    // SAFETY: takes numbers only.
    Some(unsafe { bpf_redirect(overlay, 0) } as i32)
}

/// None drops the packet.
#[inline(always)]
fn deliver(ctx: &TcContext) -> Option<i32> {
    // SAFETY: all-zero is a valid key, of integers alone.
    let mut key: bpf_tunnel_key = unsafe { mem::zeroed() };
    let size = mem::size_of::<bpf_tunnel_key>() as u32;
    // SAFETY: the key lives on the stack with that size, and the helper writes no more.
    if unsafe { bpf_skb_get_tunnel_key(ctx.skb.skb, &mut key, size, 0) } != 0 || key.tunnel_id != VNI {
        return None;
    }
    let pod = match u16::from_be(read(ctx, 12)?) {
        IPV4 => {
            let destination: [u8; 4] = read(ctx, ETHERNET + 16)?;
            decrement_ttl(ctx)?;
            // SAFETY: the entry is never removed while the program runs.
            unsafe { PODS_IPV4.get(destination) }?
        }
        IPV6 => {
            let destination: [u8; 16] = read(ctx, ETHERNET + 24)?;
            let hops: *mut u8 = at(ctx, ETHERNET + 7)?;
            // SAFETY: within the packet, see `at`.
            unsafe {
                if *hops <= 1 {
                    return None;
                }
                *hops -= 1;
            }
            // SAFETY: the entry is never removed while the program runs.
            unsafe { PODS_IPV6.get(destination) }?
        }
        _ => return None,
    };
    let addresses: *mut [u8; 12] = at(ctx, 0)?;
    for place in 0..12 {
        // SAFETY: within the packet, see `at`.
        unsafe { (*addresses)[place] = pod[4 + place] };
    }
    let veth = u32::from_ne_bytes([pod[0], pod[1], pod[2], pod[3]]);
    // The device took the frame for another host's, since the inner address was not its own.
    // SAFETY: takes the packet and a number.
    unsafe { bpf_skb_change_type(ctx.skb.skb, PACKET_HOST) };
    // SAFETY: takes numbers only.
    Some(unsafe { bpf_redirect_peer(veth, 0) } as i32)
}

/// One hop less, and the header's checksum changed by as much (RFC 1624, section 3). None where the TTL is used up.
#[inline(always)]
fn decrement_ttl(ctx: &TcContext) -> Option<()> {
    let ttl: *mut u8 = at(ctx, ETHERNET + 8)?;
    let checksum: *mut [u8; 2] = at(ctx, ETHERNET + 10)?;
    // SAFETY: within the packet, see `at`.
    unsafe {
        if *ttl <= 1 {
            return None;
        }
        *ttl -= 1;
        let sum = u32::from(u16::from_be_bytes(*checksum)) + 0x0100;
        *checksum = ((sum + (sum >> 16)) as u16).to_be_bytes();
    }
    Some(())
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// What the kernel reads: helpers of the networking programs are open to programs under the GPL alone.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
