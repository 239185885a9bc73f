//! Whatever one node's plan sends, the other node's programs take: at every moment of a change of lanes, whatever each of the two has
//! heard of it.

use ipnet::IpNet;
use podlane_plan::datapath::{Datapath, Owner, datapath};
use podlane_plan::desired::{Assignment, Desired, Peer, desired};
use podlane_plan::diff::{apply, diff};
use podlane_plan::kernel::{
    Device, ForeignRoute, MacAddress, NextHop, Observed, Route, RouteTarget, UnderlayAddress,
};
use podlane_plan::lane::{Lane, Tunnel, TunnelProtocol};
use podlane_plan::pair::NodeAddress;
use podlane_plan::policy::{Applied, OffLinkPeers, Rank, Routing, RoutingMode};
use podlane_plan::probes::Proofs;
use podlane_plan::protocol;
use proptest::prelude::*;
use proptest::sample::select;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// One of two nodes.
#[derive(Clone, Debug)]
struct Site {
    name: &'static str,
    address: IpAddr,
    prefix: u8,
    gateway: IpAddr,
    pods: Vec<IpNet>,
}

fn site(name: &'static str, address: &str, gateway: &str, pods: [&str; 2]) -> Site {
    Site {
        name,
        address: address.parse().expect("an address"),
        prefix: 24,
        gateway: gateway.parse().expect("an address"),
        pods: pods.map(|cidr| cidr.parse().expect("a CIDR")).into(),
    }
}

/// What a node goes by: policies of its own and of the other, of which it may have heard early or late.
#[derive(Clone, Debug)]
struct Heard {
    mine: Option<Applied>,
    theirs: Option<Applied>,
    /// Whether it knows the other's link.
    link: bool,
}

impl Site {
    fn assignment(&self, heard: &Heard, receive_on: &BTreeSet<Lane>) -> Assignment {
        Assignment {
            name: self.name.to_owned(),
            addresses: vec![self.address],
            pod_cidrs: self.pods.clone(),
            policy: heard.mine.clone(),
            receive_on: receive_on.clone(),
            ..Assignment::default()
        }
    }

    fn as_peer(&self, by: &Heard, receives_on: &BTreeSet<Lane>) -> BTreeMap<String, Peer> {
        let peer = Peer {
            addresses: vec![NodeAddress {
                address: self.address,
                prefix_length: by.link.then_some(self.prefix),
            }],
            pod_cidrs: self.pods.clone(),
            mtu: Some(1500),
            receives_on: receives_on.clone(),
            policy: by.theirs.clone(),
            ..Peer::default()
        };
        [(self.name.to_owned(), peer)].into()
    }

    /// A kernel with the devices of these lanes.
    fn kernel(&self, open: &BTreeSet<Lane>) -> Observed {
        let link = IpNet::new(self.address, self.prefix).expect("a CIDR");
        let route = |destination: IpNet, gateway| ForeignRoute {
            destination,
            metric: 0,
            protocol: 2,
            next_hops: vec![NextHop {
                gateway,
                device: "eth0".to_owned(),
            }],
        };
        let default = "0.0.0.0/0".parse().expect("a CIDR");
        let mut kernel = Observed {
            underlay: vec![UnderlayAddress {
                device: "eth0".to_owned(),
                address: link,
                mtu: 1500,
            }],
            foreign_routes: vec![route(link.trunc(), None), route(default, Some(self.gateway))],
            ..Observed::default()
        };
        for tunnel in open.iter().filter_map(|lane| lane.tunnel()) {
            let device = Device::declared(&tunnel, MacAddress::of_node(&self.address), 1450);
            kernel.ours.devices.insert(tunnel.device(), device);
        }
        kernel
    }
}

fn planned(told: &Assignment, peers: &BTreeMap<String, Peer>, kernel: &Observed) -> Desired {
    desired(told, peers, kernel, &BTreeMap::new(), &Proofs::default())
}

/// What arrives at the other node when a packet takes this route.
#[derive(Debug)]
struct Arriving {
    outer: Option<(IpAddr, IpAddr, Tunnel)>,
    /// Whose link-layer address the frame bears: the sender's own, or a gateway's.
    frame_from: IpAddr,
}

