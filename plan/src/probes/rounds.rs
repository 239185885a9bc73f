//! Rounds of probes that are on their way, in the order in which they were sent.

use super::Kind;
use super::series::{Judged, TIMEOUT};
use crate::lane::Lane;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// How long an answer that comes late still counts for something.
const KEPT: Duration = Duration::from_secs(3);

/// Answers are looked for no sooner than this after the probe was sent.
pub(super) const LOOK: Duration = Duration::from_millis(2);

/// Probes that were sent on one lane at once.
#[derive(Clone, Debug)]
pub(super) struct Round {
    pub(super) peer: Arc<str>,
    pub(super) lane: Lane,
    /// [`super::series::Series::generation`].
    pub(super) generation: u64,
    /// Whether the lane was to be proved then.
    pub(super) proves: bool,
    pub(super) sent: Duration,
    asked: Vec<Kind>,
    answered: Vec<Kind>,
    first_id: u64,
    is_judged: bool,
    /// When its answers are looked for next.
    look_at: Duration,
}

impl Round {
    pub(super) fn judged(&self) -> Judged {
        Judged {
            sent: self.sent,
            asked: self.asked.clone(),
            answered: self.answered.clone(),
        }
    }
}

/// All of them.
#[derive(Clone, Debug)]
pub(super) struct Rounds {
    seed: u64,
    probes: u64,
    /// The number of the first round that is kept.
    first: u64,
    rounds: VecDeque<Round>,
    /// Of each probe that is not answered: its round's number, and what it asks.
    waiting: BTreeMap<u64, (u64, Kind)>,
    forgotten: Vec<u64>,
}

impl Rounds {
    pub(super) const fn new(seed: u64) -> Self {
        Self {
            seed,
            probes: 0,
            first: 0,
            rounds: VecDeque::new(),
            waiting: BTreeMap::new(),
            forgotten: Vec::new(),
        }
    }

    /// The number of the n-th probe: SplitMix64 (Steele, Lea and Flood, 2014) is one-to-one, so none comes twice.
    const fn id(&self, probe: u64) -> u64 {
        let mut z = self.seed.wrapping_add(probe.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Adds a round: its probes' numbers, in the order of what they ask.
    pub(super) fn send(
        &mut self,
        (peer, lane, generation): (&Arc<str>, Lane, u64),
        proves: bool,
        asked: &[Kind],
        now: Duration,
    ) -> Vec<u64> {
        let first_id = self.probes;
        self.probes += asked.len() as u64;
        let number = self.first + self.rounds.len() as u64;
        self.rounds.push_back(Round {
            peer: Arc::clone(peer),
            lane,
            generation,
            proves,
            sent: now,
            asked: asked.to_vec(),
            answered: Vec::new(),
            first_id,
            is_judged: false,
            look_at: now,
        });
        let ids = (first_id..self.probes).map(|probe| self.id(probe));
        let ids: Vec<u64> = ids.collect();
        for (id, kind) in ids.iter().zip(asked) {
            self.waiting.insert(*id, (number, *kind));
        }
        ids
    }

    fn place(&self, number: u64) -> Option<usize> {
        usize::try_from(number.checked_sub(self.first)?).ok()
    }

    /// The round of a probe that has not been answered, and what it asks.
    pub(super) fn of(&self, id: u64) -> Option<(&Round, Kind)> {
        let (number, kind) = self.waiting.get(&id)?;
        Some((self.rounds.get(self.place(*number)?)?, *kind))
    }

    /// A probe is answered, as if it had asked for `kind`. The round, if that was its last and it has not been judged.
    pub(super) fn answered(&mut self, id: u64, kind: Kind) -> Option<&Round> {
        let (number, asked) = self.waiting.remove(&id)?;
        let place = self.place(number)?;
        let round = self.rounds.get_mut(place)?;
        if round.is_judged {
            return None;
        }
        if kind == asked {
            round.answered.push(kind);
        }
        if round.answered.len() < round.asked.len() {
            return None;
        }
        round.is_judged = true;
        self.rounds.get(place)
    }

    /// The next round whose answers are waited for no longer.
    pub(super) fn overdue(&mut self, now: Duration) -> Option<&Round> {
        let round = self
            .rounds
            .iter_mut()
            .find(|round| !round.is_judged)
            .filter(|round| round.sent + TIMEOUT <= now)?;
        round.is_judged = true;
        Some(round)
    }

    /// When the next round will be overdue.
    pub(super) fn overdue_at(&self) -> Option<Duration> {
        let next = self.rounds.iter().find(|round| !round.is_judged)?;
        Some(next.sent + TIMEOUT)
    }

    /// When the last round was sent that is to prove a lane and still waits, and how many rounds wait.
    pub(super) fn proving(&self) -> Option<(Duration, usize)> {
        let waiting = || self.rounds.iter().rev().filter(|round| !round.is_judged);
        let last = waiting().find(|round| round.proves)?;
        Some((last.sent, waiting().count()))
    }

    /// Forgets what is long past.
    pub(super) fn forget(&mut self, now: Duration) {
        while let Some(round) = self.rounds.front() {
            let is_whole = round.answered.len() == round.asked.len();
            if !round.is_judged || (!is_whole && round.sent + KEPT > now) {
                break;
            }
            let (first, count) = (round.first_id, round.asked.len() as u64);
            self.rounds.pop_front();
            self.first += 1;
            for id in (first..first + count)
                .map(|probe| self.id(probe))
                .collect::<Vec<_>>()
            {
                if self.waiting.remove(&id).is_some() {
                    self.forgotten.push(id);
                }
            }
        }
    }

    /// The numbers of probes whose answers are of no use any more, since this was last asked.
    pub(super) fn take_forgotten(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.forgotten)
    }

    /// The numbers of unanswered probes whose turn it is to be looked for.
    pub(super) fn look(&mut self, now: Duration) -> Vec<u64> {
        let mut turn = Vec::new();
        for round in &mut self.rounds {
            let age = now.saturating_sub(round.sent);
            let is_last = !round.is_judged && age >= TIMEOUT;
            if round.answered.len() < round.asked.len() && (round.look_at <= now || is_last) {
                round.look_at = now + age.max(LOOK);
                turn.push((round.first_id, round.asked.len() as u64));
            }
        }
        let ids = turn.into_iter().flat_map(|(first, count)| first..first + count);
        ids.map(|probe| self.id(probe))
            .filter(|id| self.waiting.contains_key(id))
            .collect()
    }
}
