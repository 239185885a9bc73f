//! Who is given which block.

use super::{Family, Pool, Pools};
use crate::cluster::{Disjoint, Node, bounds, number};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};

/// What the pools give to whom.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allocation {
    /// Pod CIDRs of the nodes whose Node objects have none; each of these nodes is listed. Empty without pools.
    pub pod_cidrs: BTreeMap<String, Vec<IpNet>>,
    /// The families of which a node lacks a block, because none is left, with the pools' networks.
    pub exhausted: BTreeMap<String, BTreeMap<Family, String>>,
}

impl Allocation {
    /// A node's pod CIDRs: its Node object's, where it has any.
    pub(crate) fn pod_cidrs_of<'a>(&'a self, node: &'a Node) -> &'a [IpNet] {
        if node.pod_cidrs.is_empty() {
            self.pod_cidrs.get(&node.name).map_or(&[], Vec::as_slice)
        } else {
            &node.pod_cidrs
        }
    }
}

/// Gives a block of each pool to every node whose Node object has no pod CIDRs.
///
/// A node keeps what it holds, whatever the pools are now, unless a Node object says that it is that node's. What is held
/// under the name of a node that is gone is given to nobody else until that is gone too. The oldest node is served first (then the
/// one whose name sorts first), with the first block that is free and covers no node's address.
pub fn allocate(pools: &Pools, nodes: &[Node], held: &BTreeMap<&str, Vec<IpNet>>) -> Allocation {
    if pools.is_empty() {
        return Allocation::default();
    }
    let mut by_age: Vec<&Node> = nodes.iter().collect();
    by_age.sort_by(|a, b| (a.created, &a.name).cmp(&(b.created, &b.name)));
    let (own, served): (Vec<&Node>, Vec<&Node>) =
        by_age.into_iter().partition(|node| !node.pod_cidrs.is_empty());

    let mut taken = Taken::default();
    for address in nodes.iter().flat_map(|node| &node.addresses) {
        taken.addresses[usize::from(address.is_ipv6())].insert(number(address));
    }
    // Those that overlap too, of which only the older one's is routed now.
    let declared: Vec<IpNet> = own.iter().flat_map(|node| &node.pod_cidrs).copied().collect();
    for cidr in IpNet::aggregate(&declared) {
        taken.claim(cidr, "");
    }
    let mut allocation = Allocation::default();
    let nothing = Vec::new();
    for node in &served {
        let held = held.get(node.name.as_str()).unwrap_or(&nothing);
        let keeps = held.iter().map(IpNet::trunc);
        let keeps = keeps.filter(|cidr| taken.claim(*cidr, &node.name)).collect();
        allocation.pod_cidrs.insert(node.name.clone(), keeps);
    }
    for (name, cidrs) in held {
        if !allocation.pod_cidrs.contains_key(*name) {
            for cidr in cidrs {
                taken.claim(cidr.trunc(), name);
            }
        }
    }
    for pool in &pools.0 {
        let mut blocks = Blocks::of(pool);
        for node in &served {
            let Some(has) = allocation.pod_cidrs.get_mut(&node.name) else {
                continue;
            };
            if has.iter().any(|cidr| Family::of(cidr) == pool.family) {
                continue;
            }
            match blocks.next_free(&taken) {
                Some(block) => {
                    taken.claim(block, &node.name);
                    has.push(block);
                }
                None => {
                    let exhausted = allocation.exhausted.entry(node.name.clone()).or_default();
                    exhausted.insert(pool.family, pool.to_string());
                }
            }
        }
    }
    allocation
}

/// What can be given to nobody any more, by family.
#[derive(Default)]
struct Taken<'a> {
    networks: [Disjoint<'a>; 2],
    addresses: [BTreeSet<u128>; 2],
}

impl<'a> Taken<'a> {
    /// Takes a network, if nobody has any of it.
    fn claim(&mut self, cidr: IpNet, owner: &'a str) -> bool {
        self.networks[usize::from(cidr.addr().is_ipv6())]
            .insert(cidr, owner)
            .is_ok()
    }

    /// The last address of something within these bounds that stands in the way.
    fn within(&self, family: Family, first: u128, last: u128) -> Option<u128> {
        let place = usize::from(family == Family::V6);
        let network = self.networks[place].end_of_last_within(first, last);
        let address = || self.addresses[place].range(first..=last).next_back().copied();
        network.or_else(address)
    }
}

/// A pool's blocks in their order. What has been passed is not looked at again: nothing becomes free while blocks are given out.
struct Blocks<'a> {
    pool: &'a Pool,
    /// The place of the network that is being cut.
    at: usize,
    /// Where in it to go on.
    next: Option<u128>,
}

impl<'a> Blocks<'a> {
    const fn of(pool: &'a Pool) -> Self {
        Self {
            pool,
            at: 0,
            next: None,
        }
    }

    fn next_free(&mut self, taken: &Taken<'_>) -> Option<IpNet> {
        let Pool {
            family, mask_size, ..
        } = *self.pool;
        // A pool's prefix is never 0, so this is less than all of IPv6.
        let size = 1_u128 << (family.bits() - mask_size);
        while let Some(cidr) = self.pool.cidrs.get(self.at) {
            let (begin, end) = bounds(cidr);
            let mut first = self.next.unwrap_or(begin);
            while first <= end {
                let last = first + (size - 1);
                match taken.within(family, first, last) {
                    // It may reach far beyond this block.
                    Some(until) => first = begin + ((until - begin) / size + 1) * size,
                    None => {
                        self.next = Some(last + 1);
                        return block(family, first, mask_size);
                    }
                }
            }
            self.at += 1;
            self.next = None;
        }
        None
    }
}

