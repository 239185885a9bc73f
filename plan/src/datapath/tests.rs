mod native;

use super::*;
use crate::desired::{Assignment, Desired, Note, Peer, desired};
use crate::kernel::{Device, ForeignRoute, NextHop, Observed, UnderlayAddress};
use crate::lane::{Lane, TunnelProtocol};
use crate::pair::NodeAddress;
use crate::policy::{Applied, OffLinkPeers, Rank, Routing, RoutingMode};
use crate::probes::Proofs;

/// The story's k8s-ctr with its two peers, whose lanes are open everywhere.
struct Node {
    told: Assignment,
    peers: BTreeMap<String, Peer>,
    kernel: Observed,
}

impl Node {
    fn plan(&self) -> (Datapath, BTreeSet<Note>) {
        datapath(&self.told, &self.peers, &self.kernel, &self.desired())
    }

    fn desired(&self) -> Desired {
        desired(
            &self.told,
            &self.peers,
            &self.kernel,
            &BTreeMap::new(),
            &Proofs::default(),
        )
    }

    fn route(&mut self, destination: &str, next_hops: &[(Option<&str>, &str)]) {
        self.kernel.foreign_routes.push(ForeignRoute {
            destination: cidr(destination),
            metric: 0,
            protocol: 3,
            next_hops: next_hops
                .iter()
                .map(|(gateway, device)| NextHop {
                    gateway: gateway.map(at),
                    device: (*device).to_owned(),
                })
                .collect(),
        });
    }

    fn receive_on(&mut self, lanes: &str) {
        self.told.receive_on = lanes
            .split_whitespace()
            .map(|lane| lane.parse().expect("a lane"))
            .collect();
        for tunnel in self.told.receive_on.iter().filter_map(|lane| lane.tunnel()) {
            let device = Device::declared(&tunnel, MacAddress([2, 0, 0, 0, 0, 1]), 1450);
            self.kernel.ours.devices.insert(tunnel.device(), device);
        }
    }
}

fn at(address: &str) -> IpAddr {
    address.parse().expect("an address")
}

fn cidr(text: &str) -> IpNet {
    text.parse().expect("a CIDR")
}

fn policy(routing_mode: RoutingMode, off_link_peers: OffLinkPeers) -> Option<Applied> {
    Some(Applied {
        rank: Rank {
            priority: 0,
            created: 0,
            name: "default".to_owned(),
        },
        routing: Routing {
            routing_mode,
            auto_direct_node_routes: true,
            off_link_peers,
            tunnel: Tunnel {
                protocol: TunnelProtocol::Vxlan,
                port: 8472,
                vni: 1,
            },
        },
    })
}

fn story() -> Node {
    let policy = policy(RoutingMode::Tunnel, OffLinkPeers::Refuse);
    let peer = |address: &str, pods: &str| Peer {
        addresses: vec![NodeAddress {
            address: at(address),
            prefix_length: Some(24),
        }],
        pod_cidrs: vec![cidr(pods)],
        mtu: Some(1500),
        receives_on: ["native", "vxlan:8472:1"]
            .map(|lane| lane.parse().expect("a lane"))
            .into(),
        policy: policy.clone(),
        ..Peer::default()
    };
    let mut node = Node {
        told: Assignment {
            name: "k8s-ctr".to_owned(),
            addresses: vec![at("192.168.10.100")],
            pod_cidrs: vec![cidr("172.20.0.0/24")],
            policy: policy.clone(),
            ..Assignment::default()
        },
        peers: [
            ("k8s-w1".to_owned(), peer("192.168.10.101", "172.20.1.0/24")),
            ("k8s-w0".to_owned(), peer("192.168.20.100", "172.20.2.0/24")),
        ]
        .into(),
        kernel: Observed {
            underlay: vec![UnderlayAddress {
                device: "eth0".to_owned(),
                address: cidr("192.168.10.100/24"),
                mtu: 1500,
            }],
            ..Observed::default()
        },
    };
    node.route("0.0.0.0/0", &[(Some("192.168.10.200"), "eth0")]);
    node.route("192.168.10.0/24", &[(None, "eth0")]);
    node.receive_on("native vxlan:8472:1");
    node
}

fn way(plan: &Datapath, outer: &str) -> Way {
    plan.peers[&at(outer)].way.clone().expect("a way")
}

