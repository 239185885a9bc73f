//! From what the kernel holds to what is declared: ordered operations.

use crate::desired::IPV6_FORWARDING;
use crate::kernel::{COVER_METRIC, Device, Item, KernelState, MacAddress, OnDevice, Route, RouteKey};
use crate::masquerade::Masquerade;
use std::collections::BTreeSet;
use std::fmt;

/// One thing to tell the kernel. Each can be repeated without harm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Write a kernel parameter.
    SetSysctl {
        /// Its path below /proc/sys.
        path: String,
        /// Its new value.
        value: String,
    },
    /// Make a device (down).
    CreateDevice {
        /// Its name.
        name: String,
        /// Its shape.
        device: Device,
    },
    /// Give a device its link-layer address, MTU and flags, and bring it up.
    ConfigureDevice {
        /// Its name.
        name: String,
        /// Its shape.
        device: Device,
    },
    /// Remove a device, and with it its addresses, neighbours and routes.
    DeleteDevice {
        /// Its name.
        name: String,
    },
    /// Give a device an address, as /32 or /128.
    AddAddress(OnDevice),
    /// Take an address from a device.
    RemoveAddress(OnDevice),
    /// Add a permanent neighbour, or correct it in place.
    SetNeighbour(OnDevice, MacAddress),
    /// Remove a neighbour.
    RemoveNeighbour(OnDevice),
    /// Add a route where there is none with this key.
    AddRoute(RouteKey, Route),
    /// Put a route in the place of ours with the same key, in one step.
    ReplaceRoute(RouteKey, Route),
    /// Remove a route of ours.
    RemoveRoute(RouteKey),
    /// Make the table that masquerades, in one step, in the place of the one that is there.
    SetMasquerade(Masquerade),
    /// Remove that table.
    RemoveMasquerade,
}

impl Operation {
    /// What it is about.
    pub fn item(&self) -> Item {
        match self {
            Self::SetSysctl { path, .. } => Item::Sysctl(path.clone()),
            Self::CreateDevice { name, .. }
            | Self::ConfigureDevice { name, .. }
            | Self::DeleteDevice { name } => Item::Device(name.clone()),
            Self::AddAddress(address) | Self::RemoveAddress(address) => Item::Address(address.clone()),
            Self::SetNeighbour(neighbour, _) | Self::RemoveNeighbour(neighbour) => {
                Item::Neighbour(neighbour.clone())
            }
            Self::AddRoute(key, _) | Self::ReplaceRoute(key, _) | Self::RemoveRoute(key) => Item::Route(*key),
            Self::SetMasquerade(_) | Self::RemoveMasquerade => Item::Masquerade,
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SetSysctl { path, value } => write!(f, "set {path} = {value}"),
            Self::CreateDevice { name, device } => {
                write!(
                    f,
                    "add device {name} type {} port {}",
                    device.driver(),
                    device.port
                )
            }
            Self::ConfigureDevice { name, device } => {
                write!(f, "set device {name}")?;
                // A device of another driver is another one: what was refused of the one is not of the other.
                if device.stand_in {
                    write!(f, " type {}", device.driver())?;
                }
                write!(f, " address {} mtu {} up", device.mac, device.mtu)
            }
            Self::DeleteDevice { name } => write!(f, "delete device {name}"),
            Self::AddAddress(address) => write!(f, "add address {address}"),
            Self::RemoveAddress(address) => write!(f, "delete address {address}"),
            Self::SetNeighbour(neighbour, mac) => write!(f, "set neighbour {neighbour} lladdr {mac}"),
            Self::RemoveNeighbour(neighbour) => write!(f, "delete neighbour {neighbour}"),
            Self::AddRoute(key, route) => write!(f, "add route {key} {route}"),
            Self::ReplaceRoute(key, route) => write!(f, "replace route {key} {route}"),
            Self::RemoveRoute(key) => write!(f, "delete route {key}"),
            Self::SetMasquerade(masquerade) => write!(f, "masquerade {masquerade}"),
            Self::RemoveMasquerade => f.write_str("masquerade nothing"),
        }
    }
}

