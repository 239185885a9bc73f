//! What status says of the node's eBPF programs, and of what they have found out.

use super::findings::listed;
use crate::metrics::{LaneFigures, PeerDrops};
use crate::pass::Outcome;
use podlane_crds::{
    Bypass, DatapathStatus, Dropped, Encapsulation, MAX_DROPPED_IN_STATUS, MAX_PEERS_DROPPED_IN_STATUS,
    ProbeCounts, RoutingNodeStatus,
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
    /// What they have counted as dropped of peers'; none: as was said before.
    pub drops: Option<&'a [PeerDrops]>,
}

impl Programs<'_> {
    /// Writes it into a status that still has what was said before.
    pub(super) fn tell(&self, status: &mut RoutingNodeStatus, assignment: &Assignment, outcome: &Outcome) {
        let key = self.probe_key.filter(|_| self.loaded.is_ok());
        status.probe_key = key.map(|key| key.to_string());
        status.datapath = Some(self.datapath(assignment, outcome));
        let shown = status.probes.unwrap_or_default();
        status.probes = self.tally.map(|tally| probes(tally, &shown));
        status.dropped = dropped(self.counted, self.drops, &status.dropped);
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
            None if bypasses => in_part(outcome).map(|why| ("InPart", why)),
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

/// Where flows go up the stack though the bypass is on, and why; none: nowhere.
fn in_part(outcome: &Outcome) -> Option<String> {
    let planned = outcome.datapath.as_ref()?;
    let pods = planned.attached.pods.iter();
    let devices: Vec<&str> = pods
        .filter(|(_, bypasses)| !**bypasses)
        .map(|(device, _)| device.as_str())
        .collect();
    let mut parts = Vec::new();
    if !devices.is_empty() {
        parts.push(format!(
            "flows to pods behind {} go up the stack: packets are handed past it only into a veth with a single pod behind it, as the \
             network plugin ptp makes one for each pod",
            listed(&devices)
        ));
    }
    let full = outcome.without_place.iter();
    parts.extend(full.map(|left| format!("flows with {} go up the stack: {}", left.what, left.why)));
    (!parts.is_empty()).then(|| parts.join(". "))
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

/// Whether what was dropped by lane is to be said anew.
pub fn drops_differ(counted: &[LaneFigures], shown: &RoutingNodeStatus) -> bool {
    let is_of_lane = |dropped: &&Dropped| dropped.peer.is_none();
    let of_lanes = shown.dropped.iter().filter(is_of_lane);
    let room = MAX_DROPPED_IN_STATUS - shown.dropped.len().min(MAX_DROPPED_IN_STATUS);
    !dropped_on_lanes(counted, &shown.dropped)
        .iter()
        .take(room + of_lanes.clone().count())
        .eq(of_lanes)
}

/// The most frequent ones by lane, and then by peer; without new drops of peers' those that are shown.
fn dropped(counted: &[LaneFigures], drops: Option<&[PeerDrops]>, shown: &[Dropped]) -> Vec<Dropped> {
    let mut of_peers = match drops {
        Some(drops) => dropped_of_peers(drops, shown),
        None => {
            let of_peers = shown.iter().filter(|dropped| dropped.peer.is_some());
            of_peers.cloned().collect()
        }
    };
    of_peers.truncate(MAX_PEERS_DROPPED_IN_STATUS);
    let mut all = dropped_on_lanes(counted, shown);
    all.truncate(MAX_DROPPED_IN_STATUS - of_peers.len());
    all.append(&mut of_peers);
    all
}

fn dropped_on_lanes(counted: &[LaneFigures], shown: &[Dropped]) -> Vec<Dropped> {
    let all = counted.iter().flat_map(|lane| {
        let name = (lane.lane != "none").then(|| lane.lane.clone());
        let of_lane = move |(reason, packets): &(&str, u64)| Dropped {
            lane: name.clone(),
            peer: None,
            reason: (*reason).to_owned(),
            packets: *packets,
        };
        lane.dropped.iter().map(of_lane)
    });
    in_steps(all, shown)
}

fn dropped_of_peers(drops: &[PeerDrops], shown: &[Dropped]) -> Vec<Dropped> {
    let all = drops.iter().flat_map(|peer| {
        peer.dropped.iter().map(|(reason, packets)| Dropped {
            lane: None,
            peer: Some(peer.peer.clone()),
            reason: (*reason).to_owned(),
            packets: *packets,
        })
    });
    in_steps(all, shown)
}

/// The most frequent first. A number that is shown stays until it has grown by an eighth, for a status is not to be written with
/// every packet that somebody forges; one that has become smaller is of counters made anew.
fn in_steps(counted: impl Iterator<Item = Dropped>, shown: &[Dropped]) -> Vec<Dropped> {
    const LARGEST: u64 = i64::MAX as u64;
    let of = |dropped: &Dropped| (dropped.lane.clone(), dropped.peer.clone(), dropped.reason.clone());
    let shown: BTreeMap<_, u64> = shown
        .iter()
        .map(|dropped| (of(dropped), dropped.packets))
        .collect();
    let mut all: Vec<Dropped> = counted.filter(|dropped| dropped.packets > 0).collect();
    for dropped in &mut all {
        dropped.packets = dropped.packets.min(LARGEST);
        if let Some(before) = shown.get(&of(dropped))
            && (*before..=before.saturating_add(before / 8)).contains(&dropped.packets)
        {
            dropped.packets = *before;
        }
    }
    all.sort_by_key(|dropped| (std::cmp::Reverse(dropped.packets), of(dropped)));
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pass::Unfinished;
    use podlane_plan::datapath::Datapath;

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
    fn where_the_bypass_is_on_and_flows_go_up_the_stack_status_says_which() {
        let mut planned = Datapath {
            bypass: true,
            ..Datapath::default()
        };
        planned.attached.pods = [("veth0".to_owned(), true)].into();
        let mut outcome = Outcome {
            datapath: Some(planned.clone()),
            ..Outcome::default()
        };
        assert_eq!(in_part(&outcome), None);
        planned.attached.pods.insert("cni0".to_owned(), false);
        outcome.datapath = Some(planned);
        outcome.without_place = vec![Unfinished {
            what: "2 peers, k8s-w7 first".to_owned(),
            why: "there is place for 8192 peers".to_owned(),
        }];
        let why = in_part(&outcome).expect("it is said");
        assert!(why.contains("behind cni0 go up the stack"), "{why}");
        assert!(
            why.contains("with 2 peers, k8s-w7 first go up the stack: there is place for 8192 peers"),
            "{why}"
        );
        assert!(!why.contains("veth0"), "{why}");
    }

    #[test]
    fn dropped_packets_are_shown_in_steps_the_most_frequent_first() {
        let numbers = |shown: &[Dropped]| shown.iter().map(|dropped| dropped.packets).collect::<Vec<_>>();
        let mut shown = dropped(&counted(&[3, 80]), None, &[]);
        assert_eq!(
            (shown[0].lane.as_deref(), shown[1].lane.as_deref(), shown.len()),
            (Some("vxlan:8472:1"), None, 2)
        );
        for (now, expected) in [([3, 90], [80, 3]), ([4, 91], [91, 4]), ([4, 10], [10, 4])] {
            shown = dropped(&counted(&now), None, &shown);
            assert_eq!(numbers(&shown), expected, "{now:?}");
        }
        assert_eq!(
            dropped(&counted(&[1; 100]), None, &[]).len(),
            MAX_DROPPED_IN_STATUS
        );
        assert_eq!(
            numbers(&dropped(&counted(&[u64::MAX]), None, &[])),
            [i64::MAX as u64]
        );
    }

    #[test]
    fn peers_are_named_with_what_was_dropped_of_theirs() {
        let of_peer = |number: u64, packets| PeerDrops {
            peer: format!("node-{number:02}"),
            dropped: vec![("NoPeer", packets)],
        };
        let names = |shown: &[Dropped]| {
            let named = shown
                .iter()
                .filter_map(|dropped| Some((dropped.peer.as_deref()?.to_owned(), dropped.packets)));
            named.collect::<Vec<_>>()
        };
        let first = counted(&[80]);
        let mut status = RoutingNodeStatus::default();
        assert!(drops_differ(&first, &status));
        status.dropped = dropped(&first, Some(&[of_peer(1, 8), of_peer(2, 72)]), &[]);
        assert_eq!(
            names(&status.dropped),
            [("node-02".to_owned(), 72), ("node-01".to_owned(), 8)]
        );
        assert_eq!((status.dropped.len(), &status.dropped[0].peer), (3, &None));
        // A packet more is not worth reading what was dropped of all peers.
        assert!(!drops_differ(&counted(&[81]), &status));
        assert_eq!(dropped(&counted(&[81]), None, &status.dropped), status.dropped);
        assert!(drops_differ(&counted(&[100]), &status));
        let drops = [of_peer(1, 9), of_peer(2, 91)];
        let now = dropped(&counted(&[100]), Some(&drops), &status.dropped);
        assert_eq!(
            names(&now),
            [("node-02".to_owned(), 91), ("node-01".to_owned(), 8)],
            "the first by a step, the second not yet"
        );

        let all: Vec<_> = (0..64).map(|number| of_peer(number, 1)).collect();
        status.dropped = dropped(&counted(&[1; 100]), Some(&all), &[]);
        assert_eq!(status.dropped.len(), MAX_DROPPED_IN_STATUS);
        assert_eq!(names(&status.dropped).len(), MAX_PEERS_DROPPED_IN_STATUS);
        assert!(!drops_differ(&counted(&[1; 100]), &status));
    }
}
