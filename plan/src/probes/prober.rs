//! Which probes are sent when.

use super::pace::Pace;
use super::rounds::{LOOK, Round, Rounds};
use super::series::{Series, WATCH};
use super::{Answer, Doubt, Kind, Probe, Proofs, Standing, Tally, Target, Unsent};
use crate::lane::Lane;
use fnv::FnvHasher;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hasher as _;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

/// Peers whose lanes in use are watched all the time, at most.
pub const WATCHED: usize = 64;
/// Of the others, those that are asked in a second.
const IN_TURN: usize = 16;
/// How often that turn comes.
const TURN: Duration = Duration::from_secs(1);
/// Answers of lanes to be proved are looked for after [`LOOK`], and then after as long again as was waited; where many are waited for
/// after this.
const LOOK_AT_MANY: Duration = Duration::from_millis(10);

/// A round that is due: when, and on which lane.
type Due = (Duration, Arc<str>, Lane);

/// Decides which probes are sent, and what their answers mean.
///
/// The shell calls [`Prober::aim`] after each plan; when [`Prober::next_due`] says it hands in what was answered, sends what
/// [`Prober::due`] gives and, where [`Prober::take_news`] says so, plans again with [`Prober::proofs`].
#[derive(Clone, Debug)]
pub struct Prober {
    own: String,
    series: BTreeMap<Arc<str>, Vec<Series>>,
    generation: u64,
    rounds: Rounds,
    pace: Pace,
    /// Lanes in use, and lanes that wait in reserve: they go first.
    watch: BTreeSet<Due>,
    /// Lanes to be proved.
    prove: BTreeSet<Due>,
    /// Whether there are lanes in use that are not watched; the last of them that was in turn; when the next are.
    has_others: bool,
    last_in_turn: Arc<str>,
    next_turn: Duration,
    look_at: Option<Duration>,
    /// Lanes in use that are doubted.
    doubted: usize,
    proofs: Proofs,
    has_news: bool,
}

impl Prober {
    /// A prober that knows nothing yet. `seed` is drawn at random: probes of one run must not have the numbers of another's.
    pub fn new(seed: u64) -> Self {
        Self {
            own: String::new(),
            series: BTreeMap::new(),
            generation: 0,
            rounds: Rounds::new(seed),
            pace: Pace::default(),
            watch: BTreeSet::new(),
            prove: BTreeSet::new(),
            has_others: false,
            last_in_turn: Arc::from(""),
            next_turn: Duration::ZERO,
            look_at: None,
            doubted: 0,
            proofs: Proofs::none_yet(),
            has_news: false,
        }
    }