/// The operations that turn `actual` into `desired`, in an order in which each finds what it needs, nothing that is in use
/// is taken away before its successor is there, and no pod CIDR is without a route in between:
///
/// `unreachable` covers; devices that must be made anew go; parameters; devices; addresses; neighbours; the table that masquerades;
/// lanes; then what nobody uses any more: lanes, that table, neighbours, addresses, devices, covers.
///
/// Covers are there before anything forwards, and as long as anything does: what comes out of a tunnel for a pod that is not there would
/// leave by the default route.
///
/// Parameters that `desired` does not name are left alone.
pub fn diff(desired: &KernelState, actual: &KernelState) -> Vec<Operation> {
    let mut operations = covers(desired, actual);
    // A device that cannot be corrected takes its addresses, neighbours and routes with it.
    let anew = made_anew(desired, actual);
    operations.extend(anew.iter().map(|name| Operation::DeleteDevice {
        name: (*name).to_owned(),
    }));

    let (mut device_sysctls, node_sysctls): (Vec<_>, Vec<_>) = desired
        .sysctls
        .iter()
        .filter(|(path, value)| actual.sysctls.get(*path) != Some(value))
        .map(|(path, value)| Operation::SetSysctl {
            path: path.clone(),
            value: value.clone(),
        })
        .partition(
            |operation| matches!(operation, Operation::SetSysctl { path, .. } if path.contains("/conf/")),
        );
    // A kernel that begins to forward IPv6 forgets the default routes of devices that will take no advertisements any more
    // (`rt6_purge_dflt_routers` in net/ipv6/route.c).
    device_sysctls.sort_by_key(
        |operation| matches!(operation, Operation::SetSysctl { path, .. } if path == IPV6_FORWARDING),
    );
    operations.extend(node_sysctls);
    operations.extend(devices(desired, actual, &anew));
    // The kernel makes a device's own parameters together with the device.
    operations.extend(device_sysctls);

    let survives = |device: &str| !anew.contains(device);
    operations.extend(
        desired
            .addresses
            .iter()
            .filter(|address| !(actual.addresses.contains(address) && survives(&address.device)))
            .map(|address| Operation::AddAddress(address.clone())),
    );
    operations.extend(
        desired
            .neighbours
            .iter()
            .filter(|(key, mac)| !(actual.neighbours.get(key) == Some(mac) && survives(&key.device)))
            .map(|(key, mac)| Operation::SetNeighbour(key.clone(), *mac)),
    );
    // Before the lanes: a flow keeps the address that its first packet had.
    if desired.masquerade != actual.masquerade {
        let wanted = desired.masquerade.iter().cloned();
        operations.extend(wanted.map(Operation::SetMasquerade));
    }
    operations.extend(lanes(desired, actual, &anew));

    // Routes through a device that goes are gone with it, as are its neighbours and addresses.
    let goes = |device: &str| !desired.devices.contains_key(device) && actual.devices.contains_key(device);
    let superfluous = actual
        .routes
        .iter()
        .filter(|(key, _)| !desired.routes.contains_key(key))
        .filter(|(_, route)| route.device().is_none_or(survives))
        .map(|(key, _)| key);
    let (no_covers, no_lanes): (Vec<&RouteKey>, Vec<&RouteKey>) = superfluous.partition(|key| is_cover(key));
    operations.extend(no_lanes.into_iter().map(|key| Operation::RemoveRoute(*key)));
    if desired.masquerade.is_none() && actual.masquerade.is_some() {
        operations.push(Operation::RemoveMasquerade);
    }
    operations.extend(
        actual
            .neighbours
            .keys()
            .filter(|key| {
                !desired.neighbours.contains_key(key) && survives(&key.device) && !goes(&key.device)
            })
            .map(|key| Operation::RemoveNeighbour(key.clone())),
    );
    operations.extend(
        actual
            .addresses
            .iter()
            .filter(|key| !desired.addresses.contains(key) && survives(&key.device) && !goes(&key.device))
            .map(|key| Operation::RemoveAddress(key.clone())),
    );
    operations.extend(
        actual
            .devices
            .keys()
            .filter(|name| !desired.devices.contains_key(*name))
            .map(|name| Operation::DeleteDevice { name: name.clone() }),
    );
    operations.extend(no_covers.into_iter().map(|key| Operation::RemoveRoute(*key)));
    operations
}

