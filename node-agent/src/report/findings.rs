//! What keeps a node from being as declared, most telling first.

use crate::pass::Outcome;
use podlane_plan::desired::{Assignment, Note};
use podlane_plan::pair::Refusal;
use std::collections::BTreeMap;

/// Names or operations that a message lists, at most.
const LISTED: usize = 5;

/// One thing, with a reason as metav1.Condition wants one and a sentence that says what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) reason: &'static str,
    pub(super) message: String,
}

impl Finding {
    pub(super) fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
        }
    }
}

/// What is under way and ends by itself.
pub(super) fn progressing(assignment: &Assignment, outcome: &Outcome) -> Option<Finding> {
    let desired = &outcome.desired;
    let unavailable = desired
        .notes
        .iter()
        .any(|note| matches!(note, Note::NoDevice { .. } | Note::ForeignDevice { .. }));
    let unopened = assignment.receive_on.difference(&desired.receives_on).next();
    if let Some(lane) = unopened.filter(|_| !unavailable) {
        return Some(Finding::new(
            "Opening",
            format!("{lane} is being opened for receiving"),
        ));
    }
    let moving: Vec<_> = desired
        .peers
        .iter()
        .filter(|(_, peer)| match (&peer.wanted, &peer.used) {
            (Ok(wanted), Ok(used)) => wanted != used && peer.waits_for.as_ref().is_none_or(Refusal::passes),
            (_, Err(refusal)) => refusal.passes(),
            (Err(_), Ok(_)) => false,
        })
        .map(|(name, _)| name.as_str())
        .collect();
    (!moving.is_empty()).then(|| {
        Finding::new(
            "Moving",
            format!("the lane to {} is being moved to", listed(&moving)),
        )
    })
}

/// Everything that keeps the node from being as declared.
pub(super) fn hindering(
    assignment: &Assignment,
    outcome: &Outcome,
    unreadable_objects: &BTreeMap<String, String>,
) -> Vec<Finding> {
    let desired = &outcome.desired;
    let mut found: Vec<Finding> = desired
        .notes
        .iter()
        .filter(|note| hinders(note))
        .map(|note| Finding::new(note.reason(), note.to_string()))
        .collect();
    found.truncate(LISTED);
    found.extend(not_applied(outcome));
    found.extend(unreadable(unreadable_objects));
    if assignment.policy.is_none() {
        let message = "no RoutingPolicy governs this node: apply one whose nodeSelector selects it";
        found.push(Finding::new(Refusal::NoPolicy.reason(), message));
    } else {
        found.extend(unreached(outcome));
    }
    if found.is_empty() {
        found.extend(progressing(assignment, outcome));
    }
    found
}

/// Notes that say that something is not as declared. The others say how it is as declared.
const fn hinders(note: &Note) -> bool {
    match note {
        Note::AddressNotFound(_)
        | Note::MtuTooSmall { .. }
        | Note::ForeignDevice { .. }
        | Note::NoDevice { .. }
        | Note::ForeignRouteWithin { .. }
        | Note::ForeignTable
        | Note::SameAddress { .. } => true,
        Note::MtuBeyondUnderlay { .. }
        | Note::CoverSkipped { .. }
        | Note::WithoutPrograms { .. }
        | Note::NoBypass { .. }
        | Note::PodsOnUnderlay(_) => false,
    }
}

fn not_applied(outcome: &Outcome) -> Option<Finding> {
    let told: Vec<_> = outcome
        .unfinished
        .iter()
        .take(LISTED)
        .map(|left| format!("{}: {}", left.what, left.why))
        .collect();
    match (outcome.unfinished.len(), outcome.settled) {
        (0, true) => None,
        // The plan says why where a device cannot be opened; then nothing is left of it to do.
        (0, false) => Some(Finding::new(
            "NotInSync",
            "the kernel changes again as soon as it is as declared: look for what else writes routes on this node (ip monitor)",
        )),
        (count, _) if count > LISTED => {
            let message = format!(
                "{} operations had no effect: {} and so on",
                count,
                told.join("; ")
            );
            Some(Finding::new("NotApplied", message))
        }
        _ => Some(Finding::new("NotApplied", told.join("; "))),
    }
}

/// Objects that could not be read.
pub(super) fn unreadable(objects: &BTreeMap<String, String>) -> Option<Finding> {
    let told: Vec<_> = objects
        .iter()
        .take(LISTED)
        .map(|(object, why)| format!("{object} ({why})"))
        .collect();
    let more = if objects.len() > LISTED {
        format!(" and {} more", objects.len() - LISTED)
    } else {
        String::new()
    };
    (!objects.is_empty()).then(|| {
        let message = format!(
            "what the operator published cannot be read and its last good version stays in force: {}{more}. Is one of \
             operator and agent much older than the other?",
            told.join("; ")
        );
        Finding::new("Unreadable", message)
    })
}

/// Peers that are refused, by reason; those that no policy governs are nobody's concern.
fn unreached(outcome: &Outcome) -> Vec<Finding> {
    let mut by_reason: BTreeMap<(bool, &'static str), (Vec<&str>, String)> = BTreeMap::new();
    for (name, peer) in &outcome.desired.peers {
        let partly = peer
            .refused
            .iter()
            .next()
            .map(|(cidr, refusal)| (refusal, format!("{cidr} of {name} {refusal}")));
        let wholly = peer
            .used
            .as_ref()
            .err()
            .map(|refusal| (refusal, format!("{name} {refusal}")));
        let doubt = super::doubt(peer).or_else(|| {
            // Packets go on over another lane, for as long as this one carries none.
            let waits_for = peer.waits_for.clone();
            waits_for.filter(|refusal| matches!(refusal, Refusal::NotProved { .. }) && !refusal.passes())
        });
        let doubted = doubt
            .as_ref()
            .map(|refusal| (refusal, format!("{name} {refusal}")));
        let Some((refusal, sentence)) = wholly.or(partly).or(doubted) else {
            continue;
        };
        if *refusal == Refusal::NoPolicy {
            continue;
        }
        // What passes by itself is told last.
        let (names, _) = by_reason
            .entry((refusal.passes(), refusal.reason()))
            .or_insert_with(|| (Vec::new(), sentence));
        names.push(name);
    }
    by_reason
        .into_iter()
        .map(|((_, reason), (names, sentence))| match names.as_slice() {
            [_] => Finding::new(reason, sentence),
            names => Finding::new(reason, format!("of {}, each: {sentence}", listed(names))),
        })
        .collect()
}

/// `a, b, c and 4 more`.
pub(super) fn listed(names: &[&str]) -> String {
    let shown = names[..names.len().min(LISTED)].join(", ");
    match names.len().checked_sub(LISTED) {
        Some(more) if more > 0 => format!("{shown} and {more} more"),
        _ => shown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lists_are_cut_and_counted() {
        assert_eq!(listed(&["a", "b"]), "a, b");
        assert_eq!(listed(&["a", "b", "c", "d", "e"]), "a, b, c, d, e");
        assert_eq!(
            listed(&["a", "b", "c", "d", "e", "f", "g"]),
            "a, b, c, d, e and 2 more"
        );
    }
}
