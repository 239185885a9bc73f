//! The probes of one lane, and what they have shown.

use super::fitting::Fitting;
use super::{Direction, Doubt, Kind, Standing, Target, Unsent};
use crate::lane::{Lane, tunnel_overhead};
use std::time::Duration;

/// Between two rounds on a lane that is watched and answers.
pub(super) const WATCH: Duration = Duration::from_millis(600);
/// Between two rounds on a lane that has just failed to answer one.
const CHECK: Duration = Duration::from_millis(400);
/// Between two rounds on a lane in use that is doubted.
const DOUBTED: Duration = Duration::from_secs(1);
/// Between two rounds on a lane that is proved and not in use.
const STANDBY: Duration = Duration::from_secs(5);
/// Between the first two rounds on a lane to come; each time twice as long then.
const FIRST: Duration = Duration::from_millis(50);
/// Between two rounds on a lane to come that does not answer, at most.
const LAST: Duration = Duration::from_secs(4);
/// An answer that takes longer counts as lost until it comes.
pub(super) const TIMEOUT: Duration = Duration::from_millis(500);
/// How long a lane to come may be silent before it is called so: the peer may have yet to open it for this node.
const PATIENCE: Duration = Duration::from_secs(2);
/// Rounds in a row that have to be lost before a lane is doubted.
const LOST: u32 = 3;
/// Rounds in a row that have to be answered before a lane in use is doubted no longer.
const ANSWERED: u32 = 2;
/// A round's start falls on a multiple of this, so that many lanes' rounds wake the shell once.
const TICK: Duration = Duration::from_millis(50);

const ALL: &[Kind] = &[Kind::Small, Kind::There, Kind::Full];

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Silent,
    /// Probes were not sent.
    Unsent(Unsent),
    TooSmall(Direction, Fitting),
}

/// A round whose answers are in, or are waited for no longer.
#[derive(Clone, Debug)]
pub(super) struct Judged {
    pub(super) sent: Duration,
    pub(super) asked: Vec<Kind>,
    pub(super) answered: Vec<Kind>,
}

/// The probes of one lane.
#[derive(Clone, Debug)]
pub(super) struct Series {
    pub(super) target: Target,
    /// Tells the answers of this series from those of one before it for the same lane.
    pub(super) generation: u64,
    /// Whether it is in turn without being asked for.
    pub(super) is_watched: bool,
    /// When the next round is due; None: when somebody asks for one.
    pub(super) due: Option<Duration>,
    is_proved: bool,
    fault: Option<Fault>,
    started: Option<Duration>,
    tries: u32,
    turn: bool,
    silent: u32,
    there_lost: u32,
    full_lost: u32,
    answered_in_a_row: u32,
    /// Why the last probe of this round that was not sent was not.
    unsent: Option<Unsent>,
    /// When the last of each kind was sent that was answered: anything, `There` and `Full`.
    heard: [Option<Duration>; 3],
    /// The last rounds, a bit each, the newest lowest: whether it was lost.
    losses: u32,
    rounds: u32,
    /// Smoothed as TCP's (RFC 6298, section 2).
    pub(super) round_trip: Option<Duration>,
}

impl Series {
    pub(super) fn new(target: Target, generation: u64) -> Self {
        Self {
            target,
            generation,
            is_watched: false,
            due: None,
            is_proved: false,
            fault: None,
            started: None,
            tries: 0,
            turn: false,
            silent: 0,
            there_lost: 0,
            full_lost: 0,
            answered_in_a_row: 0,
            unsent: None,
            heard: [None; 3],
            losses: 0,
            rounds: 0,
            round_trip: None,
        }
    }

    /// Whether the lane waits to be proved.
    pub(super) const fn is_to_prove(&self) -> bool {
        !self.target.in_use && !self.is_proved
    }

    pub(super) const fn is_doubted(&self) -> bool {
        self.fault.is_some()
    }

