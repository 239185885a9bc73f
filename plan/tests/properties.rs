//! What holds whatever the input.

use ipnet::IpNet;
use podlane_plan::cluster::{Node, admit};
use podlane_plan::desired::{Assignment, Peer, desired};
use podlane_plan::diff::{Operation, apply, diff};
use podlane_plan::kernel::{
    COVER_METRIC, Device, ForeignRoute, Item, KernelState, MacAddress, NextHop, Observed, OnDevice, Route,
    RouteKey, RouteTarget, UnderlayAddress, lane_metric,
};
use podlane_plan::lane::{Lane, Tunnel, TunnelProtocol};
use podlane_plan::masquerade::{Masquerade, MasqueradeOptions, Mode};
use podlane_plan::pair::{self, End, NodeAddress};
use podlane_plan::policy::{Applied, OffLinkPeers, Rank, Routing, RoutingMode};
use podlane_plan::pool::Allocation;
use podlane_plan::probes::{Doubt, ProbeKey, Proofs, Standing};
use proptest::prelude::*;
use proptest::sample::select;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

fn tunnel() -> impl Strategy<Value = Tunnel> {
    (
        select(vec![TunnelProtocol::Vxlan, TunnelProtocol::Geneve]),
        select(vec![4789, 6081, 8472]),
        0..3_u32,
    )
        .prop_map(|(protocol, port, vni)| Tunnel { protocol, port, vni })
}

fn policy() -> impl Strategy<Value = Option<Applied>> {
    let routing = (
        select(vec![RoutingMode::Native, RoutingMode::Tunnel]),
        any::<bool>(),
        select(vec![
            OffLinkPeers::Refuse,
            OffLinkPeers::Tunnel,
            OffLinkPeers::Underlay,
        ]),
        tunnel(),
    );
    let applied = (routing, 0..3_i32, 0..3_i64, select(vec!["a", "b", "c"])).prop_map(
        |((routing_mode, auto_direct_node_routes, off_link_peers, tunnel), priority, created, name)| {
            Applied {
                rank: Rank {
                    priority,
                    created,
                    name: name.to_owned(),
                },
                routing: Routing {
                    routing_mode,
                    auto_direct_node_routes,
                    off_link_peers,
                    tunnel,
                },
            }
        },
    );
    proptest::option::weighted(0.9, applied)
}

fn receives_on() -> impl Strategy<Value = BTreeSet<Lane>> {
    (any::<bool>(), proptest::collection::vec(tunnel(), 0..4)).prop_map(|(native, tunnels)| {
        native
            .then_some(Lane::Native)
            .into_iter()
            .chain(tunnels.into_iter().map(Lane::Tunnel))
            .collect()
    })
}

/// A node on one of three links, with an address and a pod CIDR that follow from its number.
fn peer(number: u8) -> impl Strategy<Value = Peer> {
    let prefix = select(vec![None, Some(24), Some(32), Some(16)]);
    (
        0..3_u8,
        prefix,
        policy(),
        receives_on(),
        select(vec![None, Some(1500), Some(9000)]),
    )
        .prop_map(move |(link, prefix_length, policy, receives_on, mtu)| Peer {
            addresses: vec![NodeAddress {
                address: Ipv4Addr::new(192, 168, link, number + 10).into(),
                prefix_length,
            }],
            pod_cidrs: vec![IpNet::new(Ipv4Addr::new(172, 20, number, 0).into(), 24).expect("a CIDR")],
            mtu,
            receives_on,
            policy,
            ..Peer::default()
        })
}

