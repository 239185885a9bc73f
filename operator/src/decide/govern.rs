//! Which policy governs each node, and what each policy makes of its nodes.

use crate::world::World;
use podlane_plan::policy::{Applied, Policy, Resolution, resolve};
use std::collections::{BTreeMap, BTreeSet};

/// What a node goes by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Rule<'a> {
    /// This policy.
    Policy(&'a Policy),
    /// What it was told before: nothing better can be said.
    Kept,
    /// No policy selects it.
    Nothing,
}

/// What a policy makes of its nodes; nodes are named by their place.
#[derive(Debug, Default)]
pub(super) struct Tally<'a> {
    /// How many nodes it selects.
    pub(super) selected: usize,
    /// The nodes that go by it.
    pub(super) governed: Vec<usize>,
    /// The nodes that it leaves to a better one.
    pub(super) gives_way: BTreeMap<&'a str, Vec<usize>>,
    /// The nodes on which another policy is of equal rank.
    pub(super) tied: Vec<usize>,
    /// Those others.
    pub(super) tied_with: BTreeSet<&'a str>,
}

/// Who governs what.
#[derive(Debug, Default)]
pub(super) struct Governed<'a> {
    /// For each node in its place.
    pub(super) rules: Vec<Rule<'a>>,
    /// By the names of policies: each one that exists.
    pub(super) tallies: BTreeMap<&'a str, Tally<'a>>,
}

/// Finds the policy of every node.
pub(super) fn govern(world: &World) -> Governed<'_> {
    let in_force: Vec<&Policy> = world
        .policies
        .values()
        .filter_map(|record| record.in_force.as_ref())
        .collect();
    let mut tallies: BTreeMap<&str, Tally<'_>> = world
        .policies
        .keys()
        .map(|name| (name.as_str(), Tally::default()))
        .collect();
    let mut rules = Vec::with_capacity(world.nodes.all().len());
    for (place, node) in world.nodes.all().iter().enumerate() {
        let before = world
            .routing_nodes
            .get(&node.name)
            .and_then(|record| record.spec.as_ref()?.policy.as_ref());
        // Nobody can say what the policy says now, nor whom it selects: the node was told, and that still goes.
        let unreadable = before.filter(|before| {
            world
                .policies
                .get(&before.name)
                .is_some_and(|record| record.in_force.is_none())
        });
        let resolution = resolve(in_force.iter().copied(), &node.labels);
        let rule = match &resolution {
            Resolution::Governed { by, over } => {
                for other in over {
                    if let Some(tally) = tallies.get_mut(name(other)) {
                        tally.selected += 1;
                        tally.gives_way.entry(name(by)).or_default().push(place);
                    }
                }
                if let Some(tally) = tallies.get_mut(name(by)) {
                    tally.selected += 1;
                }
                match unreadable {
                    Some(unreadable) if Applied::from(unreadable).rank < by.applied.rank => Rule::Kept,
                    _ => Rule::Policy(by),
                }
            }
            Resolution::Tied(tied) => {
                for policy in &in_force {
                    let Some(tally) = tallies.get_mut(name(policy)) else {
                        continue;
                    };
                    if tied.contains(&name(policy)) {
                        tally.selected += 1;
                        tally.tied.push(place);
                        tally
                            .tied_with
                            .extend(tied.iter().filter(|other| **other != name(policy)));
                    } else if policy.node_selector.matches(&node.labels) {
                        tally.selected += 1;
                        tally.gives_way.entry(tied[0]).or_default().push(place);
                    }
                }
                Rule::Kept
            }
            Resolution::Unselected if unreadable.is_some() => Rule::Kept,
            Resolution::Unselected => Rule::Nothing,
        };
        let governing = match rule {
            Rule::Policy(policy) => Some(name(policy)),
            Rule::Kept => before.map(|before| before.name.as_str()),
            Rule::Nothing => None,
        };
        if let Some(tally) = governing.and_then(|governing| tallies.get_mut(governing)) {
            tally.governed.push(place);
            if unreadable.is_some() && rule == Rule::Kept && !matches!(resolution, Resolution::Tied(_)) {
                tally.selected += 1;
            }
        }
        rules.push(rule);
    }
    Governed { rules, tallies }
}

fn name(policy: &Policy) -> &str {
    &policy.applied.rank.name
}

#[cfg(test)]
mod tests {
    use super::super::simulation::Cluster;
    use super::*;
    use serde_json::json;

    fn rules(cluster: &Cluster) -> Vec<String> {
        govern(&cluster.world)
            .rules
            .iter()
            .map(|rule| match rule {
                Rule::Policy(policy) => name(policy).to_owned(),
                Rule::Kept => "kept".to_owned(),
                Rule::Nothing => "nothing".to_owned(),
            })
            .collect()
    }

    #[test]
    fn the_better_policy_governs_and_the_other_says_so() {
        let mut cluster = Cluster::of_three();
        cluster.policy("all", 100, json!({"routingMode": "native"}));
        cluster.policy(
            "far",
            200,
            json!({"routingMode": "tunnel", "priority": 1, "nodeSelector": {"matchLabels": {"name": "k8s-w0"}}}),
        );
        assert_eq!(rules(&cluster), ["all", "far", "all"]);
        let governed = govern(&cluster.world);
        let all = &governed.tallies["all"];
        assert_eq!((all.selected, &all.governed), (3, &vec![0, 2]));
        assert_eq!(all.gives_way["far"], [1]);
    }

    #[test]
    fn a_tie_leaves_every_node_as_it_was() {
        let mut cluster = Cluster::of_three();
        cluster.policy("first", 100, json!({"routingMode": "native"}));
        cluster.settle();
        cluster.policy("twin", 100, json!({"routingMode": "tunnel"}));
        assert_eq!(rules(&cluster), ["kept", "kept", "kept"]);
        let governed = govern(&cluster.world);
        assert_eq!(governed.tallies["first"].governed.len(), 3);
        assert!(governed.tallies["twin"].governed.is_empty());
        assert_eq!(governed.tallies["twin"].tied_with, BTreeSet::from(["first"]));
    }

    #[test]
    fn what_cannot_be_read_still_governs_the_nodes_that_were_told_of_it() {
        let mut cluster = Cluster::of_three();
        cluster.policy("default", 100, json!({"routingMode": "native"}));
        cluster.settle();
        // After a restart nothing is known of it but what the nodes were told.
        cluster.policy("default", 100, json!({"routingMode": 7}));
        let mut cluster = cluster.restarted();
        assert_eq!(rules(&cluster), ["kept", "kept", "kept"]);
        cluster.policy("worse", 200, json!({"routingMode": "native"}));
        assert_eq!(rules(&cluster), ["kept", "kept", "kept"]);
        cluster.policy("better", 300, json!({"routingMode": "native", "priority": 1}));
        assert_eq!(rules(&cluster), ["better", "better", "better"]);
    }

    #[test]
    fn a_node_that_no_policy_selects_has_none() {
        let mut cluster = Cluster::of_three();
        cluster.policy(
            "one",
            1,
            json!({"routingMode": "native", "nodeSelector": {"matchLabels": {"name": "k8s-w1"}}}),
        );
        assert_eq!(rules(&cluster), ["nothing", "nothing", "one"]);
    }
}
