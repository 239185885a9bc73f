//! Loaded programs, used by one test after the other: the verifier takes longer than most tests (under emulation, seconds).

use aya::Ebpf;
use aya::maps::lpm_trie::LpmTrie;
use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray, PerCpuValues};
use aya::programs::{ProgramError, SchedClassifier};
use podlane_datapath_common::probe::ProbeState;
use podlane_datapath_common::{
    Address, Flow4, Flow6, FlowState, LANE_SLOTS, LaneCounters, Peer, PeerCounters, PodNetwork, Settings,
};
use std::sync::{Mutex, PoisonError};

/// What tests that have ended have left.
static SPARE: Mutex<Vec<Ebpf>> = Mutex::new(Vec::new());

/// Peers' indices that the tests use, at most.
const INDICES: u32 = 16;

/// The object: its maps are empty, its programs loaded as soon as they are asked for, and attached nowhere.
pub(crate) struct Object(Option<Ebpf>);

impl Object {
    pub(crate) fn new() -> Self {
        let spare = SPARE.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let open = || {
            Ebpf::load(podlane_datapath::object())
                .unwrap_or_else(|error| panic!("the programs' object: {error}"))
        };
        Self(Some(spare.unwrap_or_else(open)))
    }

    fn ebpf(&mut self) -> &mut Ebpf {
        self.0.as_mut().expect("there until it is dropped")
    }

    /// A program, loaded.
    pub(crate) fn program(&mut self, name: &str) -> &mut SchedClassifier {
        let program = self
            .ebpf()
            .program_mut(name)
            .unwrap_or_else(|| panic!("no program {name}"));
        let program: &mut SchedClassifier = program.try_into().expect("a classifier");
        if let Err(ProgramError::NotLoaded) = program.fd() {
            program.load().unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        program
    }

    /// The names of its programs.
    pub(crate) fn names(&mut self) -> Vec<String> {
        let mut names: Vec<_> = self.ebpf().programs().map(|(name, _)| name.to_owned()).collect();
        names.sort();
        names
    }

    /// A map.
    pub(crate) fn map(&mut self, name: &str) -> &mut Map {
        self.ebpf()
            .map_mut(name)
            .unwrap_or_else(|| panic!("no map {name}"))
    }

    /// A hash map with this key and value.
    pub(crate) fn hash<K: aya::Pod, V: aya::Pod>(&mut self, name: &str) -> HashMap<&mut MapData, K, V> {
        let map = self.map(name);
        map.try_into().unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    fn empty_hash<K: aya::Pod, V: aya::Pod>(&mut self, name: &str) {
        let mut map = self.hash::<K, V>(name);
        for key in map.keys().collect::<Result<Vec<_>, _>>().expect("keys") {
            // One that made room for another meanwhile is gone, too.
            let _ = map.remove(&key);
        }
    }

    fn empty_per_cpu<V: aya::Pod + Copy>(&mut self, name: &str, zero: V, length: u32) {
        let cpus = aya::util::nr_cpus().expect("a number of CPUs");
        let mut array: PerCpuArray<_, V> = self.map(name).try_into().expect("an array");
        for place in 0..length {
            let zeros = PerCpuValues::try_from(vec![zero; cpus]).expect("one each");
            array.set(place, zeros, 0).expect("written");
        }
    }

    fn empty(&mut self) {
        let mut settings: Array<_, Settings> = self.map("SETTINGS").try_into().expect("an array");
        for place in 0..2 {
            settings.set(place, Settings::CLOSED, 0).expect("written");
        }
        self.empty_hash::<Address, Peer>("PEERS");
        self.empty_hash::<Flow4, FlowState>("FLOWS4");
        self.empty_hash::<Flow6, FlowState>("FLOWS6");
        self.empty_hash::<u64, ProbeState>("PROBES");
        // Their values are the programs' own: of so many octets.
        self.empty_hash::<Address, [u8; 12]>("NEIGHBOURS");
        self.empty_hash::<Address, [u8; 8]>("PROBE_RATES");
        let mut pods: LpmTrie<_, Address, PodNetwork> = self.map("PODS").try_into().expect("a trie");
        for key in pods.keys().collect::<Result<Vec<_>, _>>().expect("keys") {
            pods.remove(&key).expect("removed");
        }
        self.empty_per_cpu("LANES", LaneCounters::default(), LANE_SLOTS as u32);
        self.empty_per_cpu("PEER_COUNTERS", PeerCounters::default(), INDICES);
        self.empty_per_cpu("WAYS", 0_u64, INDICES);
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        // What a failed test leaves is not looked into.
        if !std::thread::panicking() {
            self.empty();
            SPARE
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .extend(self.0.take());
        }
    }
}
