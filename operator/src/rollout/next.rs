//! Which agent is replaced next, and what is waited for: a pure function of what pods there are and what their agents say.
//!
//! One at a time, and the next one only when every agent of the new template has proved itself. So a version that does not work
//! stops at the first node, and the others keep theirs. Agents that do not work as it is go first: a version that mends
//! what the last one broke begins where that one stopped.

use crate::world::{NodeRecord, Proving};
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
    /// Whether it has been told to end.
    pub is_ending: bool,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next<'a> {
    /// Nothing: all pods are of the template.
    Done,
    /// Wait.
    Wait(Wait<'a>),
    /// Delete this pod; its DaemonSet makes a new one.
    Replace(&'a AgentPod),
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

/// Whether the agent in this very pod has programs that encapsulate; None: it has not said.
pub fn has_programs(pod: &AgentPod, record: Option<&NodeRecord>) -> Option<bool> {
    let report = record?.report.as_ref()?;
    let is_own = report.instance.as_deref() == Some(pod.uid.as_str());
    let programs = report.programs.as_ref().filter(|_| is_own)?;
    Some(programs.is_ok())
}

/// Decides. `scheduled`: the pods that there should be; `had_programs`: whether the agents before them on a node had programs that
/// encapsulated there.
pub fn next<'a>(
    template: &str,
    scheduled: usize,
    pods: impl Iterator<Item = &'a AgentPod> + Clone,
    record: impl Fn(&str) -> Option<&'a NodeRecord>,
    had_programs: impl Fn(&str) -> bool,
) -> Next<'a> {
    let is_current = |pod: &AgentPod| pod.template.as_deref() == Some(template);
    let outdated = pods.clone().filter(|pod| !is_current(pod) && !pod.is_ending);
    let proof = |pod: &'a AgentPod| proof(pod, record(&pod.node), had_programs(&pod.node));
    let first = outdated.min_by_key(|pod| (proof(pod).is_ok(), &pod.node));
    let Some(first) = first else { return Next::Done };
    if let Some(pod) = pods.clone().find(|pod| pod.is_ending) {
        return Next::Wait(Wait::Ending(pod));
    }
    let missing = scheduled.saturating_sub(pods.clone().count());
    if missing > 0 {
        return Next::Wait(Wait::Missing(missing));
    }
    let unproved = pods
        .filter(|pod| is_current(pod))
        .find_map(|pod| Some((pod, proof(pod).err()?)));
    match unproved {
        Some((pod, why)) => Next::Wait(Wait::Unproved(pod, why)),
        None => Next::Replace(first),
    }
}

/// Whether a pod's agent has proved that it does its work.
fn proof<'a>(pod: &AgentPod, record: Option<&'a NodeRecord>, had_programs: bool) -> Result<(), Unproved<'a>> {
    // What its agent says of the node says more than that the pod is not ready.
    let is_ready = if pod.is_ready {
        Ok(())
    } else {
        Err(Unproved::NotRunning)
    };
    // A node that is told nothing, because its Node object cannot be routed, has nothing to prove.
    let Some(record) = record else { return is_ready };
    let report = match &record.report {
        Some(report) if report.instance.as_deref() == Some(pod.uid.as_str()) => report,
        _ => return is_ready.and(Err(Unproved::Silent)),
    };
    if report.observed_generation < record.told_since {
        return Err(Unproved::Behind);
    }
    if report.is_progressing {
        return Err(Unproved::Moving);
    }
    let (reason, message) = (&*report.not_ready.0, &*report.not_ready.1);
    if !report.is_ready && !is_no_agents_doing(reason) {
        return Err(Unproved::NotReady(reason, message));
    }
    if let (true, Some(Err(why))) = (had_programs, &report.programs) {
        return Err(Unproved::WithoutPrograms(why));
    }
    match report.proving {
        Some(proving) if !proving.is_done() => Err(Unproved::NotProved(proving)),
        _ => is_ready,
    }
}

