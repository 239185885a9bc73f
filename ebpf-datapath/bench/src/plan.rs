//! What is compared with what.

use serde::{Deserialize, Serialize};

use crate::condition::Condition;
use crate::measurement::Measurement;
use crate::site::Family;
use crate::ways::{NATIVE, Way};

/// How many peers a node has where that is not what is looked at.
pub const FEW: u16 = 1;

/// How many peers a node has in a large cluster.
pub const MANY: u16 = 5000;

/// A way under a condition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// The way's name.
    pub way: String,
    /// What else the nodes do.
    pub condition: Condition,
    /// How many peers each node has.
    pub peers: u16,
}

/// Two settings, and what is measured of both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Comparison {
    /// What is compared.
    pub way: Setting,
    /// With what.
    pub baseline: Setting,
    /// The pods' family.
    pub family: Family,
    /// The measurements, in order.
    pub measurements: Vec<Measurement>,
}

/// What of all that is wanted; an empty list leaves nothing out.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Ways by name.
    pub ways: Vec<String>,
    /// Conditions.
    pub conditions: Vec<Condition>,
    /// Families.
    pub families: Vec<Family>,
    /// Measurements.
    pub measurements: Vec<Measurement>,
    /// Numbers of peers.
    pub peers: Vec<u16>,
    /// Where a list of families, numbers of peers or measurements is empty, only what tells most.
    pub quick: bool,
}

impl Selection {
    /// Whether anything is left out by name.
    pub fn is_partial(&self) -> bool {
        !(self.ways.is_empty()
            && self.conditions.is_empty()
            && self.families.is_empty()
            && self.measurements.is_empty()
            && self.peers.is_empty())
    }

    fn wants(&self, comparison: &Comparison) -> bool {
        wanted(&self.ways, &comparison.way.way)
            && wanted(&self.conditions, &comparison.way.condition)
            && self.tells(&self.families, &comparison.family, &[Family::Ipv4])
            && self.tells(&self.peers, &comparison.way.peers, &[FEW])
    }

    fn wants_of(&self, condition: Condition, measurement: Measurement) -> bool {
        let most: &[Measurement] = match condition {
            Condition::None | Condition::KubeProxy => {
                &[Measurement::Packets, Measurement::RoundTrip, Measurement::TcpOne]
            }
            Condition::Rules500 => &[Measurement::Packets, Measurement::RoundTrip],
        };
        self.tells(&self.measurements, &measurement, most)
    }

    /// Whether an item is wanted: by name, or else, in a quick run, as one of those that tell most.
    fn tells<T: PartialEq>(&self, named: &[T], item: &T, most: &[T]) -> bool {
        if self.quick && named.is_empty() {
            most.contains(item)
        } else {
            wanted(named, item)
        }
    }
}

fn wanted<T: PartialEq>(list: &[T], item: &T) -> bool {
    list.is_empty() || list.contains(item)
}

/// All comparisons that are wanted: first every way with its baseline in every condition, and the baseline under rules with itself
/// without; then all ways among many peers.
pub fn comparisons(ways: &[Box<dyn Way>], selection: &Selection) -> Vec<Comparison> {
    let mut all = Vec::new();
    for family in Family::ALL {
        for (condition, peers) in Condition::ALL
            .map(|condition| (condition, FEW))
            .into_iter()
            .chain([(Condition::None, MANY)])
        {
            for way in ways {
                let setting = |way: &str| Setting {
                    way: way.to_owned(),
                    condition,
                    peers,
                };
                let (way, mut baseline) = (setting(way.name()), setting(way.compared_with()));
                if way == baseline {
                    // A way compared with itself: under rules or among many peers, with itself without.
                    (baseline.condition, baseline.peers) = (Condition::None, FEW);
                }
                if way == baseline {
                    continue;
                }
                let measurements = Measurement::ALL
                    .into_iter()
                    .filter(|measurement| is_telling(family, condition, peers, *measurement))
                    .filter(|measurement| selection.wants_of(condition, *measurement))
                    .collect();
                all.push(Comparison {
                    way,
                    baseline,
                    family,
                    measurements,
                });
            }
        }
    }
    all.retain(|it| selection.wants(it) && !it.measurements.is_empty());
    all
}

/// The names that `--only` knows.
pub fn names(ways: &[Box<dyn Way>]) -> Vec<&'static str> {
    let mut names: Vec<_> = ways.iter().map(|way| way.name()).collect();
    debug_assert!(names.contains(&NATIVE));
    names.dedup();
    names
}

/// What rules or many peers cost is paid a packet; what is paid a byte besides is measured once.
fn is_telling(family: Family, condition: Condition, peers: u16, measurement: Measurement) -> bool {
    let a_packet = matches!(measurement, Measurement::Packets | Measurement::RoundTrip);
    match (family, condition, peers) {
        (_, Condition::None, FEW) | (Family::Ipv4, Condition::KubeProxy, _) => true,
        (Family::Ipv4, Condition::Rules500, _) => a_packet || measurement == Measurement::TcpOne,
        _ => a_packet,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ways;

    #[test]
    fn nothing_is_compared_with_itself_in_the_same_setting() {
        let all = comparisons(&ways::all(), &Selection::default());
        assert!(all.iter().all(|it| it.way != it.baseline));
        let rules = |it: &&Comparison| it.way.way == NATIVE && it.way.condition == Condition::KubeProxy;
        let own = all.iter().find(rules).unwrap();
        assert_eq!(own.baseline.condition, Condition::None);
    }

    #[test]
    fn every_way_meets_every_condition_in_both_families_and_among_many_peers() {
        let ways = ways::all();
        let all = comparisons(&ways, &Selection::default());
        for way in ways.iter().filter(|way| way.name() != NATIVE) {
            let its = all.iter().filter(|it| it.way.way == way.name()).count();
            assert_eq!(
                its,
                Family::ALL.len() * (Condition::ALL.len() + 1),
                "{}",
                way.name()
            );
        }
    }

    #[test]
    fn a_selection_leaves_the_rest_out() {
        let selection = Selection {
            ways: vec!["cilium".to_owned()],
            conditions: vec![Condition::None],
            families: vec![Family::Ipv6],
            measurements: vec![Measurement::TcpOne],
            ..Selection::default()
        };
        let all = comparisons(&ways::all(), &selection);
        assert_eq!(all.len(), 1);
        assert_eq!(all[0].measurements, [Measurement::TcpOne]);
        assert!(selection.is_partial());
        assert!(!Selection::default().is_partial());
    }

    #[test]
    fn a_quick_run_has_every_way_in_every_condition_and_what_is_named() {
        let ways = ways::all();
        let quick = Selection {
            quick: true,
            ..Selection::default()
        };
        let all = comparisons(&ways, &quick);
        // The baseline without rules is compared with nothing.
        assert_eq!(all.len(), ways.len() * Condition::ALL.len() - 1);
        assert!(
            all.iter()
                .all(|it| (it.family, it.way.peers) == (Family::Ipv4, FEW))
        );
        assert!(!quick.is_partial());
        let many = Selection {
            peers: vec![MANY],
            ..quick
        };
        let all = comparisons(&ways, &many);
        assert_eq!(all.len(), ways.len());
        assert_eq!(
            all[1].measurements,
            [Measurement::Packets, Measurement::RoundTrip]
        );
    }
}
