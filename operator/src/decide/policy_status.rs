//! The status of a policy: its conditions, its counts and one line that says what is not as declared.

use super::View;
use super::findings::{self, Finding};
use super::govern::Tally;
use super::readiness::{Assessment, assess};
use super::words::{agree, count, list};
use crate::world::PolicyRecord;
use crate::write::{Event, What, Write};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use podlane_crds::{ConditionType, NodeCounts, RoutingPolicyStatus, condition, set_condition};

/// The reason while a change is being carried out.
const PROGRESSING: &str = "Progressing";
/// The reason of Progressing=False after a change that took too long.
const DEADLINE: &str = "DeadlineExceeded";
/// The note of an event, at most, in bytes (events.k8s.io: 1 kB).
const LONGEST_NOTE: usize = 1000;

/// How long a change may take before what stands in its way is named: each agent's turn, and room for a slow API server.
fn patience(nodes: usize) -> SignedDuration {
    SignedDuration::from_secs(10) + SignedDuration::from_millis(10) * i32::try_from(nodes).unwrap_or(i32::MAX)
}

/// The write of a policy's status, where it differs; and when to look again, though nothing happens until then.
pub(super) fn write(
    view: &View<'_>,
    name: &str,
    record: &PolicyRecord,
) -> (Option<Write>, Option<Timestamp>) {
    let nobody = Tally::default();
    let tally = view.governed.tallies.get(name).unwrap_or(&nobody);
    let assessment = assess(view, record, tally);
    let verdict = Verdict::of(view, name, record, tally, &assessment);
    let again = verdict.patient_until;
    let status = status(view, record, tally, &assessment, verdict);
    let write = (status != record.status).then(|| Write {
        name: name.to_owned(),
        events: events(&record.status.conditions, &status.conditions),
        what: What::PolicyStatus {
            uid: record.identity.uid.clone(),
            status: Box::new(status),
        },
    });
    (write, again)
}

/// What is to be said of a policy.
#[derive(Debug, Default)]
struct Verdict {
    /// What is not as declared, the gravest first.
    findings: Vec<Finding>,
    /// Whether a change is being carried out.
    is_progressing: bool,
    /// Whether a change has taken too long.
    is_late: bool,
    /// Until when nothing is said of what stands in the way of a change.
    patient_until: Option<Timestamp>,
}

impl Verdict {
    fn of(
        view: &View<'_>,
        name: &str,
        record: &PolicyRecord,
        tally: &Tally<'_>,
        assessment: &Assessment<'_>,
    ) -> Self {
        let mut findings = Vec::new();
        if let Some(fault) = &record.fault {
            findings.push(Finding {
                reason: fault.reason.to_owned(),
                summary: format!("generation {} is not in force", record.identity.generation),
                advice: accepted(view, record, tally).1,
            });
        }
        if !tally.tied.is_empty() {
            findings.push(Finding {
                reason: "TiedRank".to_owned(),
                summary: format!(
                    "of equal rank with {} on {}",
                    list(&tally.tied_with),
                    names(view, &tally.tied)
                ),
                advice: "give one of them another priority".to_owned(),
            });
        }
        if tally.governed.is_empty() && findings.is_empty() {
            findings.push(no_nodes(tally));
        }
        findings.extend(findings::of_nodes(view, assessment));
        findings.extend(findings::of_rollout(view, record, tally));

        let is_busy = !(assessment.waiting.is_empty() && assessment.not_yet.is_empty());
        let old = find(&record.status.conditions, ConditionType::Progressing);
        // Each change of the policy has the whole of that time.
        let since = old
            .filter(|old| old.status == "True")
            .map_or(view.now, |old| old.last_transition_time.0)
            .max(view.world.decided_since(name).unwrap_or(view.now));
        let is_same_change = record.status.observed_generation == Some(record.identity.generation);
        let was_late = is_same_change && old.is_some_and(|old| old.reason == DEADLINE);
        let until = since + patience(tally.governed.len());
        let is_late = is_busy && (was_late || until <= view.now);
        let is_patient = is_busy && !is_late;
        if !is_patient {
            findings.extend(findings::of_lanes(view, assessment));
            findings.extend(findings::of_refusals(view, &assessment.not_yet));
            findings.extend(findings::waits(view, assessment));
        }
        Self {
            findings,
            is_progressing: is_patient,
            is_late,
            patient_until: is_patient.then_some(until),
        }
    }
}

fn no_nodes(tally: &Tally<'_>) -> Finding {
    let (summary, advice) = if tally.selected == 0 {
        (
            "selects no node".to_owned(),
            "correct its nodeSelector, or label the nodes".to_owned(),
        )
    } else {
        (
            format!("gives way to {} everywhere", list(tally.gives_way.keys())),
            "the higher priority goes first, then the older policy".to_owned(),
        )
    };
    Finding {
        reason: "NoNodes".to_owned(),
        summary,
        advice,
    }
}

