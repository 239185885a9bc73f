//! What the nodes of a policy have come to.

use super::View;
use super::govern::Tally;
use crate::world::{NodeRecord, PolicyRecord, Report, Trouble, ends_by_itself};
use podlane_crds::RoutingNodeSpec;
use podlane_plan::cluster::Problem;
use podlane_plan::machine::Unfit;

/// What a node is being waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Wait {
    /// Its agent has never answered.
    Silent,
    /// Its agent has yet to answer what it was told.
    Behind,
    /// It has yet to move to another lane.
    Moving,
    /// It has yet to hear of all other nodes, or of their addresses and pod CIDRs as they are now.
    Counting,
    /// It has yet to be told.
    Untold,
}

/// A node that does not reach a peer as declared.
#[derive(Clone, Copy, Debug)]
pub(super) struct Refused<'a> {
    /// The number of the node's name.
    pub(super) observer: u32,
    /// The peer, and why.
    pub(super) trouble: &'a Trouble,
}

/// The nodes of a policy, by what they have come to; a node is named by its place.
#[derive(Debug, Default)]
pub(super) struct Assessment<'a> {
    /// How many are as declared.
    pub(super) ready: usize,
    /// Nodes whose Node object cannot be routed as it is.
    pub(super) problems: Vec<(usize, &'a Problem)>,
    /// Nodes that can have no agent, and why.
    pub(super) unfit: Vec<(usize, &'a Unfit)>,
    /// Nodes that are as declared by the kernel's drivers alone, and why.
    pub(super) without_programs: Vec<(usize, &'a str)>,
    /// Nodes whose RoutingNode cannot be read, and why.
    pub(super) unreadable: Vec<(usize, &'a str)>,
    /// Nodes that have yet to do something.
    pub(super) waiting: Vec<(usize, Wait)>,
    /// Nodes that say of themselves that they are not as declared: in a word and in a sentence.
    pub(super) faults: Vec<(usize, &'a str, &'a str)>,
    /// Peers that are not reached, and will not be by themselves.
    pub(super) refused: Vec<Refused<'a>>,
    /// Peers that are not reached yet.
    pub(super) not_yet: Vec<Refused<'a>>,
}

/// Looks at all nodes that a policy governs.
pub(super) fn assess<'a>(view: &View<'a>, policy: &PolicyRecord, tally: &Tally<'a>) -> Assessment<'a> {
    let mut assessment = Assessment::default();
    let generation = policy.in_force.as_ref().map(|policy| policy.generation);
    for place in &tally.governed {
        let name = &view.world.nodes.all()[*place].name;
        if let Some(problems) = view.admission.problems.get(name) {
            assessment
                .problems
                .extend(problems.iter().map(|problem| (*place, problem)));
            continue;
        }
        if let Some(unfit) = view.world.unfit(name) {
            assessment.unfit.push((*place, unfit));
            continue;
        }
        let Some(record) = view.world.routing_nodes.get(name) else {
            assessment.waiting.push((*place, Wait::Untold));
            continue;
        };
        if let Some(why) = &record.unreadable {
            assessment.unreadable.push((*place, why));
            continue;
        }
        assess_node(view, *place, record, generation, &mut assessment);
    }
    assessment
}

fn assess_node<'a>(
    view: &View<'a>,
    place: usize,
    record: &'a NodeRecord,
    generation: Option<i64>,
    assessment: &mut Assessment<'a>,
) {
    let is_told = match (&record.spec, &view.told.specs[place]) {
        (Some(is), Some(will_be)) => {
            is_same_but_for_lanes(is, will_be) && (generation.is_none() || is.policy_generation == generation)
        }
        _ => false,
    };
    let report = match &record.report {
        _ if !is_told => return assessment.waiting.push((place, Wait::Untold)),
        None => return assessment.waiting.push((place, Wait::Silent)),
        Some(report) if report.observed_generation < record.told_since => {
            return assessment.waiting.push((place, Wait::Behind));
        }
        Some(report) => report,
    };
    if !report.is_ready {
        return assess_unready(place, record.number, report, assessment);
    }
    if !report.sends_on.is_subset(&view.told.wanted) {
        assessment.waiting.push((place, Wait::Moving));
    } else if !view.roster.is_known_to(place, report) {
        assessment.waiting.push((place, Wait::Counting));
    } else {
        assessment.ready += 1;
        if let Some(Err(why)) = &report.programs {
            assessment.without_programs.push((place, why));
        }
    }
}

fn assess_unready<'a>(place: usize, number: u32, report: &'a Report, assessment: &mut Assessment<'a>) {
    for trouble in &report.troubles {
        let refused = Refused {
            observer: number,
            trouble,
        };
        if trouble.passes {
            assessment.not_yet.push(refused);
        } else {
            assessment.refused.push(refused);
        }
    }
    let (reason, message) = (&*report.not_ready.0, &*report.not_ready.1);
    let is_explained = report.troubles.iter().any(|trouble| *trouble.reason == *reason);
    if is_explained {
        return;
    }
    if report.is_progressing || ends_by_itself(reason) || reason.is_empty() {
        assessment.waiting.push((place, Wait::Moving));
    } else {
        assessment.faults.push((place, reason, message));
    }
}

fn is_same_but_for_lanes(a: &RoutingNodeSpec, b: &RoutingNodeSpec) -> bool {
    (&a.policy, a.policy_generation, a.mtu, a.datapath, a.clean)
        == (&b.policy, b.policy_generation, b.mtu, b.datapath, b.clean)
        && (&a.addresses, &a.pod_cidrs) == (&b.addresses, &b.pod_cidrs)
        && (&a.cluster_pod_cidrs, &a.native_routing_cidrs, a.masquerade)
            == (&b.cluster_pod_cidrs, &b.native_routing_cidrs, b.masquerade)
}