fn block(family: Family, first: u128, mask_size: u8) -> Option<IpNet> {
    match family {
        Family::V4 => {
            let address = Ipv4Addr::from(u32::try_from(first).ok()?);
            Ipv4Net::new(address, mask_size).ok().map(IpNet::V4)
        }
        Family::V6 => Ipv6Net::new(Ipv6Addr::from(first), mask_size).ok().map(IpNet::V6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidrs(text: &str) -> Vec<IpNet> {
        text.split_whitespace()
            .map(|cidr| cidr.parse().expect("a CIDR"))
            .collect()
    }

    fn pools(four: &str, six: &str) -> Pools {
        let four = Pool::new(Family::V4, cidrs(four), 24).expect("a pool");
        let six = Pool::new(Family::V6, cidrs(six), 120).expect("a pool");
        Pools::new([four, six])
    }

    fn node(name: &str, created: i64, address: &str, own: &str) -> Node {
        Node {
            name: name.to_owned(),
            created,
            addresses: vec![address.parse().expect("an address")],
            pod_cidrs: cidrs(own),
            ..Node::default()
        }
    }

    /// `a=10.0.0.0/24 b=…`, and what is missing as `c lacks IPv4`.
    fn told(pools: &Pools, nodes: &[Node], held: &[(&'static str, &str)]) -> String {
        let held = held.iter().map(|(name, held)| (*name, cidrs(held))).collect();
        let allocation = allocate(pools, nodes, &held);
        let given = allocation.pod_cidrs.iter().map(|(name, cidrs)| {
            let cidrs: Vec<_> = cidrs.iter().map(IpNet::to_string).collect();
            format!("{name}={}", cidrs.join(","))
        });
        let lacking = allocation.exhausted.iter();
        let lacking = lacking.flat_map(|(name, families)| {
            families
                .iter()
                .map(move |(family, of)| format!("{name} lacks {family} of {of}"))
        });
        given.chain(lacking).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn the_oldest_is_served_first_and_each_has_a_block_of_each_family() {
        let nodes = [
            node("a", 30, "192.168.0.1", ""),
            node("b", 10, "192.168.0.2", ""),
            node("c", 10, "192.168.0.3", ""),
        ];
        assert_eq!(
            told(&pools("10.0.0.0/23 10.9.0.0/16", "fd00::/104"), &nodes, &[]),
            "a=10.9.0.0/24,fd00::200/120; b=10.0.0.0/24,fd00::/120; c=10.0.1.0/24,fd00::100/120"
        );
        assert_eq!(told(&pools("", ""), &nodes, &[]), "");
    }

    #[test]
    fn what_a_node_holds_stays_and_what_is_anybodys_is_passed_over() {
        let nodes = [
            node("declared", 50, "192.168.0.1", "10.0.0.0/23"),
            node("covered", 1, "10.0.2.7", ""),
            node("holds", 90, "192.168.0.3", ""),
            node("elsewhere", 91, "192.168.0.4", ""),
            node("new", 92, "192.168.0.5", ""),
        ];
        let held = [
            ("holds", "10.0.3.0/24"),
            // Of a pool that there was once.
            ("elsewhere", "172.20.5.0/24"),
            // Gone, and still listed.
            ("gone", "10.0.4.0/24"),
            // The Node object counts.
            ("declared", "10.0.6.0/24"),
        ];
        assert_eq!(
            told(&pools("10.0.0.0/16", ""), &nodes, &held),
            "covered=10.0.5.0/24; elsewhere=172.20.5.0/24; holds=10.0.3.0/24; new=10.0.7.0/24"
        );
        // What a Node object claims is not held by another any longer, and of two that hold one block the older keeps it.
        let held = [
            ("holds", "10.0.1.0/24"),
            ("elsewhere", "10.0.7.0/24"),
            ("new", "10.0.7.0/24"),
        ];
        assert_eq!(
            told(&pools("10.0.0.0/16", ""), &nodes, &held),
            "covered=10.0.3.0/24; elsewhere=10.0.7.0/24; holds=10.0.4.0/24; new=10.0.5.0/24"
        );
    }

    #[test]
    fn an_empty_pool_is_named_and_the_other_family_is_given_all_the_same() {
        let nodes = [node("a", 1, "192.168.0.1", ""), node("b", 2, "192.168.0.2", "")];
        assert_eq!(
            told(&pools("10.0.0.0/24", "fd00::/104"), &nodes, &[]),
            "a=10.0.0.0/24,fd00::/120; b=fd00::100/120; b lacks IPv4 of 10.0.0.0/24"
        );
        // Both at the end of what there is of addresses.
        let nodes: Vec<_> = (0..3)
            .map(|number| node(&number.to_string(), 0, "192.168.0.1", ""))
            .collect();
        assert_eq!(
            told(
                &pools("223.255.254.0/23", "feff:ffff:ffff:ffff:ffff:ffff:ffff:ff00/120"),
                &nodes,
                &[]
            ),
            "0=223.255.254.0/24,feff:ffff:ffff:ffff:ffff:ffff:ffff:ff00/120; 1=223.255.255.0/24; 2=; \
             1 lacks IPv6 of feff:ffff:ffff:ffff:ffff:ffff:ffff:ff00/120; 2 lacks IPv4 of 223.255.254.0/23; \
             2 lacks IPv6 of feff:ffff:ffff:ffff:ffff:ffff:ffff:ff00/120"
        );
    }
}
