//! How a lane is opened, moved to and closed without losing a packet (make before break).
//!
//! Changing from lane A to lane B: every receiver opens B and says so → each sender moves to B once the receiver has said
//! so and its own end is open → nobody sends on A any more → A is closed. Each step reads only what was published and
//! what the kernel holds, so it can be repeated, reversed, and survives the loss of any process.

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

/// The lanes that a node is told to keep open: those that are wanted, and of those that were open before, the ones on which
/// somebody still sends.
pub fn receive_on(
    wanted: &BTreeSet<Lane>,
    before: &BTreeSet<Lane>,
    in_use: &BTreeSet<Lane>,
) -> BTreeSet<Lane> {
    wanted
        .iter()
        .chain(before.intersection(in_use))
        .copied()
        .collect()
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
    fn a_lane_is_kept_open_while_somebody_sends_on_it() {
        let open = receive_on(
            &lanes("native"),
            &lanes("native vxlan:8472:1"),
            &lanes("native vxlan:8472:1"),
        );
        assert_eq!(open, lanes("native vxlan:8472:1"));
        let closed = receive_on(&lanes("native"), &open, &lanes("native"));
        assert_eq!(closed, lanes("native"));
        // What was never open is not opened because others use it.
        assert_eq!(
            receive_on(&lanes("native"), &lanes("native"), &lanes("geneve:6081:1")),
            lanes("native")
        );
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
