//! From the lane to a peer to its routes.

use super::links::covered;
use super::{
    Assignment, LocalLink, Note, Peer, PeerLane, Ways, is_open, router_address, router_address_of,
    stand_in_without_programs,
};
use crate::kernel::{ForeignRoute, Observed, Route, RouteKey, RouteTarget, lane_metric};
use crate::lane::{IPV4_LEAST_MTU, IPV6_LEAST_MTU, Lane, Tunnel};
use crate::pair::{self, Refusal};
use crate::probes::{ProbeKey, Proofs, Target};
use crate::protocol;
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// The ways to all peers, and what they need of the kernel.
pub(super) struct Routed {
    pub(super) lanes: BTreeMap<String, PeerLane>,
    pub(super) routes: BTreeMap<RouteKey, Route>,
    pub(super) notes: BTreeSet<Note>,
}

impl Routed {
    /// Whether packets or probes go to an outer address or a next hop of a family.
    pub(super) fn goes_by_family(&self, six: bool) -> bool {
        let routes = self.routes.values().filter_map(|route| match &route.target {
            RouteTarget::Via { gateway, .. } => Some(gateway),
            RouteTarget::Encapsulated { destination, .. } => Some(destination),
            RouteTarget::Unreachable => None,
        });
        let probed = self.lanes.values().flat_map(|lane| &lane.probed);
        let probed = probed.flat_map(|target| {
            let outer = target.outer.as_ref().map(|(_, there)| there);
            std::iter::once(&target.next_hop).chain(outer)
        });
        routes.chain(probed).any(|address| address.is_ipv6() == six)
    }
}

/// Everything that the way to a peer follows from.
pub(super) struct Router<'a> {
    assignment: &'a Assignment,
    links: &'a [LocalLink],
    peers: &'a BTreeMap<String, Peer>,
    observed: &'a Observed,
    unavailable: &'a BTreeMap<String, String>,
    open_here: BTreeSet<Lane>,
    proofs: &'a Proofs,
    ways: Ways<'a>,
}

