//! Which pod CIDRs nodes hold, and what the pools give to the others.
//!
//! What was given is remembered in RoutingNodes and, so that neither an unreadable nor a deleted one costs a node its pods' addresses,
//! in what the others were told of it.

use super::Listed;
use crate::world::World;
use ipnet::IpNet;
use podlane_plan::pool::{Allocation, allocate};
use std::collections::BTreeMap;

/// What the pools give to the nodes.
pub(super) fn allocation(world: &World, listed: &Listed<'_>) -> Allocation {
    let pools = &world.settings.pools;
    if pools.is_empty() {
        return Allocation::default();
    }
    allocate(pools, world.nodes.all(), &held(world, listed))
}

/// What each name holds, of nodes that are gone too.
fn held<'a>(world: &'a World, listed: &Listed<'a>) -> BTreeMap<&'a str, Vec<IpNet>> {
    let read = |texts: &[String]| texts.iter().filter_map(|text| text.parse().ok()).collect();
    let mut held: BTreeMap<&str, Vec<IpNet>> = listed
        .iter()
        .map(|(name, entry)| (*name, read(&entry.pod_cidrs)))
        .collect();
    for (name, record) in &world.routing_nodes {
        if let Some(spec) = &record.spec {
            held.insert(name, read(&spec.pod_cidrs));
        }
    }
    held
}

#[cfg(test)]
mod tests {
    use super::super::simulation::Cluster;
    use podlane_plan::pool::{Family, Pool, Pools};
    use serde_json::json;
    use std::collections::BTreeSet;

    fn with_pool(cidr: &str) -> Cluster {
        let mut cluster = Cluster::empty();
        cluster.world.settings.pools = pools(cidr);
        cluster.policy("default", 1, json!({"routingMode": "tunnel"}));
        cluster
    }

    fn pools(cidr: &str) -> Pools {
        Pools::new([Pool::new(Family::V4, vec![cidr.parse().expect("a CIDR")], 24).expect("a pool")])
    }

    fn join(cluster: &mut Cluster, name: &str, created: i64) {
        cluster.node(name, created, &[&format!("192.168.10.{created}")], &[]);
    }

    fn held(cluster: &Cluster, name: &str) -> String {
        let cidrs = &cluster.routing_node(name)["spec"]["podCIDRs"];
        let cidrs: Vec<_> = cidrs
            .as_array()
            .expect("a list")
            .iter()
            .filter_map(|cidr| cidr.as_str())
            .collect();
        cidrs.join(",")
    }

    #[test]
    fn blocks_outlive_the_operator_and_come_back_once_the_node_is_gone() {
        let mut cluster = with_pool("172.20.0.0/22");
        for (name, created) in [("a", 1), ("b", 2), ("c", 3)] {
            join(&mut cluster, name, created);
        }
        cluster.settle();
        let all = |cluster: &Cluster, names: &[&str]| {
            let held: Vec<_> = names.iter().map(|name| held(cluster, name)).collect();
            held.join(" ")
        };
        assert_eq!(
            all(&cluster, &["a", "b", "c"]),
            "172.20.0.0/24 172.20.1.0/24 172.20.2.0/24"
        );
        assert_eq!(cluster.condition("default", "Ready").1, "AsDeclared");

        // Another operator, another order, a new node that is older than all others.
        let mut cluster = cluster.restarted();
        join(&mut cluster, "first", 0);
        cluster.gone("Node", "b");
        // What the gone node's objects hold is nobody's until they are gone.
        let decision = super::super::decide(&cluster.world, cluster.now);
        let created = decision
            .writes
            .iter()
            .find(|write| write.name == "first")
            .expect("it is told");
        let crate::write::What::CreateNode { spec, .. } = &created.what else {
            panic!("{created:?}");
        };
        assert_eq!(spec.pod_cidrs, ["172.20.3.0/24"]);
        cluster.settle();
        join(&mut cluster, "d", 9);
        cluster.settle();
        assert_eq!(
            all(&cluster, &["a", "c", "first", "d"]),
            "172.20.0.0/24 172.20.2.0/24 172.20.3.0/24 172.20.1.0/24"
        );
        // The pool is empty: that is said, and ends when a node goes.
        join(&mut cluster, "e", 10);
        cluster.settle();
        assert_eq!(cluster.accepted("e"), ("False".into(), "PodCIDRPoolEmpty".into()));
        let (_, reason, message) = cluster.condition("default", "Ready");
        assert_eq!(reason, "PodCIDRPoolEmpty");
        assert!(
            message.contains("e has no IPv4 pod CIDR, because no block is left in 172.20.0.0/22"),
            "{message}"
        );
        cluster.gone("Node", "c");
        cluster.settle();
        assert_eq!(held(&cluster, "e"), "172.20.2.0/24");
        assert_eq!(cluster.condition("default", "Ready").1, "AsDeclared");
    }

