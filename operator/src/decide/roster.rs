//! What the nodes should know of each other.

use super::Listed;
use super::tell::Told;
use crate::world::{Report, World};
use ipnet::IpNet;
use podlane_plan::membership::Membership;
use std::net::IpAddr;

/// All nodes with the addresses and pod CIDRs that the others are told of.
#[derive(Debug)]
pub(super) struct Roster {
    /// Each in its place.
    each: Vec<Membership>,
    all: Membership,
}

impl Roster {
    pub(super) fn of(world: &World, told: &Told, listed: &Listed<'_>) -> Self {
        let each: Vec<_> = world
            .nodes
            .all()
            .iter()
            .zip(&told.specs)
            .map(|(node, spec)| match (spec, listed.get(node.name.as_str())) {
                (Some(spec), _) => {
                    let addresses = spec.addresses.iter().map(String::as_str);
                    membership(&node.name, addresses, &spec.pod_cidrs)
                }
                (None, Some(peer)) => {
                    let addresses = peer.addresses.iter().map(|link| link.address.as_str());
                    membership(&node.name, addresses, &peer.pod_cidrs)
                }
                (None, None) => Membership::default(),
            })
            .collect();
        Self {
            all: each.iter().copied().collect(),
            each,
        }
    }

    /// Whether the agent of the node in this place has planned with all the others as they are now.
    pub(super) fn is_known_to(&self, place: usize, report: &Report) -> bool {
        let others = self.each.len().saturating_sub(1);
        let told = self.all.without(self.each[place]);
        report.peers as usize == others && report.membership.is_none_or(|known| known == told)
    }
}

fn membership<'a>(name: &str, addresses: impl Iterator<Item = &'a str>, pod_cidrs: &[String]) -> Membership {
    // Both were written by an operator.
    Membership::of(
        name,
        addresses.filter_map(|text| text.parse::<IpAddr>().ok()),
        pod_cidrs.iter().filter_map(|text| text.parse::<IpNet>().ok()),
    )
}
