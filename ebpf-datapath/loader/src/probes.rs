//! Probes to other nodes: sent by a program, answered by the other node's, taken in by ours.

use crate::contents::address;
use crate::counters::{LaneName, slot_name};
use crate::failure::Failure;
use crate::frame::{frame, shortest};
use crate::programs::Programs;
use aya::maps::MapError;
use aya::{TestRun, TestRunOptions};
use nix::net::if_::if_nametoindex;
use podlane_datapath_common::probe::ProbeState;
use podlane_plan::lane::Tunnel;
use std::net::IpAddr;
use std::time::Duration;

/// A probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeToSend {
    /// Drawn at random for each probe, so that nobody can guess its answer.
    pub number: u64,
    /// The lane that it is to prove.
    pub over: Over,
    /// This node's router address.
    pub source: IpAddr,
    /// The other node's, of the same family.
    pub destination: IpAddr,
    /// The underlay device toward the other node.
    pub device: String,
    /// The first next hop to the other node on that device: a gateway, or the node itself.
    pub next_hop: IpAddr,
    /// The inner IP packet's length in bytes: from 44 (IPv6: 64) to the lane's MTU.
    pub length: u16,
    /// Whether the answer is to come without padding: then it tells of one direction only.
    pub short_reply: bool,
    /// The other node's key.
    pub key: [u64; 2],
}

/// A lane, with what outer headers need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// The packet as it is.
    Native,
    /// Encapsulated.
    Tunnel {
        /// The tunnel.
        tunnel: Tunnel,
        /// The outer source: this node's address toward the other.
        source: IpAddr,
        /// The outer destination.
        destination: IpAddr,
        /// The outer DSCP, 0 to 63.
        dscp: u8,
    },
}

/// Why a probe did not leave.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProbeFailure {
    /// The next hop's link-layer address is not known: have the kernel resolve it (any packet to it does), and try again.
    #[error("the link-layer address of {0} is not known yet")]
    NoNeighbour(IpAddr),
    /// The kernel's routes lead nowhere; the number is `BPF_FIB_LKUP_RET_…`, include/uapi/linux/bpf.h.
    #[error("the kernel has no way to {next_hop} ({code})")]
    NoWay {
        /// The next hop.
        next_hop: IpAddr,
        /// What the kernel's FIB said.
        code: u32,
    },
    /// The program could not send it.
    #[error("the program could not send the probe: the device toward {0} does not take it")]
    NotSent(IpAddr),
    /// It cannot be sent so.
    #[error("{0}")]
    Impossible(String),
    /// The kernel says no.
    #[error(transparent)]
    Refused(#[from] Failure),
}

/// A probe's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeAnswer {
    /// The probe's number.
    pub number: u64,
    /// From the moment the program sent it until the program took its answer.
    pub round_trip: Duration,
    /// The length of the answer's IP packet, in bytes.
    pub length: u32,
    /// The lane over which the answer came; none: it is closed by now.
    pub over: Option<LaneName>,
}

/// What `probe_send` gives back (docs/datapath.md, Probes); otherwise `BPF_FIB_LKUP_RET_…`.
const SENT: u32 = 0;
const NO_NEIGHBOUR: u32 = 7;
const NOT_SENT: u32 = 255;

/// Octets of `struct __sk_buff` to the end of `cb`, and where its `mark`, `ifindex` and `cb` are (include/uapi/linux/bpf.h).
const CONTEXT: usize = 68;
const MARK: usize = 8;
const INTERFACE: usize = 40;
const CB: usize = 48;

