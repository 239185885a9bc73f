//! From the lane to a peer to its routes.

use super::links::covered;
use super::{Assignment, LocalLink, Note, Peer, PeerLane, is_open, router_address, router_address_of};
use crate::fib::Fib;
use crate::kernel::{ForeignRoute, Observed, Route, RouteKey, RouteTarget, lane_metric};
use crate::lane::{Lane, Tunnel, tunnel_overhead};
use crate::pair::{self, End, NodeAddress, Refusal};
use crate::protocol;
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// What a peer needs of the kernel.
pub(super) struct Routed {
    pub(super) lane: PeerLane,
    pub(super) routes: Vec<(RouteKey, Route)>,
    pub(super) notes: Vec<Note>,
}

/// Everything that the way to a peer follows from.
pub(super) struct Router<'a> {
    assignment: &'a Assignment,
    links: &'a [LocalLink],
    here: Vec<NodeAddress>,
    peers: &'a BTreeMap<String, Peer>,
    observed: &'a Observed,
    unavailable: &'a BTreeMap<String, String>,
    open_here: BTreeSet<Lane>,
    fib: Fib<'a>,
}

impl<'a> Router<'a> {
    pub(super) fn new(
        assignment: &'a Assignment,
        links: &'a [LocalLink],
        peers: &'a BTreeMap<String, Peer>,
        observed: &'a Observed,
        unavailable: &'a BTreeMap<String, String>,
        receives_on: &BTreeSet<Lane>,
    ) -> Self {
        // A device that receives also sends, whatever the VNI; one that nobody is told to receive on any more still sends
        // until the last peer has moved.
        let still_open = peers
            .values()
            .filter_map(|peer| current(peer, observed))
            .filter_map(Lane::tunnel);
        let open_here = still_open
            .filter(|tunnel| is_open(tunnel, observed))
            .map(Lane::Tunnel)
            .chain(receives_on.iter().copied())
            .collect();
        Self {
            assignment,
            links,
            here: links.iter().map(LocalLink::published).collect(),
            peers,
            observed,
            unavailable,
            open_here,
            fib: Fib::new(&observed.foreign_routes),
        }
    }

    /// The way to every peer.
    pub(super) fn plan(&self) -> BTreeMap<String, Routed> {
        let mut routed: BTreeMap<String, Routed> = self
            .peers
            .iter()
            .filter(|(name, _)| **name != self.assignment.name)
            .map(|(name, peer)| (name.clone(), self.way_to(name, peer)))
            .collect();
        self.note_foreign_routes_within(&mut routed);
        routed
    }

    fn way_to(&self, name: &str, peer: &Peer) -> Routed {
        let wanted = self.wanted(peer);
        let open_there = &peer.receives_on;
        let used = protocol::choose(
            wanted.clone(),
            current(peer, self.observed),
            &self.open_here,
            open_there,
        )
        .map_err(|refusal| self.explain(refusal));
        let waits_for = match (&used, &wanted) {
            (Ok(used), Ok(wanted)) if used != wanted => Some(self.explain(Refusal::NotReceiving(*wanted))),
            _ => None,
        };
        let mut routed = Routed {
            lane: PeerLane {
                wanted,
                used: used.clone(),
                waits_for,
                refused: BTreeMap::new(),
            },
            routes: Vec::new(),
            notes: Vec::new(),
        };
        // An ungoverned node keeps only the covers: another network plugin may have routes for its peers.
        if self.assignment.policy.is_none() {
            return routed;
        }
        let mut reached = false;
        for cidr in &peer.pod_cidrs {
            let key = RouteKey {
                destination: *cidr,
                metric: lane_metric(cidr),
            };
            if let Some(on) = covered(cidr, &self.observed.underlay) {
                // Even a refusal would cut this node off from its own link.
                let what = format!("{} on {}", on.address, on.device);
                routed.lane.refused.insert(*cidr, Refusal::CoversUnderlay(what));
                continue;
            }
            let way = used.clone().and_then(|lane| self.route(peer, cidr, lane));
            let foreign = self
                .fib
                .exact(cidr)
                .filter(|foreign| foreign.metric <= key.metric);
            if let Some(foreign) = foreign {
                routed
                    .lane
                    .refused
                    .insert(*cidr, Refusal::ForeignRoute(describe(foreign)));
                // With one metric the kernel holds one of the two, and it is theirs.
                if foreign.metric == key.metric && !self.observed.ours.routes.contains_key(&key) {
                    continue;
                }
            }
            match way {
                Ok(route) => {
                    reached |= foreign.is_none();
                    // What every host must be able to take: RFC 791, section 3.2; RFC 8200, section 5.
                    let least = if cidr.addr().is_ipv6() { 1280 } else { 576 };
                    if let Some(mtu) = route.mtu.filter(|mtu| *mtu < least) {
                        routed.notes.push(Note::MtuTooSmall {
                            peer: name.to_owned(),
                            mtu,
                        });
                    }
                    routed.routes.push((key, route));
                }
                Err(refusal) => {
                    routed.lane.refused.entry(*cidr).or_insert(refusal);
                    routed.routes.push((key, Route::UNREACHABLE));
                }
            }
        }
        if !reached && let Some((_, refusal)) = routed.lane.refused.pop_first() {
            routed.lane.used = Err(refusal);
            routed.lane.refused.clear();
        }
        routed
    }

