use super::*;
use crate::desired::{Peer, PeerLane};
use crate::kernel::UnderlayAddress;
use crate::lane::{Tunnel, TunnelProtocol};
use crate::policy::{Applied, OffLinkPeers, Rank, Routing, RoutingMode};
use crate::probes::Doubt;
use std::collections::BTreeMap;

const VXLAN: Lane = Lane::Tunnel(Tunnel {
    protocol: TunnelProtocol::Vxlan,
    port: 8472,
    vni: 1,
});

fn assignment(routing_mode: RoutingMode, pod_cidrs: &str) -> Assignment {
    let tunnel = VXLAN.tunnel().expect("a tunnel");
    Assignment {
        addresses: vec!["192.168.10.100".parse().expect("an address")],
        pod_cidrs: pod_cidrs
            .split_whitespace()
            .map(|cidr| cidr.parse().expect("a CIDR"))
            .collect(),
        policy: Some(Applied {
            rank: Rank {
                priority: 0,
                created: 1,
                name: "default".to_owned(),
            },
            routing: Routing {
                routing_mode,
                auto_direct_node_routes: true,
                off_link_peers: OffLinkPeers::Refuse,
                tunnel,
            },
        }),
        receive_on: [Lane::Native].into(),
        ..Assignment::default()
    }
}

fn underlay(mtu: u32) -> Vec<UnderlayAddress> {
    vec![UnderlayAddress {
        device: "eth0".to_owned(),
        address: "192.168.10.100/24".parse().expect("a CIDR"),
        mtu,
    }]
}

#[test]
fn the_mtu_is_what_every_lane_carries() {
    let native = assignment(RoutingMode::Native, "172.20.0.0/24");
    let tunnel = assignment(RoutingMode::Tunnel, "172.20.0.0/24");
    let mut both = native.clone();
    both.receive_on.insert(VXLAN);
    let mut declared = native.clone();
    declared.mtu = 1300;
    for (assignment, peers_mtu, mtu) in [
        (&native, None, 1500),
        (&tunnel, None, 1450),
        (&both, None, 1450),
        (&declared, None, 1300),
        (&tunnel, Some(9000), 1450),
        (&tunnel, Some(1400), 1350),
    ] {
        let peer = Peer {
            mtu: peers_mtu,
            ..Peer::default()
        };
        let peers = BTreeMap::from([("peer".to_owned(), peer)]);
        let config = config(assignment, &peers, &underlay(1500)).expect("a configuration");
        assert_eq!(config.mtu, mtu);
    }
    let none = BTreeMap::new();
    let reason = |assignment: &Assignment, underlay: &[UnderlayAddress]| {
        config(assignment, &none, underlay).map_err(|hindrance| hindrance.reason())
    };
    assert_eq!(reason(&Assignment::default(), &underlay(1500)), Err("NoPolicy"));
    assert_eq!(reason(&native, &[]), Err("AddressNotFound"));
    let bare = assignment(RoutingMode::Native, "");
    assert_eq!(reason(&bare, &underlay(1500)), Err("NoPodCIDR"));
}

#[test]
fn a_pod_has_an_address_of_each_family() {
    let config = Config {
        pod_cidrs: ["fd20::/64", "172.20.0.0/24", "172.21.0.0/24"]
            .map(|cidr| cidr.parse().expect("a CIDR"))
            .to_vec(),
        mtu: 1450,
        routed: None,
    };
    assert_eq!(
        config.to_string(),
        r#"{
  "cniVersion": "1.0.0",
  "name": "podlane",
  "plugins": [
    {
      "type": "ptp",
      "mtu": 1450,
      "ipam": {
        "type": "host-local",
        "ranges": [[{"subnet": "fd20::/64"}], [{"subnet": "172.20.0.0/24"}, {"subnet": "172.21.0.0/24"}]],
        "routes": [{"dst": "::/0"}, {"dst": "0.0.0.0/0"}]
      }
    },
    {
      "type": "portmap",
      "capabilities": {"portMappings": true}
    }
  ]
}
"#
    );
}

