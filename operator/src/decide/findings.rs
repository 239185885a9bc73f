//! What is not as declared, in words that say what to do.

use super::View;
use super::cover::cover;
use super::govern::Tally;
use super::readiness::{Assessment, Refused, Wait};
use super::words::{agree, count, list};
use crate::world::{PolicyRecord, ROLLOUT_STOPPED, Rollout};
use podlane_crds::reason::MOVING;
use podlane_plan::cni::FOREIGN;
use std::collections::BTreeMap;
use std::sync::Arc;

/// One thing that is not as declared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    /// In a word.
    pub(super) reason: String,
    /// In a line.
    pub(super) summary: String,
    /// What to do, where the summary does not say it.
    pub(super) advice: String,
}

/// What is wrong with Nodes and RoutingNodes themselves: nothing that waiting would mend.
pub(super) fn of_nodes(view: &View<'_>, assessment: &Assessment<'_>) -> Vec<Finding> {
    let name = |place: usize| view.world.nodes.all()[place].name.as_str();
    let mut by_reason: BTreeMap<&str, Vec<(usize, String)>> = BTreeMap::new();
    for (place, problem) in &assessment.problems {
        by_reason
            .entry(problem.reason())
            .or_default()
            .push((*place, format!("{} {problem}", name(*place))));
    }
    let mut findings: Vec<_> = by_reason
        .into_iter()
        .map(|(reason, nodes)| {
            let mut names: Vec<_> = nodes.iter().map(|(place, _)| name(*place)).collect();
            names.dedup();
            let one = names.len();
            let what = match reason {
                "NoInternalIP" => agree(one, "has no InternalIP", "have no InternalIP"),
                "NoPodCIDR" => agree(one, "has no pod CIDR", "have no pod CIDR"),
                "PodCIDRPoolEmpty" => agree(
                    one,
                    "has no pod CIDR, because the pool is empty",
                    "have no pod CIDR, because the pool is empty",
                ),
                "PodCIDROverlap" => agree(
                    one,
                    "has a pod CIDR that overlaps another node's",
                    "have pod CIDRs that overlap other nodes'",
                ),
                "PodCIDRCoversNode" => agree(
                    one,
                    "has a pod CIDR that covers a node's address",
                    "have pod CIDRs that cover nodes' addresses",
                ),
                _ => agree(
                    one,
                    "has an unreadable address or pod CIDR",
                    "have unreadable addresses or pod CIDRs",
                ),
            };
            let advice: Vec<&str> = nodes.iter().take(3).map(|(_, text)| text.as_str()).collect();
            Finding {
                reason: reason.to_owned(),
                summary: format!("{} {what}", list(names)),
                advice: advice.join("; "),
            }
        })
        .collect();
    if !assessment.unfit.is_empty() {
        let names = assessment.unfit.iter().map(|(place, _)| name(*place));
        let each = assessment.unfit.iter().take(3);
        let each: Vec<String> = each
            .map(|(place, why)| format!("{} {why}", name(*place)))
            .collect();
        findings.push(Finding {
            reason: "NodeUnfit".to_owned(),
            summary: format!("{} can have no agent", list(names)),
            advice: format!(
                "{}; or have the policy's nodeSelector leave it out",
                each.join("; ")
            ),
        });
    }
    if let Some((place, why)) = assessment.unreadable.first() {
        let names = assessment.unreadable.iter().map(|(place, _)| name(*place));
        findings.push(Finding {
            reason: "Unreadable".to_owned(),
            summary: format!(
                "the {} of {} cannot be read",
                agree(assessment.unreadable.len(), "RoutingNode", "RoutingNodes"),
                list(names)
            ),
            advice: format!("{}: {why}; delete it, and it is written anew", name(*place)),
        });
    }
    findings
}

/// Where packets are carried as declared, but by the kernel's drivers alone: a sentence for whoever wonders about speed and checks.
pub(super) fn without_programs(view: &View<'_>, assessment: &Assessment<'_>) -> Option<String> {
    let name = |place: usize| view.world.nodes.all()[place].name.as_str();
    let (first, why) = assessment.without_programs.first()?;
    let names = assessment.without_programs.iter().map(|(place, _)| name(*place));
    Some(format!(
        "On {} the kernel's drivers encapsulate, without eBPF programs; {} says: {why}",
        list(names),
        name(*first)
    ))
}

/// Where another network plugin connects pods though Podlane is to, in a line and in a sentence: packets go as declared all the same.
pub(super) fn other_plugins(view: &View<'_>, tally: &Tally<'_>) -> Option<(String, String)> {
    let name = |place: usize| view.world.nodes.all()[place].name.as_str();
    let said = |place: &usize| {
        let report = view.world.routing_nodes.get(name(*place))?.report.as_ref()?;
        let (_, reason, message) = report.pod_network.as_ref()?;
        (**reason == *FOREIGN).then_some((name(*place), &**message))
    };
    let nodes: Vec<(&str, &str)> = tally.governed.iter().filter_map(said).collect();
    let (first, message) = nodes.first()?;
    let summary = format!(
        "another network plugin connects the pods of {}",
        list(nodes.iter().map(|(name, _)| name))
    );
    let sentence = format!(
        "{}, and Podlane writes no CNI configuration there: if that is how it is to be, helm upgrade with --set cni.install=false; if not, \
         remove the other's. {first} says: {message}",
        summary.replacen('a', "A", 1)
    );
    Some((summary, sentence))
}