    pub(super) const fn is_heard_of(&self) -> bool {
        self.heard[0].is_some()
    }

    /// Whether the peer has answered on it lately.
    pub(super) fn answers(&self, now: Duration) -> bool {
        self.heard[0].is_some_and(|heard| heard + STANDBY + PATIENCE > now) && self.silent == 0
    }

    const fn is_sure(&self) -> bool {
        self.fault.is_none() && self.silent == 0 && self.there_lost == 0 && self.full_lost == 0
    }

    /// The same way has come into use, or out of it; or its peer's key has changed.
    pub(super) fn retarget(&mut self, target: Target) {
        let was_in_use = std::mem::replace(&mut self.target, target).in_use;
        if was_in_use && !self.target.in_use && self.fault.is_some() {
            self.is_proved = false;
        }
    }

    /// Starts a round: what is asked. `doubted` is how many lanes in use are doubted.
    pub(super) fn round(&mut self, now: Duration, doubted: usize) -> Vec<Kind> {
        self.started.get_or_insert(now);
        self.unsent = None;
        if self.is_to_prove() {
            let rest = FIRST * 2_u32.saturating_pow(self.tries.min(16));
            self.due = Some(now + rest.min(LAST));
            self.tries += 1;
            // One answer proves all; what is missing is asked when it does not come.
            return if self.tries == 1 {
                vec![Kind::Full]
            } else {
                self.all()
            };
        }
        if self.is_sure() {
            self.due = match (self.target.in_use, self.is_watched) {
                (true, true) => Some(tick(now + WATCH)),
                (true, false) => None,
                (false, _) => Some(tick(now + STANDBY)),
            };
            self.turn = !self.turn;
            return if self.turn || !self.target.in_use || !self.is_watched {
                vec![Kind::Full]
            } else {
                vec![Kind::Small]
            };
        }
        // No more than 64 doubted lanes a second.
        let crowd = u32::try_from(1 + doubted / 64).unwrap_or(u32::MAX);
        let rest = if self.is_doubted() { DOUBTED * crowd } else { CHECK };
        self.due = Some(now + rest);
        self.all()
    }

    /// All that is asked of a lane that is in doubt.
    fn all(&self) -> Vec<Kind> {
        let mut all = ALL.to_vec();
        if let Some(Fault::TooSmall(_, fitting)) = &self.fault {
            all.extend(fitting.lengths().into_iter().map(Kind::Between));
        }
        all
    }

    /// A probe was not sent.
    pub(super) fn unsent(&mut self, why: Unsent) {
        // That a device takes no packet as long is what full-size probes are to find.
        if why != Unsent::TOO_LONG {
            self.unsent = Some(why);
        }
    }

    /// A probe was answered that was sent then, in time or not.
    pub(super) fn answered(&mut self, kind: Kind, sent: Duration, round_trip: Duration) {
        let kinds = match kind {
            Kind::Small | Kind::Between(_) => 1,
            Kind::There => 2,
            Kind::Full => 3,
        };
        for heard in &mut self.heard[..kinds] {
            *heard = (*heard).max(Some(sent));
        }
        self.silent = 0;
        self.unsent = None;
        if kinds >= 2 {
            self.there_lost = 0;
        }
        if kind == Kind::Full {
            self.full_lost = 0;
            if !self.target.in_use {
                self.fault = None;
            }
            if self.fault.is_none() {
                if self.is_to_prove() {
                    self.due = Some(tick(sent + STANDBY));
                }
                self.is_proved = true;
                self.tries = 0;
            }
        }
        self.round_trip = Some(match self.round_trip {
            None => round_trip,
            Some(smooth) => (smooth * 7 + round_trip) / 8,
        });
    }

