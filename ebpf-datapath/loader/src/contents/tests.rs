use super::masks::{network4, network6};
use super::*;
use podlane_datapath_common::{Network4, Network6};
use podlane_plan::datapath::{DatapathPeer, NativeLane, OpenTunnel, Way};
use podlane_plan::kernel::MacAddress;

const EMPTY: Contents = Contents {
    settings: Settings::CLOSED,
    peers: BTreeMap::new(),
    networks: BTreeMap::new(),
};

fn circumstances(interfaces: &BTreeMap<String, u32>) -> Circumstances<'_> {
    Circumstances {
        kernel: Kernel {
            tcx: true,
            decap_flags: true,
            jiffies_per_second: 250,
        },
        lease: 250,
        probe_key: None,
        capacity: Capacity {
            peers: 4,
            networks: 16,
        },
        interfaces,
    }
}

/// What the maps hold once they are told.
fn collected(datapath: &Datapath, held: &Contents, with: &Circumstances<'_>) -> (Contents, Vec<Unfinished>) {
    let (wanted, unfinished) = wanted(datapath, held, with);
    let contents = Contents {
        settings: wanted.settings,
        peers: wanted.peers().collect(),
        networks: wanted.networks().collect(),
    };
    assert!(contents.peers.keys().all(|outer| wanted.has_peer(outer)));
    assert!(contents.networks.keys().all(|key| wanted.has_network(key)));
    assert_eq!(
        held.peers.keys().filter(|outer| wanted.has_peer(outer)).count(),
        held.peers
            .keys()
            .filter(|outer| contents.peers.contains_key(outer))
            .count()
    );
    (contents, unfinished)
}

fn tunnel(port: u16) -> lane::Tunnel {
    lane::Tunnel {
        protocol: TunnelProtocol::Vxlan,
        port,
        vni: 0x0001_0203,
    }
}

