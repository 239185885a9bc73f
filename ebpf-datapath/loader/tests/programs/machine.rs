//! The programs in the kernel, run on one packet at a time, next to the model of them.

use crate::compare::{Ran, differences};
use crate::model::{Node, Outcome, Packet, Tuple, Verdict};
use crate::pool::Object;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, PerCpuArray};
use aya::programs::{TestRun, TestRunOptions};
use podlane_datapath_common::probe::ProbeState;
use podlane_datapath_common::{
    Address, Flow4, Flow6, FlowState, LANE_SLOTS, LaneCounters, Peer, PeerCounters, PodNetwork, REASONS,
    Settings,
};
use std::collections::BTreeMap;

/// Which program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Hook {
    UnderlayIngress,
    UnderlayEgress,
    PodIngress,
    PodEgress,
}

impl Hook {
    pub(crate) const ALL: [Self; 4] = [
        Self::UnderlayIngress,
        Self::UnderlayEgress,
        Self::PodIngress,
        Self::PodEgress,
    ];

    pub(crate) const fn program(self) -> &'static str {
        match self {
            Self::UnderlayIngress => "underlay_ingress",
            Self::UnderlayEgress => "underlay_egress",
            Self::PodIngress => "pod_ingress",
            Self::PodEgress => "pod_egress",
        }
    }
}

/// The programs, their maps, and the model with the same maps.
pub(crate) struct Machine {
    pub(crate) model: Node,
    pub(crate) object: Object,
    /// The kernel's jiffies when last asked.
    now: u32,
    /// The most jiffies that ever passed from one asking to the next: a machine that has much else to do stands still for a minute at times.
    lag: u32,
    out: Vec<u8>,
}

impl Machine {
    /// The programs with the model's maps.
    pub(crate) fn new(model: Node) -> Self {
        Self::of(model, Object::new())
    }

    /// The same with an object that is open already.
    pub(crate) fn of(model: Node, object: Object) -> Self {
        let mut machine = Self {
            model,
            object,
            now: kernel_jiffies(),
            lag: 0,
            out: vec![0; 4096],
        };
        machine.write();
        machine
    }

    /// What the kernel's clock says, which is the model's from now on.
    pub(crate) fn ask_time(&mut self) -> u32 {
        let now = kernel_jiffies();
        self.lag = self.lag.max(now.wrapping_sub(self.now));
        self.now = now;
        now
    }

    /// Writes the model's settings, peers, pods and probes into the kernel's maps.
    pub(crate) fn write(&mut self) {
        self.write_settings();
        for (key, peer) in self.model.peers.clone() {
            self.object
                .hash::<Address, Peer>("PEERS")
                .insert(key, peer, 0)
                .expect("written");
        }
        let pods = self.object.map("PODS");
        let mut trie: LpmTrie<_, Address, PodNetwork> = pods.try_into().expect("a trie");
        for (key, network) in &self.model.pods {
            trie.insert(&Key::new(key.prefix_length, key.address), network, 0)
                .expect("written");
        }
        for (number, probe) in self.model.probes.clone() {
            self.object
                .hash::<u64, ProbeState>("PROBES")
                .insert(number, probe, 0)
                .expect("written");
        }
        for (tuple, state) in self.model.flows.clone() {
            self.write_flow(&tuple, &state);
        }
    }

    /// Writes the model's settings.
    pub(crate) fn write_settings(&mut self) {
        let settings = self.model.settings;
        let map = self.object.map("SETTINGS");
        let mut array: Array<_, Settings> = map.try_into().expect("an array");
        array.set(0, settings, 0).expect("written");
    }

    /// Puts a flow into both.
    pub(crate) fn set_flow(&mut self, tuple: Tuple, state: FlowState) {
        self.write_flow(&tuple, &state);
        self.model.flows.insert(tuple, state);
    }

    fn write_flow(&mut self, tuple: &Tuple, state: &FlowState) {
        match flow_key(tuple) {
            Ok(key) => self
                .object
                .hash::<Flow4, FlowState>("FLOWS4")
                .insert(key, state, 0)
                .expect("written"),
            Err(key) => self
                .object
                .hash::<Flow6, FlowState>("FLOWS6")
                .insert(key, state, 0)
                .expect("written"),
        }
    }

    /// Takes a flow out of both.
    pub(crate) fn forget_flow(&mut self, tuple: &Tuple) {
        self.model.flows.remove(tuple);
        // It may not be there.
        let _ = match flow_key(tuple) {
            Ok(key) => self.object.hash::<Flow4, FlowState>("FLOWS4").remove(&key),
            Err(key) => self.object.hash::<Flow6, FlowState>("FLOWS6").remove(&key),
        };
    }