/// A rollout of agents that has stopped: at one of the policy's nodes, or at none in particular.
pub(super) fn of_rollout(view: &View<'_>, record: &PolicyRecord, tally: &Tally<'_>) -> Option<Finding> {
    let (summary, advice) = match &view.world.rollout {
        Rollout::Goes => return None,
        Rollout::Unknown if record.says_that_rollout_has_stopped() => (
            "the rollout of agents has stopped".to_owned(),
            "The operator that leads since a moment has yet to look where".to_owned(),
        ),
        Rollout::Unknown => return None,
        Rollout::Stopped(stopped) => {
            let place = match &stopped.node {
                Some(node) => {
                    let place = view.world.nodes.place(node).ok()?;
                    tally.governed.contains(&place).then(|| format!(" at {node}"))?
                }
                None if tally.governed.is_empty() => return None,
                None => String::new(),
            };
            let others = match stopped.left {
                1 => "1 other agent is left as it was",
                left => &format!("{left} other agents are left as they were"),
            };
            let advice = match (&stopped.node, stopped.left) {
                // Perhaps nobody is upgrading, and this node has lost its agent since.
                (Some(_), 0) => {
                    "No other is to be replaced: look at this one; if its version is to blame, helm rollback"
                }
                (None, 0) => "Mend what it names, or helm rollback",
                _ => &format!("{others}; roll back with helm rollback or forward to what works"),
            };
            (
                format!("the rollout of agents has stopped{place}"),
                format!("{}. {advice}", stopped.why),
            )
        }
    };
    Some(Finding {
        reason: ROLLOUT_STOPPED.to_owned(),
        summary,
        advice,
    })
}

/// Peers that are not reached, and nodes that say of themselves what they lack: the most frequent reason first.
pub(super) fn of_lanes(view: &View<'_>, assessment: &Assessment<'_>) -> Vec<Finding> {
    let mut findings = of_refusals(view, &assessment.refused);
    let mut faults: BTreeMap<&str, Vec<(&str, &str)>> = BTreeMap::new();
    for (place, reason, message) in &assessment.faults {
        let name = view.world.nodes.all()[*place].name.as_str();
        faults.entry(reason).or_default().push((name, message));
    }
    findings.extend(faults.into_iter().map(|(reason, nodes)| Finding {
        reason: reason.to_owned(),
        summary: format!(
            "{} {} not as declared ({reason})",
            list(nodes.iter().map(|(name, _)| name)),
            agree(nodes.len(), "is", "are")
        ),
        advice: format!("{} says: {}", nodes[0].0, nodes[0].1),
    }));
    findings
}

/// Peers that are not reached, by reason.
pub(super) fn of_refusals(view: &View<'_>, refused: &[Refused<'_>]) -> Vec<Finding> {
    let mut by_reason: Vec<(&Arc<str>, Vec<Refused<'_>>)> = Vec::new();
    for refused in refused {
        let reason = &refused.trouble.reason;
        match by_reason.iter_mut().find(|(known, _)| Arc::ptr_eq(known, reason)) {
            Some((_, of_reason)) => of_reason.push(*refused),
            None => by_reason.push((reason, vec![*refused])),
        }
    }
    by_reason.sort_by_key(|(reason, refused)| (std::cmp::Reverse(refused.len()), *reason));
    by_reason
        .into_iter()
        .map(|(reason, refused)| of_refusal(view, reason, &refused))
        .collect()
}

fn of_refusal(view: &View<'_>, reason: &str, refused: &[Refused<'_>]) -> Finding {
    let name = |number: u32| view.world.names.name(number);
    let (culprits, peers): (Vec<u32>, _) = if is_of_the_observer(reason) {
        let mut observers: Vec<u32> = refused.iter().map(|refused| refused.observer).collect();
        observers.sort_by_key(|observer| name(*observer));
        observers.dedup();
        (
            observers,
            format!("{} not reached as declared", count(refused.len(), "peer")),
        )
    } else {
        let pairs: Vec<_> = refused
            .iter()
            .map(|refused| (refused.observer, refused.trouble.peer))
            .collect();
        let culprits = cover(&pairs, name);
        let most = culprits
            .iter()
            .map(|culprit| culprit.refused_by)
            .max()
            .unwrap_or(0);
        let nodes: Vec<u32> = culprits.iter().map(|culprit| culprit.node).collect();
        let by = match reason {
            MOVING => "by",
            "LaneNotProved" | "LaneSilent" | "LaneTooSmall" => "seen by",
            _ => "refused by",
        };
        (nodes, format!("{by} {}", count(most, "node")))
    };
    let what = words(reason, culprits.len());
    // The clearest example: what another node says of the first culprit, or else what that one says of another.
    let first = culprits.first().copied();
    let example = refused
        .iter()
        .filter(|refused| Some(refused.trouble.peer) == first)
        .min_by_key(|refused| name(refused.observer))
        .or_else(|| refused.iter().find(|refused| Some(refused.observer) == first));
    Finding {
        reason: reason.to_owned(),
        summary: format!(
            "{} {what}: {peers}",
            list(culprits.iter().map(|culprit| name(*culprit)))
        ),
        advice: example.map_or_else(String::new, |example| {
            let (peer, message) = (name(example.trouble.peer), &example.trouble.message);
            let peer = if message.starts_with(peer) {
                String::new()
            } else {
                format!("{peer} ")
            };
            format!("{} says: {peer}{message}", name(example.observer))
        }),
    }
}

