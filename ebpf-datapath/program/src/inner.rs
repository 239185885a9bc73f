//! What an inner packet has to be, whoever has taken its outer headers off.

use podlane_datapath_common::{
    Peer, PodNetworkKind, Reason, Settings, ip_protocol, peer_flag, settings_flag,
};

use crate::kernel::Packet;
use crate::maps;
use crate::packet::Ip;

/// Checks the inner packet whose IP header stands at an offset: that the header is there, that it comes from the peer's pods, and that it goes to
/// this node's. The error: why not.
#[inline(always)]
pub(crate) fn check<I: Ip>(
    packet: &Packet,
    at: usize,
    settings: &Settings,
    peer: &Peer,
) -> Result<(), Reason> {
    let Some(ip) = packet.at::<I>(at).filter(|ip| ip.is_sound()) else {
        return Err(Reason::Malformed);
    };
    if at as u32 + ip.length() > packet.len() {
        return Err(Reason::Malformed);
    }
    if !ip.source_in(&peer.networks4, &peer.networks6) {
        let is_peers = peer.flags & peer_flag::MORE_NETWORKS != 0
            && ip
                .source_key()
                .and_then(maps::owner)
                .is_some_and(|owner| owner.kind == PodNetworkKind::Peer as u32 && owner.peer == peer.index);
        if !is_peers {
            return Err(Reason::ForgedInner);
        }
    }
    if !ip.destination_in(&settings.local4, &settings.local6) {
        let is_local = settings.flags & settings_flag::MORE_LOCAL != 0
            && ip
                .destination_key()
                .and_then(maps::owner)
                .is_some_and(|owner| owner.kind == PodNetworkKind::Local as u32);
        if !is_local {
            return Err(Reason::NotHere);
        }
    }
    Ok(())
}

/// Whether it is for the programs themselves.
#[inline(always)]
pub(crate) fn is_probe<I: Ip>(ip: &I, settings: &Settings) -> bool {
    ip.protocol() == ip_protocol::PROBE && ip.is_to_router(&settings.local4, &settings.local6)
}