fn open(datapath: &mut Datapath, port: u16) {
    let open = OpenTunnel {
        device: "tunnel".to_owned(),
        mac: MacAddress([1, 2, 3, 4, 5, 6]),
        stand_in: false,
    };
    datapath.tunnels.insert(tunnel(port), open);
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn net(text: &str) -> IpNet {
    text.parse().expect("a network")
}

fn add_peer(datapath: &mut Datapath, outer: &str, pods: &[&str]) {
    datapath.peers.insert(
        ip(outer),
        DatapathPeer {
            name: outer.to_owned(),
            source: ip("10.0.0.1"),
            tunnels: BTreeSet::from([tunnel(8472), tunnel(4789)]).into(),
            mtu: 1450,
            way: Some(Way {
                device: "eth1".to_owned(),
                next_hop: ip("10.0.0.254"),
                several: true,
            }),
            pod_cidrs: pods.iter().map(|pods| net(pods)).collect(),
        },
    );
}

fn devices() -> BTreeMap<String, u32> {
    [("tunnel".to_owned(), 7), ("eth1".to_owned(), 2)].into()
}

#[test]
fn what_is_in_place_stays_in_its_place() {
    let devices = devices();
    let mut datapath = Datapath::default();
    open(&mut datapath, 8472);
    add_peer(&mut datapath, "10.0.0.5", &[]);
    let (first, unfinished) = collected(&datapath, &EMPTY, &circumstances(&devices));
    assert_eq!(unfinished, []);
    assert_eq!(first.settings.tunnels[0].port, 8472_u16.to_be());
    assert_eq!(first.settings.tunnels[0].vni.to_ne_bytes(), [1, 2, 3, 0]);
    assert_eq!(
        first.peers[&address(ip("10.0.0.5"))].tunnels,
        0b1,
        "the other tunnel is not open"
    );

    // Both come before what is there in the declaration's order.
    open(&mut datapath, 4789);
    add_peer(&mut datapath, "10.0.0.4", &[]);
    let (second, _) = collected(&datapath, &first, &circumstances(&devices));
    assert_eq!(second.settings.tunnels[0].port, 8472_u16.to_be());
    assert_eq!(second.settings.tunnels[1].port, 4789_u16.to_be());
    let indices: Vec<_> = second
        .peers
        .values()
        .map(|peer| (peer.index, peer.tunnels))
        .collect();
    assert_eq!(indices, [(1, 0b11), (0, 0b11)]);

    // An index or a slot that is about to be free is not given away yet.
    datapath.peers.remove(&ip("10.0.0.5"));
    datapath.tunnels.remove(&tunnel(8472));
    add_peer(&mut datapath, "10.0.0.6", &[]);
    open(&mut datapath, 9999);
    let (third, _) = collected(&datapath, &second, &circumstances(&devices));
    assert_eq!(third.peers[&address(ip("10.0.0.6"))].index, 2);
    assert_eq!(third.settings.tunnels[0].port, 0);
    assert_eq!(third.settings.tunnels[2].port, 9999_u16.to_be());
}

#[test]
fn a_seventeenth_tunnel_waits() {
    let devices = devices();
    let mut datapath = Datapath::default();
    for port in 1..=17 {
        open(&mut datapath, port);
    }
    let (contents, unfinished) = collected(&datapath, &EMPTY, &circumstances(&devices));
    assert_eq!(contents.settings.tunnels[15].port, 16_u16.to_be());
    let [failure] = &unfinished[..] else {
        panic!("{unfinished:?}")
    };
    assert_eq!(
        (failure.what.as_str(), failure.why.cause),
        ("tunnel vxlan:17:66051", Cause::Full)
    );
}

#[test]
fn a_fifth_pod_cidr_is_in_the_trie_alone() {
    let devices = devices();
    let mut datapath = Datapath::default();
    add_peer(
        &mut datapath,
        "fd00::5",
        &[
            "10.1.0.0/24",
            "10.2.0.0/24",
            "10.3.0.0/24",
            "10.4.0.0/24",
            "fd01::/64",
        ],
    );
    let (contents, _) = collected(&datapath, &EMPTY, &circumstances(&devices));
    assert_eq!(
        contents.peers[&address(ip("fd00::5"))].flags,
        peer_flag::SEVERAL_WAYS
    );
    let cidrs = &mut datapath
        .peers
        .get_mut(&ip("fd00::5"))
        .expect("the peer")
        .pod_cidrs;
    cidrs.push(net("10.5.0.0/24"));
    datapath.local_pod_cidrs = cidrs.iter().copied().collect();
    let (contents, _) = collected(&datapath, &EMPTY, &circumstances(&devices));
    let flags = contents.peers[&address(ip("fd00::5"))].flags;
    assert_eq!(flags, peer_flag::SEVERAL_WAYS | peer_flag::MORE_NETWORKS);
    assert_eq!(
        contents.settings.flags,
        settings_flag::MORE_LOCAL | settings_flag::DECAP_FLAGS
    );
    assert!(contents.settings.local6[0].contains(&address(ip("fd01::9")).0));
    assert_eq!(contents.settings.local6[1], Network6::EMPTY);
}

#[test]
fn owners_are_told_with_their_native_lane() {
    let devices = devices();
    let mut datapath = Datapath::default();
    add_peer(&mut datapath, "10.0.0.5", &[]);
    let native = NativeLane {
        device: "eth1".to_owned(),
        next_hop: ip("10.0.0.5"),
        on_link: true,
        mtu: 1500,
    };
    let owners = [
        ("172.20.0.0/16", Owner::Unassigned),
        (
            "172.20.1.0/24",
            Owner::Peer {
                outer: Some(ip("10.0.0.5")),
                native: Some(native),
            },
        ),
        (
            "172.20.2.0/24",
            Owner::Peer {
                outer: None,
                native: None,
            },
        ),
        (
            "fd20::/64",
            Owner::Local {
                device: Some("gone".to_owned()),
            },
        ),
    ];
    datapath.networks = owners.map(|(network, owner)| (net(network), owner)).into();
    let (contents, unfinished) = collected(&datapath, &EMPTY, &circumstances(&devices));
    let found = |network: &str| contents.networks[&network_key(&net(network))];
    assert_eq!(found("172.20.0.0/16").kind, PodNetworkKind::Unassigned as u32);
    let peer = found("172.20.1.0/24");
    assert_eq!((peer.peer, peer.underlay, peer.mtu), (0, 2, 1500));
    assert_eq!(peer.flags, pod_network_flag::NATIVE | pod_network_flag::ON_LINK);
    assert_eq!(
        (found("172.20.2.0/24").peer, found("172.20.2.0/24").outer),
        (NO_INDEX, Address::NONE)
    );
    assert_eq!(found("fd20::/64").interface, 0);
    assert_eq!(
        contents.networks.keys().next_back().map(|key| key.0),
        Some(96 + 24)
    );
    assert_eq!(
        unfinished.iter().map(|one| one.what.as_str()).collect::<Vec<_>>(),
        ["device gone"]
    );
}

#[test]
fn the_network_around_all_is_the_least() {
    let around = |texts: &[&str]| {
        let networks: Vec<_> = texts.iter().map(|text| net(text)).collect();
        (around4(networks.iter()), around6(networks.iter()))
    };
    let one = |text: &str| (network4(&net(text)), network6(&net(text)));
    assert_eq!(around(&[]), (Network4::EMPTY, Network6::EMPTY));
    assert_eq!(
        around(&["172.20.0.0/24", "172.20.1.0/24"]).0,
        one("172.20.0.0/23").0.expect("IPv4")
    );
    assert_eq!(
        around(&["172.20.0.0/16", "172.20.1.0/24"]).0,
        one("172.20.0.0/16").0.expect("IPv4")
    );
    assert_eq!(
        around(&["10.0.0.0/24", "192.168.0.0/24"]).0,
        one("0.0.0.0/0").0.expect("IPv4")
    );
    let (four, six) = around(&["10.0.0.1/32", "fd20:0:1::/48", "fd20:0:2::/48", "fd20:0:2::5/128"]);
    assert_eq!(four, one("10.0.0.1/32").0.expect("IPv4"));
    assert_eq!(six, one("fd20::/46").1.expect("IPv6"));
}

#[test]
fn nothing_declared_is_closed() {
    let devices = devices();
    let (contents, _) = collected(&Datapath::default(), &EMPTY, &circumstances(&devices));
    assert_eq!(contents, EMPTY);
}
