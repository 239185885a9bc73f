//! The programs' maps: taken over where they fit, made anew otherwise.

use crate::contents::{Capacity, Contents, NetworkKey};
use crate::failure::{Cause, Failure};
use crate::options::Options;
use crate::pins::{Set, make};
use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap, IterableMap, LpmTrie, Map, MapData};
use aya_obj::Object;
use podlane_bpf_syscall::{MapShape, PerCpu, entries, open, running_programs_have_ended, shape};
use podlane_datapath_common::probe::ProbeState;
use podlane_datapath_common::{Address, LaneCounters, Peer, PeerCounters, PodNetwork, Settings, TrieKey};
use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::thread::sleep;
use std::time::Duration;

/// How long a program may run, where the kernel does not tell when those that run have ended: microseconds, and what a hypervisor takes of them.
const LONGEST_RUN: Duration = Duration::from_millis(50);

/// The maps that the loader reads and writes. The others (flows, neighbours, rates) are the programs' own.
pub(crate) struct Maps {
    settings: Array<MapData, Settings>,
    active: Array<MapData, u32>,
    peers: HashMap<MapData, Address, Peer>,
    pods: LpmTrie<MapData, Address, PodNetwork>,
    lanes: PerCpu<LaneCounters>,
    peer_counters: PerCpu<PeerCounters>,
    pub(crate) probes: HashMap<MapData, u64, ProbeState>,
    pub(crate) capacity: Capacity,
}

