//! What a site's node declares to its programs, as the agent's plan would.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::{Context, Result};
use ipnet::IpNet;
use podlane_plan::datapath::{
    Attached, Datapath, DatapathPeer, NativeLane, OpenTunnel, Owner, Way as NextHop,
};
use podlane_plan::kernel::MacAddress;
use podlane_plan::lane::Tunnel;

use crate::site::{ETH0, Family, Node, POD_MTU, POD_VETH, Peer, UNDERLAY_MTU};

/// The networks of all pods of the cluster.
const CLUSTER: [&str; 2] = ["172.20.0.0/16", "fd20::/48"];

/// Declares one tunnel, or without one the native lane, to all of the node's peers.
pub(super) fn datapath(
    node: &Node,
    tunnel: Option<Tunnel>,
    is_stand_in: bool,
    bypass: bool,
) -> Result<Datapath> {
    let own = &node.identity;
    let open = tunnel.map(|tunnel| {
        let told = OpenTunnel {
            device: tunnel.device(),
            mac: MacAddress::of_node(&own.address().into()),
            stand_in: is_stand_in,
        };
        (tunnel, told)
    });
    let peers = node.peers.iter().map(|peer| told_of(node, peer, tunnel));
    Ok(Datapath {
        native: tunnel.is_none(),
        bypass,
        check_underlay: true,
        enter_by_tunnel: false,
        dscp: 0,
        local_pod_cidrs: pod_cidrs(own)?,
        peers: peers.collect::<Result<_>>()?,
        networks: networks(node, tunnel.is_none())?,
        attached: Attached {
            tunnels: tunnel.iter().map(Tunnel::device).collect(),
            underlay: [ETH0.to_owned()].into(),
            leaving_plain: tunnel.is_none(),
            pods: [(POD_VETH.to_owned(), bypass)].into(),
        },
        tunnels: open.into_iter().collect(),
    })
}

fn told_of(node: &Node, peer: &Peer, tunnel: Option<Tunnel>) -> Result<(IpAddr, DatapathPeer)> {
    let told = DatapathPeer {
        name: peer.address().to_string(),
        source: node.identity.address().into(),
        tunnels: tunnel.into_iter().collect::<BTreeSet<_>>().into(),
        mtu: POD_MTU,
        way: Some(NextHop {
            device: ETH0.to_owned(),
            next_hop: node.gateway(Family::Ipv4),
            several: false,
        }),
        pod_cidrs: pod_cidrs(peer)?.into_iter().collect(),
    };
    Ok((peer.address().into(), told))
}

fn networks(node: &Node, is_native: bool) -> Result<BTreeMap<IpNet, Owner>> {
    let mut networks = BTreeMap::new();
    for cidr in CLUSTER {
        networks.insert(cidr.parse().with_context(|| cidr)?, Owner::Unassigned);
    }
    let own = &node.identity;
    for family in Family::ALL {
        networks.insert(pod_cidr(own, family)?, Owner::Local { device: None });
        let device = Some(POD_VETH.to_owned());
        networks.insert(own.pod_address(family).into(), Owner::Local { device });
        for peer in &node.peers {
            let native = is_native.then(|| NativeLane {
                device: ETH0.to_owned(),
                next_hop: node.gateway(family),
                // Behind the router.
                on_link: false,
                mtu: UNDERLAY_MTU,
            });
            let outer = Some(peer.address().into());
            networks.insert(pod_cidr(peer, family)?, Owner::Peer { outer, native });
        }
    }
    Ok(networks)
}

fn pod_cidrs(peer: &Peer) -> Result<BTreeSet<IpNet>> {
    Family::ALL
        .into_iter()
        .map(|family| pod_cidr(peer, family))
        .collect()
}

fn pod_cidr(peer: &Peer, family: Family) -> Result<IpNet> {
    IpNet::new(peer.network(family), family.pod_cidr_bits()).context("a pod CIDR's length")
}
