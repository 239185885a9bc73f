//! Verdicts that send the packet elsewhere.

use core::mem::size_of;

use aya_ebpf::bindings::{BPF_F_INGRESS, bpf_redir_neigh};
use aya_ebpf::helpers::{bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer};
use podlane_datapath_common::Address;

use super::{AF_INET, AF_INET6};

/// `struct bpf_redir_neigh` (include/uapi/linux/bpf.h) in words of 32 bits, as [`super::fib`] has its own.
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