/// Whether a refusal with this reason has its cause at the node that refuses.
fn is_of_the_observer(reason: &str) -> bool {
    matches!(
        reason,
        "NoDevice" | "ForeignRoute" | "NoUnderlayRoute" | "ProbesNotSent"
    )
}

fn words(reason: &str, number: usize) -> String {
    let (one, several) = match reason {
        "OffLink" => ("is off-link", "are off-link"),
        "NoPolicy" => ("is governed by no policy", "are governed by no policy"),
        "NoCommonFamily" => (
            "has no address family in common with its peers",
            "have no address family in common with their peers",
        ),
        "PeerNotReceiving" => (
            "does not receive on the lane yet",
            "do not receive on the lane yet",
        ),
        "PeerNotReported" => (
            "has not reported its links yet",
            "have not reported their links yet",
        ),
        MOVING => (
            "is still reached over another lane",
            "are still reached over another lane",
        ),
        "LaneNotProved" => (
            "has yet to answer the first probe on a lane",
            "have yet to answer the first probe on a lane",
        ),
        "LaneSilent" => ("does not answer on its lane", "do not answer on their lanes"),
        "ProbesNotSent" => (
            "has a kernel that sends no probes",
            "have kernels that send no probes",
        ),
        "LaneTooSmall" => (
            "gets no full-size packets through on its lane",
            "get no full-size packets through on their lanes",
        ),
        "NoDevice" => ("cannot open a tunnel device", "cannot open a tunnel device"),
        "ForeignRoute" => (
            "has a route that is not Podlane's in the place of ours",
            "have routes that are not Podlane's in the place of ours",
        ),
        "NoUnderlayRoute" => ("has no route to a peer", "have no route to a peer"),
        "PodCIDRCoversUnderlay" => (
            "has a pod CIDR that covers the underlay",
            "have pod CIDRs that cover the underlay",
        ),
        _ => {
            return format!(
                "{} not reached as declared ({reason})",
                agree(number, "is", "are")
            );
        }
    };
    agree(number, one, several).to_owned()
}

/// Whom is being waited for, and for what.
pub(super) fn waits(view: &View<'_>, assessment: &Assessment<'_>) -> Option<Finding> {
    let mut by_wait: BTreeMap<Wait, Vec<&str>> = BTreeMap::new();
    for (place, wait) in &assessment.waiting {
        by_wait
            .entry(*wait)
            .or_default()
            .push(&view.world.nodes.all()[*place].name);
    }
    let (first, _) = by_wait.first_key_value()?;
    let reason = match first {
        Wait::Silent | Wait::Behind => "AgentSilent",
        Wait::Moving | Wait::Counting | Wait::Untold => "NotSettled",
    };
    let names: std::collections::BTreeSet<&str> = by_wait.values().flatten().copied().collect();
    let advice: Vec<String> = by_wait
        .iter()
        .map(|(wait, names)| {
            let one = names.len();
            let what = match wait {
                Wait::Silent => agree(
                    one,
                    "has never had an answer from its agent: see that podlane-agent runs there",
                    "have never had an answer from their agents: see that podlane-agent runs there",
                ),
                Wait::Behind => agree(
                    one,
                    "has yet to answer what it was told: look at its podlane-agent if that does not end",
                    "have yet to answer what they were told: look at their podlane-agents if that does not end",
                ),
                Wait::Moving => agree(one, "is changing lanes", "are changing lanes"),
                Wait::Counting => agree(
                    one,
                    "has yet to hear what the other nodes are now",
                    "have yet to hear what the other nodes are now",
                ),
                Wait::Untold => agree(one, "has yet to be told", "have yet to be told"),
            };
            format!("{} {what}", list(names))
        })
        .collect();
    Some(Finding {
        reason: reason.to_owned(),
        summary: format!("waiting for {}", list(names)),
        advice: advice.join("; "),
    })
}
