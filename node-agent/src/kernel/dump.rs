//! What the kernel holds: one dump a kind of object, read straight into the plan's types.

use super::link::{Address, Link, permanent_neighbour};
use super::request;
use super::route::Decoded;
use super::sysctl::Sysctls;
use super::transport::{Request, Transport, TransportError};
use netlink_packet_route::AddressFamily;
use nix::errno::Errno;
use podlane_plan::kernel::{
    Capabilities, ForeignRoute, MacAddress, Observed, OnDevice, Route, RouteKey, UnderlayAddress,
};
use std::collections::{BTreeMap, BTreeSet};

/// A whole reading of the kernel.
#[derive(Debug, Default)]
pub struct Observation {
    /// What the plan wants to know.
    pub observed: Observed,
    /// What bears our marks and cannot be said in the plan's types; it has to go.
    pub strays: Vec<Stray>,
    /// The indices of our devices, for telling their neighbours' notifications from others'.
    pub device_indices: BTreeSet<u32>,
    /// Devices whose other end packets can be handed to (`bpf_redirect_peer`).
    pub veths: BTreeSet<String>,
}

/// Something of ours that no declaration could have made: a route with a type of service, an address with an on-link prefix.
#[derive(Debug)]
pub struct Stray {
    /// What it is.
    pub what: String,
    /// The request that removes it.
    pub removal: Request,
}

/// Reads everything. `sysctls_to_read` names parameters, given the rest.
///
/// Between the dumps the kernel may change. Then the notification of that change starts the next pass.
///
/// # Errors
/// When a dump fails: nothing must be concluded from a part.
pub(super) fn observe(
    transport: &mut Transport,
    sysctls: &Sysctls,
    capabilities: Capabilities,
    sysctls_to_read: impl FnOnce(&Observed) -> BTreeSet<String>,
) -> Result<Observation, TransportError> {
    let links: Vec<Link> = transport.dump(&request::all_links(), |links: &mut Vec<_>, _, payload| {
        links.extend(Link::decode(payload));
    })?;
    let names: BTreeMap<u32, String> = links.iter().map(|link| (link.index, link.name.clone())).collect();

    let mut found = Observation::default();
    found.observed.capabilities = capabilities;
    found.veths = links
        .iter()
        .filter(|link| matches!(link.kind.as_str(), "veth" | "netkit"))
        .map(|link| link.name.clone())
        .collect();
    for link in &links {
        if let Some(device) = link.ours() {
            found
                .observed
                .ours
                .devices
                .insert(link.name.clone(), device.clone());
            found.device_indices.insert(link.index);
        } else if link.has_our_name() {
            found
                .observed
                .foreign_devices
                .insert(link.name.clone(), link.description());
        }
    }
    addresses(transport, &links, &mut found)?;
    found.observed.ours.neighbours = neighbours(transport, &links)?;
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let routes = routes(transport, family, &names)?;
        // A map that is made of a list at once takes little more than half of what it takes when it grows.
        let mut ours = routes.ours.into_iter().collect();
        found.observed.ours.routes.append(&mut ours);
        found.observed.foreign_routes.extend(routes.foreign);
        found.strays.extend(routes.strays);
    }
    found.observed.foreign_routes.sort();
    let paths = sysctls_to_read(&found.observed);
    found.observed.ours.sysctls = paths
        .into_iter()
        .filter_map(|path| sysctls.read(&path).map(|value| (path, value)))
        .collect();
    Ok(found)
}

fn addresses(
    transport: &mut Transport,
    links: &[Link],
    found: &mut Observation,
) -> Result<(), TransportError> {
    let by_index: BTreeMap<u32, &Link> = links.iter().map(|link| (link.index, link)).collect();
    let all: Vec<Address> = transport.dump(&request::all_addresses(), |all: &mut Vec<_>, _, payload| {
        all.extend(Address::decode(payload));
    })?;
    for address in all {
        let Some(link) = by_index.get(&address.index) else {
            continue;
        };
        let device = link.name.clone();
        if link.ours().is_some() {
            let net = address.address;
            if !address.permanent {
                continue;
            }
            if net.prefix_len() == net.max_prefix_len() {
                found.observed.ours.addresses.insert(OnDevice {
                    device,
                    address: net.addr(),
                });
            } else {
                let what = format!("address {net} dev {device}");
                found.strays.push(Stray {
                    what,
                    removal: request::remove_address(link.index, &net),
                });
            }
        } else if address.global && link.up && !link.loopback {
            found.observed.underlay.push(UnderlayAddress {
                device,
                address: address.address,
                mtu: link.mtu,
            });
        }
    }
    found.observed.underlay.sort();
    Ok(())
}

fn neighbours(
    transport: &mut Transport,
    links: &[Link],
) -> Result<BTreeMap<OnDevice, MacAddress>, TransportError> {
    let mut all = Vec::new();
    for link in links.iter().filter(|link| link.ours().is_some()) {
        let message = request::neighbours_of(link.index);
        let ours = transport.dump(&message, |ours: &mut Vec<_>, _, payload| {
            if let Some((_, address, mac)) =
                permanent_neighbour(payload).filter(|(index, ..)| *index == link.index)
            {
                let device = link.name.clone();
                ours.push((OnDevice { device, address }, mac));
            }
        })?;
        all.extend(ours);
    }
    Ok(all.into_iter().collect())
}

#[derive(Default)]
struct Routes {
    ours: Vec<(RouteKey, Route)>,
    foreign: Vec<ForeignRoute>,
    strays: Vec<Stray>,
}

fn routes(
    transport: &mut Transport,
    family: AddressFamily,
    names: &BTreeMap<u32, String>,
) -> Result<Routes, TransportError> {
    let routes = transport.dump(&request::main_table(family), |routes: &mut Routes, _, payload| {
        let Some(route) = Decoded::decode(payload) else {
            return;
        };
        if !route.is_ours() {
            routes.foreign.push(route.foreign(names));
        } else if route.tos != 0 {
            let key = route.key();
            let what = format!("route {key} tos {:#x}", route.tos);
            routes.strays.push(Stray {
                what,
                removal: request::remove_route_with_tos(&key, route.tos),
            });
        } else {
            routes.ours.push((route.key(), route.ours(names)));
        }
    });
    match routes {
        // No main table yet (`inet_dump_fib` in net/ipv4/fib_frontend.c), or no such family in this kernel.
        Err(TransportError::Refused(refused))
            if [Errno::ENOENT, Errno::EAFNOSUPPORT, Errno::EOPNOTSUPP].contains(&refused.errno) =>
        {
            Ok(Routes::default())
        }
        routes => routes,
    }
}