fn native<'a>(plan: &'a Datapath, pods: &str) -> Option<&'a NativeLane> {
    match &plan.networks[&cidr(pods)] {
        Owner::Peer { native, .. } => native.as_ref(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn several_next_hops_are_the_kernels_to_choose_from() {
    let mut node = story();
    node.route(
        "192.168.20.0/24",
        &[(Some("192.168.10.201"), "eth0"), (Some("192.168.30.201"), "eth1")],
    );
    let (plan, _) = node.plan();
    let expected = Way {
        device: "eth0".to_owned(),
        next_hop: at("192.168.10.201"),
        several: true,
    };
    assert_eq!(way(&plan, "192.168.20.100"), expected);
    assert_eq!(
        plan.attached.underlay,
        ["eth0", "eth1"].map(str::to_owned).into(),
        "programs sit on every way's device"
    );
    assert!(!way(&plan, "192.168.10.101").several);
}

#[test]
fn a_peer_without_a_route_is_left_to_the_driver() {
    let mut node = story();
    node.kernel.foreign_routes.remove(0);
    let (plan, _) = node.plan();
    assert_eq!(plan.peers[&at("192.168.20.100")].way, None);
    node.route("192.168.20.0/24", &[]);
    assert_eq!(node.plan().0.peers[&at("192.168.20.100")].way, None);
}

#[test]
fn host_addresses_go_by_their_gateway_on_the_link() {
    let mut node = story();
    node.kernel.foreign_routes.clear();
    node.kernel.underlay[0].address = cidr("192.168.10.100/32");
    node.route("169.254.1.1/32", &[(None, "eth0")]);
    node.route("0.0.0.0/0", &[(Some("169.254.1.1"), "eth0")]);
    for peer in node.peers.values_mut() {
        peer.addresses[0].prefix_length = Some(32);
    }
    let (plan, _) = node.plan();
    assert_eq!(way(&plan, "192.168.10.101").next_hop, at("169.254.1.1"));
    assert_eq!(plan.peers[&at("192.168.10.101")].source, at("192.168.10.100"));
    assert_eq!(native(&plan, "172.20.1.0/24"), None, "nobody is on the link");
}

#[test]
fn an_ipv6_underlay_has_ipv6_ends_and_a_smaller_mtu() {
    let mut node = story();
    node.told.addresses = vec![at("fd10::100")];
    node.kernel.underlay[0].address = cidr("fd10::100/64");
    node.route("::/0", &[(Some("fe80::1"), "eth0")]);
    node.route("fd10::/64", &[(None, "eth0")]);
    for (number, peer) in node.peers.values_mut().enumerate() {
        let address = [at("fd20::100"), at("fd10::101")][number];
        // The one that both have counts.
        peer.addresses.push(NodeAddress {
            address,
            prefix_length: Some(64),
        });
    }
    let (plan, _) = node.plan();
    let outers: Vec<_> = plan.peers.keys().copied().collect();
    assert_eq!(outers, [at("fd10::101"), at("fd20::100")]);
    let behind = &plan.peers[&at("fd20::100")];
    assert_eq!((behind.source, behind.mtu), (at("fd10::100"), 1430));
    assert_eq!(way(&plan, "fd20::100").next_hop, at("fe80::1"));
    assert_eq!(way(&plan, "fd10::101").next_hop, at("fd10::101"));
    // IPv4 pods' packets may come as they are over an IPv6 link.
    let lane = native(&plan, "172.20.1.0/24").expect("a native lane");
    assert_eq!((lane.next_hop, lane.on_link), (at("fd10::101"), true));
    assert_eq!(native(&plan, "172.20.2.0/24"), None);
}

#[test]
fn ptp_pods_have_a_device_each() {
    let mut node = story();
    node.told.pod_cidrs.push(cidr("fd00:20::/64"));
    node.route("172.20.0.5/32", &[(None, "veth5")]);
    node.route("fd00:20::5/128", &[(None, "veth5")]);
    node.route("172.20.0.6/32", &[(None, "veth6")]);
    // Several pods behind a device with host routes; a network behind a pod that routes; gateways that are no pods of that device; ours.
    node.route("172.20.0.7/32", &[(None, "router7")]);
    node.route("172.20.0.8/32", &[(None, "router7")]);
    node.route("172.20.0.128/25", &[(Some("172.20.0.5"), "veth5")]);
    node.route("172.20.0.64/27", &[(Some("172.20.0.6"), "veth5")]);
    node.route("172.20.0.96/27", &[(Some("10.0.0.1"), "eth7")]);
    node.route("172.20.0.9/32", &[(None, "podlane_vxlan")]);
    let (plan, notes) = node.plan();
    assert!(notes.is_empty(), "{notes:?}");
    let pods: Vec<_> = plan
        .attached
        .pods
        .iter()
        .map(|(name, one)| (name.as_str(), *one))
        .collect();
    assert_eq!(pods, [("router7", false), ("veth5", true), ("veth6", true)]);
    let local = |device: Option<&str>| Owner::Local {
        device: device.map(str::to_owned),
    };
    for (network, device) in [
        ("172.20.0.0/24", None),
        ("172.20.0.5/32", Some("veth5")),
        ("fd00:20::5/128", Some("veth5")),
        ("172.20.0.8/32", Some("router7")),
        ("172.20.0.128/25", Some("veth5")),
    ] {
        assert_eq!(plan.networks[&cidr(network)], local(device), "{network}");
    }
    for network in ["172.20.0.64/27", "172.20.0.96/27", "172.20.0.9/32"] {
        assert!(!plan.networks.contains_key(&cidr(network)), "{network}");
    }
    assert_eq!(
        plan.local_pod_cidrs,
        ["172.20.0.0/24", "fd00:20::/64"].map(cidr).into()
    );
    node.told.datapath.bypass = false;
    let stamping = node.plan().0.attached.pods.values().any(|stamps| *stamps);
    assert!(!stamping, "without the bypass there is nothing to stamp");
}

#[test]
fn the_pods_gateway_on_a_pods_device_is_no_pod() {
    let mut node = story();
    node.told.pod_cidrs.push(cidr("fd00:20::/64"));
    // A plugin that gives its gateway another address than the first one is to be understood too.
    for (veth, gateway) in [("veth5", "fd00:20::1"), ("veth6", "fd00:20::fe")] {
        node.route(&format!("{gateway}/128"), &[(None, veth)]);
        node.kernel.underlay.push(UnderlayAddress {
            device: veth.to_owned(),
            address: cidr(&format!("{gateway}/128")),
            mtu: 1500,
        });
    }
    node.route("fd00:20::5/128", &[(None, "veth5")]);
    node.route("fd00:20::6/128", &[(None, "veth6")]);
    // The gateway's address is known before the device's is usable (RFC 4862, section 5.4).
    node.kernel.underlay.retain(|on| on.device != "veth5");
    let (plan, _) = node.plan();
    let single = ["veth5", "veth6"].map(|veth| (veth.to_owned(), true));
    assert_eq!(plan.attached.pods, single.into());
    for gateway in ["fd00:20::1/128", "fd00:20::fe/128"] {
        assert!(!plan.networks.contains_key(&cidr(gateway)), "{gateway}");
    }
}

#[test]
fn a_bridge_leads_to_all_pods_together() {
    let mut node = story();
    node.route("172.20.0.0/24", &[(None, "cni0")]);
    let (plan, _) = node.plan();
    assert_eq!(plan.attached.pods, [("cni0".to_owned(), false)].into());
    let behind = Owner::Local {
        device: Some("cni0".to_owned()),
    };
    assert_eq!(plan.networks[&cidr("172.20.0.0/24")], behind);
}

#[test]
fn pods_behind_the_underlay_device_switch_its_check_off() {
    let mut node = story();
    node.route("172.20.0.0/24", &[(None, "eth0")]);
    let (plan, notes) = node.plan();
    assert!(!plan.check_underlay && plan.attached.pods.is_empty());
    assert_eq!(notes, [Note::PodsOnUnderlay("eth0".to_owned())].into());
}

#[test]
fn of_too_many_tunnels_whole_devices_are_left_to_the_driver() {
    let mut node = story();
    let many: Vec<_> = (1..=9)
        .map(|vni| format!("vxlan:4789:{vni} vxlan:8472:{vni}"))
        .collect();
    node.receive_on(&format!("{} geneve:6081:1", many.join(" ")));
    let (plan, notes) = node.plan();
    let devices = |plan: &Datapath| plan.attached.tunnels.iter().cloned().collect::<Vec<_>>();
    assert_eq!(
        (devices(&plan), plan.tunnels.len()),
        (vec!["podlane_geneve".to_owned(), "podlane_vx4789".to_owned()], 10)
    );
    let [Note::WithoutPrograms { device, why }] = notes.iter().collect::<Vec<_>>()[..] else {
        panic!("{notes:?}");
    };
    assert!(device == "podlane_vxlan" && why.contains("16 tunnels"), "{why}");
    // What stands in for a driver has none to be left to.
    node.kernel.capabilities.programs = true;
    let geneve = (1..=16)
        .map(|vni| format!("geneve:6081:{vni}"))
        .collect::<Vec<_>>();
    node.receive_on(&format!("vxlan:4789:1 {}", geneve.join(" ")));
    let device = node.kernel.ours.devices.get_mut("podlane_geneve");
    device.expect("open").stand_in = true;
    let (plan, _) = node.plan();
    assert_eq!(devices(&plan), ["podlane_geneve"]);
    assert!(plan.tunnels.values().all(|tunnel| tunnel.stand_in));
}

#[test]
fn two_protocols_do_not_share_a_port() {
    let mut node = story();
    node.receive_on("vxlan:6081:1 geneve:6081:1");
    let (plan, notes) = node.plan();
    assert_eq!(plan.tunnels.len(), 1);
    assert!(
        notes
            .iter()
            .any(|note| note.to_string().contains("UDP port 6081")),
        "{notes:?}"
    );
}

#[test]
fn a_tunnel_is_open_once_its_device_is() {
    let mut node = story();
    let device = node.kernel.ours.devices.get_mut("podlane_vxlan");
    device.expect("there").up = false;
    let (plan, _) = node.plan();
    assert!(plan.tunnels.is_empty() && plan.attached.tunnels.is_empty());
    assert!(plan.peers.values().all(|peer| peer.tunnels.is_empty()));
}

#[test]
fn what_routes_still_use_is_sent_and_not_taken() {
    let mut node = story();
    node.kernel.ours.routes = node.desired().state.routes;
    node.told.receive_on.retain(|lane| *lane == Lane::Native);
    let (plan, _) = node.plan();
    assert_eq!(plan.tunnels.len(), 1);
    assert!(plan.peers.values().all(|peer| peer.tunnels.is_empty()));
}

#[test]
fn flows_bypass_only_where_connection_tracking_allows_it() {
    let liberal = "net/netfilter/nf_conntrack_tcp_be_liberal".to_owned();
    let mut node = story();
    assert!(crate::desired::sysctls_to_read([]).contains(&liberal));
    assert!(node.plan().0.bypass, "there is no connection tracking");
    node.kernel.ours.sysctls.insert(liberal.clone(), "0".to_owned());
    assert_eq!(node.desired().state.sysctls[&liberal], "1");
    let (plan, notes) = node.plan();
    assert!(!plan.bypass);
    assert_eq!(notes.iter().map(Note::reason).collect::<Vec<_>>(), ["BypassOff"]);
    node.kernel.ours.sysctls.insert(liberal.clone(), "1".to_owned());
    assert!(node.plan().0.bypass);
    // Where it is not wanted, nothing is touched or said.
    node.told.datapath.bypass = false;
    node.kernel.ours.sysctls.insert(liberal.clone(), "0".to_owned());
    let (plan, notes) = node.plan();
    assert!(!plan.bypass && notes.is_empty());
    assert!(!node.desired().state.sysctls.contains_key(&liberal));
}

#[test]
fn a_strict_reverse_path_filter_is_passed_by_the_tunnel_device() {
    let all = "net/ipv4/conf/all/rp_filter";
    let own = "net/ipv4/conf/eth0/rp_filter";
    for (all_is, own_is, strict) in [
        ("0", "0", false),
        ("1", "0", true),
        ("0", "1", true),
        ("1", "2", false),
        ("2", "1", false),
    ] {
        let mut node = story();
        let sysctls = [(all, all_is), (own, own_is)];
        node.kernel.ours.sysctls = sysctls.map(|(path, is)| (path.to_owned(), is.to_owned())).into();
        assert_eq!(node.plan().0.enter_by_tunnel, strict, "{all_is} {own_is}");
    }
}

#[test]
fn an_ungoverned_node_has_no_programs() {
    let mut node = story();
    node.told.policy = None;
    assert_eq!(node.plan().0, Datapath::default());
}

#[test]
fn a_second_peer_with_an_address_is_said() {
    let mut node = story();
    let twin = Peer {
        pod_cidrs: vec![cidr("172.20.3.0/24")],
        ..node.peers["k8s-w0"].clone()
    };
    node.peers.insert("twin".to_owned(), twin);
    let (plan, notes) = node.plan();
    assert_eq!(plan.peers[&at("192.168.20.100")].name, "k8s-w0");
    let owner = &plan.networks[&cidr("172.20.3.0/24")];
    assert!(matches!(owner, Owner::Peer { outer: None, .. }), "{owner:?}");
    assert_eq!(
        notes.iter().map(Note::reason).collect::<Vec<_>>(),
        ["DuplicateAddress"]
    );
}

#[test]
fn what_covers_the_underlay_is_nobodys_source() {
    let mut node = story();
    node.told.cluster_pod_cidrs = vec![cidr("192.168.0.0/16"), cidr("172.20.0.0/16")];
    node.peers.get_mut("k8s-w1").expect("a peer").pod_cidrs = vec![cidr("192.168.10.0/25")];
    let (plan, _) = node.plan();
    assert_eq!(
        plan.networks.keys().copied().collect::<Vec<_>>(),
        ["172.20.0.0/16", "172.20.0.0/24", "172.20.2.0/24"].map(cidr)
    );
}
