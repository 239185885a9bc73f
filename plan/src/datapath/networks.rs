//! Where this node's own pods are.

use super::Owner;
use crate::desired::{Assignment, router_address};
use crate::kernel::{DEVICE_PREFIX, Observed};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// This node's pods, as the kernel's routes show them.
#[derive(Default)]
pub(super) struct Pods {
    pub(super) networks: BTreeMap<IpNet, Owner>,
    /// The devices that lead to them, and whether a single pod is behind each.
    pub(super) devices: BTreeMap<String, bool>,
    /// Underlay devices by which pods are reached too: there nothing can be told by the device.
    pub(super) on_underlay: BTreeSet<String>,
}

/// The node's pod CIDRs, and within them the routes of its network plugin: a route of a host is a pod's (ptp), a wider one leads to a bridge.
/// A route by way of a pod is that pod's, which routes. One by any other gateway leads to nobody's device; what is behind it counts as nobody's
/// source. Neither does one to an address of the node's own: of an IPv6 address the kernel makes a route in the main table too
/// (`addrconf_prefix_route` in net/ipv6/addrconf.c), and a network plugin puts the pods' gateway on each pod's device.
pub(super) fn local(assignment: &Assignment, observed: &Observed, underlay: &BTreeSet<String>) -> Pods {
    let mut pods = Pods::default();
    let nowhere = || Owner::Local { device: None };
    pods.networks
        .extend(assignment.pod_cidrs.iter().map(|cidr| (*cidr, nowhere())));
    let own: BTreeSet<IpAddr> = observed
        .underlay
        .iter()
        .map(|on| on.address.addr())
        .chain(assignment.pod_cidrs.iter().map(router_address))
        .collect();
    let is_own = |destination: &IpNet| is_host(destination) && own.contains(&destination.addr());
    // With the lowest metric first, as the kernel prefers them.
    let mut routes: Vec<_> = observed
        .foreign_routes
        .iter()
        .filter(|route| {
            assignment
                .pod_cidrs
                .iter()
                .any(|cidr| cidr.contains(&route.destination))
                && !is_own(&route.destination)
        })
        .collect();
    routes.sort_by_key(|route| (route.destination, route.metric, route.protocol));
    routes.dedup_by_key(|route| route.destination);

    // A pod has an address or none of each family.
    let mut hosts: BTreeMap<(&str, bool), usize> = BTreeMap::new();
    let mut by_gateway = Vec::new();
    for route in routes {
        let [hop] = route.next_hops.as_slice() else {
            continue;
        };
        if hop.device.starts_with(DEVICE_PREFIX) {
            continue;
        }
        if let Some(gateway) = hop.gateway {
            by_gateway.push((route.destination, gateway, &hop.device));
            continue;
        }
        if underlay.contains(&hop.device) {
            pods.on_underlay.insert(hop.device.clone());
            continue;
        }
        let family = (hop.device.as_str(), route.destination.addr().is_ipv6());
        let so_far = hosts.entry(family).or_default();
        *so_far += 1;
        let is_single = pods.devices.entry(hop.device.clone()).or_insert(true);
        *is_single &= is_host(&route.destination) && *so_far == 1;
        let device = Some(hop.device.clone());
        pods.networks.insert(route.destination, Owner::Local { device });
    }
    let routed = by_gateway
        .into_iter()
        .filter(|(_, gateway, device)| pods.device_of(gateway) == Some(*device))
        .map(|(network, _, device)| {
            let device = Some(device.clone());
            (network, Owner::Local { device })
        })
        .collect::<Vec<_>>();
    pods.networks.extend(routed);
    pods
}

impl Pods {
    /// The device that leads to an address.
    fn device_of(&self, address: &IpAddr) -> Option<&String> {
        let containing = self
            .networks
            .iter()
            .filter(|(network, _)| network.contains(address));
        match containing.max_by_key(|(network, _)| network.prefix_len())? {
            (_, Owner::Local { device }) => device.as_ref(),
            _ => None,
        }
    }
}

fn is_host(network: &IpNet) -> bool {
    network.prefix_len() == network.max_prefix_len()
}
