//! What is no agent's doing: what was so before it came, what was declared, other nodes, and what others have put into a node's kernel.
//!
//! A version that breaks something must not be taken for one that finds it broken. So where a reason could be either, it counts as
//! found only if the agent of the template before said the same of the same node, and of a lane only if no agent of the present
//! template is at its other end.

use super::next::{AgentPod, Known};
use crate::world::{NodeRecord, Report, Trouble};
use podlane_crds::MAX_PEERS_IN_STATUS;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What an agent of another template said last of its node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Before {
    /// Whether it had eBPF programs that encapsulated.
    pub had_programs: bool,
    /// The peers that it did not reach as declared, by the numbers of their names, and why.
    pub troubles: BTreeSet<(u32, Arc<str>)>,
}

impl Before {
    /// Takes in what the agent in this very pod says. What it does not say stays.
    pub fn note(&mut self, pod: &AgentPod, record: Option<&NodeRecord>) {
        let own = record
            .and_then(|record| record.report.as_ref())
            .filter(|report| report.instance.as_deref() == Some(pod.uid.as_str()));
        let Some(report) = own else { return };
        if let Some(programs) = &report.programs {
            self.had_programs = programs.is_ok();
        }
        let troubles = report.troubles.iter();
        self.troubles = troubles
            .map(|trouble| (trouble.peer, Arc::clone(&trouble.reason)))
            .collect();
    }
}

/// What excuses agents.
#[derive(Debug)]
pub(super) struct Excuses<'a> {
    known: Known<'a>,
    /// The nodes that have an agent of the present template.
    renewed: BTreeSet<&'a str>,
}

impl<'a> Excuses<'a> {
    pub(super) fn new(template: &str, pods: &'a BTreeMap<String, AgentPod>, known: Known<'a>) -> Self {
        let renewed = pods.values().filter(|pod| pod.is_of(template));
        Self {
            known,
            renewed: renewed.map(|pod| pod.node.as_str()).collect(),
        }
    }

    /// Whether all for which a node is not as declared is no agent's doing.
    ///
    /// # Errors
    /// What may be: in a word and in a sentence.
    pub(super) fn excuse<'r>(&self, pod: &AgentPod, report: &'r Report) -> Result<(), (&'r str, &'r str)> {
        let unexcused = report
            .troubles
            .iter()
            .find(|trouble| !self.is_excused(pod, trouble));
        if let Some(trouble) = unexcused {
            return Err((&trouble.reason, &trouble.message));
        }
        let (reason, message) = (&*report.not_ready.0, &*report.not_ready.1);
        let is_of_a_peer = report.troubles.iter().any(|trouble| *trouble.reason == *reason);
        if is_of_a_peer || is_no_agents_doing(reason) {
            Ok(())
        } else {
            Err((reason, message))
        }
    }

    /// How many of the lanes that do not carry full-size packets both ways need not.
    pub(super) fn lanes(&self, pod: &AgentPod, report: &Report) -> u32 {
        // There may be others that status has no room for.
        if report.troubles.len() >= MAX_PEERS_IN_STATUS {
            return 0;
        }
        let excused = report
            .troubles
            .iter()
            .filter(|trouble| is_of_a_lane(&trouble.reason) && self.is_excused(pod, trouble));
        u32::try_from(excused.count()).unwrap_or(u32::MAX)
    }

    fn is_excused(&self, pod: &AgentPod, trouble: &Trouble) -> bool {
        let reason = &*trouble.reason;
        if is_no_agents_doing(reason) {
            return true;
        }
        let world = self.known.world;
        let peer = world.names.name(trouble.peer);
        if is_of_a_lane(reason) && world.nodes.is_away(peer) {
            return true;
        }
        let said = |reason: &str| {
            let before = self.known.before.get(&pod.node);
            before.is_some_and(|before| before.troubles.contains(&(trouble.peer, Arc::from(reason))))
        };
        // A lane that was silent and carries small packets now is no worse than it was.
        let was_so = said(reason) || (reason == "LaneTooSmall" && said("LaneSilent"));
        is_of_a_pair(reason) && was_so && !self.renewed.contains(peer)
    }
}

/// Reasons for which a node is not as declared whatever version its agent is. None of them hides a lane that carries nothing: each
/// lane is asked for by itself.
fn is_no_agents_doing(reason: &str) -> bool {
    matches!(
        reason,
        "OffLink"
            | "NoPolicy"
            | "ForeignRoute"
            | "ForeignDevice"
            | "ForeignTable"
            | "DuplicateAddress"
            | "AddressNotFound"
            | "MTUTooSmall"
            | "PeerNotReceiving"
            | "PeerNotReported"
            | "PodCIDROverlap"
            | "PodCIDRCoversNode"
            | "NoPodCIDR"
            | "NoInternalIP"
    )
}

/// Reasons that speak of a lane that is in use.
fn is_of_a_lane(reason: &str) -> bool {
    matches!(reason, "LaneSilent" | "LaneTooSmall")
}

/// Reasons that an agent can find, or be the cause of.
fn is_of_a_pair(reason: &str) -> bool {
    is_of_a_lane(reason)
        || matches!(
            reason,
            "NoCommonFamily" | "NoUnderlayRoute" | "PodCIDRCoversUnderlay"
        )
}
