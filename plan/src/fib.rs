//! Longest-prefix match over routes that are not ours: which way the kernel itself would go.

use crate::kernel::ForeignRoute;
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Routes arranged for look-ups: per prefix length, longest first; of several with one destination the one with the
/// lowest metric counts, as in the kernel.
#[derive(Debug, Default)]
pub struct Fib<'a> {
    by_length: BTreeMap<std::cmp::Reverse<u8>, BTreeMap<IpNet, &'a ForeignRoute>>,
}

impl<'a> Fib<'a> {
    /// Arranges routes.
    pub fn new(routes: &'a [ForeignRoute]) -> Self {
        let mut fib = Self::default();
        for route in routes {
            let length = std::cmp::Reverse(route.destination.prefix_len());
            let same_length = fib.by_length.entry(length).or_default();
            let best = same_length.entry(route.destination).or_insert(route);
            if (route.metric, route.protocol) < (best.metric, best.protocol) {
                *best = route;
            }
        }
        fib
    }

    /// The route to exactly this destination.
    pub fn exact(&self, destination: &IpNet) -> Option<&'a ForeignRoute> {
        self.by_length
            .get(&std::cmp::Reverse(destination.prefix_len()))?
            .get(destination)
            .copied()
    }

    /// Every destination, longest prefixes first.
    pub fn destinations(&self) -> impl Iterator<Item = &IpNet> {
        self.by_length.values().flat_map(BTreeMap::keys)
    }

    /// The route that a packet to `address` would take.
    pub fn best(&self, address: &IpAddr) -> Option<&'a ForeignRoute> {
        self.by_length.iter().find_map(|(length, routes)| {
            let host = IpNet::from(*address);
            if length.0 > host.max_prefix_len() {
                return None;
            }
            let network = IpNet::new(*address, length.0).ok()?.trunc();
            routes.get(&network).copied()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::NextHop;

    fn route(destination: &str, metric: u32, device: &str) -> ForeignRoute {
        ForeignRoute {
            destination: destination.parse().expect("a CIDR"),
            metric,
            protocol: 3,
            next_hops: vec![NextHop {
                gateway: None,
                device: device.to_owned(),
            }],
        }
    }

    #[test]
    fn the_longest_prefix_wins_then_the_lowest_metric() {
        let routes = [
            route("0.0.0.0/0", 0, "uplink"),
            route("10.0.0.0/8", 100, "slow"),
            route("10.0.0.0/8", 10, "fast"),
            route("10.1.0.0/16", 500, "near"),
            route("::/0", 0, "six"),
        ];
        let fib = Fib::new(&routes);
        let device = |address: &str| {
            fib.best(&address.parse().expect("an address"))
                .map(|route| route.next_hops[0].device.as_str())
        };
        let exact = |destination: &str| {
            fib.exact(&destination.parse().expect("a CIDR"))
                .map(|route| route.metric)
        };
        assert_eq!((exact("10.0.0.0/8"), exact("10.0.0.0/9")), (Some(10), None));
        assert_eq!(fib.destinations().count(), 4);
        assert_eq!(device("10.1.2.3"), Some("near"));
        assert_eq!(device("10.2.2.3"), Some("fast"));
        assert_eq!(device("11.0.0.1"), Some("uplink"));
        assert_eq!(device("fd00::1"), Some("six"));
        assert!(
            Fib::new(&routes[1..4])
                .best(&"11.0.0.1".parse().expect("an address"))
                .is_none()
        );
    }
}
