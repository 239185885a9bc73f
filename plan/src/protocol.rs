//! How a lane is opened, moved to and closed without losing a packet (make before break).
//!
//! Changing from lane A to lane B: every receiver opens B and says so → each sender moves to B once the receiver has said
//! so, its own end is open and a probe over B was answered ([`crate::probes`]) → nobody sends on A any more → A is withdrawn
//! from what peers are told → A is closed. Each step reads only what was published, what the kernel holds and what probes
//! showed, so it can be repeated, reversed, and survives the loss of any process.

use crate::lane::Lane;
use crate::pair::Refusal;
use crate::policy::{Applied, OffLinkPeers, RoutingMode};
use crate::probes::Doubt;
use std::collections::BTreeSet;

/// The lanes on which a node may come to receive, given its own policy and those of all other nodes: every lane that
/// [`crate::pair::lane`] can yield for it.
///
/// Packets as they are can come from the link ([`Lane::Native`]) or through gateways ([`Lane::Underlay`], which senders find open where
/// `Native` is). The two are told apart because a receiver can check where the former come from, and nothing of the latter.
pub fn wanted<'a>(mine: Option<&'a Applied>, all: impl IntoIterator<Item = &'a Applied>) -> BTreeSet<Lane> {
    let mut wanted = BTreeSet::new();
    let Some(mine) = mine else { return wanted };
    for policy in all.into_iter().chain([mine]) {
        let routing = &policy.routing;
        wanted.extend(routing.tunnel_in_use().map(Lane::Tunnel));
        if routing.routing_mode == RoutingMode::Native {
            // Not on the link as this node sees it, a peer may be so as the other sees it.
            wanted.insert(Lane::Native);
            if routing.off_link_peers == OffLinkPeers::Underlay {
                wanted.insert(Lane::Underlay);
            }
        }
    }
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
/// tunnel's device also sends), `open_there` what the peer has published, `doubt` what speaks against the wanted lane: none where
/// it has been proved, or cannot be. Until the wanted lane is open at both ends and proved, the current one stays, if the peer
/// still receives on it. A lane that packets take already needs no proof: to leave it would lose them for certain.
///
/// # Errors
/// Why nothing can be sent.
pub fn choose(
    wanted: Result<Lane, Refusal>,
    current: Option<Lane>,
    open_here: &BTreeSet<Lane>,
    open_there: &BTreeSet<Lane>,
    doubt: Option<Doubt>,
) -> Result<Lane, Refusal> {
    let lane = wanted?;
    let open = |lane: Lane, there: bool| {
        if there {
            open_there.contains(&lane.arrives_as())
        } else {
            lane.tunnel().is_none() || open_here.contains(&lane)
        }
    };
    let refusal = match doubt.filter(|_| current != Some(lane)) {
        _ if !(open(lane, false) && open(lane, true)) => Refusal::NotReceiving(lane),
        None => return Ok(lane),
        Some(why) => Refusal::NotProved { lane, why },
    };
    match current {
        Some(current) if open(current, false) && open(current, true) => Ok(current),
        _ => Err(refusal),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Rank, Routing};

    fn lanes(text: &str) -> BTreeSet<Lane> {
        text.split_whitespace()
            .map(|lane| lane.parse().expect("a lane"))
            .collect()
    }

    fn lane(text: &str) -> Lane {
        text.parse().expect("a lane")
    }

    #[test]
    fn what_no_policy_may_use_is_not_wanted() {
        let policy = |routing_mode, off_link_peers| Applied {
            rank: Rank {
                priority: 0,
                created: 0,
                name: String::new(),
            },
            routing: Routing {
                routing_mode,
                auto_direct_node_routes: true,
                off_link_peers,
                tunnel: lane("vxlan:8472:1").tunnel().expect("a tunnel"),
            },
        };
        let tunnel = policy(RoutingMode::Tunnel, OffLinkPeers::Refuse);
        let [refuse, hybrid, underlay] = [OffLinkPeers::Refuse, OffLinkPeers::Tunnel, OffLinkPeers::Underlay]
            .map(|off_link| policy(RoutingMode::Native, off_link));
        for (all, expected) in [
            (&[&tunnel][..], "vxlan:8472:1"),
            (&[&refuse], "native"),
            (&[&hybrid], "native vxlan:8472:1"),
            (&[&underlay], "native underlay"),
            (&[&tunnel, &underlay], "native underlay vxlan:8472:1"),
        ] {
            assert_eq!(wanted(Some(all[0]), all.iter().copied()), lanes(expected));
        }
        assert_eq!(wanted(None, [&tunnel]), BTreeSet::new());
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
            assert_eq!(choose(Ok(vxlan), current, here, there, None), expected);
        }
        assert_eq!(
            choose(Err(Refusal::OffLink), Some(native), &both, &both, None),
            Err(Refusal::OffLink)
        );
    }

    #[test]
    fn a_sender_moves_only_to_a_lane_that_is_proved() {
        let (native, vxlan) = (lane("native"), lane("vxlan:8472:1"));
        let both = lanes("native vxlan:8472:1");
        let only_vxlan = lanes("vxlan:8472:1");
        let refusal = |why| Err(Refusal::NotProved { lane: vxlan, why });
        for doubt in [Doubt::Untried, Doubt::Silent { answers_on: None }] {
            for (there, current, expected) in [
                (&both, Some(native), Ok(native)),
                (&both, None, refusal(doubt)),
                (&only_vxlan, Some(native), refusal(doubt)),
                // It is on that lane, and stays.
                (&both, Some(vxlan), Ok(vxlan)),
            ] {
                assert_eq!(
                    choose(Ok(vxlan), current, &both, there, Some(doubt)),
                    expected,
                    "{current:?}"
                );
            }
        }
    }
}
