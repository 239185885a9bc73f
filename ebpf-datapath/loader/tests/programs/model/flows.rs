//! The leased bypass: flows noted, stamped, and let past the stack.

use super::encapsulation::{Outer, lower_ttl};
use super::layers::{Family, Ip};
use super::{Node, Outcome, Packet, Verdict};
use podlane_datapath_common::{
    Address, FlowKind, FlowState, NATIVE_SLOT, Tunnel, headers, ip_protocol, settings_flag,
};

/// A flow of either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Tuple {
    pub(crate) source: Address,
    pub(crate) destination: Address,
    /// As they stand in the packet, one after the other.
    pub(crate) ports: u32,
    pub(crate) protocol: u8,
}

/// A tuple, and what of its packet the bypass asks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    pub(super) tuple: Tuple,
    /// TCP with SYN, FIN or RST.
    opens_or_closes: bool,
    /// From the IP header to the payload.
    headers: usize,
}

/// The tuple of a packet that has one.
pub(super) fn segment(frame: &[u8], ip: &Ip) -> Option<Segment> {
    if !ip.is_simple() {
        return None;
    }
    let transport = &frame[ip.payload..];
    let (needed, tcp) = match ip.protocol {
        ip_protocol::TCP => (20, true),
        ip_protocol::UDP => (headers::UDP, false),
        _ => return None,
    };
    if transport.len() < needed {
        return None;
    }
    let transport_header = if tcp {
        4 * usize::from(transport[12] >> 4)
    } else {
        headers::UDP
    };
    Some(Segment {
        tuple: Tuple {
            source: ip.source.address,
            destination: ip.destination.address,
            ports: u32::from_ne_bytes([transport[0], transport[1], transport[2], transport[3]]),
            protocol: ip.protocol,
        },
        // FIN, SYN and RST are the lowest three bits (RFC 9293, section 3.1).
        opens_or_closes: tcp && transport[13] & 0b111 != 0,
        headers: ip.payload - ip.at + transport_header,
    })
}

fn is_sent(kind: u32) -> bool {
    kind == FlowKind::SentEncapsulated as u32 || kind == FlowKind::SentPlain as u32
}

impl Node {
    fn within_lease(&self, now: u32, then: u32) -> bool {
        now.wrapping_sub(then) < self.settings.lease
    }

    /// Notes a flow where it enters. `seen` is what this place knows of it.
    pub(super) fn note(&mut self, packet: &Packet<'_>, segment: &Segment, seen: FlowState) {
        if !self.has(settings_flag::BYPASS) || segment.opens_or_closes {
            return;
        }
        let generation = self.settings.generation;
        match self.flows.get_mut(&segment.tuple) {
            Some(known) if known.generation == generation && same_way(known, &seen) => {
                known.noted = packet.now
            }
            _ => {
                let noted = FlowState {
                    noted: packet.now,
                    generation,
                    ..seen
                };
                self.flows.insert(segment.tuple, noted);
            }
        }
    }

    /// The flow as noted, where a packet that leaves the stack may stamp it.
    pub(super) fn to_be_stamped(&self, packet: &Packet<'_>, segment: &Segment) -> Option<FlowState> {
        let known = self.flows.get(&segment.tuple)?;
        let may = self.has(settings_flag::BYPASS)
            && !segment.opens_or_closes
            && known.generation == self.settings.generation
            && self.within_lease(packet.now, known.noted);
        may.then_some(*known)
    }

    /// The flow's stamp, if this very packet may bypass the stack by it.
    pub(super) fn leased(&self, packet: &Packet<'_>, ip: &Ip, segment: &Segment) -> Option<FlowState> {
        let known = self.flows.get(&segment.tuple)?;
        let gso_of_another_kind = packet.gso_size != 0 && ip.protocol != ip_protocol::TCP;
        let may = self.has(settings_flag::BYPASS)
            && !segment.opens_or_closes
            && !gso_of_another_kind
            && ip.ttl > 1
            && known.kind != FlowKind::Noted as u32
            && known.generation == self.settings.generation
            && self.within_lease(packet.now, known.stamped);
        may.then_some(*known)
    }