/// The part of [`diff`] that makes and corrects covers, and removes none: what has to be there before the first device.
pub fn covers(desired: &KernelState, actual: &KernelState) -> Vec<Operation> {
    desired
        .routes
        .iter()
        .filter(|(key, route)| is_cover(key) && actual.routes.get(key) != Some(route))
        .map(|(key, route)| {
            if actual.routes.contains_key(key) {
                Operation::ReplaceRoute(*key, route.clone())
            } else {
                Operation::AddRoute(*key, route.clone())
            }
        })
        .collect()
}

const fn is_cover(key: &RouteKey) -> bool {
    key.metric == COVER_METRIC
}

/// The part of [`diff`] that makes and corrects devices, and removes none that is merely superfluous: what has to work
/// before any lane can be said to be open.
pub fn open_devices(desired: &KernelState, actual: &KernelState) -> Vec<Operation> {
    let anew = made_anew(desired, actual);
    let mut operations: Vec<_> = anew
        .iter()
        .map(|name| Operation::DeleteDevice {
            name: (*name).to_owned(),
        })
        .collect();
    operations.extend(devices(desired, actual, &anew));
    operations
}

/// Devices that cannot be corrected, and have to be made anew.
fn made_anew<'a>(desired: &'a KernelState, actual: &KernelState) -> BTreeSet<&'a str> {
    desired
        .devices
        .iter()
        .filter(|(name, wanted)| actual.devices.get(*name).is_some_and(|is| !is.can_become(wanted)))
        .map(|(name, _)| name.as_str())
        .collect()
}

fn devices(desired: &KernelState, actual: &KernelState, anew: &BTreeSet<&str>) -> Vec<Operation> {
    let mut operations = Vec::new();
    for (name, device) in &desired.devices {
        let is = actual.devices.get(name).filter(|_| !anew.contains(name.as_str()));
        if is == Some(device) {
            continue;
        }
        if is.is_none() {
            operations.push(Operation::CreateDevice {
                name: name.clone(),
                device: device.clone(),
            });
        }
        operations.push(Operation::ConfigureDevice {
            name: name.clone(),
            device: device.clone(),
        });
    }
    operations
}

fn lanes(desired: &KernelState, actual: &KernelState, anew: &BTreeSet<&str>) -> Vec<Operation> {
    desired
        .routes
        .iter()
        .filter(|(key, _)| !is_cover(key))
        .filter_map(|(key, route)| match actual.routes.get(key) {
            // Bringing a device down, or deleting it, removes the routes through it.
            Some(is) if is.device().is_some_and(|device| anew.contains(device)) => {
                Some(Operation::AddRoute(*key, route.clone()))
            }
            Some(is) if is == route => None,
            Some(_) => Some(Operation::ReplaceRoute(*key, route.clone())),
            None => Some(Operation::AddRoute(*key, route.clone())),
        })
        .collect()
}

/// What a kernel holds after an operation: the model against which [`diff`] is tested, and a dry run.
pub fn apply(state: &mut KernelState, operation: &Operation) {
    match operation {
        Operation::SetSysctl { path, value } => {
            state.sysctls.insert(path.clone(), value.clone());
        }
        Operation::CreateDevice { name, device } => {
            state.devices.insert(
                name.clone(),
                Device {
                    up: false,
                    ..device.clone()
                },
            );
        }
        Operation::ConfigureDevice { name, device } => {
            state.devices.insert(name.clone(), device.clone());
        }
        Operation::DeleteDevice { name } => {
            state.devices.remove(name);
            state.addresses.retain(|address| address.device != *name);
            state.neighbours.retain(|neighbour, _| neighbour.device != *name);
            state.routes.retain(|_, route| route.device() != Some(name));
        }
        Operation::AddAddress(address) => {
            state.addresses.insert(address.clone());
        }
        Operation::RemoveAddress(address) => {
            state.addresses.remove(address);
        }
        Operation::SetNeighbour(neighbour, mac) => {
            state.neighbours.insert(neighbour.clone(), *mac);
        }
        Operation::RemoveNeighbour(neighbour) => {
            state.neighbours.remove(neighbour);
        }
        Operation::AddRoute(key, route) | Operation::ReplaceRoute(key, route) => {
            state.routes.insert(*key, route.clone());
        }
        Operation::RemoveRoute(key) => {
            state.routes.remove(key);
        }
        Operation::SetMasquerade(masquerade) => state.masquerade = Some(masquerade.clone()),
        Operation::RemoveMasquerade => state.masquerade = None,
    }
}
