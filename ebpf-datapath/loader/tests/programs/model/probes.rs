//! Probes: answered, or taken.

use super::encapsulation::header_checksum;
use super::layers::{Family, Ip};
use super::underlay::Encapsulated;
use super::{Node, Outcome, Packet, Verdict};
use podlane_datapath_common::probe::{self, sip_hash};
use podlane_datapath_common::{Address, NATIVE_SLOT, Peer, PodNetwork, Reason, headers, settings_flag};

/// Where the answer's headers stand.
struct Turn {
    outer: Option<Ip>,
    inner: Ip,
}

impl Node {
    pub(super) fn encapsulated_probe(
        &mut self,
        packet: &Packet<'_>,
        encapsulated: &Encapsulated,
        inner: &Ip,
        peer: &Peer,
    ) -> Outcome {
        let turn = Turn {
            outer: Some(encapsulated.outer),
            inner: *inner,
        };
        let answered = self.probe(
            packet,
            &turn,
            encapsulated.slot,
            encapsulated.outer.source.address,
        );
        answered.unwrap_or_else(|| self.drop(Reason::Probe, encapsulated.slot, Some(peer.index)))
    }

    pub(super) fn plain_probe(&mut self, packet: &Packet<'_>, ip: &Ip, owner: &PodNetwork) -> Outcome {
        let turn = Turn {
            outer: None,
            inner: *ip,
        };
        let answered = self.probe(packet, &turn, NATIVE_SLOT, owner.outer);
        answered.unwrap_or_else(|| self.drop(Reason::Probe, NATIVE_SLOT, Some(owner.peer)))
    }

    /// What becomes of a right probe.
    fn probe(&mut self, packet: &Packet<'_>, turn: &Turn, slot: u32, peer: Address) -> Option<Outcome> {
        let at = turn.inner.payload;
        let form = packet.frame.get(at..at + probe::LENGTH)?;
        if !turn.inner.is_simple() || form[..4] != probe::MAGIC {
            return None;
        }
        match form[4] {
            probe::REQUEST => self.answer(packet, turn, peer),
            probe::REPLY => self.take(packet, turn, slot),
            _ => None,
        }
    }

    fn take(&mut self, packet: &Packet<'_>, turn: &Turn, slot: u32) -> Option<Outcome> {
        let form = &packet.frame[turn.inner.payload..];
        let number = u64::from_be_bytes(form[8..16].try_into().expect("eight octets"));
        let waiting = self.probes.get_mut(&number)?;
        if waiting.reply_tag.to_ne_bytes() != form[16..24] {
            return None;
        }
        if waiting.answered == 0 {
            // The time is the kernel's own; that it is there is what can be said.
            waiting.answered = 1;
            waiting.reply_length = (packet.frame.len() - turn.inner.at) as u32;
            waiting.slot = slot;
        }
        Some(Outcome {
            verdict: Verdict::Taken,
            frame: Vec::new(),
        })
    }

    fn answer(&mut self, packet: &Packet<'_>, turn: &Turn, peer: Address) -> Option<Outcome> {
        let at = turn.inner.payload;
        let form = &packet.frame[at..at + probe::LENGTH];
        if !self.has(settings_flag::PROBES) || form[16..24] != tag(&self.settings.probe_key, form) {
            return None;
        }
        let answered = self.answered.entry(peer).or_default();
        if *answered == probe::MOST_A_SECOND {
            return None;
        }
        *answered += 1;

        let mut frame = packet.frame.to_vec();
        let short = form[5] & probe::SHORT_REPLY != 0;
        if short {
            frame.truncate(at + probe::LENGTH);
        }
        frame[at + 4] = probe::REPLY;
        let reply_tag = tag(&self.settings.probe_key, &frame[at..]);
        frame[at + 16..at + 24].copy_from_slice(&reply_tag);
        turn_around(&mut frame, &turn.inner, short);
        if let Some(outer) = &turn.outer {
            let traffic_class = self.settings.traffic_class as u8 & 0xfc | turn.inner.traffic_class & 3;
            turn_around(&mut frame, outer, short);
            write_outer(&mut frame, outer, traffic_class);
            let udp = outer.payload;
            if short {
                let length = (frame.len() - udp) as u16;
                frame[udp + 4..udp + 6].copy_from_slice(&length.to_be_bytes());
            }
            // What it said of the request is not true of the answer.
            frame[udp + 6..udp + 8].fill(0);
            let ethernet = udp + headers::UDP + headers::TUNNEL;
            frame[ethernet..ethernet + 12].rotate_left(6);
        }
        frame[..12].rotate_left(6);
        Some(Outcome {
            verdict: Verdict::ToUnderlay,
            frame,
        })
    }
}

/// The outer header as every other one that this node writes.
fn write_outer(frame: &mut [u8], ip: &Ip, traffic_class: u8) {
    let header = &mut frame[ip.at..];
    match ip.family {
        Family::V4 => {
            header[1] = traffic_class;
            header[4..9].copy_from_slice(&[0, 0, 0x40, 0, 64]);
            let checksum = header_checksum(&header[..headers::IPV4]);
            header[10..12].copy_from_slice(&checksum);
        }
        Family::V6 => {
            header[..4].copy_from_slice(&[0x60 | traffic_class >> 4, traffic_class << 4, 0, 0]);
            header[7] = 64;
        }
    }
}

/// The tag of a form's first sixteen octets.
pub(crate) fn tag(key: &[u64; 2], form: &[u8]) -> [u8; 8] {
    let word = |at: usize| u64::from_le_bytes(form[at..at + 8].try_into().expect("eight octets"));
    sip_hash(key, &[word(0), word(8)]).to_le_bytes()
}

/// Exchanges a header's addresses; with `length` its length becomes what the frame now has.
fn turn_around(frame: &mut [u8], ip: &Ip, length: bool) {
    let all = frame.len() - ip.at;
    let header = &mut frame[ip.at..];
    match ip.family {
        Family::V4 => {
            header[12..20].rotate_left(4);
            if length {
                header[2..4].copy_from_slice(&(all as u16).to_be_bytes());
                let checksum = header_checksum(&header[..headers::IPV4]);
                header[10..12].copy_from_slice(&checksum);
            }
        }
        Family::V6 => {
            header[8..40].rotate_left(16);
            if length {
                header[4..6].copy_from_slice(&((all - headers::IPV6) as u16).to_be_bytes());
            }
        }
    }
}
