//! `underlay_ingress`: encapsulated packets; what is not one goes to the checks of plain ones.

use super::encapsulation::{decapsulated, ecn_after_decapsulation, first_word, set_ecn};
use super::flows::segment;
use super::layers::{Family, Ip, Name, be16, is_tagged, untagged, vlan};
use super::{Node, Outcome, Packet, Verdict};
use podlane_datapath_common::{
    FlowKind, FlowState, NO_LANE_SLOT, Peer, PodNetworkKind, Reason, Tunnel, headers, ip_protocol, peer_flag,
    settings_flag, tunnel_flag,
};

/// A packet that is encapsulated for this node.
pub(super) struct Encapsulated {
    pub(super) outer: Ip,
    pub(super) slot: u32,
    pub(super) tunnel: Tunnel,
    /// Where the tunnel's header stands.
    pub(super) at: usize,
}

impl Node {
    /// Ingress of an underlay device.
    pub(crate) fn underlay_ingress(&mut self, packet: &Packet<'_>) -> Outcome {
        if self.closed() {
            return Outcome::pass(packet);
        }
        match vlan(packet.frame) {
            None => self.untagged(packet),
            Some(0) => self.without_priority_tag(packet),
            Some(_) => Outcome::pass(packet),
        }
    }

    fn without_priority_tag(&mut self, packet: &Packet<'_>) -> Outcome {
        match untagged(packet.frame) {
            Some(frame) if !is_tagged(&frame) => self.untagged(&Packet {
                frame: &frame,
                ..*packet
            }),
            // The kernel takes the second one off, too, and has it beside the packet.
            Some(frame) if vlan(&frame) != Some(0) && untagged(&frame).is_some() => Outcome {
                verdict: Verdict::Pass,
                frame: untagged(&frame).expect("as just seen"),
            },
            _ => self.drop(Reason::Malformed, NO_LANE_SLOT, None),
        }
    }

    fn untagged(&mut self, packet: &Packet<'_>) -> Outcome {
        let Some(ip) = Ip::behind_ethernet(packet.frame, 0) else {
            return Outcome::pass(packet);
        };
        match self.encapsulated_for_us(packet.frame, &ip) {
            Some(encapsulated) => self.encapsulated(packet, &encapsulated),
            None => self.plain(packet, &ip),
        }
    }

    fn encapsulated_for_us(&self, frame: &[u8], outer: &Ip) -> Option<Encapsulated> {
        if !outer.is_simple() || outer.protocol != ip_protocol::UDP {
            return None;
        }
        let at = outer.payload + headers::UDP;
        let header = frame.get(at..at + headers::TUNNEL)?;
        let port = be16(frame, outer.payload + 2)?;
        let (slot, tunnel) = self.open_slots().find(|(_, tunnel)| {
            u16::from_be(tunnel.port) == port && tunnel.vni.to_ne_bytes()[..3] == header[4..7]
        })?;
        Some(Encapsulated {
            outer: *outer,
            slot,
            tunnel: *tunnel,
            at,
        })
    }

    fn encapsulated(&mut self, packet: &Packet<'_>, encapsulated: &Encapsulated) -> Outcome {
        let &Encapsulated {
            outer,
            slot,
            tunnel,
            at,
        } = encapsulated;
        let frame = packet.frame;
        if frame[at..at + 4] != first_word(&tunnel) || frame[at + 7] != 0 {
            return self.drop(Reason::BadHeader, slot, None);
        }
        let inner = Ip::behind_ethernet(frame, at + headers::TUNNEL);
        let inner_segment = inner.as_ref().and_then(|inner| segment(frame, inner));
        if let (Some(inner), Some(segment)) = (&inner, &inner_segment)
            && let Some(flow) = self.leased(packet, inner, segment)
            && let Some(outcome) = self.bypass_inward(packet, encapsulated, inner, &flow)
        {
            return outcome;
        }
        let Some(peer) = self.peer(&outer.source) else {
            return self.drop(Reason::NoPeer, slot, None);
        };
        if outer.destination.looked_up() != Some(&peer.source) || peer.tunnels & 1 << slot == 0 {
            return self.drop(Reason::ForgedOuter, slot, Some(peer.index));
        }
        let inner = match self.checked_inner(packet.frame, inner, &peer) {
            Ok(inner) => inner,
            Err(reason) => return self.drop(reason, slot, Some(peer.index)),
        };
        if inner.protocol == ip_protocol::PROBE && self.is_router_address(&inner.destination) {
            return self.encapsulated_probe(packet, encapsulated, &inner, &peer);
        }
        let Some(ecn) = ecn_after_decapsulation(outer.traffic_class, inner.traffic_class) else {
            return self.drop(Reason::EcnInvalid, slot, Some(peer.index));
        };
        let mut frame = frame.to_vec();
        set_ecn(&mut frame, &inner, ecn);
        let super_packet = packet.gso_size != 0 && inner.protocol != ip_protocol::TCP;
        if let Some(segment) = inner_segment.as_ref().filter(|_| !super_packet) {
            let seen = FlowState {
                outer_source: outer.source.address,
                outer_destination: outer.destination.address,
                vni: tunnel.vni,
                port: tunnel.port,
                tunnel_flags: tunnel.flags,
                slot,
                peer: peer.index,
                ..FlowState::UNKNOWN
            };
            self.note(packet, segment, seen);
        }
        if super_packet || !self.is_shrunk(packet, &outer, &inner) {
            if tunnel.flags & tunnel_flag::STAND_IN != 0 {
                frame[at..at + 4].copy_from_slice(&[0x08, 0, 0, 0]);
            }
            return Outcome {
                verdict: Verdict::Pass,
                frame,
            };
        }
        self.count_received(slot, peer.index, frame.len() - inner.at, false);
        self.up_the_stack(&frame, encapsulated, &inner)
    }