    /// What the kernel knows of a flow.
    pub(crate) fn flow(&mut self, tuple: &Tuple) -> Option<FlowState> {
        match flow_key(tuple) {
            Ok(key) => self.object.hash::<Flow4, FlowState>("FLOWS4").get(&key, 0).ok(),
            Err(key) => self.object.hash::<Flow6, FlowState>("FLOWS6").get(&key, 0).ok(),
        }
    }

    /// Awaits the answer to a probe, of which nothing is known.
    pub(crate) fn await_probe(&mut self, number: u64) {
        self.object
            .hash::<u64, ProbeState>("PROBES")
            .insert(number, ProbeState::default(), 0)
            .expect("written");
    }

    /// What the kernel knows of a probe.
    pub(crate) fn probe(&mut self, number: u64) -> Option<ProbeState> {
        self.object.hash::<u64, ProbeState>("PROBES").get(&number, 0).ok()
    }

    /// Lanes' counters, of all CPUs together.
    pub(crate) fn lanes(&mut self) -> [LaneCounters; LANE_SLOTS] {
        let map = self.object.map("LANES");
        let array: PerCpuArray<_, LaneCounters> = map.try_into().expect("an array");
        std::array::from_fn(|slot| {
            let values = array.get(&(slot as u32), 0).expect("a slot");
            values
                .iter()
                .fold(LaneCounters::default(), |sum, one| LaneCounters {
                    sent_packets: sum.sent_packets + one.sent_packets,
                    sent_bytes: sum.sent_bytes + one.sent_bytes,
                    received_packets: sum.received_packets + one.received_packets,
                    received_bytes: sum.received_bytes + one.received_bytes,
                    sent_bypassing: sum.sent_bypassing + one.sent_bypassing,
                    received_bypassing: sum.received_bypassing + one.received_bypassing,
                    dropped: added(&sum.dropped, &one.dropped),
                })
        })
    }

    /// Counters of the peers of these indices, of all CPUs together.
    pub(crate) fn peer_counters(&mut self, indices: &[u32]) -> BTreeMap<u32, PeerCounters> {
        let map = self.object.map("PEER_COUNTERS");
        let array: PerCpuArray<_, PeerCounters> = map.try_into().expect("an array");
        indices
            .iter()
            .map(|index| {
                let values = array.get(index, 0).expect("a peer");
                let sum = values
                    .iter()
                    .fold(PeerCounters::default(), |sum, one| PeerCounters {
                        sent_packets: sum.sent_packets + one.sent_packets,
                        sent_bytes: sum.sent_bytes + one.sent_bytes,
                        received_packets: sum.received_packets + one.received_packets,
                        received_bytes: sum.received_bytes + one.received_bytes,
                        dropped: added(&sum.dropped, &one.dropped),
                    });
                (*index, sum)
            })
            .collect()
    }

    /// Runs the program on a packet.
    pub(crate) fn run(&mut self, hook: Hook, frame: &[u8], interface: u32, gso_size: u32) -> Ran {
        let context = context(interface, gso_size);
        let program = self.object.program(hook.program());
        let result = program
            .test_run(TestRunOptions {
                data_in: Some(frame),
                data_out: Some(&mut self.out),
                ctx_in: Some(&context),
                ..TestRunOptions::new()
            })
            .unwrap_or_else(|error| panic!("{}: {error}: {frame:02x?}", hook.program()));
        Ran {
            code: result.return_value as i32,
            frame: self.out[..result.data_size_out as usize].to_vec(),
        }
    }

