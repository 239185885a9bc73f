//! What goes with a packet between a tunnel device and the programs at it.

use core::mem::{MaybeUninit, size_of};

use aya_ebpf::bindings::{BPF_F_TUNINFO_IPV6, bpf_tunnel_key};
use aya_ebpf::helpers::{bpf_skb_get_tunnel_key, bpf_skb_set_tunnel_key};
use podlane_datapath_common::Address;

use super::Packet;

/// include/uapi/asm-generic/errno.h.
const EPROTO: i64 = -71;

/// What a tunnel device knows of a packet.
pub(crate) struct TunnelKey {
    /// The address that `bpf_skb_get_tunnel_key` calls local: on the way out, the peer's; on the way in, the outer destination.
    pub(crate) local: Address,
    /// The address that it calls remote: on the way in, the peer's.
    pub(crate) remote: Address,
    /// The VNI.
    pub(crate) vni: u32,
    /// TTL or hop limit.
    pub(crate) ttl: u8,
}

impl Packet {
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
}
