//! The tunnel devices, and the router addresses on them.

use super::{Assignment, Desired, LocalLink, Note, Reason, local_links, router_address, stand_in, sysctls};
use crate::kernel::{Device, Item, MacAddress, Observed, OnDevice};
use crate::lane::{Lane, Tunnel, tunnel_overhead};
use std::collections::{BTreeMap, BTreeSet};

/// The tunnel devices that a node must have open, so that the shell can open them (and learn whether the kernel can) before the
/// rest is planned.
pub fn devices(assignment: &Assignment, observed: &Observed) -> BTreeMap<String, Device> {
    let links = local_links(&assignment.addresses, &observed.underlay);
    let Some(address) = assignment.addresses.first() else {
        return BTreeMap::new();
    };
    let Some(mtu) = device_mtu(assignment, &links) else {
        return BTreeMap::new();
    };
    let mac = MacAddress::of_node(address);
    assignment
        .receive_on
        .iter()
        .filter_map(|lane| lane.tunnel())
        .map(|tunnel| (tunnel.device(), stand_in::device(&tunnel, mac, mtu, observed)))
        .filter(|(name, _)| !observed.foreign_devices.contains_key(name))
        .collect()
}

/// The MTU of this node's tunnel devices: what its widest underlay leaves, no more than its policy says.
fn device_mtu(assignment: &Assignment, links: &[LocalLink]) -> Option<u32> {
    let underlay = links
        .iter()
        .map(|link| link.mtu.saturating_sub(tunnel_overhead(&link.address)))
        .max()?;
    Some(if assignment.mtu == 0 {
        underlay
    } else {
        underlay.min(assignment.mtu)
    })
}

/// Whether the tunnel's device is there, ours, as declared and up.
pub(crate) fn is_open(tunnel: &Tunnel, observed: &Observed) -> bool {
    observed.ours.devices.get(&tunnel.device()).is_some_and(|device| {
        device.up
            && device.collect_metadata
            && device.protocol == tunnel.protocol
            && device.port == tunnel.port
            && (observed.capabilities.programs || !device.stand_in)
    })
}

/// Declares them: those that are in use, and those by which the node is told to receive.
pub(super) fn declare(
    plan: &mut Desired,
    assignment: &Assignment,
    links: &[LocalLink],
    observed: &Observed,
    unavailable: &BTreeMap<String, String>,
    in_use: &BTreeSet<Lane>,
) {
    let (Some(address), Some(mtu)) = (assignment.addresses.first(), device_mtu(assignment, links)) else {
        // Without an underlay nothing can be said of the devices: those that are there stay.
        for (name, device) in &observed.ours.devices {
            plan.declare(Item::Device(name.clone()), Reason::InUse, |state| {
                state.devices.insert(name.clone(), device.clone())
            });
        }
        plan.state.addresses.clone_from(&observed.ours.addresses);
        return;
    };
    if assignment.mtu > mtu {
        plan.notes.insert(Note::MtuBeyondUnderlay {
            policy: assignment.mtu,
            used: mtu,
        });
    }
    let mac = MacAddress::of_node(address);
    let told = assignment.receive_on.iter().map(|lane| (lane, Reason::Receives));
    for (lane, reason) in in_use.iter().map(|lane| (lane, Reason::InUse)).chain(told) {
        let Some(tunnel) = lane.tunnel() else { continue };
        let name = tunnel.device();
        if let Some(what) = observed.foreign_devices.get(&name) {
            plan.notes.insert(Note::ForeignDevice {
                name,
                what: what.clone(),
            });
            continue;
        }
        if let Some(why) = stand_in::without_programs(&name, observed) {
            plan.notes.insert(Note::NoDevice {
                name: name.clone(),
                why: why.to_owned(),
            });
        }
        if let Some(why) = unavailable.get(&name) {
            plan.notes.insert(Note::NoDevice {
                name: name.clone(),
                why: why.clone(),
            });
            // One that is there and misbehaves is kept as it is: repairing it was just tried.
            let Some(is) = observed.ours.devices.get(&name) else {
                continue;
            };
            plan.declare(Item::Device(name.clone()), reason, |state| {
                state.devices.insert(name, is.clone())
            });
            continue;
        }
        plan.declare(Item::Device(name.clone()), reason, |state| {
            state
                .devices
                .insert(name.clone(), stand_in::device(&tunnel, mac, mtu, observed))
        });
        plan.declare(
            Item::Sysctl(sysctls::rp_filter(&name)),
            Reason::ReversePath,
            |state| state.sysctls.insert(sysctls::rp_filter(&name), "2".to_owned()),
        );
        let mut families = BTreeSet::new();
        for cidr in assignment
            .pod_cidrs
            .iter()
            .filter(|cidr| families.insert(cidr.addr().is_ipv6()))
        {
            let address = OnDevice {
                device: name.clone(),
                address: router_address(cidr),
            };
            plan.declare(Item::Address(address.clone()), Reason::RouterAddress, |state| {
                state.addresses.insert(address)
            });
        }
    }
}
