//! Which agent is replaced next, and what is waited for: a pure function of what pods there are and what their agents say.
//!
//! One at a time, and the next one only when every agent of the new template has proved itself. So a version that does not work
//! stops at the first node, and the others keep theirs. Agents that do not work as it is go first: a version that mends
//! what the last one broke begins where that one stopped. Nodes whose kubelets have fallen silent are left for when they are back.

use super::before::{Before, Excuses};
use crate::world::{Proving, World};
use std::collections::BTreeMap;
use std::fmt;

/// An agent's pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentPod {
    /// Its name.
    pub name: String,
    /// Its `metadata.uid`, which is also what its agent says of itself.
    pub uid: String,
    /// The node that it is on.
    pub node: String,
    /// The template that it is from; none: from before there were names for them.
    pub template: Option<String>,
    /// Whether its containers run, and say that they are well.
    pub is_ready: bool,
    /// Whether its containers run, whatever they say of themselves.
    pub runs: bool,
    /// Whether its kubelet has taken it up.
    pub has_started: bool,
    /// Whether it has been told to end.
    pub is_ending: bool,
}

impl AgentPod {
    /// Whether it is of this template.
    pub fn is_of(&self, template: &str) -> bool {
        self.template.as_deref() == Some(template)
    }
}

/// What is known besides the pods.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// What nodes and their agents say.
    pub world: &'a World,
    /// What agents of another template said last of their nodes, by the node's name.
    pub before: &'a BTreeMap<String, Before>,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next<'a> {
    /// Nothing: all pods are of the template and do their work, but for those on nodes that are away.
    Done,
    /// Wait.
    Wait(Wait<'a>),
    /// Delete this pod; its DaemonSet makes a new one.
    Replace {
        /// Which one.
        pod: &'a AgentPod,
        /// Whether agents of the template have proved themselves, and no agent is left that does not do its work.
        is_proved: bool,
    },
}

/// What is waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wait<'a> {
    /// A pod to end.
    Ending(&'a AgentPod),
    /// Pods to be made: how many are missing.
    Missing(usize),
    /// An agent of the new template to prove itself.
    Unproved(&'a AgentPod, Unproved<'a>),
}

/// Why an agent has not proved itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unproved<'a> {
    /// Its pod does not run.
    NotRunning,
    /// It has yet to write the node's status.
    Silent,
    /// It has yet to answer what it was told.
    Behind,
    /// It is opening a lane, or moving to one.
    Moving,
    /// Its eBPF programs are not loaded, though the last agent's were there: why.
    WithoutPrograms(&'a str),
    /// It has yet to get answers to its probes.
    NotProved(Proving),
    /// It says that the node is not as declared: in a word and in a sentence.
    NotReady(&'a str, &'a str),
}

impl Unproved<'_> {
    /// Whether it is the agent itself that lacks something, and not its node: worth to be said though nobody waits for it.
    const fn is_of_the_agent(&self) -> bool {
        matches!(
            self,
            Self::NotRunning | Self::Silent | Self::Behind | Self::WithoutPrograms(_)
        )
    }
}

/// Decides. `scheduled`: the pods that there should be.
pub fn next<'a>(
    template: &str,
    scheduled: usize,
    pods: &'a BTreeMap<String, AgentPod>,
    known: Known<'a>,
) -> Next<'a> {
    let is_away = |pod: &AgentPod| known.world.nodes.is_away(&pod.node);
    // Nobody is there to end it.
    let ending = pods.values().find(|pod| pod.is_ending && !is_away(pod));
    if let Some(pod) = ending {
        return Next::Wait(Wait::Ending(pod));
    }
    let missing = scheduled.saturating_sub(pods.len());
    if missing > 0 {
        return Next::Wait(Wait::Missing(missing));
    }
    let excuses = Excuses::new(template, pods, known);
    let proof = |pod: &'a AgentPod| proof(pod, known, &excuses);
    let staying = || pods.values().filter(|pod| !pod.is_ending);
    let first = staying()
        .filter(|pod| !pod.is_of(template) && !is_away(pod))
        .min_by_key(|pod| (proof(pod).is_ok(), &pod.node));
    // The last one's failure is said as well. What it says of its node then is the policies' to tell.
    let unproved = staying()
        .filter(|pod| pod.is_of(template))
        .filter_map(|pod| Some((pod, proof(pod).err()?)))
        .find(|(_, why)| first.is_some() || why.is_of_the_agent());
    match (unproved, first) {
        (Some((pod, why)), _) => Next::Wait(Wait::Unproved(pod, why)),
        (None, Some(pod)) => Next::Replace {
            pod,
            is_proved: proof(pod).is_ok() && staying().any(|pod| pod.is_of(template)),
        },
        (None, None) => Next::Done,
    }
}

