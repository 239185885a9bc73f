//! What the programs have counted.

use crate::failure::Failure;
use crate::programs::Programs;
use podlane_datapath_common::{
    LaneCounters, MAX_TUNNELS, NATIVE_SLOT, NO_LANE_SLOT, PeerCounters, Reason, Settings, tunnel_flag,
};
use podlane_plan::lane::{Tunnel, TunnelProtocol};
use std::collections::BTreeMap;

/// What was counted since the maps were made. Bytes are inner packets' without their Ethernet header.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// By lane; a tunnel's since it was opened.
    pub lanes: BTreeMap<LaneName, LaneCount>,
    /// By peer's node, since the peer is known.
    pub peers: BTreeMap<String, PeerCount>,
}

/// A lane in counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LaneName {
    /// An open tunnel.
    Tunnel(Tunnel),
    /// Packets as they are.
    Native,
    /// What belongs to no lane.
    None,
}

/// One lane's counters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LaneCount {
    /// Packets sent.
    pub sent_packets: u64,
    /// Bytes sent.
    pub sent_bytes: u64,
    /// Packets received.
    pub received_packets: u64,
    /// Bytes received.
    pub received_bytes: u64,
    /// Of the packets sent, those that bypassed the stack.
    pub sent_bypassing: u64,
    /// Of the packets received, those that bypassed the stack.
    pub received_bypassing: u64,
    /// Packets dropped; reasons without any are left out.
    pub dropped: BTreeMap<Reason, u64>,
}

/// One peer's counters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerCount {
    /// Packets sent to it.
    pub sent_packets: u64,
    /// Bytes sent to it.
    pub sent_bytes: u64,
    /// Packets received from it.
    pub received_packets: u64,
    /// Bytes received from it.
    pub received_bytes: u64,
    /// Packets of its dropped, modulo 2³²; reasons without any are left out.
    pub dropped: BTreeMap<Reason, u64>,
}

impl Programs {
    /// Reads the counters while programs go on counting: numbers of one lane may differ by packets that pass meanwhile. Peers are those of the last
    /// [`Programs::sync`]; one that has several outer addresses has the sum.
    ///
    /// # Errors
    /// When the maps cannot be read.
    pub fn counters(&mut self) -> Result<Counters, Failure> {
        let mut counters = Counters {
            lanes: self.lane_counters()?,
            peers: BTreeMap::new(),
        };
        let maps = &mut self.loaded.maps;
        for (outer, peer) in maps.peers()? {
            if let Some(name) = self.names.get(&outer) {
                let counted = maps.peer(peer.index)?;
                add(counters.peers.entry(name.clone()).or_default(), &counted);
            }
        }
        Ok(counters)
    }

    /// The lanes' part of [`Programs::counters`]: as cheap with thousands of peers as with one.
    ///
    /// # Errors
    /// When the maps cannot be read.
    pub fn lane_counters(&mut self) -> Result<BTreeMap<LaneName, LaneCount>, Failure> {
        let maps = &mut self.loaded.maps;
        slots(&maps.settings()?)
            .map(|(slot, name)| Ok((name, lane(&maps.lane(slot)?))))
            .collect()
    }
}

/// Slots that mean something, and what.
fn slots(settings: &Settings) -> impl Iterator<Item = (u32, LaneName)> {
    let tunnels = (0..)
        .zip(&settings.tunnels[..MAX_TUNNELS])
        .filter(|(_, slot)| slot.port != 0);
    let tunnels = tunnels.map(|(at, slot)| {
        let tunnel = Tunnel {
            protocol: if slot.flags & tunnel_flag::GENEVE == 0 {
                TunnelProtocol::Vxlan
            } else {
                TunnelProtocol::Geneve
            },
            port: u16::from_be(slot.port),
            vni: u32::from_be(slot.vni) >> 8,
        };
        (at, LaneName::Tunnel(tunnel))
    });
    tunnels.chain([(NATIVE_SLOT, LaneName::Native), (NO_LANE_SLOT, LaneName::None)])
}

/// The name of a slot.
pub(crate) fn slot_name(settings: &Settings, slot: u32) -> Option<LaneName> {
    slots(settings).find(|(at, _)| *at == slot).map(|(_, name)| name)
}

fn lane(counted: &LaneCounters) -> LaneCount {
    LaneCount {
        sent_packets: counted.sent_packets,
        sent_bytes: counted.sent_bytes,
        received_packets: counted.received_packets,
        received_bytes: counted.received_bytes,
        sent_bypassing: counted.sent_bypassing,
        received_bypassing: counted.received_bypassing,
        dropped: Reason::ALL
            .iter()
            .map(|reason| (*reason, counted.dropped[*reason as usize]))
            .filter(|(_, dropped)| *dropped != 0)
            .collect(),
    }
}

fn add(sum: &mut PeerCount, counted: &PeerCounters) {
    sum.sent_packets += counted.sent_packets;
    sum.sent_bytes += counted.sent_bytes;
    sum.received_packets += counted.received_packets;
    sum.received_bytes += counted.received_bytes;
    for reason in Reason::ALL {
        let dropped = u64::from(counted.dropped[*reason as usize]);
        if dropped != 0 {
            *sum.dropped.entry(*reason).or_default() += dropped;
        }
    }
}