/// A cluster, its first node's assignment and what that node's kernel holds.
fn situation() -> impl Strategy<Value = (Assignment, BTreeMap<String, Peer>, Observed)> {
    let peers = (1..6_u8).map(peer).collect::<Vec<_>>();
    (
        peers,
        policy(),
        receives_on(),
        any::<bool>(),
        kernel_state(),
        select(vec![16, 24, 32_u8]),
    )
        .prop_map(|(peers, policy, receive_on, cluster_known, ours, prefix)| {
            let address: IpAddr = Ipv4Addr::new(192, 168, 0, 10).into();
            let assignment = Assignment {
                name: "me".to_owned(),
                addresses: vec![address],
                pod_cidrs: vec!["172.20.0.0/24".parse().expect("a CIDR")],
                cluster_pod_cidrs: cluster_known
                    .then(|| "172.20.0.0/16".parse().expect("a CIDR"))
                    .into_iter()
                    .collect(),
                policy,
                mtu: 0,
                receive_on,
                masquerade: MasqueradeOptions {
                    mode: Mode::Always,
                    ports: None,
                },
                ..Assignment::default()
            };
            let peers = peers
                .into_iter()
                .enumerate()
                .map(|(number, peer)| (format!("peer-{number}"), peer))
                .collect();
            let default = ForeignRoute {
                destination: "0.0.0.0/0".parse().expect("a CIDR"),
                metric: 0,
                protocol: 3,
                next_hops: vec![NextHop {
                    gateway: Some(Ipv4Addr::new(192, 168, 0, 1).into()),
                    device: "eth0".to_owned(),
                }],
            };
            let connected = ForeignRoute {
                destination: IpNet::new(address, prefix).expect("a CIDR").trunc(),
                metric: 0,
                protocol: 2,
                next_hops: vec![NextHop {
                    gateway: None,
                    device: "eth0".to_owned(),
                }],
            };
            let observed = Observed {
                ours,
                underlay: vec![UnderlayAddress {
                    device: "eth0".to_owned(),
                    address: IpNet::new(address, prefix).expect("a CIDR"),
                    mtu: 1500,
                }],
                foreign_routes: vec![default, connected],
                ..Observed::default()
            };
            (assignment, peers, observed)
        })
}

/// Any consistent state: what stands on a device stands on one that is there.
fn kernel_state() -> impl Strategy<Value = KernelState> {
    let device =
        (tunnel(), any::<bool>(), any::<bool>(), 1400..1500_u32).prop_map(|(tunnel, up, flow_based, mtu)| {
            let declared = Device::declared(&tunnel, MacAddress([2, 0, 0, 0, 0, 1]), mtu);
            (
                tunnel.device(),
                Device {
                    up,
                    collect_metadata: flow_based,
                    ..declared
                },
            )
        });
    let route = (0..8_u8, 0..4_u8, any::<bool>());
    (
        proptest::collection::btree_map(0..4_u8, device, 0..4),
        proptest::collection::vec(route, 0..8),
        proptest::collection::vec((0..4_u8, 0..4_usize), 0..4),
        proptest::option::of((0..3_u8, any::<bool>())),
    )
        .prop_map(|(devices, routes, on_devices, masquerade)| {
            let network = |number| IpNet::new(Ipv4Addr::new(172, 20, number, 0).into(), 24).expect("a CIDR");
            let mut state = KernelState {
                devices: devices.into_values().collect(),
                masquerade: masquerade.map(|(number, intact)| Masquerade {
                    pods: [network(number)].into(),
                    plain: [network(0)].into(),
                    ports: None,
                    others: [network(0)].into(),
                    own: [].into(),
                    routers: [Ipv4Addr::new(172, 20, number, 1).into()].into(),
                    intact,
                }),
                ..KernelState::default()
            };
            let names: Vec<String> = state.devices.keys().cloned().collect();
            for (number, kind, cover) in routes {
                let destination = IpNet::new(Ipv4Addr::new(172, 20, number, 0).into(), 24).expect("a CIDR");
                let gateway = Ipv4Addr::new(172, 20, number, 1).into();
                let target = match (kind, names.first()) {
                    (0 | 3, Some(device)) if !cover => RouteTarget::Encapsulated {
                        vni: 1,
                        source: Ipv4Addr::new(192, 168, 0, 10).into(),
                        destination: Ipv4Addr::new(192, 168, 0, number + 10).into(),
                        dscp: if kind == 0 { 0 } else { 46 },
                        gateway,
                        device: device.clone(),
                    },
                    (1, _) if !cover => RouteTarget::Via {
                        gateway,
                        device: "eth0".to_owned(),
                    },
                    _ => RouteTarget::Unreachable,
                };
                let metric = if cover {
                    COVER_METRIC
                } else {
                    lane_metric(&destination)
                };
                state.routes.insert(
                    RouteKey { destination, metric },
                    Route {
                        target,
                        preferred_source: None,
                        mtu: None,
                    },
                );
            }
            for (number, device) in on_devices {
                if let Some(device) = names.get(device) {
                    let on = OnDevice {
                        device: device.clone(),
                        address: Ipv4Addr::new(172, 20, number, 1).into(),
                    };
                    state.addresses.insert(on.clone());
                    state.neighbours.insert(on, MacAddress([2, 0, 0, 0, 0, number]));
                }
            }
            state
        })
}