    /// The bypass outward, at a pod's device.
    pub(super) fn bypass_outward(
        &mut self,
        packet: &Packet<'_>,
        ip: &Ip,
        segment: &Segment,
    ) -> Option<Outcome> {
        let flow = self.leased(packet, ip, segment)?;
        let length = if packet.gso_size == 0 {
            packet.frame.len() - headers::ETHERNET
        } else {
            packet.gso_size as usize + segment.headers
        };
        if !is_sent(flow.kind) || flow.pod_interface != packet.interface || length > flow.mtu as usize {
            return None;
        }
        let encapsulated = flow.kind == FlowKind::SentEncapsulated as u32;
        if encapsulated && !packet.resizable {
            return None;
        }
        let mut frame = packet.frame.to_vec();
        lower_ttl(&mut frame, ip);
        self.count_sent(flow.slot, flow.peer, frame.len() - headers::ETHERNET, true);
        if encapsulated {
            let tunnel = Tunnel {
                port: flow.port,
                flags: flow.tunnel_flags,
                vni: flow.vni,
                ..Tunnel::default()
            };
            let outer = Outer {
                source: flow.outer_source,
                destination: flow.outer_destination,
                ttl: flow.ttl as u8,
                tunnel: &tunnel,
                link: flow.link,
            };
            frame = self.encapsulate(
                &Packet {
                    frame: &frame,
                    ..*packet
                },
                ip,
                &outer,
            );
        }
        Some(Outcome {
            verdict: Verdict::ToUnderlay,
            frame,
        })
    }

    /// The packet as the pod gets it past the stack: `frame` from its inner IP header, one hop less, with the stamp's link-layer addresses.
    pub(super) fn hand_to_pod(frame: &[u8], ip: &Ip, flow: &FlowState) -> Outcome {
        let mut lowered = frame.to_vec();
        lower_ttl(&mut lowered, ip);
        let mut handed = flow.link.to_vec();
        handed.extend(ip.family.ethertype().to_be_bytes());
        handed.extend(&lowered[ip.at..]);
        Outcome {
            verdict: Verdict::ToPod,
            frame: handed,
        }
    }
}

/// Whether what was seen of a flow where it entered is what was seen of it before.
fn same_way(known: &FlowState, seen: &FlowState) -> bool {
    if seen.pod_interface != 0 {
        let sent = known.kind == FlowKind::Noted as u32 || is_sent(known.kind);
        return sent && known.pod_interface == seen.pod_interface;
    }
    let received = match known.kind {
        kind if kind == FlowKind::Noted as u32 => known.pod_interface == 0,
        kind if kind == FlowKind::ReceivedPlain as u32 => seen.slot == NATIVE_SLOT,
        kind if kind == FlowKind::ReceivedEncapsulated as u32 => seen.slot != NATIVE_SLOT,
        _ => false,
    };
    let way = |flow: &FlowState| {
        (
            (flow.outer_source, flow.outer_destination),
            (flow.vni, flow.port, flow.slot, flow.peer),
            flow.came_from,
        )
    };
    received && way(known) == way(seen)
}

/// The family that a family number in a map means.
pub(crate) fn family_number(family: Family) -> u32 {
    match family {
        Family::V4 => 4,
        Family::V6 => 6,
    }
}

/// The tuple of the packet behind the Ethernet header at a place.
pub(crate) fn tuple_of(frame: &[u8], ethernet: usize) -> Option<Tuple> {
    let ip = Ip::behind_ethernet(frame, ethernet)?;
    segment(frame, &ip).map(|segment| segment.tuple)
}

/// The tuple of the packet within a tunnel, where there is one.
pub(crate) fn tuples_of(frame: &[u8]) -> Option<Tuple> {
    let outer = Ip::behind_ethernet(frame, 0)?;
    tuple_of(frame, outer.payload + headers::UDP + headers::TUNNEL)
}