    #[test]
    fn bad_input_takes_no_block_away() {
        let mut cluster = with_pool("172.20.0.0/20");
        join(&mut cluster, "a", 1);
        join(&mut cluster, "b", 2);
        cluster.settle();
        // One that cannot be read, and one that somebody deletes, as an operator finds them that has just been started.
        cluster.edit("RoutingNode", "a", |object| {
            object["spec"]["mtu"] = json!("large")
        });
        let mut cluster = cluster.restarted();
        cluster.gone("RoutingNode", "b");
        join(&mut cluster, "c", 0);
        cluster.settle();
        assert_eq!(held(&cluster, "a"), "172.20.0.0/24");
        assert_eq!(held(&cluster, "b"), "172.20.1.0/24");
        assert_eq!(held(&cluster, "c"), "172.20.2.0/24");
        // Another pool, and none.
        cluster.world.settings.pools = pools("10.0.0.0/16");
        let mut cluster = cluster.restarted();
        join(&mut cluster, "d", 4);
        cluster.settle();
        assert_eq!(held(&cluster, "b"), "172.20.1.0/24");
        assert_eq!(held(&cluster, "d"), "10.0.0.0/24");
        cluster.world.settings.pools = Pools::default();
        let mut cluster = cluster.restarted();
        cluster.settle();
        assert_eq!(held(&cluster, "d"), "10.0.0.0/24");
        assert_eq!(cluster.accepted("d").1, "NoPodCIDR");
    }

    #[test]
    fn a_node_object_that_has_pod_cidrs_counts() {
        let mut cluster = with_pool("172.20.0.0/20");
        cluster.node("a", 1, &["192.168.10.1"], &["172.20.0.0/24"]);
        join(&mut cluster, "b", 2);
        cluster.settle();
        assert_eq!(held(&cluster, "b"), "172.20.1.0/24");
        cluster.node("b", 2, &["192.168.10.2"], &["172.20.9.0/24"]);
        cluster.settle();
        assert_eq!(held(&cluster, "b"), "172.20.9.0/24");
    }

    #[test]
    fn five_thousand_nodes_join_at_once() {
        let mut cluster = with_pool("10.0.0.0/8");
        for number in 0..5_000 {
            let seen = json!({"metadata": {"name": format!("node-{number}"), "uid": number.to_string()},
                "status": {"addresses": [{"type": "InternalIP", "address": format!("192.168.{}.{}", number / 250, number % 250)}]}});
            cluster.world.see_node(
                serde_json::from_value(seen).expect("a node"),
                crate::world::Source::List,
            );
        }
        let decision = super::super::decide(&cluster.world, cluster.now);
        let specs = decision.writes.iter().filter_map(|write| match &write.what {
            crate::write::What::CreateNode { spec, .. } => Some(spec),
            _ => None,
        });
        let blocks: BTreeSet<&String> = specs.flat_map(|spec| &spec.pod_cidrs).collect();
        assert_eq!(blocks.len(), 5_000);
    }
}
