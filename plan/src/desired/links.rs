//! Where this node stands: which of its devices carry the addresses that its Node object lists.

use crate::kernel::UnderlayAddress;
use crate::pair::NodeAddress;
use ipnet::IpNet;
use std::net::IpAddr;

/// One of the node's own addresses, found on a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalLink {
    /// The address.
    pub address: IpAddr,
    /// The length of its on-link prefix.
    pub prefix_length: u8,
    /// The device.
    pub device: String,
    /// The device's MTU in bytes.
    pub mtu: u32,
}

impl LocalLink {
    /// As it is published to peers.
    pub const fn published(&self) -> NodeAddress {
        NodeAddress {
            address: self.address,
            prefix_length: Some(self.prefix_length),
        }
    }
}

/// Finds the node's addresses on its devices, in the order of the Node object. An address that stands on several devices
/// (or with several prefixes) counts where its prefix is shortest: that is the link, the others are host routes to it.
pub fn local_links(addresses: &[IpAddr], underlay: &[UnderlayAddress]) -> Vec<LocalLink> {
    addresses
        .iter()
        .filter_map(|address| {
            let found = underlay
                .iter()
                .filter(|on| on.address.addr() == *address)
                .min_by_key(|on| (on.address.prefix_len(), on.device.as_str()))?;
            Some(LocalLink {
                address: *address,
                prefix_length: found.address.prefix_len(),
                device: found.device.clone(),
                mtu: found.mtu,
            })
        })
        .collect()
}

/// Which of the underlay's addresses a network covers.
pub(crate) fn covered<'a>(network: &IpNet, underlay: &'a [UnderlayAddress]) -> Option<&'a UnderlayAddress> {
    underlay.iter().find(|on| network.contains(&on.address.addr()))
}
