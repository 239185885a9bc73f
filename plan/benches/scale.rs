//! Planning for one node among 5,000 peers: min, median and p99 in milliseconds.
#![allow(clippy::print_stdout, reason = "a benchmark prints its table")]

use ipnet::IpNet;
use podlane_plan::datapath::datapath;
use podlane_plan::desired::{Assignment, Peer, desired};
use podlane_plan::diff::diff;
use podlane_plan::kernel::{Device, ForeignRoute, MacAddress, NextHop, Observed, UnderlayAddress};
use podlane_plan::lane::{Lane, Tunnel, TunnelProtocol};
use podlane_plan::pair::NodeAddress;
use podlane_plan::policy::{Applied, OffLinkPeers, Rank, Routing, RoutingMode};
use podlane_plan::probes::{ProbeKey, Prober, Proofs};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

const PEERS: u32 = 5_000;
const ROUNDS: usize = 200;

fn main() {
    let tunnel = Tunnel {
        protocol: TunnelProtocol::Vxlan,
        port: 8472,
        vni: 1,
    };
    let policy = Applied {
        rank: Rank {
            priority: 0,
            created: 0,
            name: "default".to_owned(),
        },
        routing: Routing {
            routing_mode: RoutingMode::Tunnel,
            auto_direct_node_routes: true,
            off_link_peers: OffLinkPeers::Refuse,
            tunnel,
        },
    };
    let lanes = BTreeSet::from([Lane::Native, Lane::Tunnel(tunnel)]);
    // 10.1.x.y are the nodes, 10.128.0.0/9 in /24s their pods.
    let address = |number: u32| Ipv4Addr::from(0x0a01_0000 + number);
    let pods =
        |number: u32| IpNet::new(Ipv4Addr::from(0x0a80_0000 + (number << 8)).into(), 24).expect("a CIDR");
    let mut peers: BTreeMap<String, Peer> = (1..=PEERS)
        .map(|number| {
            let peer = Peer {
                addresses: vec![NodeAddress {
                    address: address(number).into(),
                    prefix_length: Some(16),
                }],
                pod_cidrs: vec![pods(number)],
                mtu: Some(1500),
                receives_on: lanes.clone(),
                policy: Some(policy.clone()),
                ..Peer::default()
            };
            (format!("node-{number:04}"), peer)
        })
        .collect();
    let me = address(PEERS + 1);
    let assignment = Assignment {
        name: "me".to_owned(),
        addresses: vec![me.into()],
        pod_cidrs: vec![pods(PEERS + 1)],
        cluster_pod_cidrs: Vec::new(),
        policy: Some(policy),
        mtu: 0,
        receive_on: lanes,
        ..Assignment::default()
    };
    let mut observed = Observed {
        underlay: vec![UnderlayAddress {
            device: "eth0".to_owned(),
            address: IpNet::new(me.into(), 16).expect("a CIDR"),
            mtu: 1500,
        }],
        foreign_routes: vec![ForeignRoute {
            destination: "0.0.0.0/0".parse().expect("a CIDR"),
            metric: 0,
            protocol: 3,
            next_hops: vec![NextHop {
                gateway: Some(address(0).into()),
                device: "eth0".to_owned(),
            }],
        }],
        ..Observed::default()
    };
    let device = Device::declared(&tunnel, MacAddress::of_node(&me.into()), 1450);
    observed.ours.devices.insert(tunnel.device(), device);

    println!(
        "{:<58} {:>9} {:>9} {:>9}",
        format!("one node among {PEERS} peers, {ROUNDS} rounds, ms"),
        "min",
        "median",
        "p99"
    );
    let (nothing, proofs) = (BTreeMap::new(), Proofs::default());
    report("plan and diff, from an empty kernel", || {
        let plan = desired(&assignment, &peers, &observed, &nothing, &proofs);
        assert!(diff(&plan.state, &observed.ours).len() > 2 * PEERS as usize);
    });
    observed.ours = desired(&assignment, &peers, &observed, &nothing, &proofs).state;
    report("plan and diff, nothing to do", || {
        let plan = desired(&assignment, &peers, &observed, &nothing, &proofs);
        assert!(diff(&plan.state, &observed.ours).is_empty());
    });
    let plan = desired(&assignment, &peers, &observed, &nothing, &proofs);
    report("plan of the programs", || {
        let (programs, notes) = datapath(&assignment, &peers, &observed, &plan);
        assert!(programs.peers.len() == PEERS as usize && notes.is_empty());
    });
    observed.capabilities.programs = true;
    for peer in peers.values_mut() {
        peer.probe_key = Some(ProbeKey([1; 16]));
    }
    let mut prober = Prober::new(1);
    report("plan with probes, and the prober aimed", || {
        let plan = desired(&assignment, &peers, &observed, &nothing, prober.proofs());
        let targets = plan.peers.iter();
        let targets = targets.map(|(name, peer)| (name.as_str(), peer.probed.as_slice()));
        prober.aim("node-0000", targets, Duration::ZERO);
    });
    let changed = peers.get_mut("node-2500").expect("a peer");
    changed.mtu = Some(1400);
    let plan = desired(&assignment, &peers, &observed, &nothing, &proofs);
    let operations = diff(&plan.state, &observed.ours);
    println!(
        "one peer's MTU changed: {} operation(s): {}",
        operations.len(),
        operations[0]
    );
    assert_eq!(operations.len(), 1);
}

fn report(what: &str, mut run: impl FnMut()) {
    let mut times: Vec<Duration> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            run();
            start.elapsed()
        })
        .collect();
    times.sort();
    let at = |share: usize| times[(times.len() - 1) * share / 100].as_secs_f64() * 1e3;
    println!("{what:<58} {:>9.3} {:>9.3} {:>9.3}", at(0), at(50), at(99));
}