impl<'a> Router<'a> {
    pub(super) fn new(
        assignment: &'a Assignment,
        links: &'a [LocalLink],
        peers: &'a BTreeMap<String, Peer>,
        observed: &'a Observed,
        unavailable: &'a BTreeMap<String, String>,
        receives_on: &BTreeSet<Lane>,
        proofs: &'a Proofs,
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
            peers,
            observed,
            unavailable,
            open_here,
            proofs,
            ways: Ways::new(assignment, links, observed),
        }
    }

    /// The way to every peer.
    pub(super) fn plan(&self) -> Routed {
        // A map that is made of a list at once takes little more than half of what it takes when it grows.
        let mut lanes = Vec::with_capacity(self.peers.len());
        let mut routes = Vec::with_capacity(self.peers.len());
        let mut notes = BTreeSet::new();
        for (name, peer) in self.others() {
            lanes.push((name.clone(), self.way_to(name, peer, &mut routes, &mut notes)));
        }
        self.note_foreign_routes_within(&mut notes);
        Routed {
            lanes: lanes.into_iter().collect(),
            routes: routes.into_iter().collect(),
            notes,
        }
    }

    fn others(&self) -> impl Iterator<Item = (&'a String, &'a Peer)> {
        self.peers
            .iter()
            .filter(|(name, _)| **name != self.assignment.name)
    }

    fn way_to(
        &self,
        name: &str,
        peer: &Peer,
        routes: &mut Vec<(RouteKey, Route)>,
        notes: &mut BTreeSet<Note>,
    ) -> PeerLane {
        let wanted = self.wanted(peer);
        let open_there = &peer.receives_on;
        let key = self.probe_key(peer);
        let doubt = |lane: Lane| key.and_then(|_| self.proofs.doubt(name, lane));
        let choose = |current: Option<Lane>| {
            let doubt = wanted.as_ref().ok().and_then(|lane| doubt(*lane));
            protocol::choose(wanted.clone(), current, &self.open_here, open_there, doubt)
                .map_err(|refusal| self.explain(refusal))
        };
        let used = choose(current(peer, self.observed));
        let waits_for = match (&used, &wanted) {
            // Why packets would go nowhere if they did not go where they do.
            (Ok(used), Ok(wanted)) if used != wanted => choose(None).err(),
            _ => None,
        };
        let mut to_peer = PeerLane {
            wanted,
            used: used.clone(),
            waits_for,
            refused: BTreeMap::new(),
            doubt: used
                .as_ref()
                .ok()
                .and_then(|lane| doubt(*lane))
                .filter(|doubt| !doubt.passes()),
            probed: Vec::new(),
        };
        // An ungoverned node keeps only the covers: another network plugin may have routes for its peers.
        if self.assignment.policy.is_none() {
            return to_peer;
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
                to_peer.refused.insert(*cidr, Refusal::CoversUnderlay(what));
                continue;
            }
            let way = used.clone().and_then(|lane| self.ways.route(peer, cidr, lane));
            let foreign = self
                .ways
                .fib
                .exact(cidr)
                .filter(|foreign| foreign.metric <= key.metric);
            if let Some(foreign) = foreign {
                to_peer
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
                    let least = if cidr.addr().is_ipv6() {
                        IPV6_LEAST_MTU
                    } else {
                        IPV4_LEAST_MTU
                    };
                    if let Some(mtu) = route.mtu.filter(|mtu| *mtu < least) {
                        notes.insert(Note::MtuTooSmall {
                            peer: name.to_owned(),
                            mtu,
                        });
                    }
                    routes.push((key, route));
                }
                Err(refusal) => {
                    to_peer.refused.entry(*cidr).or_insert(refusal);
                    routes.push((key, Route::UNREACHABLE));
                }
            }
        }
        if !reached && let Some((_, refusal)) = to_peer.refused.pop_first() {
            to_peer.used = Err(refusal);
            to_peer.refused.clear();
            to_peer.doubt = None;
        }
        to_peer.probed = self.probed(peer, &to_peer);
        to_peer
    }

    /// The lane that both policies ask for; this node's kernel has a veto on whether the peer is on its link.
    fn wanted(&self, peer: &Peer) -> Result<Lane, Refusal> {
        let on_link = pair::on_link(&self.ways.here, &peer.addresses)
            .is_some_and(|(_, there)| !self.ways.behind_gateway(&there));
        self.ways.lane_given(peer, on_link)
    }

    /// The lanes to a peer that are to be probed: that in use, and that to come once it is open at both ends.
    fn probed(&self, peer: &Peer, lane: &PeerLane) -> Vec<Target> {
        let Some(key) = self.probe_key(peer) else {
            return Vec::new();
        };
        let to_come = lane.wanted.as_ref().ok().filter(|wanted| {
            let open_here = wanted.tunnel().is_none() || self.open_here.contains(wanted);
            open_here && peer.receives_on.contains(&wanted.arrives_as()) && lane.used.as_ref() != Ok(*wanted)
        });
        let in_use = lane.used.as_ref().ok();
        let lanes = in_use.map(|lane| (*lane, true)).into_iter();
        let mut targets: Vec<Target> = lanes
            .chain(to_come.map(|lane| (*lane, false)))
            .filter_map(|(lane, in_use)| self.target(peer, lane, in_use, key))
            .collect();
        // A list grows by room for four, and most peers have one lane.
        targets.shrink_to_fit();
        targets
    }

    /// What the peer knows probes by, where lanes to it are to be proved, and can be.
    fn probe_key(&self, peer: &Peer) -> Option<ProbeKey> {
        let is_asked_for = self.proofs.are_asked_for() && self.observed.capabilities.programs;
        let is_asked_for = is_asked_for && self.probed_cidr(peer).is_some();
        peer.probe_key.filter(|_| is_asked_for)
    }

    /// Probes go between the router addresses of the first family that both nodes' pods have: that pod CIDR of the peer's, and this
    /// node's router address.
    fn probed_cidr<'p>(&self, peer: &'p Peer) -> Option<(&'p IpNet, IpAddr)> {
        peer.pod_cidrs.iter().find_map(|cidr| {
            let own = router_address_of(&self.assignment.pod_cidrs, cidr)?;
            Some((cidr, own))
        })
    }

    /// How to probe a lane.
    fn target(&self, peer: &Peer, lane: Lane, in_use: bool, key: ProbeKey) -> Option<Target> {
        let (cidr, source) = self.probed_cidr(peer)?;
        let route = self.ways.route(peer, cidr, lane).ok()?;
        let (outer, device, next_hop) = match &route.target {
            RouteTarget::Via { gateway, device } => (None, device, *gateway),
            RouteTarget::Encapsulated {
                source, destination, ..
            } => {
                let hop = self.ways.next_hops(destination).first();
                let gateway = hop.and_then(|hop| hop.gateway);
                let link = || self.links.iter().find(|link| link.address == *source);
                let device = hop.map(|hop| &hop.device).or_else(|| Some(&link()?.device))?;
                (
                    Some((*source, *destination)),
                    device,
                    gateway.unwrap_or(*destination),
                )
            }
            RouteTarget::Unreachable => return None,
        };
        // A route without an MTU of its own has its device's. A peer on the link that takes less is a fault, which probes are to
        // find; gateways tell senders of a narrower link further on (RFC 1191, RFC 8201).
        let device_mtu = || {
            let link = |link: &&LocalLink| Some(link.device.as_str()) == route.device();
            let found = self.links.iter().find(link).or_else(|| self.links.first());
            // Where nothing is known of the device: what every link carries.
            let own = found.map_or(IPV6_LEAST_MTU, |link| link.mtu);
            let theirs = peer.mtu.filter(|_| lane == Lane::Underlay);
            theirs.map_or(own, |theirs| theirs.min(own))
        };
        Some(Target {
            lane,
            in_use,
            key,
            source,
            destination: router_address(cidr),
            length: route.mtu.unwrap_or_else(device_mtu),
            outer,
            device: device.as_str().into(),
            next_hop,
        })
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
        let why = why.or_else(|| stand_in_without_programs(&device, self.observed).map(str::to_owned));
        why.map_or(refusal, |why| Refusal::NoDevice { lane, why })
    }

    /// Other people's routes to a part of a peer's pod CIDR win by their longer prefix.
    fn note_foreign_routes_within(&self, notes: &mut BTreeSet<Note>) {
        let owners: BTreeMap<IpNet, &str> = self
            .others()
            .flat_map(|(name, peer)| peer.pod_cidrs.iter().map(move |cidr| (*cidr, name.as_str())))
            .collect();
        for destination in self.ways.fib.destinations() {
            // Networks sort by address, then by length: the nearest before a network is the one that could hold it.
            let Some((cidr, owner)) = owners.range(..destination).next_back() else {
                continue;
            };
            if cidr.contains(destination) {
                notes.insert(Note::ForeignRouteWithin {
                    peer: (*owner).to_owned(),
                    destination: *destination,
                });
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