fn arriving(route: &Route, from: &Site, to: &Site, kernel: &Observed) -> Option<Arriving> {
    let on_one_link = from.gateway == to.gateway;
    let of_gateway = to.gateway;
    match &route.target {
        RouteTarget::Unreachable => None,
        RouteTarget::Via { gateway, .. } => Some(Arriving {
            outer: None,
            frame_from: if *gateway == to.address {
                from.address
            } else {
                of_gateway
            },
        }),
        RouteTarget::Encapsulated {
            vni,
            source,
            destination,
            device,
            ..
        } => {
            let device = &kernel.ours.devices[device];
            let tunnel = Tunnel {
                protocol: device.protocol,
                port: device.port,
                vni: *vni,
            };
            Some(Arriving {
                outer: Some((*source, *destination, tunnel)),
                frame_from: if on_one_link { from.address } else { of_gateway },
            })
        }
    }
}

/// What the programs do with it, as docs/datapath.md has it.
fn takes(programs: &Datapath, packet: &Arriving, source: &IpNet, destination: &IpNet) -> Result<(), String> {
    let local = programs
        .local_pod_cidrs
        .iter()
        .any(|cidr| cidr.contains(destination));
    if let Some((from, to, tunnel)) = packet.outer {
        let slot = programs.tunnels.get(&tunnel).ok_or("WrongVni")?;
        if !programs.attached.tunnels.contains(&slot.device) {
            return Err("not attached".to_owned());
        }
        let peer = programs.peers.get(&from).ok_or("NoPeer")?;
        if peer.source != to || !peer.tunnels.contains(&tunnel) {
            return Err("ForgedOuter".to_owned());
        }
        if !peer.pod_cidrs.iter().any(|cidr| cidr.contains(source)) {
            return Err("ForgedInner".to_owned());
        }
        return if local { Ok(()) } else { Err("NotHere".to_owned()) };
    }
    let owner = programs
        .networks
        .iter()
        .filter(|(network, _)| network.contains(source));
    match owner.max_by_key(|(network, _)| network.prefix_len()) {
        None => Ok(()),
        Some((
            _,
            Owner::Peer {
                native: Some(lane), ..
            },
        )) if programs.native => {
            if lane.on_link && lane.next_hop != packet.frame_from {
                return Err(format!("WrongLinkAddress: {lane:?}"));
            }
            Ok(())
        }
        Some((_, owner)) => Err(format!("PlainPodSource: {owner:?}")),
    }
}

