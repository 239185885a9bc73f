//! The programs at the tunnel devices.

use super::encapsulation::Outer;
use super::flows::{family_number, segment};
use super::layers::{Family, Ip};
use super::{Node, Outcome, Packet, Verdict};
use podlane_datapath_common::{
    Address, FlowKind, FlowState, NO_LANE_SLOT, Reason, Tunnel, headers, ip_protocol, peer_flag, tunnel_flag,
};

/// A tunnel key, as a route or the driver has set it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Key {
    /// The other end.
    pub(crate) peer: Address,
    pub(crate) vni: u32,
    /// 0: none was given.
    pub(crate) ttl: u8,
}

impl Node {
    fn slot_of(&self, device: u32, vni: u32) -> Option<(u32, Tunnel)> {
        self.open_slots()
            .find(|(_, tunnel)| tunnel.device == device && u32::from_be(tunnel.vni) >> 8 == vni)
            .map(|(slot, tunnel)| (slot, *tunnel))
    }

    /// Egress of a tunnel device.
    pub(crate) fn tunnel_egress(&mut self, packet: &Packet<'_>, key: Option<Key>) -> Outcome {
        let (false, Some(key)) = (self.closed(), key) else {
            return Outcome::pass(packet);
        };
        let Some((slot, tunnel)) = self.slot_of(packet.interface, key.vni) else {
            let stand_in = self.open_slots().any(|(_, tunnel)| {
                tunnel.device == packet.interface && tunnel.flags & tunnel_flag::STAND_IN != 0
            });
            return if stand_in {
                self.drop(Reason::NoWay, NO_LANE_SLOT, None)
            } else {
                Outcome::pass(packet)
            };
        };
        let peer = self
            .peers
            .get(&key.peer)
            .copied()
            .filter(|peer| peer.interface != 0);
        let (Some(peer), Some(ip)) = (peer, Ip::behind_ethernet(packet.frame, 0)) else {
            return if tunnel.flags & tunnel_flag::STAND_IN != 0 {
                let known = self.peers.get(&key.peer).map(|peer| peer.index);
                self.drop(Reason::NoWay, slot, known)
            } else {
                Outcome::pass(packet)
            };
        };
        let outer = Outer {
            source: peer.source,
            destination: key.peer,
            ttl: if key.ttl == 0 { 64 } else { key.ttl },
            tunnel: &tunnel,
            link: packet.frame[..12].try_into().expect("twelve octets"),
        };
        if let Some(segment) = segment(packet.frame, &ip)
            && let Some(flow) = self.to_be_stamped(packet, &segment)
            && flow.pod_interface != 0
            && !super::pods::is_received(flow.kind)
        {
            let several = peer.flags & peer_flag::SEVERAL_WAYS != 0;
            let stamped = FlowState {
                kind: FlowKind::SentEncapsulated as u32,
                stamped: packet.now,
                underlay: peer.interface,
                next_hop_family: if several { 0 } else { peer.next_hop_family },
                next_hop: peer.next_hop,
                outer_source: outer.source,
                outer_destination: outer.destination,
                vni: tunnel.vni,
                port: tunnel.port,
                tunnel_flags: tunnel.flags,
                slot,
                peer: peer.index,
                mtu: peer.mtu,
                link: outer.link,
                ttl: outer.ttl.into(),
                ..flow
            };
            self.flows.insert(segment.tuple, stamped);
        }
        self.count_sent(slot, peer.index, packet.frame.len() - headers::ETHERNET, false);
        Outcome {
            verdict: Verdict::ToUnderlay,
            frame: self.encapsulate(packet, &ip, &outer),
        }
    }

    /// Ingress of a tunnel device, of what the driver took from an outer packet to this destination.
    pub(crate) fn tunnel_ingress(
        &mut self,
        packet: &Packet<'_>,
        key: Option<Key>,
        destination: Address,
    ) -> Outcome {
        let (false, Some(key)) = (self.closed(), key) else {
            return Outcome::pass(packet);
        };
        let Some((slot, _)) = self.slot_of(packet.interface, key.vni) else {
            return self.drop(Reason::WrongVni, NO_LANE_SLOT, None);
        };
        let Some(peer) = self.peers.get(&key.peer).copied() else {
            return self.drop(Reason::NoPeer, slot, None);
        };
        if destination != peer.source || peer.tunnels & 1 << slot == 0 {
            return self.drop(Reason::ForgedOuter, slot, Some(peer.index));
        }
        let inner = match self.checked_inner(packet.frame, Ip::behind_ethernet(packet.frame, 0), &peer) {
            Ok(inner) => inner,
            Err(reason) => return self.drop(reason, slot, Some(peer.index)),
        };
        if inner.protocol == ip_protocol::PROBE && self.is_router_address(&inner.destination) {
            return self.drop(Reason::Probe, slot, Some(peer.index));
        }
        self.count_received(slot, peer.index, packet.frame.len() - headers::ETHERNET, false);
        Outcome::pass(packet)
    }

    /// The family number of an address.
    pub(crate) fn family_of(address: &Address) -> u32 {
        family_number(if address.is_v4() { Family::V4 } else { Family::V6 })
    }
}
