//! How far the nodes are with cleaning themselves: a pure function of what they say and of whether they have an agent.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use podlane_crds::{ConditionType, RoutingNode};
use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

/// How long a node may be without an agent's pod before nobody is waited for there: one may just be being replaced.
const WITHOUT_POD: Duration = Duration::from_secs(15);

/// What a node has come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nothing of Podlane's is on it.
    Cleaned,
    /// Its agent could not remove everything: what it says.
    Failed(String),
    /// No agent has answered: why not.
    Unreachable(String),
    /// Its agent has yet to answer, or to succeed.
    Awaited,
}

/// A node, and what it has come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeResult {
    /// Its name.
    pub name: String,
    /// What it has come to.
    pub standing: Standing,
}

/// What a node says of itself.
#[derive(Clone, Debug)]
pub struct Told {
    /// Its name.
    pub name: String,
    /// The generation of its RoutingNode that tells it to be clean.
    pub generation: i64,
    /// The generation that it answers.
    pub observed_generation: i64,
    /// What it says of cleaning: whether it is clean, and the message.
    pub cleaned: Option<(bool, String)>,
}

impl Told {
    /// Of a RoutingNode.
    pub fn of(node: &RoutingNode) -> Self {
        let status = node.status.as_ref();
        let kind = ConditionType::Cleaned.to_string();
        let conditions: &[Condition] = status.map_or(&[], |status| &status.conditions);
        let cleaned = conditions.iter().find(|condition| condition.type_ == kind);
        Self {
            name: node.metadata.name.clone().unwrap_or_default(),
            generation: node.metadata.generation.unwrap_or_default(),
            observed_generation: status
                .and_then(|status| status.observed_generation)
                .unwrap_or_default(),
            cleaned: cleaned.map(|condition| (condition.status == "True", condition.message.clone())),
        }
    }

    /// What the node has come to, `waited` after it was told, where agents are waited for up to `patience`.
    pub fn standing(&self, with_pod: &BTreeSet<String>, waited: Duration, patience: Duration) -> Standing {
        let answer = self
            .cleaned
            .as_ref()
            .filter(|_| self.observed_generation >= self.generation);
        let is_late = waited >= patience;
        match answer {
            Some((true, _)) => Standing::Cleaned,
            Some((false, why)) if is_late => Standing::Failed(why.clone()),
            Some((false, _)) => Standing::Awaited,
            None if !with_pod.contains(&self.name) && (is_late || waited >= WITHOUT_POD) => {
                Standing::Unreachable("it has no agent".to_owned())
            }
            None if is_late => Standing::Unreachable(format!(
                "its agent has not answered within {} s",
                patience.as_secs()
            )),
            None => Standing::Awaited,
        }
    }
}

/// What became of all nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Results(pub Vec<NodeResult>);

impl Results {
    /// Whether nobody is waited for any more.
    pub fn is_complete(&self) -> bool {
        !self.0.iter().any(|node| node.standing == Standing::Awaited)
    }

    /// The nodes that are clean.
    pub fn cleaned(&self) -> BTreeSet<&str> {
        self.names(|standing| *standing == Standing::Cleaned).collect()
    }

    /// Whether some agent is there and could not remove everything: worth another attempt, while it still is there.
    pub fn has_failed(&self) -> bool {
        self.names(|standing| matches!(standing, Standing::Failed(_)))
            .next()
            .is_some()
    }

    fn names(&self, is: impl Fn(&Standing) -> bool) -> impl Iterator<Item = &str> {
        let nodes = self.0.iter().filter(move |node| is(&node.standing));
        nodes.map(|node| node.name.as_str())
    }

