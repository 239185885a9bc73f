//! What the node's status says: a pure function of what the node was told and how the pass went.

mod findings;
mod programs;

use crate::pass::Outcome;
use findings::Finding;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use podlane_crds::{
    ConditionType, LaneCounts, MAX_PEERS_IN_STATUS, PeerStatus, RoutingNodeStatus, UnderlayLink, condition,
    reason, set_condition,
};
use podlane_plan::cni::Hindrance;
use podlane_plan::desired::{Assignment, Desired, LocalLink, PeerLane, local_links};
use podlane_plan::lane::{Lane, TunnelProtocol};
use podlane_plan::pair::Refusal;
pub use programs::{Programs, drops_differ};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// What a status speaks of.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// What tells the agent from others on the same node.
    pub instance: Option<&'a str>,
    /// The node's assignment; none: it could not be read, and there is none from before.
    pub assignment: Option<&'a Assignment>,
    /// The generation of the RoutingNode that it is from.
    pub generation: Option<i64>,
    /// Objects that could not be read: why.
    pub unreadable: &'a BTreeMap<String, String>,
    /// What became of the CNI configuration; none: another plugin's connects the pods, or nothing is known of it yet.
    pub connected: Option<&'a Result<String, Hindrance>>,
    /// The node's programs; none: nothing is known of them yet, and what was said before stays.
    pub programs: Option<Programs<'a>>,
}

/// The status after a pass; an `Err` is why the kernel could not be read, and leaves what was said of it before. `before` is
/// the status that was reported last: a condition keeps its time while its status stays.
///
/// The condition Accepted is the operator's and not in it.
pub fn status(
    subject: Subject<'_>,
    outcome: Option<Result<&Outcome, &str>>,
    before: &RoutingNodeStatus,
    now: &Time,
) -> RoutingNodeStatus {
    let mut status = RoutingNodeStatus {
        conditions: own_conditions(&before.conditions),
        ..before.clone()
    };
    // From when the node was told to be without anything of ours.
    let cleaned = ConditionType::Cleaned.to_string();
    status.conditions.retain(|condition| condition.type_ != cleaned);
    status.observed_generation = subject.generation;
    status.agent_version = Some(env!("CARGO_PKG_VERSION").to_owned());
    status.agent_instance = subject.instance.map(str::to_owned);
    let (progressing, hindering) = match (subject.assignment, outcome) {
        (Some(assignment), Some(Ok(outcome))) => {
            tell(&mut status, assignment, outcome);
            if let Some(programs) = &subject.programs {
                programs.tell(&mut status, assignment, outcome);
            }
            let progressing = findings::progressing(assignment, outcome);
            (
                progressing,
                findings::hindering(assignment, outcome, subject.unreadable),
            )
        }
        (_, Some(Err(why))) => (None, vec![Finding::new("KernelUnreadable", why)]),
        _ => (
            None,
            findings::unreadable(subject.unreadable).into_iter().collect(),
        ),
    };
    let moving = match &progressing {
        Some(finding) => (true, finding.reason, finding.message.clone()),
        None => (false, "Settled", "no lane is being opened or moved to".to_owned()),
    };
    let ready = match hindering.first() {
        Some(first) => {
            let messages: Vec<_> = hindering.iter().map(|finding| finding.message.as_str()).collect();
            (false, first.reason, messages.join(". "))
        }
        None => (
            true,
            "AsDeclared",
            as_declared(&status, outcome.and_then(Result::ok)),
        ),
    };
    let pod_network = subject.connected.map(|connected| match connected {
        Ok(how) => (true, "Configured", how.clone()),
        Err(why) => (false, why.reason(), why.to_string()),
    });
    let all = [
        (ConditionType::Progressing, Some(moving)),
        (ConditionType::Ready, Some(ready)),
        (ConditionType::PodNetwork, pod_network),
    ];
    for (kind, said) in all {
        let Some((holds, reason, message)) = said else {
            continue;
        };
        let new = condition(kind, holds, reason, &message, subject.generation, now);
        set_condition(&mut status.conditions, new);
    }
    status
}

/// The status of a node that is to be without anything of ours: nothing of what a routed node says, and how cleaning went.
pub fn cleaned(
    result: &anyhow::Result<()>,
    generation: Option<i64>,
    instance: Option<&str>,
    before: &RoutingNodeStatus,
    now: &Time,
) -> RoutingNodeStatus {
    let mut status = RoutingNodeStatus {
        observed_generation: generation,
        conditions: own_conditions(&before.conditions),
        agent_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        agent_instance: instance.map(str::to_owned),
        ..RoutingNodeStatus::default()
    };
    let pod_network = ConditionType::PodNetwork.to_string();
    status
        .conditions
        .retain(|condition| condition.type_ != pod_network);
    let cleaned = match result {
        Ok(()) => (true, "Cleaned", "nothing of Podlane's is on this node".to_owned()),
        Err(why) => (false, "ItemsLeft", format!("{why:#}")),
    };
    let uninstalled = "Podlane is being uninstalled".to_owned();
    for (kind, (holds, reason, message)) in [
        (ConditionType::Cleaned, cleaned),
        (
            ConditionType::Progressing,
            (false, "Settled", "no lane is being opened or moved to".to_owned()),
        ),
        (ConditionType::Ready, (false, reason::UNINSTALLED, uninstalled)),
    ] {
        let new = condition(kind, holds, reason, &message, generation, now);
        set_condition(&mut status.conditions, new);
    }
    status
}

