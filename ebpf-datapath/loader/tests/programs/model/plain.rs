//! `underlay_ingress`: packets that are not encapsulated for this node.

use super::flows::segment;
use super::layers::Ip;
use super::{Node, Outcome, Packet};
use podlane_datapath_common::{
    FlowKind, FlowState, NATIVE_SLOT, PodNetworkKind, Reason, headers, ip_protocol, pod_network_flag,
    settings_flag,
};

impl Node {
    pub(super) fn plain(&mut self, packet: &Packet<'_>, ip: &Ip) -> Outcome {
        if !self.has(settings_flag::CHECK_UNDERLAY) || !self.claims_to_be_a_pod(&ip.source) {
            return Outcome::pass(packet);
        }
        let Some(owner) = self.owner(&ip.source) else {
            return Outcome::pass(packet);
        };
        if owner.kind != PodNetworkKind::Peer as u32 {
            return self.drop(Reason::PlainPodSource, NATIVE_SLOT, None);
        }
        let peer = owner.peer;
        if owner.flags & pod_network_flag::NATIVE == 0 || !self.has(settings_flag::NATIVE) {
            return self.drop(Reason::PlainPodSource, NATIVE_SLOT, Some(peer));
        }
        let on_link = owner.flags & pod_network_flag::ON_LINK != 0;
        let came_from: [u8; 6] = packet.frame[6..12].try_into().expect("six octets");
        if on_link && self.neighbours.get(&owner.next_hop) != Some(&came_from) {
            return self.drop(Reason::WrongLinkAddress, NATIVE_SLOT, Some(peer));
        }
        if ip.protocol == ip_protocol::PROBE && self.is_router_address(&ip.destination) {
            return self.plain_probe(packet, ip, &owner);
        }
        let length = packet.frame.len() - headers::ETHERNET;
        let seen = FlowState {
            slot: NATIVE_SLOT,
            peer,
            came_from,
            ..FlowState::UNKNOWN
        };
        if let Some(segment) = segment(packet.frame, ip) {
            if let Some(flow) = self.leased(packet, ip, &segment)
                && flow.kind == FlowKind::ReceivedPlain as u32
                && flow.came_from == came_from
            {
                self.count_received(NATIVE_SLOT, peer, length, true);
                return Self::hand_to_pod(packet.frame, ip, &flow);
            }
            self.note(packet, &segment, seen);
        }
        self.count_received(NATIVE_SLOT, peer, length, false);
        Outcome::pass(packet)
    }
}
