//! What status says of the node's eBPF programs, and of what they have found out.

use crate::metrics::LaneFigures;
use crate::pass::Outcome;
use podlane_crds::{
    Bypass, DatapathStatus, Dropped, Encapsulation, MAX_DROPPED_IN_STATUS, ProbeCounts, RoutingNodeStatus,
};
use podlane_plan::desired::{Assignment, Note};
use podlane_plan::probes::{ProbeKey, Tally};
use std::collections::BTreeMap;
use std::time::Duration;

/// What the shell knows of the programs.
#[derive(Clone, Copy, Debug)]
pub struct Programs<'a> {
    /// The hash of those that are loaded, or why none are.
    pub loaded: Result<&'a str, &'a str>,
    /// What peers need to probe this node; none: its programs answer no probes.
    pub probe_key: Option<ProbeKey>,
    /// What probes show; none: no lane is probed.
    pub tally: Option<Tally>,
    /// What the programs have counted.
    pub counted: &'a [LaneFigures],
}

impl Programs<'_> {
    /// Writes it into a status that still has what was said before.
    pub(super) fn tell(&self, status: &mut RoutingNodeStatus, assignment: &Assignment, outcome: &Outcome) {
        let key = self.probe_key.filter(|_| self.loaded.is_ok());
        status.probe_key = key.map(|key| key.to_string());
        status.datapath = Some(self.datapath(assignment, outcome));
        let shown = status.probes.unwrap_or_default();
        status.probes = self.tally.map(|tally| probes(tally, &shown));
        status.dropped = dropped(self.counted, &status.dropped);
    }

    fn datapath(&self, assignment: &Assignment, outcome: &Outcome) -> DatapathStatus {
        let hash = match self.loaded {
            Ok(hash) => hash,
            Err(why) => {
                return DatapathStatus {
                    encapsulation: Encapsulation::Kernel,
                    bypass: Bypass::Off,
                    reason: Some("NoPrograms".to_owned()),
                    message: Some(format!(
                        "the eBPF programs are not loaded, and the kernel's tunnel drivers carry the packets, slower and unchecked: {why}"
                    )),
                    programs: None,
                };
            }
        };
        let note = |is: fn(&Note) -> bool| outcome.desired.notes.iter().find(|note| is(note));
        let of = |note: &Note| (note.reason(), note.to_string());
        let bypasses = outcome.datapath.as_ref().is_some_and(|planned| planned.bypass);
        let no_bypass = note(|note| matches!(note, Note::NoBypass { .. }));
        let without_programs = note(|note| matches!(note, Note::WithoutPrograms { .. }));
        let why = match no_bypass.or(without_programs) {
            _ if assignment.policy.is_none() => Some((
                "NoPolicy",
                "no RoutingPolicy governs this node: apply one whose nodeSelector selects it".to_owned(),
            )),
            _ if !assignment.datapath.bypass => {
                Some(("Policy", "the policy's spec.datapath.bypass is Off".to_owned()))
            }
            Some(note) => Some(of(note)),
            None if bypasses => None,
            None => Some(("NotInSync", "the programs have yet to be told".to_owned())),
        };
        let (reason, message) = why.unzip();
        DatapathStatus {
            encapsulation: Encapsulation::Ebpf,
            bypass: if bypasses { Bypass::On } else { Bypass::Off },
            reason: reason.map(str::to_owned),
            message,
            programs: Some(hash.to_owned()),
        }
    }
}

/// Figures that change only when they differ by much.
fn probes(tally: Tally, shown: &ProbeCounts) -> ProbeCounts {
    let shown = Tally {
        worst_round_trip: Duration::from_micros(shown.worst_round_trip_microseconds.into()),
        worst_loss: shown.worst_loss_percent,
        ..Tally::default()
    };
    let tally = tally.settled(&shown);
    ProbeCounts {
        probed: tally.probed,
        answering: tally.answering,
        silent: tally.silent,
        too_small: tally.too_small,
        worst_round_trip_microseconds: u32::try_from(tally.worst_round_trip.as_micros()).unwrap_or(u32::MAX),
        worst_loss_percent: tally.worst_loss,
    }
}

/// The most frequent ones. A number that is shown stays until it has grown by an eighth, for a status is not to be written with
/// every packet that somebody forges; one that has become smaller is of counters made anew.
fn dropped(counted: &[LaneFigures], shown: &[Dropped]) -> Vec<Dropped> {
    const LARGEST: u64 = i64::MAX as u64;
    let of = |dropped: &Dropped| (dropped.lane.clone(), dropped.reason.clone());
    let shown: BTreeMap<_, u64> = shown
        .iter()
        .map(|dropped| (of(dropped), dropped.packets))
        .collect();
    let mut all: Vec<Dropped> = Vec::new();
    for lane in counted {
        for (reason, packets) in lane.dropped.iter().filter(|(_, packets)| *packets > 0) {
            let mut dropped = Dropped {
                lane: (lane.lane != "none").then(|| lane.lane.clone()),
                reason: (*reason).to_owned(),
                packets: (*packets).min(LARGEST),
            };
            if let Some(before) = shown.get(&of(&dropped))
                && (*before..=before.saturating_add(before / 8)).contains(&dropped.packets)
            {
                dropped.packets = *before;
            }
            all.push(dropped);
        }
    }
    all.sort_by_key(|dropped| (std::cmp::Reverse(dropped.packets), of(dropped)));
    all.truncate(MAX_DROPPED_IN_STATUS);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(packets: &[u64]) -> Vec<LaneFigures> {
        let lane = |(number, packets): (usize, &u64)| LaneFigures {
            lane: if number == 0 {
                "none".to_owned()
            } else {
                format!("vxlan:8472:{number}")
            },
            dropped: vec![("NoPeer", *packets), ("WrongVNI", 0)],
            ..LaneFigures::default()
        };
        packets.iter().enumerate().map(lane).collect()
    }

    #[test]
    fn dropped_packets_are_shown_in_steps_the_most_frequent_first() {
        let numbers = |shown: &[Dropped]| shown.iter().map(|dropped| dropped.packets).collect::<Vec<_>>();
        let mut shown = dropped(&counted(&[3, 80]), &[]);
        assert_eq!(
            (shown[0].lane.as_deref(), shown[1].lane.as_deref(), shown.len()),
            (Some("vxlan:8472:1"), None, 2)
        );
        for (now, expected) in [([3, 90], [80, 3]), ([4, 91], [91, 4]), ([4, 10], [10, 4])] {
            shown = dropped(&counted(&now), &shown);
            assert_eq!(numbers(&shown), expected, "{now:?}");
        }
        assert_eq!(dropped(&counted(&[1; 100]), &[]).len(), MAX_DROPPED_IN_STATUS);
        assert_eq!(numbers(&dropped(&counted(&[u64::MAX]), &[])), [i64::MAX as u64]);
    }
}