    /// A round is over.
    pub(super) fn judge(&mut self, round: &Judged, now: Duration) {
        let answered = |kind: Kind| round.answered.contains(&kind);
        let lost = |kind: Kind| round.asked.contains(&kind) && !answered(kind);
        // What was sent then or later has come back in another way: the loss says nothing of now.
        let is_past = |heard: Option<Duration>| heard.is_some_and(|heard| heard >= round.sent);
        self.rounds = (self.rounds + 1).min(32);
        self.losses = self.losses << 1 | u32::from(round.answered.is_empty());
        if round.answered.is_empty() {
            self.answered_in_a_row = 0;
            self.silent += u32::from(!is_past(self.heard[0]));
            if lost(Kind::Full) && !is_past(self.heard[2]) {
                // Whether it was too big or the lane silent is not known yet: it counts once.
                self.full_lost = self.full_lost.max(1);
            }
        } else {
            self.there_lost += u32::from(lost(Kind::There) && !is_past(self.heard[1]));
            self.full_lost += u32::from(lost(Kind::Full) && !is_past(self.heard[2]));
            let is_whole = !ALL.iter().any(|kind| lost(*kind));
            self.answered_in_a_row = if is_whole { self.answered_in_a_row + 1 } else { 0 };
        }
        let may_be_late = self.is_to_prove() && self.started.is_some_and(|started| now < started + PATIENCE);
        if self.silent >= LOST && !may_be_late {
            self.fault = Some(self.unsent.map_or(Fault::Silent, Fault::Unsent));
        } else if self.full_lost >= LOST && self.silent == 0 {
            let direction = if self.there_lost + 1 >= LOST {
                Direction::There
            } else {
                Direction::Back
            };
            let mut fitting = match self.fault {
                Some(Fault::TooSmall(_, fitting)) => fitting,
                _ => Fitting::below(self.target.length),
            };
            fitting.judge(&round.asked, &round.answered, self.target.length);
            self.fault = Some(Fault::TooSmall(direction, fitting));
        } else if self.answered_in_a_row >= ANSWERED && self.full_lost == 0 && self.fault.take().is_some() {
            self.is_proved = true;
        }
        if self.fault.is_some() && !self.target.in_use {
            self.is_proved = false;
        }
        if !self.is_sure() && !self.is_to_prove() && !self.is_doubted() {
            // The next look is not put off to the next turn.
            self.due = Some(self.due.map_or(now, |due| due.min(now)));
        } else if self.is_sure() && self.due.is_none() && (self.is_watched || !self.target.in_use) {
            self.due = Some(tick(now + WATCH));
        } else if self.is_sure() && !self.is_watched && self.target.in_use {
            self.due = None;
        }
    }

    /// What is known of the lane; `answers_on` is another one on which the peer answers.
    pub(super) fn standing(&self, answers_on: Option<Lane>) -> Option<Standing> {
        let doubt = match self.fault {
            None => return self.is_proved.then_some(Standing::Proved),
            Some(Fault::Silent) => Doubt::Silent { answers_on },
            Some(Fault::Unsent(Unsent::NoNeighbour)) => Doubt::NoNeighbour,
            Some(Fault::Unsent(Unsent::Refused(code))) => Doubt::NotSent { code },
            Some(Fault::TooSmall(direction, fitting)) => Doubt::TooSmall {
                inner: self.target.length,
                outer: self.target.length
                    + self
                        .target
                        .outer
                        .map_or(0, |(source, _)| tunnel_overhead(&source)),
                direction,
                fits: fitting.found(),
            },
        };
        Some(Standing::Doubted(doubt))
    }

    /// Rounds lost of the last 32, in per cent.
    pub(super) const fn loss(&self) -> u32 {
        if self.rounds == 0 {
            return 0;
        }
        (self.losses & (u32::MAX >> (32 - self.rounds))).count_ones() * 100 / self.rounds
    }
}

fn tick(time: Duration) -> Duration {
    let beyond = time.as_nanos() % TICK.as_nanos();
    if beyond == 0 {
        return time;
    }
    time + (TICK - Duration::from_nanos(u64::try_from(beyond).unwrap_or(0)))
}
