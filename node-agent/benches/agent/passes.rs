//! Single passes over 5,000 peers.

use crate::{table, underlay};
use podlane_agent::datapath::Datapath;
use podlane_agent::kernel::Kernel;
use podlane_agent::pass::{Outcome, Pass};
use podlane_agent::retries::Retries;
use podlane_plan::desired::{Assignment, Peer};
use podlane_plan::lane::{Lane, Tunnel, TunnelProtocol};
use podlane_plan::pair::NodeAddress;
use podlane_plan::policy::{Applied, OffLinkPeers, Rank, Routing, RoutingMode};
use podlane_test_namespaces::in_fresh;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Instant;

pub(crate) const PEERS: u32 = 5_000;

const VXLAN: Tunnel = Tunnel {
    protocol: TunnelProtocol::Vxlan,
    port: 8472,
    vni: 1,
};

fn policy() -> Applied {
    Applied {
        rank: Rank {
            priority: 0,
            created: 1,
            name: "default".to_owned(),
        },
        routing: Routing {
            routing_mode: RoutingMode::Tunnel,
            auto_direct_node_routes: true,
            off_link_peers: OffLinkPeers::Refuse,
            tunnel: VXLAN,
        },
    }
}

/// A peer's address by its number, from 0.
pub(crate) fn node_address(number: u32) -> String {
    std::net::Ipv4Addr::from(u32::from_be_bytes([10, 200, 1, 0]) + number).to_string()
}

/// A peer's pod CIDR by its number. 172.16.0.0/12 has only 4,096 networks of /24, so these are /26.
pub(crate) fn pod_cidr(number: u32) -> String {
    let base = u32::from_be_bytes([172, 16, 1, 0]) + number * 64;
    format!("{}/26", std::net::Ipv4Addr::from(base))
}

fn peers() -> BTreeMap<String, Peer> {
    (0..PEERS)
        .map(|number| {
            let peer = Peer {
                addresses: vec![NodeAddress {
                    address: node_address(number).parse().expect("an address"),
                    prefix_length: Some(16),
                }],
                pod_cidrs: vec![pod_cidr(number).parse().expect("a CIDR")],
                mtu: Some(1500),
                receives_on: [Lane::Native, Lane::Tunnel(VXLAN)].into(),
                policy: Some(policy()),
                ..Peer::default()
            };
            (format!("node-{number:04}"), peer)
        })
        .collect()
}

fn assignment() -> Assignment {
    Assignment {
        name: "k8s-ctr".to_owned(),
        addresses: vec!["192.168.10.100".parse().expect("an address")],
        pod_cidrs: vec!["172.16.0.0/26".parse().expect("a CIDR")],
        policy: Some(policy()),
        receive_on: [Lane::Native, Lane::Tunnel(VXLAN)].into(),
        ..Assignment::default()
    }
}

fn pass(kernel: &mut Kernel, peers: &BTreeMap<String, Peer>) -> (Outcome, std::time::Duration) {
    let start = Instant::now();
    let outcome = Pass::new(
        kernel,
        &mut Datapath::without("only the kernel's part is measured", start),
        &mut Retries::default(),
        &assignment(),
        peers,
    )
    .run(start)
    .expect("the kernel can be read");
    let took = start.elapsed();
    assert!(
        outcome.settled && outcome.unfinished.is_empty(),
        "{:?}",
        outcome.unfinished.first()
    );
    (outcome, took)
}

pub(crate) fn measure() {
    table::head(&format!(
        "Passes over {PEERS} peers, each a route and a neighbour"
    ));
    let (sender, samples) = std::sync::mpsc::channel();
    for _ in 0..7 {
        let sender = sender.clone();
        in_fresh(move || {
            underlay();
            let (outcome, took) = pass(&mut Kernel::default(), &peers());
            assert!(outcome.applied as u32 >= 2 * PEERS);
            sender.send(took).expect("somebody listens");
        })
        .expect("measured");
    }
    drop(sender);
    table::times(
        "from an empty kernel to all of it, read back",
        samples.iter().collect(),
        "1 s",
    );

    underlay();
    let mut kernel = Kernel::default();
    let mut peers = peers();
    pass(&mut kernel, &peers);
    let idle = (0..200).map(|_| {
        let (outcome, took) = pass(&mut kernel, &peers);
        assert_eq!(outcome.applied, 0);
        took
    });
    table::times("nothing to do", idle.collect(), "50 ms");

    let read = (0..200).map(|_| {
        let start = Instant::now();
        kernel
            .observe(|_| std::collections::BTreeSet::new())
            .expect("readable");
        start.elapsed()
    });
    table::times("  of which reading the kernel", read.collect(), "");

    let narrowed = (0..50).map(|run| {
        peers.get_mut("node-2500").expect("it is there").mtu = Some(1400 + run);
        let (outcome, took) = pass(&mut kernel, &peers);
        assert_eq!(outcome.applied, 1, "one route");
        took
    });
    table::times(
        "one peer's MTU changed: 1 route operation",
        narrowed.collect(),
        "1 operation",
    );

    let moved = (0..50_u8).map(|run| {
        let address = IpAddr::from([10, 201, 0, run + 1]);
        peers.get_mut("node-2500").expect("it is there").addresses[0].address = address;
        let (outcome, took) = pass(&mut kernel, &peers);
        assert_eq!(outcome.applied, 2, "its route and its neighbour");
        took
    });
    table::times(
        "one peer's address changed: 1 route, 1 neighbour",
        moved.collect(),
        "",
    );
}
