//! Which tunnels the programs know.

use super::{MAX_TUNNELS, OpenTunnel};
use crate::desired::{Desired, Note, is_open};
use crate::kernel::{Observed, RouteTarget};
use crate::lane::Tunnel;
use std::collections::{BTreeMap, BTreeSet};

/// The tunnels on which the node receives, and those to which the kernel's routes send, where their devices are open.
///
/// A device is taken with all of its tunnels or not at all: programs on it drop what comes in with a VNI that they do not know. One that
/// is left out works by the kernel's driver alone. Those that stand in for a driver come first.
pub(super) fn open(
    observed: &Observed,
    desired: &Desired,
    notes: &mut BTreeSet<Note>,
) -> BTreeMap<Tunnel, OpenTunnel> {
    let mut by_device: BTreeMap<String, BTreeSet<Tunnel>> = BTreeMap::new();
    let lanes = desired.receives_on.iter().copied().chain(desired.sends_on());
    let tunnels: BTreeSet<Tunnel> = lanes
        .filter_map(|lane| lane.tunnel())
        .chain(held(observed))
        .filter(|tunnel| is_open(tunnel, observed))
        .collect();
    for tunnel in tunnels {
        by_device.entry(tunnel.device()).or_default().insert(tunnel);
    }
    let mut in_order: Vec<_> = by_device
        .into_iter()
        .filter_map(|(name, tunnels)| {
            let device = observed.ours.devices.get(&name)?;
            Some(((!device.stand_in, tunnels), name, device))
        })
        .collect();
    in_order.sort_by(|a, b| a.0.cmp(&b.0));

    let mut open: BTreeMap<Tunnel, OpenTunnel> = BTreeMap::new();
    for ((_, tunnels), name, device) in in_order {
        let other = open
            .iter()
            .find(|(known, _)| known.port == device.port)
            .map(|(_, tunnel)| tunnel.device.clone());
        let why = match other {
            Some(other) => format!("{other} is on the same UDP port {}", device.port),
            None if open.len() + tunnels.len() > MAX_TUNNELS => {
                format!("no more than {MAX_TUNNELS} tunnels, ports and VNIs together, fit into them")
            }
            None => {
                let as_told = OpenTunnel {
                    device: name,
                    mac: device.mac,
                    stand_in: device.stand_in,
                };
                open.extend(tunnels.into_iter().map(|tunnel| (tunnel, as_told.clone())));
                continue;
            }
        };
        notes.insert(Note::WithoutPrograms { device: name, why });
    }
    open
}

/// The tunnels to which the kernel's routes send now.
fn held(observed: &Observed) -> BTreeSet<Tunnel> {
    // Nearly all routes have one of a few tunnels.
    let used: BTreeSet<(&str, u32)> = observed
        .ours
        .routes
        .values()
        .filter_map(|route| match &route.target {
            RouteTarget::Encapsulated { vni, device, .. } => Some((device.as_str(), *vni)),
            _ => None,
        })
        .collect();
    used.into_iter()
        .filter_map(|(name, vni)| {
            let device = observed.ours.devices.get(name)?;
            Some(Tunnel {
                protocol: device.protocol,
                port: device.port,
                vni,
            })
        })
        .collect()
}
