//! The programs at the pods' devices and at the underlay's egress.

use super::flows::{family_number, segment};
use super::layers::{Family, Ip, Transport, vlan, walk};
use super::{Node, Outcome, Packet};
use podlane_datapath_common::{
    FlowKind, FlowState, NATIVE_SLOT, NO_LANE_SLOT, PodNetworkKind, Reason, headers,
};

impl Node {
    /// Ingress of a device that leads to pods.
    pub(crate) fn pod_ingress(&mut self, packet: &Packet<'_>) -> Outcome {
        if self.closed() {
            return Outcome::pass(packet);
        }
        if vlan(packet.frame) == Some(0) {
            return self.drop(Reason::PodSource, NO_LANE_SLOT, None);
        }
        let Some(ip) = Ip::behind_ethernet(packet.frame, 0) else {
            return Outcome::pass(packet);
        };
        if never_forwarded(&ip) {
            return if self.may_be_to_a_tunnel(packet.frame, &ip) {
                self.drop(Reason::TunnelPort, NO_LANE_SLOT, None)
            } else {
                Outcome::pass(packet)
            };
        }
        let segment = segment(packet.frame, &ip);
        if let Some(segment) = &segment
            && let Some(outcome) = self.bypass_outward(packet, &ip, segment)
        {
            return outcome;
        }
        let owned = self.owner(&ip.source).is_some_and(|owner| {
            owner.kind == PodNetworkKind::Local as u32
                && owner.interface != 0
                && owner.interface == packet.interface
        });
        if !owned {
            return self.drop(Reason::PodSource, NO_LANE_SLOT, None);
        }
        if self.peer(&ip.destination).is_some() && self.may_be_to_a_tunnel(packet.frame, &ip) {
            return self.drop(Reason::TunnelPort, NO_LANE_SLOT, None);
        }
        if let Some(segment) = &segment {
            let seen = FlowState {
                pod_interface: packet.interface,
                ..FlowState::UNKNOWN
            };
            self.note(packet, segment, seen);
        }
        Outcome::pass(packet)
    }

    /// Whether it is UDP to the port of an open slot, or cannot be told not to be.
    fn may_be_to_a_tunnel(&self, frame: &[u8], ip: &Ip) -> bool {
        match walk(frame, ip) {
            Transport::Udp(port) => self
                .open_slots()
                .any(|(_, tunnel)| u16::from_be(tunnel.port) == port),
            Transport::Other => false,
            Transport::Unknown => true,
        }
    }

    /// Egress of a device that leads to a single pod.
    pub(crate) fn pod_egress(&mut self, packet: &Packet<'_>) -> Outcome {
        if !self.closed()
            && let Some(ip) = Ip::behind_ethernet(packet.frame, 0)
            && let Some(segment) = segment(packet.frame, &ip)
            && let Some(flow) = self.to_be_stamped(packet, &segment)
        {
            let leads_there = self.owner(&ip.destination).is_some_and(|owner| {
                owner.kind == PodNetworkKind::Local as u32 && owner.interface == packet.interface
            });
            let kind = match flow.kind {
                kind if kind == FlowKind::Noted as u32 && flow.pod_interface != 0 => None,
                kind if kind == FlowKind::Noted as u32 && flow.slot == NATIVE_SLOT => {
                    Some(FlowKind::ReceivedPlain as u32)
                }
                kind if kind == FlowKind::Noted as u32 => Some(FlowKind::ReceivedEncapsulated as u32),
                kind if kind == FlowKind::ReceivedPlain as u32 => Some(kind),
                kind if kind == FlowKind::ReceivedEncapsulated as u32 => Some(kind),
                _ => None,
            };
            if let (true, Some(kind)) = (leads_there, kind) {
                let stamped = FlowState {
                    kind,
                    stamped: packet.now,
                    pod_interface: packet.interface,
                    link: packet.frame[..12].try_into().expect("twelve octets"),
                    ..flow
                };
                self.flows.insert(segment.tuple, stamped);
            }
        }
        Outcome::pass(packet)
    }

    /// Egress of an underlay device.
    pub(crate) fn underlay_egress(&mut self, packet: &Packet<'_>) -> Outcome {
        if self.closed() {
            return Outcome::pass(packet);
        }
        let Some(ip) = Ip::behind_ethernet(packet.frame, 0) else {
            return Outcome::pass(packet);
        };
        let Some(owner) = self
            .owner(&ip.destination)
            .filter(|owner| owner.kind == PodNetworkKind::Peer as u32)
        else {
            return Outcome::pass(packet);
        };
        let length = packet.frame.len() - headers::ETHERNET;
        self.count_sent(NATIVE_SLOT, owner.peer, length, false);
        if owner.underlay == packet.interface
            && let Some(segment) = segment(packet.frame, &ip)
            && let Some(flow) = self.to_be_stamped(packet, &segment)
            && flow.pod_interface != 0
            && !is_received(flow.kind)
        {
            let next_hop = if owner.next_hop.is_v4() {
                Family::V4
            } else {
                Family::V6
            };
            let stamped = FlowState {
                kind: FlowKind::SentPlain as u32,
                stamped: packet.now,
                underlay: packet.interface,
                next_hop_family: family_number(next_hop),
                next_hop: owner.next_hop,
                slot: NATIVE_SLOT,
                peer: owner.peer,
                mtu: owner.mtu,
                ..flow
            };
            self.flows.insert(segment.tuple, stamped);
        }
        Outcome::pass(packet)
    }
}

pub(super) fn is_received(kind: u32) -> bool {
    kind == FlowKind::ReceivedPlain as u32 || kind == FlowKind::ReceivedEncapsulated as u32
}

/// Addresses between which the stack forwards nothing.
fn never_forwarded(ip: &Ip) -> bool {
    let (source, destination) = (ip.source.address.octets(), ip.destination.address.octets());
    match ip.family {
        Family::V4 => {
            let unspecified = [0; 4];
            source[12..] == unspecified
                || destination[12..] == unspecified
                || destination[12..] == [255; 4]
                || destination[12] & 0xf0 == 0xe0
        }
        Family::V6 => [source, destination].iter().any(|address| {
            let link_local = address[0] == 0xfe && address[1] & 0xc0 == 0x80;
            *address == [0; 16] || address[0] == 0xff || link_local
        }),
    }
}
