//! Networks as the programs compare addresses with them: an address and a mask.

use ipnet::IpNet;
use podlane_datapath_common::{Address, Network4, Network6};

pub(super) fn network4(network: &IpNet) -> Option<Network4> {
    match network {
        IpNet::V4(network) => Some(Network4 {
            network: u32::from_ne_bytes(network.network().octets()),
            mask: u32::from_ne_bytes(network.netmask().octets()),
        }),
        IpNet::V6(_) => None,
    }
}

pub(super) fn network6(network: &IpNet) -> Option<Network6> {
    match network {
        IpNet::V4(_) => None,
        IpNet::V6(network) => Some(Network6 {
            network: Address::of_v6_octets(network.network().octets()).0,
            mask: Address::of_v6_octets(network.netmask().octets()).0,
        }),
    }
}

/// The first four of a family, and whether there are more.
pub(super) fn four4<'a>(networks: impl IntoIterator<Item = &'a IpNet>) -> ([Network4; 4], bool) {
    let mut all = networks.into_iter().filter_map(network4);
    let four = std::array::from_fn(|_| all.next().unwrap_or(Network4::EMPTY));
    (four, all.next().is_some())
}

pub(super) fn four6<'a>(networks: impl IntoIterator<Item = &'a IpNet>) -> ([Network6; 4], bool) {
    let mut all = networks.into_iter().filter_map(network6);
    let four = std::array::from_fn(|_| all.next().unwrap_or(Network6::EMPTY));
    (four, all.next().is_some())
}

/// The least network that contains all of the family.
pub(super) fn around4<'a>(networks: impl Iterator<Item = &'a IpNet>) -> Network4 {
    networks
        .filter_map(network4)
        .reduce(|all, next| {
            let differing = u32::from_be(all.network ^ next.network).leading_zeros();
            let shared = u32::MAX.checked_shl(32 - differing).unwrap_or(0).to_be();
            let mask = all.mask & next.mask & shared;
            Network4 {
                network: all.network & mask,
                mask,
            }
        })
        .unwrap_or(Network4::EMPTY)
}

pub(super) fn around6<'a>(networks: impl Iterator<Item = &'a IpNet>) -> Network6 {
    let whole = |words: [u32; 4]| u128::from_be_bytes(Address(words).octets());
    let words = |whole: u128| Address::of_v6_octets(whole.to_be_bytes()).0;
    networks
        .filter_map(network6)
        .reduce(|all, next| {
            let differing = (whole(all.network) ^ whole(next.network)).leading_zeros();
            let shared = u128::MAX.checked_shl(128 - differing).unwrap_or(0);
            let mask = whole(all.mask) & whole(next.mask) & shared;
            Network6 {
                network: words(whole(all.network) & mask),
                mask: words(mask),
            }
        })
        .unwrap_or(Network6::EMPTY)
}