    /// The lane that both policies ask for; this node's kernel has a veto on whether the peer is on its link.
    fn wanted(&self, peer: &Peer) -> Result<Lane, Refusal> {
        let mine = End {
            addresses: &self.here,
            policy: self.assignment.policy.as_ref(),
        };
        let theirs = End {
            addresses: &peer.addresses,
            policy: peer.policy.as_ref(),
        };
        let on_link =
            pair::on_link(&self.here, &peer.addresses).is_some_and(|(_, there)| !self.behind_gateway(&there));
        pair::lane_given(&mine, &theirs, on_link)
    }

    fn behind_gateway(&self, address: &IpAddr) -> bool {
        self.fib
            .best(address)
            .is_some_and(|route| route.next_hops.iter().any(|hop| hop.gateway.is_some()))
    }

    /// Puts this node's own reason in the place of "not open yet" where it knows one.
    fn explain(&self, refusal: Refusal) -> Refusal {
        let Refusal::NotReceiving(lane) = refusal else {
            return refusal;
        };
        let Some(device) = lane.tunnel().map(|tunnel| tunnel.device()) else {
            return refusal;
        };
        let why = self.unavailable.get(&device).cloned().or_else(|| {
            let what = self.observed.foreign_devices.get(&device)?;
            Some(format!(
                "a device that is not Podlane's has the name {device} ({what})"
            ))
        });
        why.map_or(refusal, |why| Refusal::NoDevice { lane, why })
    }

    fn route(&self, peer: &Peer, cidr: &IpNet, lane: Lane) -> Result<Route, Refusal> {
        match lane {
            Lane::Native => self.native(peer, cidr),
            Lane::Underlay => self.underlay(peer, cidr),
            Lane::Tunnel(tunnel) => self.encapsulated(peer, cidr, &tunnel),
        }
    }

    fn native(&self, peer: &Peer, cidr: &IpNet) -> Result<Route, Refusal> {
        let of_family = |addresses: &[NodeAddress]| -> Vec<NodeAddress> {
            addresses
                .iter()
                .filter(|on| on.address.is_ipv6() == cidr.addr().is_ipv6())
                .copied()
                .collect()
        };
        let (here, gateway) = pair::on_link(&of_family(&self.here), &of_family(&peer.addresses))
            .ok_or(Refusal::NoCommonFamily)?;
        let device = self
            .fib
            .best(&gateway)
            .and_then(|route| route.next_hops.first())
            .map(|hop| hop.device.clone())
            .or_else(|| self.link(&here).map(|link| link.device.clone()))
            .ok_or(Refusal::NoWay(gateway))?;
        Ok(self.plain(gateway, device))
    }