fn status(
    view: &View<'_>,
    record: &PolicyRecord,
    tally: &Tally<'_>,
    assessment: &Assessment<'_>,
    verdict: Verdict,
) -> RoutingPolicyStatus {
    let governed = tally.governed.len();
    let ready_of = format!("{}/{governed}", assessment.ready);
    let progress = || {
        let waits = findings::waits(view, assessment);
        let not_yet = findings::of_refusals(view, &assessment.not_yet);
        let all: Vec<_> = waits.iter().chain(&not_yet).collect();
        (
            all.first()
                .map_or_else(String::new, |first| first.summary.clone()),
            all.iter()
                .map(|finding| sentence(finding))
                .collect::<Vec<_>>()
                .join(". "),
        )
    };
    let (reason, message, summary) = match verdict.findings.split_first() {
        Some((first, others)) => {
            let sentences: Vec<_> = verdict.findings.iter().map(sentence).collect();
            let more = match others.len() {
                0 => String::new(),
                more => format!("; and {more} more, see kubectl describe"),
            };
            (
                first.reason.clone(),
                sentences.join(". "),
                Some(format!("{}{more}", first.summary)),
            )
        }
        None if verdict.is_progressing => {
            let (summary, message) = progress();
            (PROGRESSING.to_owned(), message, Some(summary))
        }
        None => {
            let nodes = count(governed, "node");
            let mut all = format!("{nodes} {} as declared", agree(governed, "is", "are"));
            if let Some(note) = findings::without_programs(view, assessment) {
                all = format!("{all}. {note}");
            }
            let (others, note) = findings::other_plugins(view, tally).unzip();
            if let Some(note) = note {
                all = format!("{all}. {note}");
            }
            ("AsDeclared".to_owned(), all, others)
        }
    };
    let is_ready = verdict.findings.is_empty() && !verdict.is_progressing;
    let (accepted_reason, accepted_message) = accepted(view, record, tally);
    let progressing = match (verdict.is_progressing, verdict.is_late) {
        (true, _) => (PROGRESSING, format!("{ready_of} nodes are as declared")),
        (_, true) => (DEADLINE, "see Ready for what stands in the way".to_owned()),
        _ => ("Settled", String::new()),
    };

    let mut conditions = record.status.conditions.clone();
    for (kind, holds, reason, message) in [
        (
            ConditionType::Accepted,
            accepted_reason == "Accepted",
            accepted_reason,
            accepted_message.as_str(),
        ),
        (
            ConditionType::Progressing,
            verdict.is_progressing,
            progressing.0,
            &progressing.1,
        ),
        (ConditionType::Ready, is_ready, &reason, &message),
    ] {
        let generation = Some(record.identity.generation);
        let new = condition(kind, holds, reason, message, generation, &Time(view.now));
        set_condition(&mut conditions, new);
    }
    let counted = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    RoutingPolicyStatus {
        observed_generation: Some(record.identity.generation),
        conditions,
        protocol: record
            .in_force
            .as_ref()
            .and_then(|policy| policy.applied.routing.tunnel_in_use())
            .map(|tunnel| tunnel.protocol.to_string()),
        nodes_ready: Some(ready_of),
        nodes: Some(NodeCounts {
            selected: counted(tally.selected),
            governed: counted(governed),
            ready: counted(assessment.ready),
        }),
        summary,
    }
}

fn sentence(finding: &Finding) -> String {
    if finding.advice.is_empty() {
        finding.summary.clone()
    } else {
        format!("{}. {}", finding.summary, finding.advice)
    }
}

/// Whether the policy makes sense by itself and among others: a reason and a message.
fn accepted(view: &View<'_>, record: &PolicyRecord, tally: &Tally<'_>) -> (&'static str, String) {
    if let Some(fault) = &record.fault {
        let stays = match &record.in_force {
            Some(policy) => format!("generation {} stays in force", policy.generation),
            None if tally.governed.is_empty() => "it governs no node".to_owned(),
            None => format!(
                "{} what they were told",
                agree(tally.governed.len(), "its node keeps", "its nodes keep")
            ),
        };
        return (fault.reason, format!("{}; {stays}", fault.message));
    }
    if !tally.tied.is_empty() {
        let one = tally.tied.len();
        return (
            "TiedRank",
            format!(
                "{} {} selected by {} too, with the same priority and age: give one of them another priority; until then {} what \
                 {} told before",
                names(view, &tally.tied),
                agree(one, "is", "are"),
                list(&tally.tied_with),
                agree(one, "it keeps", "they keep"),
                agree(one, "it was", "they were"),
            ),
        );
    }
    if tally.gives_way.is_empty() {
        return ("Accepted", String::new());
    }
    let better: Vec<String> = tally
        .gives_way
        .iter()
        .map(|(policy, places)| format!("{policy} governs {}", names(view, places)))
        .collect();
    (
        "Accepted",
        format!(
            "governs {} of {}; {}",
            tally.governed.len(),
            count(tally.selected, "selected node"),
            better.join(", ")
        ),
    )
}

fn names(view: &View<'_>, places: &[usize]) -> String {
    list(
        places
            .iter()
            .map(|place| view.world.nodes.all()[*place].name.as_str()),
    )
}

fn find(conditions: &[Condition], kind: ConditionType) -> Option<&Condition> {
    let kind = kind.to_string();
    conditions.iter().find(|condition| condition.type_ == kind)
}

/// What has changed between two lists of conditions that somebody should hear of: a policy's being carried out is none.
fn events(old: &[Condition], new: &[Condition]) -> Vec<Event> {
    [ConditionType::Accepted, ConditionType::Ready]
        .into_iter()
        .filter_map(|kind| {
            let (before, after) = (find(old, kind), find(new, kind)?);
            let is_news = before.map_or(after.reason != "Accepted", |before| before.reason != after.reason);
            (is_news && after.reason != PROGRESSING).then(|| {
                let mut note = if after.message.is_empty() {
                    "makes sense again".to_owned()
                } else {
                    after.message.clone()
                };
                note.truncate(note.floor_char_boundary(LONGEST_NOTE));
                Event {
                    is_warning: after.status != "True",
                    reason: after.reason.clone(),
                    note,
                }
            })
        })
        .collect()
}