/// A status as this agent would have written it: without what others have in it.
pub fn own_part(held: &RoutingNodeStatus) -> RoutingNodeStatus {
    RoutingNodeStatus {
        conditions: own_conditions(&held.conditions),
        ..held.clone()
    }
}

fn own_conditions(conditions: &[Condition]) -> Vec<Condition> {
    let own = [
        ConditionType::Cleaned,
        ConditionType::PodNetwork,
        ConditionType::Progressing,
        ConditionType::Ready,
    ]
    .map(|kind| kind.to_string());
    conditions
        .iter()
        .filter(|condition| own.contains(&condition.type_))
        .cloned()
        .collect()
}

fn tell(status: &mut RoutingNodeStatus, assignment: &Assignment, outcome: &Outcome) {
    let desired = &outcome.desired;
    let links = local_links(&assignment.addresses, &outcome.underlay);
    status.underlay = assignment
        .addresses
        .iter()
        .map(|address| underlay_link(address, &links))
        .collect();
    status.receives_on = desired.receives_on.iter().map(Lane::to_string).collect();
    status.sends_on = outcome.sends_on.iter().map(Lane::to_string).collect();
    let counts = counts(desired);
    status.lanes = Some(line(&counts));
    status.counts = Some(counts);
    status.membership = Some(outcome.membership.to_string());
    status.peers = peers(desired);
}

fn underlay_link(address: &IpAddr, links: &[LocalLink]) -> UnderlayLink {
    let link = links.iter().find(|link| link.address == *address);
    UnderlayLink {
        address: address.to_string(),
        prefix_length: link.map(|link| link.prefix_length),
        device: link.map(|link| link.device.clone()),
        mtu: link.map(|link| link.mtu),
    }
}

fn counts(desired: &Desired) -> LaneCounts {
    let mut counts = LaneCounts::default();
    for peer in desired.peers.values() {
        counts.total += 1;
        let count = match &peer.used {
            Ok(Lane::Native) => &mut counts.native,
            Ok(Lane::Underlay) => &mut counts.underlay,
            Ok(Lane::Tunnel(tunnel)) => match tunnel.protocol {
                TunnelProtocol::Vxlan => &mut counts.vxlan,
                TunnelProtocol::Geneve => &mut counts.geneve,
            },
            Err(_) => &mut counts.refused,
        };
        *count += 1;
    }
    counts
}

/// Counts in a line: `2 native, 1 refused`.
fn line(counts: &LaneCounts) -> String {
    let named = [
        (counts.native, "native"),
        (counts.underlay, "underlay"),
        (counts.vxlan, "vxlan"),
        (counts.geneve, "geneve"),
        (counts.refused, "refused"),
    ];
    let parts: Vec<_> = named
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, lane)| format!("{count} {lane}"))
        .collect();
    if parts.is_empty() {
        "no peers".to_owned()
    } else {
        parts.join(", ")
    }
}

/// Those that are not as declared first, each part in the order of names.
fn peers(desired: &Desired) -> Vec<PeerStatus> {
    let others = desired.peers.iter().filter(|(_, peer)| !peer.is_as_wanted());
    let as_wanted = desired.peers.iter().filter(|(_, peer)| peer.is_as_wanted());
    others
        .chain(as_wanted)
        .take(MAX_PEERS_IN_STATUS)
        .map(|(name, peer)| peer_status(name, peer))
        .collect()
}

fn peer_status(name: &str, peer: &PeerLane) -> PeerStatus {
    let refusal: Option<(&Refusal, String)> = match (&peer.used, peer.refused.iter().next()) {
        (Err(refusal), _) => Some((refusal, format!("{name} {refusal}"))),
        (Ok(_), Some((cidr, refusal))) => Some((refusal, format!("{cidr} of {name} {refusal}"))),
        (Ok(_), None) => None,
    };
    let doubt = doubt(peer).map(|doubt| (doubt.reason(), format!("{name} {doubt}")));
    let wanted = peer
        .wanted
        .as_ref()
        .ok()
        .filter(|wanted| peer.used.as_ref() != Ok(wanted));
    let (reason, message) = match (refusal, wanted) {
        (Some((refusal, message)), _) => (Some(refusal.reason()), Some(message)),
        (None, Some(wanted)) => match peer.waits_for.as_ref().filter(|refusal| !refusal.passes()) {
            Some(refusal) => (Some(refusal.reason()), Some(format!("{name} {refusal}"))),
            None => (Some("Moving"), Some(format!("{name} is moving to {wanted}"))),
        },
        (None, None) => match doubt {
            Some((reason, message)) => (Some(reason), Some(message)),
            None => (None, None),
        },
    };
    PeerStatus {
        name: name.to_owned(),
        lane: peer
            .used
            .as_ref()
            .map_or_else(|_| "refused".to_owned(), Lane::to_string),
        wanted: wanted.map(Lane::to_string),
        reason: reason.map(str::to_owned),
        message,
    }
}

/// What probes say against the lane that a peer's packets take.
fn doubt(peer: &PeerLane) -> Option<Refusal> {
    let lane = *peer.used.as_ref().ok()?;
    peer.doubt.map(|why| Refusal::NotProved { lane, why })
}

fn as_declared(status: &RoutingNodeStatus, outcome: Option<&Outcome>) -> String {
    let mut message = format!(
        "the kernel is as declared: {}",
        status.lanes.as_deref().unwrap_or("no peers")
    );
    for note in outcome.into_iter().flat_map(|outcome| &outcome.desired.notes) {
        message.push_str(&format!(". {note}"));
    }
    message
}

#[cfg(test)]
mod tests;
