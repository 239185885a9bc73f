//! Networks as the elements of an interval set: where a run of addresses begins, and where it has ended.

use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// An element of an interval set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Element {
    /// The first address of a run, or the first one behind it.
    pub(super) key: IpAddr,
    /// Whether it ends a run (`NFT_SET_ELEM_INTERVAL_END`).
    pub(super) is_end: bool,
}

/// The elements of networks of one family. Neighbouring networks make one run: a set has no key twice.
pub(super) fn elements(networks: &[IpNet]) -> Vec<Element> {
    let mut bounds: Vec<(IpAddr, IpAddr)> = networks
        .iter()
        .map(|network| (network.network(), network.broadcast()))
        .collect();
    bounds.sort_unstable();
    let mut runs: Vec<(IpAddr, IpAddr)> = Vec::with_capacity(bounds.len());
    for (first, last) in bounds {
        match runs.last_mut() {
            Some((_, end)) if after(*end).is_none_or(|next| first <= next) => *end = (*end).max(last),
            _ => runs.push((first, last)),
        }
    }
    let mut elements = Vec::with_capacity(runs.len() * 2);
    for (first, last) in runs {
        elements.push(Element {
            key: first,
            is_end: false,
        });
        // A run up to the last address of all has no end.
        elements.extend(after(last).map(|key| Element { key, is_end: true }));
    }
    elements
}

/// The fewest networks that hold what these elements do.
pub(super) fn networks(elements: &[Element]) -> Vec<IpNet> {
    let mut sorted: BTreeMap<(IpAddr, bool), ()> = BTreeMap::new();
    for element in elements {
        sorted.insert((element.key, !element.is_end), ());
    }
    let mut networks = Vec::new();
    let mut begun: Option<IpAddr> = None;
    for (key, begins) in sorted.into_keys() {
        match (begun, begins) {
            (None, true) => begun = Some(key),
            (Some(first), false) => {
                networks.extend(before(key).into_iter().flat_map(|last| subnets(first, last)));
                begun = None;
            }
            _ => {}
        }
    }
    if let Some(first) = begun {
        let last = match first {
            IpAddr::V4(_) => IpAddr::from([255; 4]),
            IpAddr::V6(_) => IpAddr::from([255; 16]),
        };
        networks.extend(subnets(first, last));
    }
    networks
}

fn subnets(first: IpAddr, last: IpAddr) -> Vec<IpNet> {
    match (first, last) {
        (IpAddr::V4(first), IpAddr::V4(last)) => Ipv4Subnets::new(first, last, 0).map(IpNet::V4).collect(),
        (IpAddr::V6(first), IpAddr::V6(last)) => Ipv6Subnets::new(first, last, 0).map(IpNet::V6).collect(),
        _ => Vec::new(),
    }
}

fn after(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(address) => Some(IpAddr::V4(u32::from(address).checked_add(1)?.into())),
        IpAddr::V6(address) => Some(IpAddr::V6(u128::from(address).checked_add(1)?.into())),
    }
}

fn before(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(address) => Some(IpAddr::V4(u32::from(address).checked_sub(1)?.into())),
        IpAddr::V6(address) => Some(IpAddr::V6(u128::from(address).checked_sub(1)?.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use podlane_plan::masquerade::fewest;

    #[test]
    fn networks_survive_being_elements() {
        for (text, runs) in [
            ("172.20.0.0/16", "172.20.0.0 !172.21.0.0"),
            (
                "172.20.1.0/24 172.20.2.0/24 10.0.0.0/8",
                "10.0.0.0 !11.0.0.0 172.20.1.0 !172.20.3.0",
            ),
            ("224.0.0.0/3", "224.0.0.0"),
            ("0.0.0.0/0", "0.0.0.0"),
            ("fd20::/64 ff00::/8", "fd20:: !fd20:0:0:1:: ff00::"),
            ("", ""),
        ] {
            let networks: Vec<IpNet> = text
                .split_whitespace()
                .map(|cidr| cidr.parse().expect("a CIDR"))
                .collect();
            let elements = elements(&networks);
            let words: Vec<_> = elements
                .iter()
                .map(|element| format!("{}{}", if element.is_end { "!" } else { "" }, element.key))
                .collect();
            assert_eq!(words.join(" "), runs);
            let mut shuffled = elements;
            shuffled.reverse();
            assert_eq!(
                super::networks(&shuffled)
                    .into_iter()
                    .collect::<std::collections::BTreeSet<_>>(),
                fewest(networks)
            );
        }
    }
}