/// What a kernel does with a packet to this address, as far as our routes go.
fn our_route<'a>(state: &'a KernelState, address: &IpAddr) -> Option<&'a Route> {
    state
        .routes
        .iter()
        .filter(|(key, _)| key.destination.contains(address))
        .max_by_key(|(key, _)| (key.destination.prefix_len(), std::cmp::Reverse(key.metric)))
        .map(|(_, route)| route)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn carrying_out_a_diff_yields_what_was_declared(wanted in kernel_state(), actual in kernel_state()) {
        let mut state = actual.clone();
        for operation in diff(&wanted, &actual) {
            apply(&mut state, &operation);
        }
        prop_assert_eq!(&state, &wanted);
        prop_assert!(diff(&wanted, &wanted).is_empty());
    }

    /// Covers come before whatever forwards, and go after it.
    #[test]
    fn nothing_forwards_without_covers(wanted in kernel_state(), actual in kernel_state()) {
        let operations = diff(&wanted, &actual);
        let is_cover = |operation: &Operation| matches!(operation.item(), Item::Route(key) if key.metric == COVER_METRIC);
        let first = operations.iter().take_while(|operation| is_cover(operation) && !matches!(operation, Operation::RemoveRoute(_)));
        let last = operations.iter().rev().take_while(|operation| is_cover(operation) && matches!(operation, Operation::RemoveRoute(_)));
        let all = operations.iter().filter(|operation| is_cover(operation));
        prop_assert_eq!(first.count() + last.count(), all.count(), "{:?}", operations);
    }

    #[test]
    fn planning_again_from_its_own_result_changes_nothing((assignment, peers, observed) in situation()) {
        let mut seen = observed;
        // A lane is moved to once its device is seen open, so the second plan may go further than the first.
        for _ in 0..3 {
            let plan = desired(&assignment, &peers, &seen, &BTreeMap::new(), &Proofs::default());
            for operation in diff(&plan.state, &seen.ours.clone()) {
                apply(&mut seen.ours, &operation);
            }
        }
        let plan = desired(&assignment, &peers, &seen, &BTreeMap::new(), &Proofs::default());
        prop_assert!(diff(&plan.state, &seen.ours).is_empty(), "{:?}", diff(&plan.state, &seen.ours));
    }

    #[test]
    fn both_ends_see_the_same_lane(a in peer(1), b in peer(2)) {
        let (a, b) = (
            End { addresses: &a.addresses, pod_cidrs: &a.pod_cidrs, policy: a.policy.as_ref() },
            End { addresses: &b.addresses, pod_cidrs: &b.pod_cidrs, policy: b.policy.as_ref() },
        );
        prop_assert_eq!(pair::lane(&a, &b), pair::lane(&b, &a));
    }

    #[test]
    fn no_pod_cidr_of_the_cluster_falls_through((assignment, peers, observed) in situation()) {
        let governed = assignment.policy.is_some() || peers.values().any(|peer| peer.policy.is_some());
        prop_assume!(governed);
        let plan = desired(&assignment, &peers, &observed, &BTreeMap::new(), &Proofs::default());
        let pods = peers.values().flat_map(|peer| &peer.pod_cidrs).chain(&assignment.pod_cidrs);
        for cidr in pods {
            let pod = cidr.hosts().nth(9).expect("an address");
            prop_assert!(our_route(&plan.state, &pod).is_some(), "{} falls through", pod);
        }
        // And at no moment on the way there, for what was kept from falling through before.
        let mut state = observed.ours.clone();
        for operation in diff(&plan.state, &observed.ours) {
            let before = state.clone();
            apply(&mut state, &operation);
            for cidr in peers.values().flat_map(|peer| &peer.pod_cidrs).chain(&assignment.pod_cidrs) {
                let pod = cidr.hosts().nth(9).expect("an address");
                let kept = our_route(&before, &pod).is_none() || our_route(&state, &pod).is_some();
                // A device that is not flow-based any more goes before all else, and the routes through it with it.
                let by_hand = matches!(&operation, Operation::DeleteDevice { name }
                    if plan.state.devices.contains_key(name));
                prop_assert!(kept || by_hand, "{} falls through after {}", pod, operation);
            }
        }
    }

    #[test]
    fn a_packet_leaves_only_on_a_lane_that_its_receiver_has_open((assignment, peers, observed) in situation()) {
        let plan = desired(&assignment, &peers, &observed, &BTreeMap::new(), &Proofs::default());
        for (name, peer) in &plan.peers {
            if let Ok(lane) = peer.used {
                prop_assert!(peers[name].receives_on.contains(&lane.arrives_as()));
            }
        }
        prop_assert!(plan.receives_on.is_subset(&assignment.receive_on));
    }

    #[test]
    fn a_packet_leaves_only_on_a_lane_that_is_proved_or_that_it_took_before(
        (assignment, mut peers, mut observed) in situation(),
        proved in proptest::collection::vec(any::<bool>(), 10),
    ) {
        observed.capabilities.programs = true;
        for peer in peers.values_mut() {
            peer.probe_key = Some(ProbeKey([1; 16]));
        }
        let before = desired(&assignment, &peers, &observed, &BTreeMap::new(), &Proofs::default());
        let mut proofs = Proofs::none_yet();
        let lanes = before.peers.iter().filter_map(|(name, peer)| Some((name, peer.wanted.clone().ok()?)));
        let silent = Standing::Doubted(Doubt::Silent { answers_on: None });
        for ((name, lane), proved) in lanes.zip(proved) {
            proofs.note(&name.as_str().into(), lane, Some(if proved { Standing::Proved } else { silent }));
        }
        let plan = desired(&assignment, &peers, &observed, &BTreeMap::new(), &proofs);
        for (name, peer) in &plan.peers {
            // What is not proved is asked about.
            for target in &peer.probed {
                prop_assert_eq!(target.in_use, peer.used == Ok(target.lane));
            }
            let (Ok(lane), Ok(unproved)) = (&peer.used, &before.peers[name].used) else { continue };
            prop_assert!(peer.probed.iter().any(|target| target.lane == *lane && target.in_use));
            let stays = desired(&assignment, &peers, &observed, &BTreeMap::new(), &Proofs::none_yet());
            let is_proved = proofs.doubt(name, *lane).is_none();
            prop_assert!(is_proved || stays.peers[name].used == Ok(*lane), "{} moved to {}", name, lane);
            // Proofs only keep packets where they are.
            prop_assert!(lane == unproved || stays.peers[name].used == Ok(*lane));
        }
    }

    #[test]
    fn the_order_of_nodes_is_of_no_matter(
        nodes in proptest::collection::vec((0..6_u8, 0..3_i64, 0..4_u8, 20..26_u8), 0..6),
        seed in any::<prop::sample::Index>(),
    ) {
        let mut nodes: Vec<Node> = nodes.into_iter().enumerate().map(|(number, (subnet, created, host, length))| Node {
            name: format!("node-{number}"),
            created,
            addresses: vec![Ipv4Addr::new(172, 20, host, 200).into()],
            pod_cidrs: vec![IpNet::new(Ipv4Addr::new(172, 20, subnet, 0).into(), length).expect("a CIDR")],
            ..Node::default()
        }).collect();
        let admission = admit(&nodes, &Allocation::default());
        if !nodes.is_empty() {
            let by = seed.index(nodes.len());
            nodes.rotate_left(by);
        }
        prop_assert_eq!(admit(&nodes, &Allocation::default()), admission.clone());
        // What is admitted is disjoint, and covers nobody.
        let routed: Vec<&IpNet> = admission.pod_cidrs.values().flatten().collect();
        for (place, cidr) in routed.iter().enumerate() {
            for other in &routed[place + 1..] {
                prop_assert!(!cidr.contains(*other) && !other.contains(*cidr));
            }
            for node in &nodes {
                prop_assert!(!cidr.contains(&node.addresses[0]));
            }
        }
    }
}
