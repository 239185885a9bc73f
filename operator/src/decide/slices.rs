//! What nodes are told of each other: the PeerSlices.

use super::{Listed, View};
use crate::world::{NodeRecord, World, known_lanes};
use crate::write::{Expected, What, Write};
use podlane_crds::{PeerEntry, UnderlayLink};
use podlane_plan::lane::Lane;
use podlane_plan::{protocol, slices};
use std::collections::{BTreeMap, BTreeSet};

/// PeerSlices that have to be made, changed or deleted.
pub(super) fn writes(view: &View<'_>) -> Vec<Write> {
    let world = view.world;
    let before: BTreeMap<String, BTreeSet<String>> = world
        .slices
        .iter()
        .map(|(name, slice)| {
            let peers = slice.peers.iter().flatten();
            (name.clone(), peers.map(|peer| peer.name.clone()).collect())
        })
        .collect();
    let peers: BTreeSet<String> = world.nodes.all().iter().map(|node| node.name.clone()).collect();
    let assigned = slices::assign(&before, &peers, world.settings.slice_capacity);

    let mut writes = Vec::new();
    let mut write = |name: &str, what| writes.push(Write::silent(name, what));
    for (name, members) in &assigned {
        let entries: Vec<PeerEntry> = members
            .iter()
            .filter_map(|member| {
                let stays = || view.listed.get(member.as_str()).map(|peer| (*peer).clone());
                entry(view, member).or_else(stays)
            })
            .collect();
        match world.slices.get(name) {
            None => write(name, What::CreateSlice(entries)),
            Some(slice) if slice.peers.as_ref() != Some(&entries) => write(
                name,
                What::UpdateSlice {
                    expected: Expected::from(&slice.identity),
                    peers: entries,
                },
            ),
            Some(_) => {}
        }
    }
    for (name, slice) in &world.slices {
        if !assigned.contains_key(name) {
            write(name, What::DeleteSlice(Expected::from(&slice.identity)));
        }
    }
    writes
}

/// What is written in the slices now. A peer that two slices list counts as in the first.
pub(super) fn listed(world: &World) -> Listed<'_> {
    let mut listed = Listed::new();
    for peer in world
        .slices
        .values()
        .flat_map(|slice| slice.peers.iter().flatten())
    {
        listed.entry(&peer.name).or_insert(peer);
    }
    listed
}

/// What the others are told of a node; None: it cannot be said, and what they were told stays.
fn entry(view: &View<'_>, name: &str) -> Option<PeerEntry> {
    let place = view.world.nodes.place(name).ok()?;
    let spec = view.told.specs[place].as_ref()?;
    let record = view.world.routing_nodes.get(name);
    let report = record.and_then(|record| record.report.as_ref());
    let link = |address: &String| {
        report
            .and_then(|report| report.underlay.iter().find(|link| link.address == *address))
            .cloned()
            .unwrap_or_else(|| UnderlayLink {
                address: address.clone(),
                prefix_length: None,
                device: None,
                mtu: None,
            })
    };
    Some(PeerEntry {
        name: name.to_owned(),
        addresses: spec.addresses.iter().map(link).collect(),
        pod_cidrs: spec.pod_cidrs.clone(),
        receives_on: record
            .map(|record| receives_on(view, record, place))
            .into_iter()
            .flatten()
            .map(|lane: Lane| lane.to_string())
            .collect(),
        policy: spec.policy.clone(),
        probe_key: report
            .and_then(|report| report.probe_key)
            .map(|key| key.to_string()),
    })
}

/// The lanes on which the others may send to a node: those that it says are open, less those that it is about to close. What it
/// said before it heard of its present spec is good for no lane that the others do not use already: it may have been told to
/// close that lane and to open it again, and have done only the first.
fn receives_on(view: &View<'_>, record: &NodeRecord, place: usize) -> BTreeSet<Lane> {
    let Some(report) = &record.report else {
        return BTreeSet::new();
    };
    let mut lanes = protocol::published(&report.receives_on, &view.told.publishable[place]);
    if report.observed_generation != record.identity.generation {
        let listed = view.listed.get(view.world.nodes.all()[place].name.as_str());
        let listed = listed
            .map(|peer| known_lanes(&peer.receives_on))
            .unwrap_or_default();
        lanes.retain(|lane| listed.contains(lane));
    }
    lanes
}

#[cfg(test)]
mod tests {
    use super::super::simulation::Cluster;
    use serde_json::json;

    #[test]
    fn a_change_at_one_node_rewrites_one_slice() {
        let mut cluster = Cluster::empty();
        cluster.world.settings.slice_capacity = 4;
        for number in 0..10 {
            cluster.node(
                &format!("n{number}"),
                number,
                &[&format!("10.0.0.{number}")],
                &[&format!("172.20.{number}.0/24")],
            );
        }
        cluster.settle();
        assert_eq!(cluster.slices(), ["peers-0", "peers-1", "peers-2"]);
        cluster.node("n5", 5, &["10.0.0.55"], &["172.20.5.0/24"]);
        let mut slices = cluster.writes();
        slices.retain(|write| write.contains("PeerSlice"));
        assert_eq!(slices, ["update PeerSlice peers-1"]);
        cluster.settle();

        // A node that is gone leaves its slice, and its RoutingNode goes.
        cluster.gone("Node", "n8");
        cluster.gone("Node", "n9");
        assert_eq!(
            cluster.writes(),
            [
                "delete PeerSlice peers-2",
                "delete RoutingNode n8",
                "delete RoutingNode n9"
            ]
        );
    }

    #[test]
    fn nodes_without_a_policy_are_listed_too_and_stale_links_are_not() {
        let mut cluster = Cluster::of_three();
        cluster.settle();
        let entry = cluster.slice_entry("k8s-w1").expect("listed");
        assert_eq!(
            entry["addresses"],
            json!([{"address": "192.168.10.101", "prefixLength": 24, "device": "eth0", "mtu": 1500}])
        );
        assert!(entry.get("policy").is_none());
        cluster.node("k8s-w1", 2, &["192.168.10.111"], &["172.20.1.0/24"]);
        cluster.pass();
        let entry = cluster.slice_entry("k8s-w1").expect("listed");
        assert_eq!(entry["addresses"], json!([{"address": "192.168.10.111"}]));
    }

    #[test]
    fn a_slice_that_cannot_be_read_is_written_anew() {
        let mut cluster = Cluster::of_three();
        cluster.settle();
        let good = cluster.object("PeerSlice", "peers-0")["spec"].clone();
        cluster.edit("PeerSlice", "peers-0", |slice| slice["spec"]["peers"] = json!(7));
        assert_eq!(cluster.writes(), ["update PeerSlice peers-0"]);
        cluster.settle();
        assert_eq!(cluster.object("PeerSlice", "peers-0")["spec"], good);
    }
}