    fn underlay(&self, peer: &Peer, cidr: &IpNet) -> Result<Route, Refusal> {
        let address = peer
            .addresses
            .iter()
            .map(|on| on.address)
            .find(|address| address.is_ipv6() == cidr.addr().is_ipv6())
            .ok_or(Refusal::NoCommonFamily)?;
        let hop = self
            .fib
            .best(&address)
            .and_then(|route| route.next_hops.first())
            .ok_or(Refusal::NoWay(address))?;
        Ok(self.plain(hop.gateway.unwrap_or(address), hop.device.clone()))
    }

    fn plain(&self, gateway: IpAddr, device: String) -> Route {
        Route {
            target: RouteTarget::Via { gateway, device },
            preferred_source: None,
            mtu: (self.assignment.mtu != 0).then_some(self.assignment.mtu),
        }
    }

    fn encapsulated(&self, peer: &Peer, cidr: &IpNet, tunnel: &Tunnel) -> Result<Route, Refusal> {
        let (source, destination) =
            pair::tunnel_ends(&self.here, &peer.addresses).ok_or(Refusal::NoCommonFamily)?;
        let underlay = self.link(&source).map_or(0, |link| link.mtu);
        let carried = peer
            .mtu
            .map_or(underlay, |theirs| theirs.min(underlay))
            .saturating_sub(tunnel_overhead(&destination));
        let mtu = if self.assignment.mtu == 0 {
            carried
        } else {
            carried.min(self.assignment.mtu)
        };
        Ok(Route {
            target: RouteTarget::Encapsulated {
                vni: tunnel.vni,
                source,
                destination,
                gateway: router_address_of(&peer.pod_cidrs, cidr).unwrap_or_else(|| router_address(cidr)),
                device: tunnel.device(),
            },
            preferred_source: router_address_of(&self.assignment.pod_cidrs, cidr),
            mtu: Some(mtu),
        })
    }

    fn link(&self, address: &IpAddr) -> Option<&LocalLink> {
        self.links.iter().find(|link| link.address == *address)
    }

    /// Other people's routes to a part of a peer's pod CIDR win by their longer prefix.
    fn note_foreign_routes_within(&self, routed: &mut BTreeMap<String, Routed>) {
        let owners: BTreeMap<IpNet, &str> = self
            .peers
            .iter()
            .filter(|(name, _)| **name != self.assignment.name)
            .flat_map(|(name, peer)| peer.pod_cidrs.iter().map(move |cidr| (*cidr, name.as_str())))
            .collect();
        for destination in self.fib.destinations() {
            // Networks sort by address, then by length: the nearest before a network is the one that could hold it.
            let Some((cidr, owner)) = owners.range(..destination).next_back() else {
                continue;
            };
            if cidr.contains(destination)
                && let Some(peer) = routed.get_mut(*owner)
            {
                let note = Note::ForeignRouteWithin {
                    peer: (*owner).to_owned(),
                    destination: *destination,
                };
                peer.notes.push(note);
            }
        }
    }
}

/// The lane that this node's kernel now sends a peer's packets on.
fn current(peer: &Peer, observed: &Observed) -> Option<Lane> {
    let cidr = peer.pod_cidrs.first()?;
    let route = observed.ours.routes.get(&RouteKey {
        destination: *cidr,
        metric: lane_metric(cidr),
    })?;
    match &route.target {
        // What a dump found and could not put into words is on no lane.
        RouteTarget::Via { gateway, .. } if gateway.is_unspecified() => None,
        RouteTarget::Via { gateway, .. } => {
            let direct = peer.addresses.iter().any(|on| on.address == *gateway);
            Some(if direct { Lane::Native } else { Lane::Underlay })
        }
        RouteTarget::Encapsulated { vni, device, .. } => {
            let device = observed.ours.devices.get(device)?;
            Some(Lane::Tunnel(Tunnel {
                protocol: device.protocol,
                port: device.port,
                vni: *vni,
            }))
        }
        RouteTarget::Unreachable => None,
    }
}

fn describe(route: &ForeignRoute) -> String {
    let way = match route.next_hops.first() {
        Some(hop) => match hop.gateway {
            Some(gateway) => format!(" via {gateway} dev {}", hop.device),
            None => format!(" dev {}", hop.device),
        },
        None => String::new(),
    };
    format!(
        "{}{way} metric {} proto {}",
        route.destination, route.metric, route.protocol
    )
}