#[test]
fn pods_are_connected_once_a_file_is_there() {
    let config = Config {
        pod_cidrs: vec!["172.20.0.0/24".parse().expect("a CIDR")],
        mtu: 1450,
        routed: Some(r#"/sys/fs/bpf/"pod\lane"/routed"#.to_owned()),
    };
    assert!(
        config.to_string().contains(
            r#"
        "type": "host-local",
        "resolvConf": "/sys/fs/bpf/\"pod\\lane\"/routed",
        "ranges": [[{"subnet": "172.20.0.0/24"}]],
"#
        ),
        "{config}"
    );
}

#[test]
fn a_file_of_other_pod_cidrs_is_known() {
    let cidrs = |list: &str| -> Vec<IpNet> {
        list.split_whitespace()
            .map(|cidr| cidr.parse().expect("a CIDR"))
            .collect()
    };
    let file = |list: &str| {
        let config = Config {
            pod_cidrs: cidrs(list),
            mtu: 1450,
            routed: None,
        };
        config.to_string()
    };
    for (ours, pod_cidrs, otherwise) in [
        (Some(file("172.20.0.0/24")), "172.20.0.0/24", false),
        (
            Some(file("172.20.0.0/24 fd20::/64")),
            "fd20::/64 172.20.0.0/24",
            false,
        ),
        (Some(file("172.20.0.0/24")), "172.20.9.0/24", true),
        (Some(file("172.20.0.0/24")), "172.20.0.0/25", true),
        (Some(file("172.20.0.0/24")), "172.20.0.0/24 fd20::/64", true),
        (Some(file("172.20.0.0/24 fd20::/64")), "fd20::/64", true),
        (Some(file("172.20.0.0/24")), "", true),
        (None, "172.20.0.0/24", false),
        // Nothing is known of what it numbers pods from.
        (Some("old".to_owned()), "172.20.0.0/24", false),
    ] {
        let found = Found {
            ours: ours.clone(),
            ..Found::default()
        };
        assert_eq!(
            found.numbers_otherwise(&cidrs(pod_cidrs)),
            otherwise,
            "{ours:?} {pod_cidrs}"
        );
    }
}

/// `a:proved b:untried …`
fn desired(peers: &str, receives_on: &[Lane]) -> Desired {
    let silent = Doubt::Silent { answers_on: None };
    let not_proved = |why| Err(Refusal::NotProved { lane: VXLAN, why });
    let lane = |words: &str| {
        let (used, doubt) = match words {
            "proved" => (Ok(VXLAN), None),
            "untried" => (not_proved(Doubt::Untried), None),
            "silent" => (not_proved(silent), None),
            "doubted" => (Ok(VXLAN), Some(silent)),
            "off-link" => (Err(Refusal::OffLink), None),
            "missing" => (Err(Refusal::NotReported), None),
            "closed" => (Err(Refusal::NotReceiving(VXLAN)), None),
            words => panic!("{words}"),
        };
        PeerLane {
            wanted: Ok(VXLAN),
            used,
            waits_for: None,
            refused: BTreeMap::new(),
            doubt,
            probed: Vec::new(),
        }
    };
    let mut desired = Desired::default();
    desired.peers = peers
        .split_whitespace()
        .map(|peer| {
            let (name, words) = peer.split_once(':').expect("a peer");
            (name.to_owned(), lane(words))
        })
        .collect();
    desired.receives_on = receives_on.iter().copied().collect();
    desired
}

#[test]
fn lanes_are_proved_before_pods_are_connected() {
    let assignment = assignment(RoutingMode::Native, "172.20.0.0/24");
    for (peers, why) in [
        ("", None),
        ("a:proved", None),
        ("a:proved b:untried", Some("LaneNotProved")),
        ("a:silent b:doubted", Some("LaneSilent")),
        // One that is down keeps nobody from joining.
        ("a:proved b:silent", None),
        ("a:silent b:off-link", Some("LaneSilent")),
        // Nor does one that cannot be reached by declaration, or whose agent is not there yet.
        ("a:off-link b:missing c:closed", None),
    ] {
        let hindrance = unproved(&assignment, &desired(peers, &[Lane::Native]), true);
        assert_eq!(hindrance.map(|why| why.reason()), why, "{peers}");
    }
    let reason = |receives_on: &[Lane], is_settled| {
        unproved(&assignment, &desired("a:proved", receives_on), is_settled).map(|why| why.reason())
    };
    assert_eq!(reason(&[], true), Some("Opening"));
    assert_eq!(reason(&[Lane::Native], false), Some("NotInSync"));
}

#[test]
fn a_file_is_written_once_lanes_are_proved_and_never_over_anothers() {
    let config = Config {
        pod_cidrs: vec!["172.20.0.0/24".parse().expect("a CIDR")],
        mtu: 1450,
        routed: None,
    };
    let text = config.to_string();
    let files = |names: &str| {
        names
            .split_whitespace()
            .map(str::to_owned)
            .collect::<BTreeSet<_>>()
    };
    let found = |ours: Option<&str>, before: &str, after: &str| Found {
        ours: ours.map(str::to_owned),
        is_taken: false,
        before: files(before),
        after: files(after),
    };
    let taken = Found {
        is_taken: true,
        ..Found::default()
    };
    for (found, is_proved, writes, standing) in [
        (found(None, "", ""), true, true, Ok(())),
        (found(None, "", ""), false, false, Err("NotInSync")),
        (found(Some(&text), "", ""), true, false, Ok(())),
        // After a restart.
        (found(Some(&text), "", ""), false, false, Ok(())),
        (found(Some("old"), "", ""), false, false, Ok(())),
        (found(Some("old"), "", ""), true, true, Ok(())),
        (
            found(None, "05-other.conflist", ""),
            true,
            false,
            Err("ForeignCNIConfiguration"),
        ),
        (
            found(None, "", "99-other.conf"),
            true,
            false,
            Err("ForeignCNIConfiguration"),
        ),
        (found(Some("old"), "", "99-other.conf"), true, true, Ok(())),
        (
            found(Some("old"), "05-other.conflist", ""),
            true,
            true,
            Err("ForeignCNIConfiguration"),
        ),
        (taken, true, false, Err("ForeignCNIConfiguration")),
    ] {
        let unproved = (!is_proved).then_some(Hindrance::NotInSync);
        let verdict = verdict(Ok(config.clone()), unproved, &found);
        assert_eq!(verdict.write, writes.then(|| text.clone()), "{found:?}");
        let reason = verdict.standing.map(drop).map_err(|why| why.reason());
        assert_eq!(reason, standing, "{found:?}");
    }
    // A node that joined again with another pod CIDR connects no pod with an address of the former one.
    let former = text.replace("172.20.0.0", "172.20.9.0");
    let rejoined = verdict(
        Ok(config.clone()),
        Some(Hindrance::NotInSync),
        &found(Some(&former), "", ""),
    );
    assert_eq!(
        (rejoined.write, rejoined.standing),
        (None, Err(Hindrance::NotInSync))
    );
    // Without a policy what is there stays, and is not said to be as declared.
    let verdict = verdict(Err(Hindrance::NoPolicy), None, &found(Some(&text), "", ""));
    assert_eq!(
        (verdict.write, verdict.standing),
        (None, Err(Hindrance::NoPolicy))
    );
}