fn policy() -> impl Strategy<Value = Option<Applied>> {
    // The kernel has one protocol on a port.
    let ports = vec![
        (TunnelProtocol::Vxlan, 4789),
        (TunnelProtocol::Vxlan, 8472),
        (TunnelProtocol::Geneve, 6081),
    ];
    let tunnel = (select(ports), 1..3_u32).prop_map(|((protocol, port), vni)| Tunnel { protocol, port, vni });
    let modes = vec![RoutingMode::Native, RoutingMode::Tunnel];
    let off_link = vec![OffLinkPeers::Refuse, OffLinkPeers::Tunnel, OffLinkPeers::Underlay];
    let routing = (select(modes), any::<bool>(), select(off_link), tunnel);
    let applied = (routing, 0..2_i32).prop_map(
        |((routing_mode, auto_direct_node_routes, off_link_peers, tunnel), priority)| Applied {
            rank: Rank {
                priority,
                created: 0,
                name: "a".to_owned(),
            },
            routing: Routing {
                routing_mode,
                auto_direct_node_routes,
                off_link_peers,
                tunnel,
            },
        },
    );
    proptest::option::weighted(0.95, applied)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_a_node_sends_the_other_takes(
        on_one_link in any::<bool>(),
        // Before the change and after, for the receiver and the sender.
        policies in proptest::array::uniform2(proptest::array::uniform2(policy())),
        // Of which of them each has heard, for itself and of the other.
        hears in proptest::array::uniform4(0..2_usize),
        links_known in any::<[bool; 2]>(),
    ) {
        let receiver = site("receiver", "192.168.10.100", "192.168.10.200", ["172.20.0.0/24", "fd00:20:0::/64"]);
        let sender = if on_one_link {
            site("sender", "192.168.10.101", "192.168.10.200", ["172.20.1.0/24", "fd00:20:1::/64"])
        } else {
            site("sender", "192.168.20.100", "192.168.20.200", ["172.20.1.0/24", "fd00:20:1::/64"])
        };
        let [[of_receiver_before, of_receiver_after], [of_sender_before, of_sender_after]] = &policies;
        let of_receiver = [of_receiver_before, of_receiver_after];
        let of_sender = [of_sender_before, of_sender_after];

        // Every lane that any of the policies asks for is open, so that the sender may choose any.
        let all: Vec<&Applied> = policies.iter().flatten().flatten().collect();
        let open = protocol::wanted(all.first().copied(), all.iter().copied());
        let mut kernel = sender.kernel(&open);
        let heard = |mine: usize, theirs: usize| Heard {
            mine: of_sender[mine].clone(),
            theirs: of_receiver[theirs].clone(),
            link: links_known[0],
        };
        // It sends as before, hears of the change in one order or another, and then does as it has heard.
        let before = heard(0, 0);
        let peers = receiver.as_peer(&before, &open);
        let plan = planned(&sender.assignment(&before, &open), &peers, &kernel);
        for operation in diff(&plan.state, &kernel.ours) {
            apply(&mut kernel.ours, &operation);
        }
        let mut moments = vec![kernel.clone()];
        let now = heard(hears[0], hears[1]);
        let peers = receiver.as_peer(&now, &open);
        let plan = planned(&sender.assignment(&now, &open), &peers, &kernel);
        for operation in diff(&plan.state, &kernel.ours) {
            apply(&mut kernel.ours, &operation);
            moments.push(kernel.clone());
        }
        // As status says it: the lanes that it sends on, gateways told from the link.
        let sends_on: BTreeSet<Lane> = moments
            .iter()
            .flat_map(|kernel| {
                let told = sender.assignment(&now, &open);
                let mut lanes = planned(&told, &peers, kernel).sends_on();
                lanes.extend(planned(&sender.assignment(&before, &open), &receiver.as_peer(&before, &open), kernel).sends_on());
                lanes
            })
            .collect();

        // The receiver has heard of something else. It is told to receive on what is wanted after the change, and on what is in use
        // (`protocol::tell`).
        let knows = Heard {
            mine: of_receiver[hears[2]].clone(),
            theirs: of_sender[hears[3]].clone(),
            link: links_known[1],
        };
        prop_assume!(knows.mine.is_some());
        let after: Vec<&Applied> = [of_receiver_after, of_sender_after].into_iter().flatten().collect();
        let mut told = protocol::wanted(after.first().copied(), after.iter().copied());
        told.extend(sends_on.iter().flat_map(|lane| [*lane, lane.arrives_as()]));
        let assignment = receiver.assignment(&knows, &told);
        let from = sender.as_peer(&knows, &open);
        let mut there = receiver.kernel(&told);
        let plan = planned(&assignment, &from, &there);
        let mut at_the_receiver = vec![datapath(&assignment, &from, &there, &plan).0];
        // And after it has done what it planned itself.
        for operation in diff(&plan.state, &there.ours) {
            apply(&mut there.ours, &operation);
        }
        let plan = planned(&assignment, &from, &there);
        at_the_receiver.push(datapath(&assignment, &from, &there, &plan).0);

        for kernel in &moments {
            for (source, destination) in sender.pods.iter().zip(&receiver.pods) {
                let route = kernel.ours.routes.iter().find(|(key, _)| key.destination == *destination);
                let Some(packet) = route.and_then(|(_, route)| arriving(route, &sender, &receiver, kernel)) else {
                    continue;
                };
                for programs in &at_the_receiver {
                    let taken = takes(programs, &packet, source, destination);
                    prop_assert!(taken.is_ok(), "{:?} of {:?}; open {:?}", taken, packet, told);
                }
            }
        }
    }

    /// What nobody may use is closed: in a cluster of tunnels alone no plain packet with a pod's source is taken.
    #[test]
    fn where_all_is_encapsulated_nothing_plain_is_taken(on_one_link in any::<bool>(), link_known in any::<bool>(), policy in policy()) {
        let Some(mut policy) = policy else { return Ok(()) };
        policy.routing.routing_mode = RoutingMode::Tunnel;
        let other = if on_one_link { "192.168.10.101" } else { "192.168.20.100" };
        let receiver = site("receiver", "192.168.10.100", "192.168.10.200", ["172.20.0.0/24", "fd00:20:0::/64"]);
        let sender = site("sender", other, "192.168.20.200", ["172.20.1.0/24", "fd00:20:1::/64"]);
        let heard = Heard { mine: Some(policy.clone()), theirs: Some(policy.clone()), link: link_known };
        let told = protocol::wanted(Some(&policy), [&policy]);
        let (assignment, from) = (receiver.assignment(&heard, &told), sender.as_peer(&heard, &told));
        let kernel = receiver.kernel(&told);
        let programs = datapath(&assignment, &from, &kernel, &planned(&assignment, &from, &kernel)).0;
        for frame_from in [sender.address, receiver.gateway] {
            let packet = Arriving { outer: None, frame_from };
            prop_assert!(takes(&programs, &packet, &sender.pods[0], &receiver.pods[0]).is_err());
        }
    }
}