/// The entries of each map that are not those of the object: names and numbers.
pub(crate) fn sizes(options: &Options) -> [(&'static str, u32); 9] {
    [
        ("PEERS", options.peers),
        ("PEER_COUNTERS", options.peers),
        ("NEIGHBOURS", options.peers),
        ("PROBES", options.peers),
        ("PROBE_RATES", options.peers),
        ("WAYS", options.peers),
        ("PODS", options.peers.saturating_mul(4)),
        ("FLOWS4", options.flows),
        ("FLOWS6", options.flows),
    ]
}

/// What maps the object has, as the kernel would show them; the compiler's own (names with a dot) left out.
pub(crate) fn wanted(object: &[u8], options: &Options) -> Result<BTreeMap<String, MapShape>, Failure> {
    let parsed = Object::parse(object).map_err(|error| {
        Failure::new(
            Cause::Other,
            format!("the programs' object file is damaged: {error}"),
        )
    })?;
    let sizes = BTreeMap::from(sizes(options));
    Ok(parsed
        .maps
        .iter()
        .filter(|(name, _)| !name.starts_with('.'))
        .map(|(name, map)| {
            let shape = MapShape {
                kind: map.map_type(),
                id: 0,
                key_size: map.key_size(),
                value_size: map.value_size(),
                max_entries: sizes.get(name.as_str()).copied().unwrap_or(map.max_entries()),
                flags: map.map_flags(),
            };
            (name.clone(), shape)
        })
        .collect())
}

/// Whether a set's maps are those that are wanted.
pub(crate) fn fit(set: &Set, wanted: &BTreeMap<String, MapShape>) -> bool {
    wanted.iter().all(|(name, wanted)| {
        let found = open(&set.maps().join(name)).and_then(|map| shape(map.as_fd()));
        found.is_ok_and(|found| MapShape { id: 0, ..found } == *wanted)
    })
}

macro_rules! pinned {
    ($kind:ident, $set:expr, $name:literal) => {{
        let pin = $set.maps().join($name);
        let what = || format!("take over the map {}", pin.display());
        MapData::from_pin(&pin)
            .and_then(Map::from_map_data)
            .and_then($kind::try_from)
            .map_err(|error| Failure::of(&what(), &error))?
    }};
}

impl Maps {
    /// Opens a set's maps.
    pub(crate) fn open(set: &Set, options: &Options) -> Result<Self, Failure> {
        make(&set.maps())?;
        Ok(Self {
            settings: pinned!(Array, set, "SETTINGS"),
            active: pinned!(Array, set, "ACTIVE"),
            peers: pinned!(HashMap, set, "PEERS"),
            pods: pinned!(LpmTrie, set, "PODS"),
            lanes: per_cpu(set, "LANES")?,
            peer_counters: per_cpu(set, "PEER_COUNTERS")?,
            probes: pinned!(HashMap, set, "PROBES"),
            capacity: Capacity {
                peers: options.peers,
                networks: options.peers.saturating_mul(4),
            },
        })
    }

    /// Everything that the maps hold, as far as the loader writes it, and the highest generation that either settings have.
    pub(crate) fn read(&self) -> Result<(Contents, u32), Failure> {
        let failed = |error: &std::io::Error| Failure::of_io("read the programs' maps", error);
        let settings = self.settings()?;
        let peers = self.peers()?;
        let networks =
            entries::<TrieKey, PodNetwork>(self.pods.map().fd().as_fd()).map_err(|error| failed(&error))?;
        let latest = [0, 1].iter().filter_map(|at| self.settings.get(at, 0).ok());
        let latest = latest.map(|settings| settings.generation).max().unwrap_or(0);
        let contents = Contents {
            settings,
            peers: peers.into_iter().collect(),
            networks: networks
                .into_iter()
                .map(|(key, network)| ((key.prefix_length, key.address), network))
                .collect(),
        };
        Ok((contents, latest))
    }

    /// The peers that the map holds, in no order.
    pub(crate) fn peers(&self) -> Result<Vec<(Address, Peer)>, Failure> {
        entries::<Address, Peer>(self.peers.map().fd().as_fd())
            .map_err(|error| Failure::of_io("read the programs' maps", &error))
    }

    fn active(&self) -> Result<u32, Failure> {
        let active = self
            .active
            .get(&0, 0)
            .map_err(|error| Failure::of("read the settings", &error))?;
        Ok(active & 1)
    }

    pub(crate) fn settings(&self) -> Result<Settings, Failure> {
        let active = self.active()?;
        self.settings
            .get(&active, 0)
            .map_err(|error| Failure::of("read the settings", &error))
    }

    /// Writes the settings that are not in force, puts them in force, and waits until no program reads the others any more: those are what is written
    /// next time, however soon that is.
    pub(crate) fn set_settings(&mut self, settings: &Settings) -> Result<(), Failure> {
        let failed = |error: &aya::maps::MapError| Failure::of("write the settings", error);
        let next = 1 - self.active()?;
        self.settings
            .set(next, settings, 0)
            .map_err(|error| failed(&error))?;
        self.active.set(0, next, 0).map_err(|error| failed(&error))?;
        if running_programs_have_ended().is_err() {
            sleep(LONGEST_RUN);
        }
        Ok(())
    }

    pub(crate) fn set_peer(&mut self, outer: &Address, peer: &Peer) -> Result<(), Failure> {
        self.peers
            .insert(outer, peer, 0)
            .map_err(|error| Failure::of("write a peer", &error))
    }

    pub(crate) fn remove_peer(&mut self, outer: &Address) -> Result<(), Failure> {
        self.peers
            .remove(outer)
            .map_err(|error| Failure::of("remove a peer", &error))
    }

    pub(crate) fn set_network(
        &mut self,
        (length, address): NetworkKey,
        network: &PodNetwork,
    ) -> Result<(), Failure> {
        self.pods
            .insert(&Key::new(length, address), network, 0)
            .map_err(|error| Failure::of("write a network of pods", &error))
    }

    pub(crate) fn remove_network(&mut self, (length, address): NetworkKey) -> Result<(), Failure> {
        self.pods
            .remove(&Key::new(length, address))
            .map_err(|error| Failure::of("remove a network of pods", &error))
    }

    /// A lane's counters, summed over the CPUs.
    pub(crate) fn lane(&mut self, slot: u32) -> Result<LaneCounters, Failure> {
        let counted = self
            .lanes
            .read(slot)
            .map_err(|error| Failure::of_io("read the lanes' counters", &error))?;
        Ok(counted.iter().fold(LaneCounters::default(), |mut sum, one| {
            sum.sent_packets += one.sent_packets;
            sum.sent_bytes += one.sent_bytes;
            sum.received_packets += one.received_packets;
            sum.received_bytes += one.received_bytes;
            sum.sent_bypassing += one.sent_bypassing;
            sum.received_bypassing += one.received_bypassing;
            for (sum, one) in sum.dropped.iter_mut().zip(one.dropped) {
                *sum += one;
            }
            sum
        }))
    }

    /// A peer's counters, summed over the CPUs; its drops wrap at 32 bits.
    pub(crate) fn peer(&mut self, index: u32) -> Result<PeerCounters, Failure> {
        let counted = self.peer_counters.read(index);
        let counted = counted.map_err(|error| Failure::of_io("read the peers' counters", &error))?;
        Ok(counted.iter().fold(PeerCounters::default(), |mut sum, one| {
            sum.sent_packets += one.sent_packets;
            sum.sent_bytes += one.sent_bytes;
            sum.received_packets += one.received_packets;
            sum.received_bytes += one.received_bytes;
            for (sum, one) in sum.dropped.iter_mut().zip(one.dropped) {
                *sum = sum.wrapping_add(one);
            }
            sum
        }))
    }

    pub(crate) fn zero_lane(&mut self, slot: u32) -> Result<(), Failure> {
        self.lanes
            .reset(slot)
            .map_err(|error| Failure::of_io("zero a lane's counters", &error))
    }

    pub(crate) fn zero_peer(&mut self, index: u32) -> Result<(), Failure> {
        self.peer_counters
            .reset(index)
            .map_err(|error| Failure::of_io("zero a peer's counters", &error))
    }
}

fn per_cpu<V: aya::Pod + Default>(set: &Set, name: &str) -> Result<PerCpu<V>, Failure> {
    let pin = set.maps().join(name);
    open(&pin)
        .and_then(PerCpu::new)
        .map_err(|error| Failure::of_io(&format!("take over the map {}", pin.display()), &error))
}