    /// All of it in a line.
    pub fn summary(&self) -> String {
        let mut text = format!("{} of {} nodes are clean", self.cleaned().len(), self.0.len());
        let failed: Vec<_> = self
            .names(|standing| matches!(standing, Standing::Failed(_)))
            .collect();
        let unreachable: Vec<_> = self
            .names(|standing| matches!(standing, Standing::Unreachable(_)))
            .collect();
        for (names, what) in [(failed, "could not be cleaned"), (unreachable, "did not answer")] {
            if !names.is_empty() {
                text.push_str(&format!("; {what}: {}", listed(&names)));
            }
        }
        text
    }
}

/// Names, as many as a line has room for.
fn listed(names: &[&str]) -> String {
    const FEW: usize = 10;
    let named = names[..names.len().min(FEW)].join(", ");
    match names.len().saturating_sub(FEW) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}

/// A table: a line a node, those that are not clean last, where they are seen.
impl fmt::Display for Results {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self
            .0
            .iter()
            .map(|node| node.name.len())
            .max()
            .unwrap_or_default()
            .max(4);
        writeln!(f, "{:width$}  RESULT", "NODE")?;
        let (clean, others): (Vec<_>, Vec<_>) =
            self.0.iter().partition(|node| node.standing == Standing::Cleaned);
        for NodeResult { name, standing } in clean.into_iter().chain(others) {
            match standing {
                Standing::Cleaned => writeln!(f, "{name:width$}  cleaned")?,
                Standing::Failed(why) => writeln!(f, "{name:width$}  failed: {why}")?,
                Standing::Unreachable(why) => writeln!(f, "{name:width$}  unreachable: {why}")?,
                Standing::Awaited => writeln!(f, "{name:width$}  not waited for")?,
            }
        }
        write!(f, "{}", self.summary())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(120);

    fn told(observed_generation: i64, cleaned: Option<(bool, &str)>) -> Told {
        Told {
            name: "a".to_owned(),
            generation: 5,
            observed_generation,
            cleaned: cleaned.map(|(holds, why)| (holds, why.to_owned())),
        }
    }

    #[test]
    fn a_node_is_waited_for_as_long_as_it_may_still_answer() {
        let unreachable = |why: &str| Standing::Unreachable(why.to_owned());
        for (node, has_pod, waited, expected) in [
            (told(5, Some((true, ""))), true, 1, Standing::Cleaned),
            // Said of an earlier time.
            (told(4, Some((true, ""))), true, 1, Standing::Awaited),
            (told(4, None), true, 119, Standing::Awaited),
            (
                told(4, None),
                true,
                120,
                unreachable("its agent has not answered within 120 s"),
            ),
            (told(4, None), false, 14, Standing::Awaited),
            (told(4, None), false, 15, unreachable("it has no agent")),
            // It tries again for as long.
            (told(5, Some((false, "busy"))), true, 119, Standing::Awaited),
            (
                told(5, Some((false, "busy"))),
                true,
                120,
                Standing::Failed("busy".to_owned()),
            ),
        ] {
            let pods = BTreeSet::from([if has_pod { "a" } else { "b" }.to_owned()]);
            let standing = node.standing(&pods, Duration::from_secs(waited), PATIENCE);
            assert_eq!(standing, expected, "{node:?} after {waited} s");
        }
    }

    #[test]
    fn what_is_not_clean_is_read_last_and_with_its_reason() {
        let node = |name: &str, standing| NodeResult {
            name: name.to_owned(),
            standing,
        };
        let results = Results(vec![
            node("k8s-w0", Standing::Unreachable("it has no agent".to_owned())),
            node("a", Standing::Cleaned),
            node("b", Standing::Failed("1 of Podlane's items is left".to_owned())),
        ]);
        assert_eq!(
            results.to_string(),
            "NODE    RESULT\n\
             a       cleaned\n\
             k8s-w0  unreachable: it has no agent\n\
             b       failed: 1 of Podlane's items is left\n\
             1 of 3 nodes are clean; could not be cleaned: b; did not answer: k8s-w0"
        );
        assert!(results.is_complete() && results.has_failed());
    }
}
