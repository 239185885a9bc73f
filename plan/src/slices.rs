//! Which peer stands in which PeerSlice: stable, so that a change at one node rewrites one slice.

use std::collections::{BTreeMap, BTreeSet};

/// Peers in one slice, at most. A peer takes about 400 bytes of JSON, so a slice stays around 40 KiB, far below etcd's limit
/// of 1.5 MiB, and 5,000 nodes make 50 slices.
pub const CAPACITY: usize = 100;

/// The name of the slice with this number.
pub fn name(number: usize) -> String {
    format!("peers-{number}")
}

/// Assigns every peer to a slice. Peers stay where they are; those that are gone make room, which new ones fill, lowest
/// slice number first; slices left empty are not listed. A peer that two slices list stays in the first.
pub fn assign(
    before: &BTreeMap<String, BTreeSet<String>>,
    peers: &BTreeSet<String>,
    capacity: usize,
) -> BTreeMap<String, BTreeSet<String>> {
    let mut placed: BTreeSet<&String> = BTreeSet::new();
    let mut slices: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (slice, members) in before {
        let stay: BTreeSet<String> = members
            .iter()
            .filter(|peer| peers.contains(*peer))
            .filter(|peer| placed.insert(*peer))
            .cloned()
            .collect();
        slices.insert(slice.clone(), stay);
    }
    let mut new = peers.iter().filter(|peer| !placed.contains(*peer)).peekable();
    let mut number = 0;
    while new.peek().is_some() {
        let slice = slices.entry(name(number)).or_default();
        slice.extend(
            new.by_ref()
                .take(capacity.max(1).saturating_sub(slice.len()))
                .cloned(),
        );
        number += 1;
    }
    slices.retain(|_, members| !members.is_empty());
    slices
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peers(range: std::ops::Range<usize>) -> BTreeSet<String> {
        range.map(|number| format!("node-{number:04}")).collect()
    }

    #[test]
    fn peers_stay_where_they_are() {
        let first = assign(&BTreeMap::new(), &peers(0..250), 100);
        assert_eq!(
            first.values().map(BTreeSet::len).collect::<Vec<_>>(),
            [100, 100, 50]
        );
        assert_eq!(assign(&first, &peers(0..250), 100), first);

        let mut fewer = peers(0..250);
        fewer.remove("node-0003");
        fewer.insert("node-9999".to_owned());
        let second = assign(&first, &fewer, 100);
        let changed: Vec<_> = first
            .keys()
            .filter(|slice| first[*slice] != second[*slice])
            .collect();
        assert_eq!(changed, ["peers-0"]);
    }

    #[test]
    fn empty_slices_go_and_their_names_come_back() {
        let first = assign(&BTreeMap::new(), &peers(0..150), 100);
        let second = assign(&first, &peers(100..150), 100);
        assert_eq!(second.keys().collect::<Vec<_>>(), ["peers-1"]);
        assert_eq!(assign(&second, &peers(99..150), 100)["peers-0"], peers(99..100));
    }

    #[test]
    fn a_peer_listed_twice_stays_in_the_first() {
        let before = BTreeMap::from([(name(0), peers(0..2)), (name(1), peers(1..3))]);
        let after = assign(&before, &peers(0..3), 100);
        assert_eq!(after[&name(1)], peers(2..3));
    }
}
