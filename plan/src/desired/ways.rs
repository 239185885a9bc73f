//! The ways to a peer that this node's links and the kernel's own routes give, whichever of them its packets take.

use super::{Assignment, LocalLink, Peer, inner_gateway, router_address, router_address_of};
use crate::fib::Fib;
use crate::kernel::{NextHop, Observed, Route, RouteTarget};
use crate::lane::{Lane, Tunnel, tunnel_overhead};
use crate::pair::{self, End, NodeAddress, Refusal};
use ipnet::IpNet;
use std::net::IpAddr;

/// Everything that a way to a peer follows from.
pub(crate) struct Ways<'a> {
    assignment: &'a Assignment,
    links: &'a [LocalLink],
    /// The node's addresses, as they are published.
    pub(crate) here: Vec<NodeAddress>,
    /// The routes that are not ours.
    pub(crate) fib: Fib<'a>,
}

impl<'a> Ways<'a> {
    pub(crate) fn new(assignment: &'a Assignment, links: &'a [LocalLink], observed: &'a Observed) -> Self {
        Self {
            assignment,
            links,
            here: links.iter().map(LocalLink::published).collect(),
            fib: Fib::new(&observed.foreign_routes),
        }
    }

    /// The lane that both policies ask for, told whether the two nodes are on one link.
    pub(crate) fn lane_given(&self, peer: &Peer, on_link: bool) -> Result<Lane, Refusal> {
        let mine = End {
            addresses: &self.here,
            pod_cidrs: &self.assignment.pod_cidrs,
            policy: self.assignment.policy.as_ref(),
        };
        let theirs = End {
            addresses: &peer.addresses,
            pod_cidrs: &peer.pod_cidrs,
            policy: peer.policy.as_ref(),
        };
        pair::lane_given(&mine, &theirs, on_link)
    }

    /// Whether the kernel's own best route to an address has a gateway.
    pub(crate) fn behind_gateway(&self, address: &IpAddr) -> bool {
        self.next_hops(address).iter().any(|hop| hop.gateway.is_some())
    }

    /// The next hops of the kernel's own best route to an address; none where it has no route, or one that refuses.
    pub(crate) fn next_hops(&self, address: &IpAddr) -> &'a [NextHop] {
        self.fib
            .best(address)
            .map_or(&[], |route| route.next_hops.as_slice())
    }

    /// The outer addresses of tunnels with a peer, mine and its.
    pub(crate) fn tunnel_ends(&self, peer: &Peer) -> Option<(IpAddr, IpAddr)> {
        pair::tunnel_ends(&self.here, &peer.addresses)
    }

    /// The largest inner packet of a tunnel between these outer addresses, in bytes.
    pub(crate) fn tunnel_mtu(&self, peer: &Peer, source: &IpAddr, destination: &IpAddr) -> u32 {
        let underlay = self.link(source).map_or(0, |link| link.mtu);
        let carried = peer
            .mtu
            .map_or(underlay, |theirs| theirs.min(underlay))
            .saturating_sub(tunnel_overhead(destination));
        if self.assignment.mtu == 0 {
            carried
        } else {
            carried.min(self.assignment.mtu)
        }
    }

    /// The route of a lane to one of a peer's pod CIDRs.
    pub(crate) fn route(&self, peer: &Peer, cidr: &IpNet, lane: Lane) -> Result<Route, Refusal> {
        match lane {
            Lane::Native => self.native(peer, cidr),
            Lane::Underlay => self.underlay(peer, cidr),
            Lane::Tunnel(tunnel) => self.encapsulated(peer, cidr, &tunnel),
        }
    }

    fn native(&self, peer: &Peer, cidr: &IpNet) -> Result<Route, Refusal> {
        let six = cidr.addr().is_ipv6();
        let (here, gateway) =
            pair::on_link_for(&self.here, &peer.addresses, six).ok_or(Refusal::NoCommonFamily)?;
        let device = self
            .next_hops(&gateway)
            .first()
            .map(|hop| hop.device.clone())
            .or_else(|| self.link(&here).map(|link| link.device.clone()))
            .ok_or(Refusal::NoWay(gateway))?;
        Ok(self.plain(gateway, device))
    }

    /// The address of the peer's from which it may send this node's pods of a family their packets natively. What it has not
    /// reported of its links, its own kernel knows.
    pub(crate) fn on_link_from(&self, peer: &Peer, like: &IpNet) -> Option<IpAddr> {
        let six = like.addr().is_ipv6();
        let found = pair::on_link_for(&peer.addresses, &self.here, six);
        let unreported = || {
            let mut theirs = peer.addresses.clone();
            for address in &mut theirs {
                address.prefix_length.get_or_insert(0);
            }
            pair::on_link_for(&theirs, &self.here, six)
        };
        let all_reported = peer.addresses.iter().all(|on| on.prefix_length.is_some());
        found
            .or_else(|| if all_reported { None } else { unreported() })
            .map(|(theirs, _)| theirs)
    }

    fn underlay(&self, peer: &Peer, cidr: &IpNet) -> Result<Route, Refusal> {
        let mut addresses = peer.addresses.iter().map(|on| on.address);
        let address = addresses
            .find(|address| address.is_ipv6() == cidr.addr().is_ipv6())
            .ok_or(Refusal::NoCommonFamily)?;
        let hop = self.next_hops(&address).first().ok_or(Refusal::NoWay(address))?;
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
        let (source, destination) = self.tunnel_ends(peer).ok_or(Refusal::NoCommonFamily)?;
        Ok(Route {
            target: RouteTarget::Encapsulated {
                vni: tunnel.vni,
                source,
                destination,
                dscp: self.assignment.datapath.dscp,
                gateway: inner_gateway(peer, cidr).unwrap_or_else(|| router_address(cidr)),
                device: tunnel.device(),
            },
            preferred_source: router_address_of(&self.assignment.pod_cidrs, cidr),
            mtu: Some(self.tunnel_mtu(peer, &source, &destination)),
        })
    }

    fn link(&self, address: &IpAddr) -> Option<&LocalLink> {
        self.links.iter().find(|link| link.address == *address)
    }
}