    /// Whether the kernel takes the outer headers off: it wants a header's length of the family that it believes the packet to be of to be left
    /// (net/core/filter.c, `bpf_skb_adjust_room`).
    fn is_shrunk(&self, packet: &Packet<'_>, outer: &Ip, inner: &Ip) -> bool {
        let believed = if self.has(settings_flag::DECAP_FLAGS) {
            inner.family
        } else {
            outer.family
        };
        packet.resizable && packet.frame.len() - inner.at >= believed.header()
    }

    fn up_the_stack(&self, frame: &[u8], encapsulated: &Encapsulated, inner: &Ip) -> Outcome {
        let mut frame = decapsulated(frame, inner);
        let one_family = encapsulated.outer.family == inner.family;
        let by_the_underlay =
            (one_family || self.has(settings_flag::DECAP_FLAGS)) && !self.has(settings_flag::ENTER_BY_TUNNEL);
        if by_the_underlay {
            return Outcome {
                verdict: Verdict::Pass,
                frame,
            };
        }
        frame[..6].copy_from_slice(&encapsulated.tunnel.mac[..6]);
        Outcome {
            verdict: Verdict::ToTunnelDevice,
            frame,
        }
    }

    /// The inner packet, if it is one that this peer may send to this node.
    pub(super) fn checked_inner(&self, frame: &[u8], inner: Option<Ip>, peer: &Peer) -> Result<Ip, Reason> {
        let inner = inner
            .filter(|inner| inner.payload <= frame.len())
            .ok_or(Reason::Malformed)?;
        if !self.is_of_peer(&inner.source, peer) {
            return Err(Reason::ForgedInner);
        }
        if !self.is_local(&inner.destination) {
            return Err(Reason::NotHere);
        }
        Ok(inner)
    }

    fn is_of_peer(&self, name: &Name, peer: &Peer) -> bool {
        let address = &name.address;
        let listed = match name.family {
            Family::V4 => peer
                .networks4
                .iter()
                .any(|network| network.contains(address.word())),
            Family::V6 => peer.networks6.iter().any(|network| network.contains(&address.0)),
        };
        let in_the_trie = || {
            peer.flags & peer_flag::MORE_NETWORKS != 0
                && self.owner(name).is_some_and(|owner| {
                    owner.kind == PodNetworkKind::Peer as u32 && owner.peer == peer.index
                })
        };
        listed || in_the_trie()
    }

    fn bypass_inward(
        &mut self,
        packet: &Packet<'_>,
        encapsulated: &Encapsulated,
        inner: &Ip,
        flow: &FlowState,
    ) -> Option<Outcome> {
        let Encapsulated { outer, slot, .. } = encapsulated;
        let as_noted = flow.kind == FlowKind::ReceivedEncapsulated as u32
            && (flow.outer_source, flow.outer_destination)
                == (outer.source.address, outer.destination.address)
            && flow.slot == *slot;
        // What congestion makes invalid is dropped where all else is.
        let ecn = ecn_after_decapsulation(outer.traffic_class, inner.traffic_class);
        let (true, Some(ecn)) = (as_noted, ecn) else {
            return None;
        };
        let understood = outer.family == inner.family || self.has(settings_flag::DECAP_FLAGS);
        if !understood || !self.is_shrunk(packet, outer, inner) {
            return None;
        }
        let mut frame = packet.frame.to_vec();
        set_ecn(&mut frame, inner, ecn);
        self.count_received(flow.slot, flow.peer, frame.len() - inner.at, true);
        Some(Self::hand_to_pod(&frame, inner, flow))
    }
}
