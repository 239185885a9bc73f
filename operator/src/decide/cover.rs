//! The fewest nodes that explain which pairs of nodes do not reach each other.
//!
//! When one node of three is off-link, four refusals are reported: two by it and two of it. Naming that one node says all.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

/// A node in the cover.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Culprit {
    /// The number of its name.
    pub(super) node: u32,
    /// How many nodes refuse it.
    pub(super) refused_by: usize,
}

/// A greedy vertex cover of (observer, refused peer): the node in most pairs first; of those the one that most refuse, and then
/// the one whose name sorts last.
pub(super) fn cover<'a>(refusals: &[(u32, u32)], name: impl Fn(u32) -> &'a str) -> Vec<Culprit> {
    let mut directed = refusals.to_vec();
    directed.sort_unstable();
    directed.dedup();
    let mut refused_by: BTreeMap<u32, usize> = BTreeMap::new();
    for (_, peer) in &directed {
        *refused_by.entry(*peer).or_default() += 1;
    }
    let mut edges: Vec<(u32, u32)> = directed
        .iter()
        .filter(|(observer, peer)| observer != peer)
        .flat_map(|(observer, peer)| [(*observer, *peer), (*peer, *observer)])
        .collect();
    edges.sort_unstable();
    edges.dedup();

    // The neighbours of each node, one after the other in `edges`.
    let mut neighbours: BTreeMap<u32, std::ops::Range<usize>> = BTreeMap::new();
    for (place, (node, _)) in edges.iter().enumerate() {
        let range = neighbours.entry(*node).or_insert(place..place);
        range.end = place + 1;
    }
    let mut degrees: BTreeMap<u32, usize> =
        neighbours.iter().map(|(node, range)| (*node, range.len())).collect();
    let rank = |node: u32, degree: usize| {
        let refused_by = refused_by.get(&node).copied().unwrap_or_default();
        (degree, refused_by, name(node), Reverse(node))
    };
    let mut heap: BinaryHeap<_> = degrees.iter().map(|(node, degree)| rank(*node, *degree)).collect();
    let mut covered: BTreeSet<u32> = BTreeSet::new();
    let mut culprits = Vec::new();
    while let Some((degree, refused_by, _, Reverse(node))) = heap.pop() {
        let now = degrees[&node];
        if degree != now {
            // Some of its pairs have been explained since it was put there.
            if now > 0 {
                heap.push(rank(node, now));
            }
            continue;
        }
        culprits.push(Culprit { node, refused_by });
        covered.insert(node);
        for (_, neighbour) in &edges[neighbours[&node].clone()] {
            if !covered.contains(neighbour)
                && let Some(degree) = degrees.get_mut(neighbour)
            {
                *degree -= 1;
            }
        }
    }
    culprits
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

    fn named(pairs: &str) -> String {
        let number = |name: &str| NAMES.iter().position(|known| *known == name).expect("known") as u32;
        let refusals: Vec<_> = pairs
            .split_whitespace()
            .map(|pair| (number(&pair[..1]), number(&pair[1..])))
            .collect();
        cover(&refusals, |number| NAMES[number as usize])
            .iter()
            .map(|culprit| format!("{}{}", NAMES[culprit.node as usize], culprit.refused_by))
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn the_fewest_names_that_explain_all() {
        for (pairs, expected) in [
            ("", ""),
            // The story: c is off-link.
            ("ac bc ca cb", "c2"),
            ("ac bc", "c2"),
            ("ca cb", "c0"),
            // Two nodes that refuse each other: the later name. If only one refuses: the one that is refused.
            ("ab ba", "b1"),
            ("ba", "a1"),
            // Two groups of two: one of them, whole.
            ("ac ad bc bd ca cb da db", "d2 c2"),
            // All against all.
            ("ab ba ac ca bc cb", "c2 b2"),
            ("ab ba cd dc", "d1 b1"),
        ] {
            assert_eq!(named(pairs), expected, "{pairs}");
        }
    }

    #[test]
    fn every_pair_is_explained_by_somebody() {
        let refusals: Vec<(u32, u32)> = (0..400_u32).map(|n| (n * 7 % 61, n * 13 % 59)).collect();
        let culprits: BTreeSet<u32> = cover(&refusals, |_| "").iter().map(|culprit| culprit.node).collect();
        assert!(
            refusals
                .iter()
                .all(|(a, b)| a == b || culprits.contains(a) || culprits.contains(b))
        );
    }
}
