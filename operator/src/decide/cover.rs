//! The fewest nodes that explain which pairs of nodes do not reach each other.
//!
//! When one node of three is off-link, four refusals are reported: two by it and two of it. Naming that one node says all.

use std::collections::BinaryHeap;

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
    let mut directed: Vec<u64> = refusals
        .iter()
        .map(|(observer, peer)| packed(*observer, *peer))
        .collect();
    directed.sort_unstable();
    directed.dedup();
    let numbers = directed
        .iter()
        .flat_map(|pair| [unpacked(*pair).0, unpacked(*pair).1])
        .max();
    let numbers = numbers.map_or(0, |largest| largest as usize + 1);
    let mut refused_by = vec![0_usize; numbers];
    for pair in &directed {
        refused_by[unpacked(*pair).1 as usize] += 1;
    }
    let mut edges: Vec<u64> = Vec::with_capacity(directed.len() * 2);
    for (observer, peer) in directed.iter().map(|pair| unpacked(*pair)) {
        if observer != peer {
            edges.extend([packed(observer, peer), packed(peer, observer)]);
        }
    }
    edges.sort_unstable();
    edges.dedup();

    // The neighbours of each node, one after the other in `edges`, and how many of them are unexplained.
    let mut neighbours = vec![0..0; numbers];
    for (place, edge) in edges.iter().enumerate() {
        let range = &mut neighbours[unpacked(*edge).0 as usize];
        let start = if range.end == 0 { place } else { range.start };
        *range = start..place + 1;
    }
    let mut degrees: Vec<usize> = neighbours.iter().map(ExactSizeIterator::len).collect();
    let rank = |node: usize, degree: usize| (degree, refused_by[node], name(node as u32), node);
    let mut heap: BinaryHeap<_> = degrees
        .iter()
        .enumerate()
        .filter(|(_, degree)| **degree > 0)
        .map(|(node, degree)| rank(node, *degree))
        .collect();
    let mut is_covered = vec![false; numbers];
    let mut culprits = Vec::new();
    while let Some((degree, refused_by, _, node)) = heap.pop() {
        let now = degrees[node];
        if degree != now {
            // Some of its pairs have been explained since it was put there.
            if now > 0 {
                heap.push(rank(node, now));
            }
            continue;
        }
        culprits.push(Culprit {
            node: node as u32,
            refused_by,
        });
        is_covered[node] = true;
        for edge in &edges[neighbours[node].clone()] {
            let neighbour = unpacked(*edge).1 as usize;
            if !is_covered[neighbour] {
                degrees[neighbour] -= 1;
            }
        }
    }
    culprits
}

fn packed(observer: u32, peer: u32) -> u64 {
    u64::from(observer) << 32 | u64::from(peer)
}

fn unpacked(pair: u64) -> (u32, u32) {
    ((pair >> 32) as u32, pair as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

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
        let culprits: BTreeSet<u32> = cover(&refusals, |_| "")
            .iter()
            .map(|culprit| culprit.node)
            .collect();
        assert!(
            refusals
                .iter()
                .all(|(a, b)| a == b || culprits.contains(a) || culprits.contains(b))
        );
    }
}