    /// Takes in what is to be probed: all lanes of all peers of the node named `own`. What is known of lanes that are still the same
    /// is kept.
    pub fn aim<'a>(
        &mut self,
        own: &str,
        targets: impl IntoIterator<Item = (&'a str, &'a [Target]), IntoIter: Clone>,
        now: Duration,
    ) {
        let targets = targets.into_iter().filter(|(_, targets)| !targets.is_empty());
        if self.own == own && self.is_aimed_at(targets.clone()) {
            return;
        }
        self.own = own.to_owned();
        let mut before = std::mem::take(&mut self.series);
        let mut in_use: Vec<Arc<str>> = Vec::new();
        for (peer, targets) in targets {
            let (peer, known) = before
                .remove_entry(peer)
                .unwrap_or_else(|| (Arc::from(peer), Vec::new()));
            if targets.iter().any(|target| target.in_use) {
                in_use.push(Arc::clone(&peer));
            }
            let series = self.retargeted(&peer, known, targets, now);
            self.series.insert(peer, series);
        }
        for (peer, series) in before {
            for series in series {
                self.drop_series(&peer, &series);
            }
        }
        in_use.sort_unstable();
        self.watch_after(&in_use, now);
        self.doubted = self.lanes_in_use().filter(|series| series.is_doubted()).count();
    }

    /// Whether these are, in the order of the peers' names, what is probed already: it is so after most plans.
    fn is_aimed_at<'a>(&self, mut targets: impl Iterator<Item = (&'a str, &'a [Target])>) -> bool {
        let is_same = |(peer, series): (&Arc<str>, &Vec<Series>)| {
            targets.next().is_some_and(|(name, targets)| {
                **peer == *name && series.iter().map(|series| &series.target).eq(targets)
            })
        };
        self.series.iter().all(is_same) && targets.next().is_none()
    }

    fn retargeted(
        &mut self,
        peer: &Arc<str>,
        mut known: Vec<Series>,
        targets: &[Target],
        now: Duration,
    ) -> Vec<Series> {
        let mut series = Vec::with_capacity(targets.len());
        for target in targets {
            let same = known.iter().position(|old| old.target.is_same_way(target));
            let mut of_lane = match same.map(|place| known.swap_remove(place)) {
                Some(mut of_lane) => {
                    self.unqueue(peer, &of_lane);
                    of_lane.retarget(target.clone());
                    of_lane
                }
                None => {
                    self.generation += 1;
                    Series::new(target.clone(), self.generation)
                }
            };
            if !target.in_use && of_lane.due.is_none() {
                of_lane.due = Some(now);
            }
            series.push(of_lane);
        }
        // Before the new ones are put in their queues: one may have the very place of an old one.
        for old in &known {
            self.drop_series(peer, old);
        }
        for of_lane in &series {
            self.queue(peer, of_lane);
        }
        series
    }

    /// Chooses the lanes that are watched: to the peers whose names come after this node's own.
    fn watch_after(&mut self, in_use: &[Arc<str>], now: Duration) {
        let start = in_use.partition_point(|peer| **peer < *self.own);
        let watched: BTreeSet<&Arc<str>> = in_use[start..]
            .iter()
            .chain(&in_use[..start])
            .take(WATCHED)
            .collect();
        self.has_others = watched.len() < in_use.len();
        let mut all = std::mem::take(&mut self.series);
        for (peer, series) in &mut all {
            let is_watched = watched.contains(peer);
            for series in series.iter_mut().filter(|series| series.target.in_use) {
                if series.is_watched == is_watched && (series.due.is_some() || !is_watched) {
                    continue;
                }
                self.unqueue(peer, series);
                series.is_watched = is_watched;
                if is_watched {
                    // Lanes that are known already are spread over the time between two rounds.
                    let later = if series.is_heard_of() {
                        WATCH * share(peer) / 256
                    } else {
                        Duration::ZERO
                    };
                    series.due = Some(series.due.map_or(now + later, |due| due.min(now + later)));
                }
                self.queue(peer, series);
            }
        }
        self.series = all;
    }

    /// The probes that are to be sent now. What has been answered is to be handed in first.
    pub fn due(&mut self, now: Duration) -> Vec<Probe> {
        while let Some(round) = self.rounds.overdue(now) {
            let (peer, lane, generation) = (Arc::clone(&round.peer), round.lane, round.generation);
            let judged = round.judged();
            self.change(&peer, lane, generation, now, |series| series.judge(&judged, now));
        }
        self.rounds.forget(now);
        self.take_turns(now);
        let mut probes = Vec::new();
        for queue in [Queue::Watch, Queue::Prove] {
            while let Some((due, peer, lane)) = self.queue_of(queue).first().cloned() {
                if due > now || !self.pace.has_room(now) {
                    break;
                }
                self.queue_of(queue).pop_first();
                self.round(&peer, lane, now, &mut probes);
            }
        }
        self.look_at = self.rounds.proving().map(|(sent, waiting)| {
            let least = if waiting > WATCHED { LOOK_AT_MANY } else { LOOK };
            now + now.saturating_sub(sent).max(least)
        });
        probes
    }

    fn round(&mut self, peer: &Arc<str>, lane: Lane, now: Duration, probes: &mut Vec<Probe>) {
        let doubted = self.doubted;
        let Some(series) = find(&mut self.series, peer, lane) else {
            return;
        };
        let proves = series.is_to_prove();
        let asked = series.round(now, doubted);
        let target = series.target.clone();
        let key = (Arc::clone(peer), lane, series.generation);
        if let Some(due) = series.due {
            let queue = if proves { Queue::Prove } else { Queue::Watch };
            self.queue_of(queue).insert((due, Arc::clone(peer), lane));
        }
        self.pace.take(asked.len(), now);
        let ids = self.rounds.send((&key.0, key.1, key.2), proves, &asked, now);
        probes.extend(ids.into_iter().zip(asked).map(|(id, kind)| Probe {
            id,
            peer: Arc::clone(peer),
            target: target.clone(),
            kind,
        }));
    }

    /// Some of the lanes in use that are not watched, one after the other.
    fn take_turns(&mut self, now: Duration) {
        if !self.has_others || now < self.next_turn {
            return;
        }
        self.next_turn = now + TURN;
        let from = (Bound::Excluded(Arc::clone(&self.last_in_turn)), Bound::Unbounded);
        let is_other = |(_, series): &(&Arc<str>, &mut Vec<Series>)| {
            series
                .iter()
                .any(|series| series.target.in_use && !series.is_watched && series.due.is_none())
        };
        let mut in_turn = Vec::new();
        for (peer, series) in self.series.range_mut(from).filter(is_other).take(IN_TURN) {
            for series in series.iter_mut().filter(|series| series.target.in_use) {
                series.due = Some(now);
                in_turn.push((now, Arc::clone(peer), series.target.lane));
            }
        }
        self.last_in_turn = match in_turn.last() {
            Some((_, peer, _)) if in_turn.len() >= IN_TURN => Arc::clone(peer),
            _ => Arc::from(""),
        };
        self.watch.extend(in_turn);
    }

    /// A probe was answered. One that is not known, or that came on another lane, says nothing.
    pub fn answered(&mut self, answer: &Answer, now: Duration) {
        let Some((round, asked)) = self.rounds.of(answer.id) else {
            return;
        };
        if round.lane.arrives_as() != answer.lane.arrives_as() {
            return;
        }
        let (peer, lane, generation, sent) =
            (Arc::clone(&round.peer), round.lane, round.generation, round.sent);
        let length = find(&mut self.series, &peer, lane).map_or(0, |series| series.target.length);
        // An answer that lost its padding shows the way there only.
        let kind = match asked {
            Kind::Full if answer.length < length => Kind::There,
            Kind::Between(length) if answer.length < length => Kind::Small,
            asked => asked,
        };
        let whole = self.rounds.answered(answer.id, kind).map(Round::judged);
        self.change(&peer, lane, generation, now, |series| {
            series.answered(kind, sent, answer.round_trip);
            if let Some(judged) = &whole {
                series.judge(judged, now);
            }
        });
    }

    /// A probe could not be sent. It counts as lost; where a neighbour is missing the kernel should be made to look for it.
    pub fn unsent(&mut self, id: u64, why: Unsent) {
        let Some((round, _)) = self.rounds.of(id) else {
            return;
        };
        let (peer, lane) = (Arc::clone(&round.peer), round.lane);
        if let Some(series) = find(&mut self.series, &peer, lane) {
            series.unsent(why);
        }
    }

    /// When the shell should look for answers and ask what is due, unless it is aimed anew before.
    pub fn next_due(&self) -> Option<Duration> {
        let first = |queue: &BTreeSet<Due>| queue.first().map(|(due, _, _)| *due);
        let send = first(&self.watch).into_iter().chain(first(&self.prove)).min();
        let send = send.map(|due| self.pace.ready_at(due));
        let turn = self.has_others.then_some(self.next_turn);
        [send, self.rounds.overdue_at(), self.look_at, turn]
            .into_iter()
            .flatten()
            .min()
    }

    /// Which lanes are proved.
    pub const fn proofs(&self) -> &Proofs {
        &self.proofs
    }

    /// Whether, since this was last asked, anything has become known that the plan goes by.
    pub fn take_news(&mut self) -> bool {
        std::mem::take(&mut self.has_news)
    }

    /// The numbers of probes of which it is time to see whether their answers have come: of each some ten times, after ever longer
    /// times.
    pub fn waiting_for(&mut self, now: Duration) -> Vec<u64> {
        self.rounds.look(now)
    }

    /// The numbers of probes that were never answered and whose answers are of no use any more, since this was last asked.
    pub fn take_forgotten(&mut self) -> Vec<u64> {
        self.rounds.take_forgotten()
    }

    /// What all of that comes to, over the lanes in use.
    pub fn tally(&self) -> Tally {
        let mut tally = Tally::default();
        for series in self.lanes_in_use() {
            let count = match series.standing(None) {
                None => continue,
                Some(Standing::Proved) => &mut tally.answering,
                Some(Standing::Doubted(Doubt::TooSmall { .. })) => &mut tally.too_small,
                Some(Standing::Doubted(_)) => &mut tally.silent,
            };
            *count += 1;
            tally.probed += 1;
            tally.worst_loss = tally.worst_loss.max(series.loss());
            tally.worst_round_trip = tally.worst_round_trip.max(series.round_trip.unwrap_or_default());
        }
        tally
    }

    /// Whether something is known of each lane in use, and there are such.
    pub fn has_heard_of_all(&self) -> bool {
        let mut lanes = self.lanes_in_use().peekable();
        lanes.peek().is_some() && lanes.all(|series| series.standing(None).is_some())
    }

    fn lanes_in_use(&self) -> impl Iterator<Item = &Series> {
        let all = self.series.values().flatten();
        all.filter(|series| series.target.in_use)
    }

    /// Changes what is known of a lane, and notes what follows from it.
    fn change(
        &mut self,
        peer: &Arc<str>,
        lane: Lane,
        generation: u64,
        now: Duration,
        change: impl FnOnce(&mut Series),
    ) {
        let Some(place) = self.series.get(peer).and_then(|lanes| {
            lanes
                .iter()
                .position(|series| (series.target.lane, series.generation) == (lane, generation))
        }) else {
            return;
        };
        let Some(mut lanes) = self.series.remove(peer) else {
            return;
        };
        self.unqueue(peer, &lanes[place]);
        let was_doubted = lanes[place].is_doubted();
        change(&mut lanes[place]);
        let series = &lanes[place];
        self.queue(peer, series);
        if series.target.in_use {
            self.doubted = self.doubted + usize::from(series.is_doubted()) - usize::from(was_doubted);
        }
        // An answer over one lane changes what is likely wrong with another.
        for series in &lanes {
            let elsewhere = lanes
                .iter()
                .find(|other| other.target.lane != series.target.lane && other.answers(now))
                .map(|other| other.target.lane);
            let standing = series.standing(elsewhere);
            let is_of_use = !series.target.in_use || series.is_doubted() || was_doubted;
            self.has_news |= self.proofs.note(peer, series.target.lane, standing) && is_of_use;
        }
        self.series.insert(Arc::clone(peer), lanes);
    }

    fn drop_series(&mut self, peer: &Arc<str>, series: &Series) {
        self.unqueue(peer, series);
        self.proofs.note(peer, series.target.lane, None);
    }

    const fn queue_of(&mut self, queue: Queue) -> &mut BTreeSet<Due> {
        match queue {
            Queue::Watch => &mut self.watch,
            Queue::Prove => &mut self.prove,
        }
    }

    fn queue(&mut self, peer: &Arc<str>, series: &Series) {
        let queue = if series.is_to_prove() {
            Queue::Prove
        } else {
            Queue::Watch
        };
        if let Some(due) = series.due {
            self.queue_of(queue)
                .insert((due, Arc::clone(peer), series.target.lane));
        }
    }

    fn unqueue(&mut self, peer: &Arc<str>, series: &Series) {
        if let Some(due) = series.due {
            let entry = (due, Arc::clone(peer), series.target.lane);
            self.watch.remove(&entry);
            self.prove.remove(&entry);
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Queue {
    Watch,
    Prove,
}

fn find<'a>(
    all: &'a mut BTreeMap<Arc<str>, Vec<Series>>,
    peer: &Arc<str>,
    lane: Lane,
) -> Option<&'a mut Series> {
    all.get_mut(peer)?
        .iter_mut()
        .find(|series| series.target.lane == lane)
}

/// A peer's share of 256, by its name (FNV-1a).
fn share(peer: &str) -> u32 {
    let mut hash = FnvHasher::default();
    hash.write(peer.as_bytes());
    let [share, ..] = hash.finish().to_be_bytes();
    u32::from(share)
}