    /// A packet at a hook, now.
    pub(crate) const fn packet<'a>(&self, frame: &'a [u8], interface: u32, gso_size: u32) -> Packet<'a> {
        Packet {
            frame,
            interface,
            gso_size,
            now: self.now,
            resizable: gso_size == 0,
        }
    }

    /// Runs the model on a packet.
    pub(crate) fn expect(&mut self, hook: Hook, frame: &[u8], interface: u32, gso_size: u32) -> Outcome {
        let packet = self.packet(frame, interface, gso_size);
        match hook {
            Hook::UnderlayIngress => self.model.underlay_ingress(&packet),
            Hook::UnderlayEgress => self.model.underlay_egress(&packet),
            Hook::PodIngress => self.model.pod_ingress(&packet),
            Hook::PodEgress => self.model.pod_egress(&packet),
        }
    }

    /// Runs both on a packet and returns the verdict they agree on; else what differs.
    pub(crate) fn both(
        &mut self,
        hook: Hook,
        frame: &[u8],
        interface: u32,
        gso_size: u32,
    ) -> Result<Verdict, String> {
        self.ask_time();
        let expected = self.expect(hook, frame, interface, gso_size);
        let ran = self.run(hook, frame, interface, gso_size);
        let mut found = differences(&expected, &ran);
        found.extend(self.state_differences(frame));
        if found.is_empty() {
            return Ok(expected.verdict);
        }
        Err(crate::compare::report(
            hook, interface, frame, gso_size, &expected, &ran, &found,
        ))
    }

    /// Where counters, probes and the flows of this packet differ.
    pub(crate) fn state_differences(&mut self, frame: &[u8]) -> Vec<String> {
        let mut found = self.counter_differences();
        for tuple in crate::compare::tuples(frame) {
            found.extend(self.flow_differences(&tuple));
        }
        found.extend(self.probe_differences());
        found
    }

    /// Where probes differ.
    pub(crate) fn probe_differences(&mut self) -> Vec<String> {
        let mut found = Vec::new();
        for (number, known) in self.model.probes.clone() {
            let kernel = self.probe(number);
            let seen = kernel.map(|seen| (seen.answered != 0, seen.reply_length, seen.slot));
            if seen != Some((known.answered != 0, known.reply_length, known.slot)) {
                found.push(format!(
                    "probe {number:#x}: the model {known:?}, the program {kernel:?}"
                ));
            }
        }
        found
    }

    /// Where the flow differs.
    pub(crate) fn flow_differences(&mut self, tuple: &Tuple) -> Option<String> {
        let kernel = self.flow(tuple);
        let model = self.model.flows.get(tuple).copied();
        let differences = |lag| crate::compare::flow_differences(tuple, model.as_ref(), kernel.as_ref(), lag);
        differences(self.lag)?;
        // It may be that this batch alone has taken longer than any other.
        self.lag = self.lag.max(kernel_jiffies().wrapping_sub(self.now));
        differences(self.lag)
    }

    /// Where counters differ; afterwards the model has the kernel's.
    pub(crate) fn counter_differences(&mut self) -> Vec<String> {
        let lanes = self.lanes();
        let mut indices: Vec<u32> = self.model.peers.values().map(|peer| peer.index).collect();
        indices.sort_unstable();
        let peers = self.peer_counters(&indices);
        let mut found = Vec::new();
        for (slot, (model, kernel)) in self.model.lanes.iter().zip(&lanes).enumerate() {
            if model != kernel {
                found.push(format!(
                    "lane {slot}:\n    model   {model:?}\n    program {kernel:?}"
                ));
            }
        }
        for index in &indices {
            let model = self.model.peer_counters.entry(*index).or_default();
            if *model != peers[index] {
                found.push(format!(
                    "peer {index}:\n    model   {model:?}\n    program {:?}",
                    peers[index]
                ));
            }
        }
        self.model.lanes = lanes;
        self.model.peer_counters = peers;
        found
    }
}

fn added<T: Copy + std::ops::Add<Output = T>>(a: &[T; REASONS], b: &[T; REASONS]) -> [T; REASONS] {
    std::array::from_fn(|index| a[index] + b[index])
}

/// The key of a tuple in the map of its family.
fn flow_key(tuple: &Tuple) -> Result<Flow4, Flow6> {
    if tuple.source.is_v4() {
        Ok(Flow4 {
            source: tuple.source.word(),
            destination: tuple.destination.word(),
            ports: tuple.ports,
            protocol: tuple.protocol.into(),
        })
    } else {
        Err(Flow6 {
            source: tuple.source.0,
            destination: tuple.destination.0,
            ports: tuple.ports,
            protocol: tuple.protocol.into(),
        })
    }
}

/// Low 32 bits of the kernel's jiffies.
fn kernel_jiffies() -> u32 {
    let text = std::fs::read_to_string("/proc/timer_list").expect("the kernel lists its timers");
    let jiffies: u64 = text
        .lines()
        .find_map(|line| line.strip_prefix("jiffies: "))
        .and_then(|number| number.parse().ok())
        .expect("jiffies");
    jiffies as u32
}

/// Whether BPF_PROG_TEST_RUN takes the frame: behind its Ethernet header something has to be, and a whole fixed header where the ethertype says IP
/// (net/bpf/test_run.c). Shorter ones go over a wire in tests/programs/wire.
pub(crate) fn is_taken(frame: &[u8]) -> bool {
    let least = match frame.get(12..14) {
        Some([0x08, 0x00]) => 34,
        Some([0x86, 0xdd]) => 54,
        _ => 15,
    };
    frame.len() >= least
}

/// `struct __sk_buff` (include/uapi/linux/bpf.h) with the device and the segments' size; the kernel refuses most else.
fn context(interface: u32, gso_size: u32) -> [u8; 192] {
    const INTERFACE: usize = 40;
    const GSO_SIZE: usize = 176;
    let mut context = [0; 192];
    context[INTERFACE..INTERFACE + 4].copy_from_slice(&interface.to_ne_bytes());
    context[GSO_SIZE..GSO_SIZE + 4].copy_from_slice(&gso_size.to_ne_bytes());
    context
}