impl Programs {
    /// Sends a probe. Its answer is had from [`Programs::probe_answers`]; one that does not come has to be forgotten ([`Programs::forget_probes`]).
    ///
    /// # Errors
    /// When it did not leave; then nothing has to be forgotten.
    pub fn send_probe(&mut self, probe: &ProbeToSend) -> Result<(), ProbeFailure> {
        check(probe)?;
        let interface =
            if_nametoindex(probe.device.as_str()).map_err(|_| Failure::no_device(&probe.device))?;
        let frame = frame(probe);
        let state = ProbeState {
            reply_tag: frame.reply_tag,
            ..ProbeState::default()
        };
        let probes = &mut self.loaded.maps.probes;
        probes
            .insert(probe.number, state, 0)
            .map_err(|error| Failure::of("note a probe", &error))?;
        let context = context(frame.length, interface, probe.next_hop);
        let options = TestRunOptions {
            data_in: Some(&frame.octets),
            ctx_in: Some(&context),
            ..TestRunOptions::new()
        };
        let result = self.loaded.probe.test_run(options);
        let result = match result {
            Err(error) => Err(Failure::of("run the program that sends probes", &error).into()),
            Ok(run) => match run.return_value {
                SENT => Ok(()),
                NO_NEIGHBOUR => Err(ProbeFailure::NoNeighbour(probe.next_hop)),
                NOT_SENT => Err(ProbeFailure::NotSent(probe.next_hop)),
                code => Err(ProbeFailure::NoWay {
                    next_hop: probe.next_hop,
                    code,
                }),
            },
        };
        if result.is_err() {
            self.forget_probes(&[probe.number]);
        }
        result
    }

    /// The answers that have come to these probes. Each is given once; the others are still awaited.
    ///
    /// # Errors
    /// When the maps cannot be read.
    pub fn probe_answers(&mut self, numbers: &[u64]) -> Result<Vec<ProbeAnswer>, Failure> {
        let settings = self.loaded.maps.settings()?;
        let mut answers = Vec::new();
        for number in numbers {
            match self.loaded.maps.probes.get(number, 0) {
                Ok(state) if state.answered != 0 => answers.push(ProbeAnswer {
                    number: *number,
                    round_trip: Duration::from_nanos(state.answered.saturating_sub(state.sent)),
                    length: state.reply_length,
                    over: slot_name(&settings, state.slot),
                }),
                Ok(_) | Err(MapError::KeyNotFound) => {}
                Err(error) => return Err(Failure::of("read the probes", &error)),
            }
        }
        let answered: Vec<u64> = answers.iter().map(|answer| answer.number).collect();
        self.forget_probes(&answered);
        Ok(answers)
    }

    /// Awaits these probes' answers no longer.
    pub fn forget_probes(&mut self, numbers: &[u64]) {
        for number in numbers {
            // One that is not there is as wanted, and a map that cannot be written says so at the next probe.
            let _ = self.loaded.maps.probes.remove(number);
        }
    }

    /// Of whoever used the maps before, nobody awaits an answer.
    pub(crate) fn forget_all_probes(&mut self) {
        let numbers: Vec<u64> = self.loaded.maps.probes.keys().flatten().collect();
        self.forget_probes(&numbers);
    }
}

fn check(probe: &ProbeToSend) -> Result<(), ProbeFailure> {
    let outer = match probe.over {
        Over::Native => None,
        Over::Tunnel {
            source, destination, ..
        } => Some((source, destination)),
    };
    let pairs = [Some((probe.source, probe.destination)), outer];
    let wrong = pairs
        .iter()
        .flatten()
        .find(|(source, destination)| source.is_ipv4() != destination.is_ipv4());
    if let Some((source, destination)) = wrong {
        return Err(ProbeFailure::Impossible(format!(
            "{source} and {destination} are of different families"
        )));
    }
    let (least, most) = (shortest(&probe.source), u16::MAX - 128);
    if !(least..=most).contains(&probe.length) {
        return Err(ProbeFailure::Impossible(format!(
            "a probe of {} bytes cannot be sent: {least} to {most}",
            probe.length
        )));
    }
    Ok(())
}

/// What the program is told: docs/datapath.md, Probes.
fn context(length: u32, interface: u32, next_hop: IpAddr) -> [u8; CONTEXT] {
    let mut context = [0; CONTEXT];
    context[MARK..MARK + 4].copy_from_slice(&length.to_ne_bytes());
    context[INTERFACE..INTERFACE + 4].copy_from_slice(&interface.to_ne_bytes());
    let next_hop = address(next_hop);
    let words = match next_hop.is_v4() {
        true => [next_hop.word(), 0, 0, 0, 4],
        false => {
            let [a, b, c, d] = next_hop.0;
            [a, b, c, d, 6]
        }
    };
    for (place, word) in context[CB..].chunks_exact_mut(4).zip(words) {
        place.copy_from_slice(&word.to_ne_bytes());
    }
    context
}
