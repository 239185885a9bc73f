//! How a lane is opened, moved to and closed without losing a packet (make before break).
//!
//! Changing from lane A to lane B: every receiver opens B and says so → each sender moves to B once the receiver has said
//! so and its own end is open → nobody sends on A any more → A is withdrawn from what peers are told → A is closed. Each
//! step reads only what was published and what the kernel holds, so it can be repeated, reversed, and survives the loss
//! of any process.

use crate::lane::Lane;
use crate::pair::Refusal;
use crate::policy::Applied;
use std::collections::BTreeSet;

/// The lanes on which a node may come to receive, given its own policy and those of all other nodes: every lane that
/// [`crate::pair::lane`] can yield for it.
pub fn wanted<'a>(mine: Option<&'a Applied>, all: impl IntoIterator<Item = &'a Applied>) -> BTreeSet<Lane> {
    if mine.is_none() {
        return BTreeSet::new();
    }
    let mut wanted: BTreeSet<Lane> = all
        .into_iter()
        .chain(mine)
        .filter_map(|policy| policy.routing.tunnel_in_use())
        .map(Lane::Tunnel)
        .collect();
    wanted.insert(Lane::Native);
    wanted
}

/// What a node is told, and what may be told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// The lanes that it is to keep open.
    pub receive_on: BTreeSet<Lane>,
    /// The lanes of which peers may be told.
    pub publishable: BTreeSet<Lane>,
    /// Whether a lane is kept that is to be closed later.
    pub is_closing: bool,
}

/// How far all nodes have come with what they were told before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Every node that answers at all has answered the newest that it was told, and nothing newer is on its way.
    pub is_settled: bool,
    /// That has been so for long enough that what peers were told together with it has arrived too.
    pub has_lingered: bool,
}

/// What to tell a node whose lanes `before` are open, given the `wanted` ones, the lanes `in_use` (on which somebody says that it
/// sends) and those `listed` for it in what peers are told now.
///
/// What is wanted is opened at once. What is no longer wanted is closed in three steps, each only when all nodes are doing what
/// they were told: nobody sends on it; peers are no longer told of it; and time has passed since. Skipping one loses packets:
/// a node that has not heard of the newest policy may be about to move to the lane that the others are leaving.
pub fn tell(
    wanted: &BTreeSet<Lane>,
    before: &BTreeSet<Lane>,
    in_use: &BTreeSet<Lane>,
    listed: &BTreeSet<Lane>,
    progress: Progress,
) -> Told {
    let least: BTreeSet<Lane> = wanted
        .iter()
        .chain(before.intersection(in_use))
        .copied()
        .collect();
    let most: BTreeSet<Lane> = wanted.union(before).copied().collect();
    let nothing_to_close = least == most;
    let may_close = progress.is_settled
        && progress.has_lingered
        && most.difference(&least).all(|lane| !listed.contains(lane));
    let is_closing = !(nothing_to_close || may_close);
    Told {
        receive_on: if is_closing { most.clone() } else { least.clone() },
        publishable: if progress.is_settled { least } else { most },
        is_closing,
    }
}

/// The lanes on which peers are told that a node receives: what it says is open, less what it is about to close.
pub fn published(open: &BTreeSet<Lane>, told: &BTreeSet<Lane>) -> BTreeSet<Lane> {
    open.intersection(told).copied().collect()
}

/// The lane on which a sender sends now.
///
/// `wanted` is where it is to go, `current` where its kernel sends at the moment, `open_here` what this node receives on (a
/// tunnel's device also sends), `open_there` what the peer has published. Until the wanted lane is open at both ends, the
/// current one stays, if the peer still receives on it.
///
/// # Errors
/// Why nothing can be sent.
pub fn choose(
    wanted: Result<Lane, Refusal>,
    current: Option<Lane>,
    open_here: &BTreeSet<Lane>,
    open_there: &BTreeSet<Lane>,
) -> Result<Lane, Refusal> {
    let lane = wanted?;
    let open = |lane: Lane, there: bool| {
        if there {
            open_there.contains(&lane.arrives_as())
        } else {
            lane.tunnel().is_none() || open_here.contains(&lane)
        }
    };
    if open(lane, false) && open(lane, true) {
        return Ok(lane);
    }
    match current {
        Some(current) if open(current, false) && open(current, true) => Ok(current),
        _ => Err(Refusal::NotReceiving(lane)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lanes(text: &str) -> BTreeSet<Lane> {
        text.split_whitespace()
            .map(|lane| lane.parse().expect("a lane"))
            .collect()
    }

    fn lane(text: &str) -> Lane {
        text.parse().expect("a lane")
    }

    #[test]
    fn a_lane_is_closed_in_three_steps() {
        let (native, both) = (lanes("native"), lanes("native vxlan:8472:1"));
        let settled = Progress {
            is_settled: true,
            has_lingered: false,
        };
        let lingered = Progress {
            is_settled: true,
            has_lingered: true,
        };
        let unsettled = Progress {
            is_settled: false,
            has_lingered: true,
        };
        for (in_use, listed, progress, receive_on, publishable) in [
            // Somebody sends on it.
            (&both, &both, lingered, &both, &both),
            // Nobody does, but somebody may be about to.
            (&native, &both, unsettled, &both, &both),
            // It is withdrawn, and kept open while that may not have arrived.
            (&native, &both, settled, &both, &native),
            (&native, &both, lingered, &both, &native),
            (&native, &native, settled, &both, &native),
            // It is closed.
            (&native, &native, lingered, &native, &native),
        ] {
            let told = tell(&native, &both, in_use, listed, progress);
            assert_eq!(
                (&told.receive_on, &told.publishable),
                (receive_on, publishable),
                "{told:?}"
            );
            assert_eq!(told.is_closing, in_use == &native && receive_on == &both);
        }
        // What was never open is not opened because others use it; what is wanted is opened at once.
        assert_eq!(
            tell(&native, &native, &lanes("geneve:6081:1"), &native, unsettled).receive_on,
            native
        );
        assert_eq!(tell(&both, &native, &native, &native, unsettled).receive_on, both);
    }

    #[test]
    fn a_sender_moves_only_when_both_ends_are_open() {
        let (native, vxlan) = (lane("native"), lane("vxlan:8472:1"));
        let both = lanes("native vxlan:8472:1");
        let only_native = lanes("native");
        for (here, there, current, expected) in [
            (&both, &both, Some(native), Ok(vxlan)),
            (&both, &only_native, Some(native), Ok(native)),
            (&only_native, &both, Some(native), Ok(native)),
            (&both, &both, None, Ok(vxlan)),
            (&both, &only_native, None, Err(Refusal::NotReceiving(vxlan))),
            (
                &both,
                &only_native,
                Some(lane("geneve:6081:1")),
                Err(Refusal::NotReceiving(vxlan)),
            ),
        ] {
            assert_eq!(choose(Ok(vxlan), current, here, there), expected);
        }
        assert_eq!(
            choose(Err(Refusal::OffLink), Some(native), &both, &both),
            Err(Refusal::OffLink)
        );
    }
}
