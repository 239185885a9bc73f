//! Ingress of a tunnel device: what its driver has decapsulated (docs/datapath.md, "tunnel_ingress").

use aya_ebpf::bindings::TC_ACT_UNSPEC;
use podlane_datapath_common::headers::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, vni_word};
use podlane_datapath_common::{NO_LANE_SLOT, Peer, Reason, Settings};

use crate::kernel::Packet;
use crate::packet::{Ip, Ipv4, Ipv6, PLAIN, looked_at};
use crate::{counters, inner, maps, slots};

#[inline(always)]
pub(crate) fn run(packet: &mut Packet) -> i32 {
    let Some(settings) = maps::settings() else {
        return TC_ACT_UNSPEC;
    };
    // What underlay_ingress hands over it has checked, and no driver has seen.
    let Some(key) = packet.tunnel_key() else {
        return TC_ACT_UNSPEC;
    };
    let Some((slot, _)) = slots::by_device(settings, packet.ifindex(), vni_word(key.vni)) else {
        return counters::drop_packet(NO_LANE_SLOT, None, Reason::WrongVni);
    };
    let Some(peer) = maps::peer(key.remote) else {
        return counters::drop_packet(slot, None, Reason::NoPeer);
    };
    // A pod can have the stack take its forged outer headers for a peer's only by a destination that stays on its link: no peer sends to such a one.
    if key.local != peer.source || peer.tunnels & 1 << slot == 0 {
        return counters::drop_packet(slot, Some(peer.index), Reason::ForgedOuter);
    }
    match packet.protocol() {
        ETHERTYPE_IPV4 => take::<Ipv4>(packet, settings, slot, peer),
        ETHERTYPE_IPV6 => take::<Ipv6>(packet, settings, slot, peer),
        _ => counters::drop_packet(slot, Some(peer.index), Reason::Malformed),
    }
}

#[inline(always)]
fn take<I: Ip>(packet: &mut Packet, settings: &Settings, slot: u32, peer: &Peer) -> i32 {
    packet.pull(looked_at::<I>(PLAIN));
    if let Err(reason) = inner::check::<I>(packet, PLAIN, settings, peer) {
        return counters::drop_packet(slot, Some(peer.index), reason);
    }
    if let Some(ip) = packet.at::<I>(PLAIN)
        && inner::is_probe(ip, settings)
    {
        // Probes are taken where they come in; one that came here instead (in fragments) proves nothing.
        return counters::drop_packet(slot, Some(peer.index), Reason::Probe);
    }
    // The driver marks what bears another link-layer address than the device's, which its peers need not know.
    packet.claim();
    counters::received(slot, peer.index, packet.len() - PLAIN as u32, false);
    TC_ACT_UNSPEC
}