/// Whether a pod's agent has proved that it does its work.
fn proof<'a>(pod: &AgentPod, known: Known<'a>, excuses: &Excuses<'a>) -> Result<(), Unproved<'a>> {
    let is_away = known.world.nodes.is_away(&pod.node);
    if is_away && !pod.has_started {
        // It has done nothing, good or bad.
        return Ok(());
    }
    // What its agent says of the node says more than that the pod is not ready.
    let is_ready = if pod.is_ready {
        Ok(())
    } else {
        Err(Unproved::NotRunning)
    };
    // A node that is told nothing, because its Node object cannot be routed, has nothing to prove.
    let Some(record) = known.world.routing_nodes.get(&pod.node) else {
        return is_ready;
    };
    let report = match &record.report {
        Some(report) if report.instance.as_deref() == Some(pod.uid.as_str()) => report,
        _ => return is_ready.and(Err(Unproved::Silent)),
    };
    if is_away {
        // Of a node that falls silent later on, what its agent had shown until then counts, and no more than that is asked.
        return if report.is_ready || excuses.excuse(pod, report).is_ok() {
            Ok(())
        } else {
            Err(Unproved::NotRunning)
        };
    }
    if report.observed_generation < record.told_since {
        return Err(Unproved::Behind);
    }
    if report.is_progressing {
        return Err(Unproved::Moving);
    }
    if !report.is_ready {
        excuses
            .excuse(pod, report)
            .map_err(|(reason, message)| Unproved::NotReady(reason, message))?;
    }
    let had_programs = known
        .before
        .get(&pod.node)
        .is_some_and(|before| before.had_programs);
    if let (true, Some(Err(why))) = (had_programs, &report.programs) {
        return Err(Unproved::WithoutPrograms(why));
    }
    match report.proving {
        Some(proving) if !proving.is_done_but_for(excuses.lanes(pod, report)) => {
            Err(Unproved::NotProved(proving))
        }
        // What is no agent's doing may be why the pod says that it is not ready.
        _ if !report.is_ready && pod.runs => Ok(()),
        _ => is_ready,
    }
}

impl Wait<'_> {
    /// The node that is waited for.
    pub fn node(&self) -> Option<&str> {
        match self {
            Self::Ending(pod) | Self::Unproved(pod, _) => Some(&pod.node),
            Self::Missing(_) => None,
        }
    }
}

impl fmt::Display for Wait<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ending(pod) => write!(f, "the pod {} has yet to end", pod.name),
            Self::Missing(count) => write!(
                f,
                "{count} of the agents' pods have yet to be made, or to be given their nodes (kubectl describe daemonset says why)"
            ),
            Self::Unproved(pod, why) => write!(f, "the agent in pod {} {why}", pod.name),
        }
    }
}

impl fmt::Display for Unproved<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotRunning => write!(f, "does not run, or is not ready"),
            Self::Silent => write!(f, "has yet to write the node's status"),
            Self::Behind => write!(f, "has yet to answer what the node was told"),
            Self::WithoutPrograms(why) => {
                write!(
                    f,
                    "could not load its eBPF programs, which the last agent there had: {why}"
                )
            }
            Self::Moving => write!(f, "is opening a lane or moving to one"),
            Self::NotProved(Proving { probed, answering }) => write!(
                f,
                "has yet to prove its lanes: on {answering} of {probed} that it has probed full-size packets came back"
            ),
            Self::NotReady(reason, message) => {
                write!(f, "says that the node is not as declared: {reason}: {message}")
            }
        }
    }
}

#[cfg(test)]
mod tests;
