//! Conditions, as Kubernetes' API conventions want them.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use std::fmt;

/// The types of condition that Podlane sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConditionType {
    /// The object makes sense, by itself and together with the others.
    Accepted,
    /// A change is being carried out.
    Progressing,
    /// Everything is as declared.
    Ready,
    /// The node's pods are connected: its CNI configuration is there. Absent where another network plugin connects them.
    PodNetwork,
    /// Nothing of Podlane's is on the node any more. Absent unless that is asked for.
    Cleaned,
}

impl fmt::Display for ConditionType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Accepted => "Accepted",
            Self::Progressing => "Progressing",
            Self::Ready => "Ready",
            Self::PodNetwork => "PodNetwork",
            Self::Cleaned => "Cleaned",
        })
    }
}

/// Reasons that operator and agents both have to know.
pub mod reason {
    /// Everything is as declared.
    pub const AS_DECLARED: &str = "AsDeclared";
    /// A lane's device is being opened. Ends by itself.
    pub const OPENING: &str = "Opening";
    /// A peer is being moved to another lane. Ends by itself.
    pub const MOVING: &str = "Moving";
    /// The node is, or is to be, without anything of Podlane's: it is being uninstalled.
    pub const UNINSTALLED: &str = "Uninstalled";
}

/// The longest message that the API takes (metav1.Condition: 32768), less a margin.
const LONGEST_MESSAGE: usize = 32_000;

/// A condition as of `now`. A message that is too long is cut, and says so.
pub fn condition(
    kind: ConditionType,
    holds: bool,
    reason: &str,
    message: &str,
    observed_generation: Option<i64>,
    now: &Time,
) -> Condition {
    let mut message = message.to_owned();
    if message.len() > LONGEST_MESSAGE {
        let end = (0..=LONGEST_MESSAGE)
            .rev()
            .find(|end| message.is_char_boundary(*end))
            .unwrap_or(0);
        message.truncate(end);
        message.push_str(" … (cut)");
    }
    Condition {
        type_: kind.to_string(),
        status: if holds { "True" } else { "False" }.to_owned(),
        reason: reason.to_owned(),
        message,
        observed_generation,
        last_transition_time: now.clone(),
    }
}

/// Puts a condition in its place. The time of the last transition stays while the status does.
pub fn set_condition(conditions: &mut Vec<Condition>, mut new: Condition) {
    match conditions.iter_mut().find(|old| old.type_ == new.type_) {
        Some(old) => {
            if old.status == new.status {
                new.last_transition_time = old.last_transition_time.clone();
            }
            *old = new;
        }
        None => {
            conditions.push(new);
            conditions.sort_by(|a, b| a.type_.cmp(&b.type_));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Time {
        Time(k8s_openapi::jiff::Timestamp::from_second(second).expect("a time"))
    }

    #[test]
    fn the_time_of_transition_moves_only_with_the_status() {
        let mut conditions = Vec::new();
        set_condition(
            &mut conditions,
            condition(ConditionType::Ready, false, "Opening", "", Some(1), &at(1)),
        );
        set_condition(
            &mut conditions,
            condition(ConditionType::Ready, false, "OffLink", "", Some(1), &at(2)),
        );
        assert_eq!(
            (
                conditions[0].last_transition_time.clone(),
                conditions[0].reason.as_str()
            ),
            (at(1), "OffLink")
        );
        set_condition(
            &mut conditions,
            condition(ConditionType::Ready, true, "AsDeclared", "", Some(1), &at(3)),
        );
        assert_eq!(
            (conditions.len(), conditions[0].last_transition_time.clone()),
            (1, at(3))
        );
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let long = "é".repeat(LONGEST_MESSAGE);
        let cut = condition(ConditionType::Ready, true, "R", &long, None, &at(1)).message;
        assert!(cut.len() < 32_768 && cut.ends_with("(cut)"));
    }
}