/// Reasons for which a node is not as declared whatever version its agent is: what was declared, other nodes, and what others
/// have put into its kernel.
fn is_no_agents_doing(reason: &str) -> bool {
    matches!(
        reason,
        "OffLink"
            | "NoPolicy"
            | "ForeignRoute"
            | "ForeignDevice"
            | "DuplicateAddress"
            | "PeerNotReceiving"
            | "PeerNotReported"
            | "PodCIDROverlap"
            | "PodCIDRCoversNode"
            | "NoPodCIDR"
            | "NoInternalIP"
    )
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
            Self::Missing(count) => write!(f, "{count} of the agents' pods have yet to be made"),
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
mod tests {
    use super::*;
    use crate::seen::Seen;
    use crate::world::{Source, World};
    use podlane_crds::RoutingNode;
    use serde_json::{Value, json};

    fn pod(node: &str, template: &str) -> AgentPod {
        AgentPod {
            name: format!("podlane-agent-{node}"),
            uid: format!("{node}-{template}"),
            node: node.to_owned(),
            template: Some(template.to_owned()),
            is_ready: true,
            is_ending: false,
        }
    }

    /// A node's status as the agent in a pod writes it when all is well.
    fn well(pod: &AgentPod) -> Value {
        json!({
            "observedGeneration": 1,
            "agentInstance": pod.uid,
            "counts": {"total": 2, "vxlan": 2},
            "datapath": {"encapsulation": "eBPF", "bypass": "On"},
            "probes": {"probed": 2, "answering": 2},
            "conditions": [condition("Ready", "True", "AsDeclared"), condition("Progressing", "False", "Settled")],
        })
    }

    fn condition(kind: &str, status: &str, reason: &str) -> Value {
        json!({"type": kind, "status": status, "reason": reason, "message": "m", "lastTransitionTime": "2026-01-01T00:00:00Z"})
    }

    fn decide(scheduled: usize, pods: &[AgentPod], statuses: &[(&str, Value)]) -> String {
        let mut world = World::default();
        for (name, status) in statuses {
            let seen: Seen<RoutingNode> = serde_json::from_value(json!({
                "metadata": {"name": name, "uid": name, "generation": 1, "resourceVersion": "1"}, "spec": {}, "status": status,
            }))
            .expect("metadata");
            world.see_routing_node(seen, Source::List);
        }
        let record = |node: &str| world.routing_nodes.get(node);
        match next("new", scheduled, pods.iter(), record, |node| node == "lost") {
            Next::Done => "done".to_owned(),
            Next::Replace(pod) => format!("replace {}", pod.node),
            Next::Wait(wait) => format!("wait: {wait}"),
        }
    }

    #[test]
    fn one_after_the_other_each_once_the_last_one_is_proved() {
        let (a, b, c) = (pod("a", "old"), pod("b", "old"), pod("c", "old"));
        let (new_a, new_b, new_c) = (pod("a", "new"), pod("b", "new"), pod("c", "new"));
        let ending = |pod: &AgentPod| AgentPod {
            is_ending: true,
            ..pod.clone()
        };
        let all_old = [("a", well(&a)), ("b", well(&b)), ("c", well(&c))];
        let a_new = [("a", well(&new_a)), ("b", well(&b)), ("c", well(&c))];
        for (pods, statuses, expected) in [
            (vec![a.clone(), b.clone(), c.clone()], &all_old, "replace a"),
            (
                vec![ending(&a), b.clone(), c.clone()],
                &all_old,
                "wait: the pod podlane-agent-a has yet to end",
            ),
            // It has gone, and its successor is not there yet.
            (
                vec![b.clone(), c.clone()],
                &all_old,
                "wait: 1 of the agents' pods have yet to be made",
            ),
            // What the status says is still what the predecessor wrote.
            (
                vec![new_a.clone(), b.clone(), c.clone()],
                &all_old,
                "wait: the agent in pod podlane-agent-a has yet to write the node's status",
            ),
            (vec![new_a.clone(), b.clone(), c.clone()], &a_new, "replace b"),
            (vec![new_a.clone(), new_b, new_c], &a_new, "done"),
            (vec![], &all_old, "done"),
        ] {
            assert_eq!(decide(3, &pods, statuses), expected, "{pods:?}");
        }
    }

    #[test]
    fn an_agent_that_does_not_prove_itself_stops_the_rollout() {
        let (new_a, b) = (pod("a", "new"), pod("b", "old"));
        let status = |change: fn(&mut Value)| {
            let mut status = well(&new_a);
            change(&mut status);
            status
        };
        let ready =
            |status: &mut Value, reason: &str| status["conditions"][0] = condition("Ready", "False", reason);
        for (status, expected) in [
            (status(|_| {}), "replace b"),
            (
                status(|status| status["observedGeneration"] = 0.into()),
                "has yet to answer",
            ),
            (
                status(|status| status["conditions"][1] = condition("Progressing", "True", "Moving")),
                "is opening a lane or moving",
            ),
            (
                status(|status| status["probes"]["answering"] = 1.into()),
                "on 1 of 2 that it has probed",
            ),
            // Right after its start.
            (status(|status| status["probes"] = Value::Null), "on 0 of 0"),
            (
                status(|status| status["datapath"]["encapsulation"] = "Kernel".into()),
                "replace b",
            ),
            (
                status(|status| {
                    *status =
                        json!({"observedGeneration": 1, "agentInstance": status["agentInstance"].clone()})
                }),
                "not as declared",
            ),
        ] {
            let said = decide(
                2,
                &[new_a.clone(), b.clone()],
                &[("a", status.clone()), ("b", well(&b))],
            );
            assert!(said.contains(expected), "{status}: {said}");
        }
        for (reason, expected) in [
            ("OffLink", "replace b"),
            ("NoDevice", "wait"),
            ("KernelUnreadable", "wait"),
        ] {
            let mut status = well(&new_a);
            ready(&mut status, reason);
            let said = decide(2, &[new_a.clone(), b.clone()], &[("a", status), ("b", well(&b))]);
            assert!(said.starts_with(expected), "{reason}: {said}");
        }
        let broken = AgentPod {
            is_ready: false,
            ..new_a.clone()
        };
        let said = decide(2, &[broken, b.clone()], &[("a", well(&new_a)), ("b", well(&b))]);
        assert!(said.contains("does not run"), "{said}");
    }

    #[test]
    fn an_agent_that_loses_the_programs_of_the_last_one_stops_the_rollout() {
        let (lost, b) = (pod("lost", "new"), pod("b", "old"));
        let mut status = well(&lost);
        status["datapath"] =
            json!({"encapsulation": "Kernel", "bypass": "Off", "message": "the verifier refuses it"});
        let pods = [lost.clone(), b.clone()];
        let said = decide(2, &pods, &[("lost", status), ("b", well(&b))]);
        assert!(
            said.contains("could not load its eBPF programs") && said.contains("the verifier refuses it"),
            "{said}"
        );
        assert_eq!(
            decide(2, &pods, &[("lost", well(&lost)), ("b", well(&b))]),
            "replace b"
        );
    }

    #[test]
    fn a_version_that_mends_begins_where_the_last_one_stopped() {
        let (a, b) = (pod("a", "old"), pod("b", "broken"));
        let silent = json!({"observedGeneration": 1});
        assert_eq!(
            decide(2, &[a.clone(), b.clone()], &[("a", well(&a)), ("b", silent)]),
            "replace b"
        );
        // Node b cannot be routed at all, and is told nothing.
        assert_eq!(decide(2, &[a.clone(), b], &[("a", well(&a))]), "replace a");
    }
}
