//! What holds of blocks out of pools, whatever the nodes.

use ipnet::IpNet;
use podlane_plan::cluster::Node;
use podlane_plan::pool::{Family, Pool, Pools, allocate};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

/// As many at once as a large cluster has.
#[test]
fn five_thousand_nodes_have_a_block_of_their_own_each() {
    let pool = |family, cidr: &str, mask_size| {
        Pool::new(family, vec![cidr.parse().expect("a CIDR")], mask_size).expect("a pool")
    };
    let pools = Pools::new([
        pool(Family::V4, "10.0.0.0/8", 24),
        pool(Family::V6, "fd00::/104", 120),
    ]);
    let nodes: Vec<Node> = (0..5_000_u32)
        .map(|number| Node {
            name: format!("node-{number}"),
            // Within the pool's first blocks.
            addresses: vec![Ipv4Addr::from(0x0a00_0001 + number).into()],
            ..Node::default()
        })
        .collect();
    let allocation = allocate(&pools, &nodes, &BTreeMap::new());
    let blocks: BTreeSet<&IpNet> = allocation.pod_cidrs.values().flatten().collect();
    assert_eq!(blocks.len(), 10_000);
    assert!(allocation.pod_cidrs.values().all(|cidrs| cidrs.len() == 2) && allocation.exhausted.is_empty());
    let covers = |block: &&&IpNet| nodes.iter().any(|node| block.contains(&node.addresses[0]));
    assert_eq!(blocks.iter().filter(covers).count(), 0);
    let held = allocation.pod_cidrs.iter();
    let held = held.map(|(name, cidrs)| (name.as_str(), cidrs.clone())).collect();
    assert_eq!(allocate(&pools, &nodes, &held), allocation);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_block_is_given_twice_and_none_is_taken_away(
        mask_size in 22..28_u8,
        nodes in proptest::collection::vec((0..3_i64, proptest::option::weighted(0.2, (0..8_u8, 21..26_u8))), 1..40),
        joins in proptest::collection::vec(any::<prop::sample::Index>(), 1..6),
    ) {
        let pool = |cidr: &str| {
            Pool::new(Family::V4, vec![cidr.parse().expect("a CIDR")], mask_size).expect("a pool")
        };
        let pools = Pools::new([pool("10.0.0.0/19")]);
        let nodes: Vec<Node> = nodes.into_iter().enumerate().map(|(number, (created, own))| Node {
            name: format!("node-{number}"),
            created,
            addresses: vec![Ipv4Addr::new(10, 0, 9, u8::try_from(number).expect("few")).into()],
            pod_cidrs: own.into_iter()
                .map(|(subnet, length)| IpNet::new(Ipv4Addr::new(10, 0, subnet, 0).into(), length).expect("a CIDR").trunc())
                .collect(),
            ..Node::default()
        }).collect();
        // They join in parts; what was given is held.
        let mut given: BTreeMap<String, Vec<IpNet>> = BTreeMap::new();
        let mut parts: Vec<usize> = joins.iter().map(|index| index.index(nodes.len()) + 1).collect();
        parts.push(nodes.len());
        parts.sort_unstable();
        for part in parts {
            // A declaration that comes later may take a block from its holder; so all declared nodes are there from the start.
            let there: Vec<Node> = nodes.iter().enumerate()
                .filter(|(number, node)| *number < part || !node.pod_cidrs.is_empty())
                .map(|(_, node)| node.clone())
                .collect();
            let held = given.iter().map(|(name, cidrs)| (name.as_str(), cidrs.clone())).collect();
            let allocation = allocate(&pools, &there, &held);
            for (name, cidrs) in &given {
                prop_assert_eq!(&allocation.pod_cidrs[name], cidrs, "{} is as it was", name);
            }
            let mut reversed = there.clone();
            reversed.reverse();
            prop_assert_eq!(&allocate(&pools, &reversed, &held), &allocation);
            let all: Vec<IpNet> = allocation.pod_cidrs.values().flatten().copied().collect();
            for (place, cidr) in all.iter().enumerate() {
                prop_assert!(cidr.prefix_len() == mask_size && cidr.trunc() == *cidr);
                prop_assert!(all[place + 1..].iter().all(|other| other != cidr));
                let declared = there.iter().flat_map(|node| &node.pod_cidrs);
                prop_assert!(declared.into_iter().all(|own| !own.contains(cidr) && !cidr.contains(own)));
            }
            // Whoever is given nothing finds nothing free either.
            for name in allocation.exhausted.keys() {
                prop_assert!(allocation.pod_cidrs[name].is_empty());
            }
            for node in there.iter().filter(|node| node.pod_cidrs.is_empty()) {
                let has = !allocation.pod_cidrs[&node.name].is_empty();
                prop_assert!(has != allocation.exhausted.contains_key(&node.name));
            }
            // None that could be given is kept back.
            let network: IpNet = "10.0.0.0/19".parse().expect("a CIDR");
            let free = network.subnets(mask_size).expect("blocks").filter(|block| {
                let clear = |other: &IpNet| !other.contains(block) && !block.contains(other);
                all.iter().all(clear)
                    && there.iter().flat_map(|node| &node.pod_cidrs).all(clear)
                    && there.iter().all(|node| !block.contains(&node.addresses[0]))
            }).count();
            prop_assert!(allocation.exhausted.is_empty() || free == 0);
            given = allocation.pod_cidrs.into_iter().filter(|(_, cidrs)| !cidrs.is_empty()).collect();
        }
    }
}
