//! The kernel layer against a real kernel.

mod netns;

use netns::{in_fresh, ip, ip_lines};
use nix::errno::Errno;
use podlane_agent::kernel::events::{Events, Interest};
use podlane_agent::kernel::{Failure, Kernel, Observation, Sysctls};
use podlane_plan::diff::{Operation, diff};
use podlane_plan::kernel::{
    COVER_METRIC, Device, KernelState, MacAddress, OnDevice, Route, RouteKey, RouteTarget, lane_metric,
};
use podlane_plan::lane::{Tunnel, TunnelProtocol};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

fn main() {
    netns::run(&[
        (
            "what_is_declared_is_there_and_nothing_is_left_to_do",
            what_is_declared_is_there_and_nothing_is_left_to_do,
        ),
        ("routes_are_what_ip_route_makes", routes_are_what_ip_route_makes),
        ("lanes_change_in_place", lanes_change_in_place),
        ("ipv6_is_carried_over_ipv6", ipv6_is_carried_over_ipv6),
        ("a_foreign_route_keeps_its_place", a_foreign_route_keeps_its_place),
        ("a_foreign_device_is_not_touched", a_foreign_device_is_not_touched),
        (
            "a_taken_port_is_named_with_its_holder",
            a_taken_port_is_named_with_its_holder,
        ),
        ("a_missing_driver_is_named", a_missing_driver_is_named),
        (
            "what_a_hand_changed_is_corrected",
            what_a_hand_changed_is_corrected,
        ),
        ("only_ours_is_removed", only_ours_is_removed),
        (
            "underlay_addresses_and_foreign_routes_are_seen",
            underlay_addresses_and_foreign_routes_are_seen,
        ),
        (
            "parameters_are_those_of_the_threads_namespace",
            parameters_are_those_of_the_threads_namespace,
        ),
        ("a_thousand_routes_go_in_batches", a_thousand_routes_go_in_batches),
        (
            "a_dump_is_whole_while_others_change_things",
            a_dump_is_whole_while_others_change_things,
        ),
        ("changes_wake_and_pods_do_not", changes_wake_and_pods_do_not),
        ("operations_can_be_repeated", operations_can_be_repeated),
    ]);
}

const VXLAN: Tunnel = Tunnel {
    protocol: TunnelProtocol::Vxlan,
    port: 8472,
    vni: 1,
};

fn at(address: &str) -> IpAddr {
    address.parse().expect("an address")
}

fn key(destination: &str) -> RouteKey {
    let destination = destination.parse().expect("a CIDR");
    RouteKey {
        destination,
        metric: lane_metric(&destination),
    }
}

fn on(device: &str, address: &str) -> OnDevice {
    OnDevice {
        device: device.to_owned(),
        address: at(address),
    }
}

/// eth1 with the story's address for k8s-ctr, and an address of each family.
fn underlay() {
    ip("link set lo up");
    ip("link add eth1 type veth peer name far");
    // No link-local addresses, whose duplicate detection goes on in the background.
    ip("link set eth1 addrgenmode none");
    ip("link set far addrgenmode none");
    ip("addr add 192.168.10.100/24 dev eth1");
    ip("addr add fd10::100/64 dev eth1 nodad");
    ip("link set eth1 up");
    ip("link set far up");
}

fn via(gateway: &str) -> Route {
    Route {
        target: RouteTarget::Via {
            gateway: at(gateway),
            device: "eth1".to_owned(),
        },
        preferred_source: None,
        mtu: None,
    }
}

fn encapsulated(outer: (&str, &str), gateway: &str, source: Option<&str>) -> Route {
    Route {
        target: RouteTarget::Encapsulated {
            vni: 1,
            source: at(outer.0),
            destination: at(outer.1),
            gateway: at(gateway),
            device: "podlane_vxlan".to_owned(),
        },
        preferred_source: source.map(at),
        mtu: Some(1450),
    }
}

const OUTER: (&str, &str) = ("192.168.10.100", "192.168.20.100");

/// The story's k8s-ctr with every kind of route, both families.
fn declared() -> KernelState {
    let mac = MacAddress::of_node(&at("192.168.10.100"));
    let peer = MacAddress::of_node(&at("192.168.20.100"));
    let device = "podlane_vxlan";
    KernelState {
        devices: [(device.to_owned(), Device::declared(&VXLAN, mac, 1450))].into(),
        addresses: [on(device, "172.20.0.1"), on(device, "fd20::1")].into(),
        neighbours: [(on(device, "172.20.2.1"), peer), (on(device, "fd20:2::1"), peer)].into(),
        routes: [
            (key("172.20.1.0/24"), via("192.168.10.101")),
            (
                key("172.20.2.0/24"),
                encapsulated(OUTER, "172.20.2.1", Some("172.20.0.1")),
            ),
            (key("172.20.3.0/24"), Route::UNREACHABLE),
            (key("fd20:1::/64"), via("fd10::101")),
            (
                key("fd20:2::/64"),
                encapsulated(OUTER, "fd20:2::1", Some("fd20::1")),
            ),
            (key("fd20:3::/64"), Route::UNREACHABLE),
            (
                RouteKey {
                    metric: COVER_METRIC,
                    ..key("172.20.0.0/16")
                },
                Route::UNREACHABLE,
            ),
            (
                RouteKey {
                    metric: COVER_METRIC,
                    ..key("fd20::/48")
                },
                Route::UNREACHABLE,
            ),
        ]
        .into(),
        sysctls: [("net/ipv4/ip_forward".to_owned(), "1".to_owned())].into(),
    }
}

fn observe(kernel: &mut Kernel) -> Observation {
    kernel
        .observe(|_| BTreeSet::from(["net/ipv4/ip_forward".to_owned()]))
        .expect("the kernel can be read")
}

/// Applies what is to be done, and returns it with each result.
fn pass(kernel: &mut Kernel, desired: &KernelState) -> Vec<(Operation, Result<(), Failure>)> {
    let seen = observe(kernel).observed;
    let operations = diff(desired, &seen.ours);
    let results = kernel.apply(&operations, &seen);
    operations.into_iter().zip(results).collect()
}

/// As [`pass`], where all must go well.
fn settle(kernel: &mut Kernel, desired: &KernelState) -> usize {
    let done = pass(kernel, desired);
    for (operation, result) in &done {
        assert_eq!(result, &Ok(()), "{operation}");
    }
    done.len()
}

fn failures(done: Vec<(Operation, Result<(), Failure>)>) -> Vec<(String, Failure)> {
    done.into_iter()
        .filter_map(|(operation, result)| Some((operation.to_string(), result.err()?)))
        .collect()
}

fn what_is_declared_is_there_and_nothing_is_left_to_do() {
    underlay();
    let mut kernel = Kernel::default();
    settle(&mut kernel, &declared());
    let seen = observe(&mut kernel);
    assert_eq!(seen.observed.ours, declared());
    assert!(seen.strays.is_empty() && seen.observed.foreign_devices.is_empty());
    assert_eq!(seen.device_indices.len(), 1);
    assert_eq!(settle(&mut kernel, &declared()), 0);
    // No address of the kernel's own making either.
    assert_eq!(
        ip_lines("-o -6 addr show dev podlane_vxlan scope link"),
        Vec::<String>::new()
    );
    let link = ip("-d link show podlane_vxlan");
    for part in [
        "NOARP",
        "UP",
        "mtu 1450",
        "group 172",
        "02:50:c0:a8:0a:64",
        "external",
        "dstport 8472",
        "nolearning",
    ] {
        assert!(link.contains(part), "{part}: {link}");
    }
}

fn routes_are_what_ip_route_makes() {
    underlay();
    settle(&mut Kernel::default(), &declared());
    let ours = [
        ip_lines("-d route show proto 172"),
        ip_lines("-6 -d route show proto 172"),
        ip_lines("neigh show dev podlane_vxlan"),
    ];
    in_fresh(move || {
        underlay();
        ip("link add podlane_vxlan group 172 type vxlan external nolearning dstport 8472");
        ip("link set podlane_vxlan mtu 1450 arp off addrgenmode none up");
        ip("addr add 172.20.0.1/32 dev podlane_vxlan");
        ip("addr add fd20::1/128 dev podlane_vxlan nodad noprefixroute");
        ip("neigh add 172.20.2.1 lladdr 02:50:c0:a8:14:64 dev podlane_vxlan nud permanent");
        ip("neigh add fd20:2::1 lladdr 02:50:c0:a8:14:64 dev podlane_vxlan nud permanent");
        let encap = "encap ip id 1 src 192.168.10.100 dst 192.168.20.100 ttl 64";
        ip("route add 172.20.1.0/24 via 192.168.10.101 dev eth1 proto 172");
        ip(&format!(
            "route add 172.20.2.0/24 {encap} via 172.20.2.1 dev podlane_vxlan onlink src 172.20.0.1 mtu 1450 proto 172"
        ));
        ip("route add unreachable 172.20.3.0/24 proto 172");
        ip("route add unreachable 172.20.0.0/16 proto 172 metric 1000000");
        ip("-6 route add fd20:1::/64 via fd10::101 dev eth1 proto 172");
        ip(&format!("-6 route add fd20:2::/64 {encap} via fd20:2::1 dev podlane_vxlan onlink src fd20::1 mtu 1450 proto 172"));
        ip("-6 route add unreachable fd20:3::/64 proto 172");
        ip("-6 route add unreachable fd20::/48 proto 172 metric 1000000");
        let by_hand = [ip_lines("-d route show proto 172"), ip_lines("-6 -d route show proto 172"), ip_lines("neigh show dev podlane_vxlan")];
        assert_eq!(ours, by_hand);
    })
    .expect("the same");
}

fn lanes_change_in_place() {
    underlay();
    let mut kernel = Kernel::default();
    let mut desired = declared();
    settle(&mut kernel, &desired);
    let four = [
        via("192.168.10.101"),
        encapsulated(OUTER, "172.20.2.1", Some("172.20.0.1")),
        Route::UNREACHABLE,
    ];
    let six = [
        via("fd10::101"),
        encapsulated(OUTER, "fd20:2::1", Some("fd20::1")),
        Route::UNREACHABLE,
    ];
    for (destination, lanes) in [(key("172.20.2.0/24"), four), (key("fd20:2::/64"), six)] {
        // Every lane to every other: 0→1→2→0→2→1→0.
        for lane in [0, 1, 2, 0, 2, 1, 0] {
            desired.routes.insert(destination, lanes[lane].clone());
            let done = pass(&mut kernel, &desired);
            for (operation, result) in &done {
                assert!(
                    matches!(operation, Operation::ReplaceRoute(key, _) if *key == destination),
                    "{operation}"
                );
                assert_eq!(result, &Ok(()));
            }
            assert_eq!(observe(&mut kernel).observed.ours, desired);
        }
    }
}

fn ipv6_is_carried_over_ipv6() {
    underlay();
    let mut kernel = Kernel::default();
    let mut desired = declared();
    desired.routes.insert(
        key("fd20:2::/64"),
        encapsulated(("fd10::100", "fd11::100"), "fd20:2::1", Some("fd20::1")),
    );
    desired.routes.insert(
        key("172.20.2.0/24"),
        encapsulated(("fd10::100", "fd11::100"), "172.20.2.1", Some("172.20.0.1")),
    );
    settle(&mut kernel, &desired);
    assert_eq!(observe(&mut kernel).observed.ours, desired);
    let route = ip("-6 -d route show fd20:2::/64");
    assert!(
        route.contains("encap ip6 id 1 src fd10::100 dst fd11::100 hoplimit 64") && route.contains("csum"),
        "{route}"
    );
}

fn a_foreign_route_keeps_its_place() {
    underlay();
    ip("route add 172.20.2.0/24 via 192.168.10.200 dev eth1 proto static");
    ip("-6 route add fd20:2::/64 via fd10::200 dev eth1 proto static metric 1024");
    let mut kernel = Kernel::default();
    let failed = failures(pass(&mut kernel, &declared()));
    assert_eq!(failed.len(), 2, "{failed:?}");
    assert!(
        failed
            .iter()
            .all(|(_, failure)| failure.errno == Some(Errno::EEXIST)),
        "{failed:?}"
    );
    assert!(
        failed[0]
            .1
            .words
            .contains("172.20.2.0/24 via 192.168.10.200 dev eth1 metric 0 proto 4"),
        "{failed:?}"
    );
    assert_eq!(
        ip_lines("route show 172.20.2.0/24"),
        ["172.20.2.0/24 via 192.168.10.200 dev eth1 proto static"]
    );

    // Ours is there already, and somebody puts theirs in front of it: neither is replaced.
    ip("route add 172.20.9.0/24 via 192.168.10.101 dev eth1 proto 172");
    ip("route prepend 172.20.9.0/24 via 192.168.10.200 dev eth1 proto static");
    let seen = observe(&mut kernel).observed;
    let results = kernel.apply(
        &[Operation::ReplaceRoute(key("172.20.9.0/24"), Route::UNREACHABLE)],
        &seen,
    );
    assert!(results[0].is_err());
    assert_eq!(ip_lines("route show 172.20.9.0/24").len(), 2);
    // And removing ours leaves theirs.
    assert_eq!(
        kernel.apply(&[Operation::RemoveRoute(key("172.20.9.0/24"))], &seen),
        [Ok(())]
    );
    assert_eq!(
        ip_lines("route show 172.20.9.0/24"),
        ["172.20.9.0/24 via 192.168.10.200 dev eth1 proto static"]
    );
}

fn a_foreign_device_is_not_touched() {
    underlay();
    ip("link add podlane_vxlan type vxlan id 7 dstport 4789 dev eth1");
    ip("link add podlane_odd group 172 type bridge");
    let before = ip("-d link show");
    let mut kernel = Kernel::default();
    let seen = observe(&mut kernel).observed;
    assert!(seen.ours.devices.is_empty());
    assert_eq!(
        seen.foreign_devices["podlane_vxlan"],
        "a vxlan device of group 0, port 4789, VNI 7"
    );
    assert_eq!(
        seen.foreign_devices["podlane_odd"],
        "a bridge device of group 172"
    );

    let state = declared();
    let device = state.devices["podlane_vxlan"].clone();
    let name = "podlane_vxlan".to_owned();
    let results = kernel.apply(
        &[
            Operation::CreateDevice {
                name: name.clone(),
                device: device.clone(),
            },
            Operation::ConfigureDevice {
                name: name.clone(),
                device,
            },
            Operation::AddAddress(on("podlane_vxlan", "172.20.0.1")),
            Operation::SetNeighbour(on("podlane_vxlan", "172.20.2.1"), MacAddress([2; 6])),
            Operation::AddRoute(key("172.20.2.0/24"), encapsulated(OUTER, "172.20.2.1", None)),
            Operation::DeleteDevice { name },
            Operation::DeleteDevice {
                name: "podlane_odd".to_owned(),
            },
        ],
        &seen,
    );
    for result in results {
        let failure = result.expect_err("refused");
        assert!(
            failure
                .words
                .contains("a device that is not Podlane's has the name podlane_"),
            "{failure}"
        );
    }
    assert_eq!(ip("-d link show"), before);
    assert_eq!(ip("route show proto 172"), "");
}

fn a_taken_port_is_named_with_its_holder() {
    underlay();
    let mut kernel = Kernel::default();
    let socket = std::net::UdpSocket::bind("0.0.0.0:8472").expect("the port is free");
    let failed = failures(pass(&mut kernel, &declared()));
    let (operation, failure) = &failed[0];
    assert!(operation.starts_with("set device podlane_vxlan"), "{operation}");
    assert_eq!(failure.errno, Some(Errno::EADDRINUSE));
    let process = format!("(PID {})", std::process::id());
    assert!(
        failure
            .words
            .starts_with("UDP port 8472 is already in use by the process "),
        "{failure}"
    );
    assert!(failure.words.contains(&process), "{failure}");
    assert!(!observe(&mut kernel).observed.ours.devices["podlane_vxlan"].up);

    drop(socket);
    // A child that another test is just starting has it until it has begun.
    while std::net::UdpSocket::bind("0.0.0.0:8472").is_err() {
        std::thread::sleep(Duration::from_millis(5));
    }
    // Coming up, the device loses the neighbours that it was given while it was down.
    settle(&mut kernel, &declared());
    settle(&mut kernel, &declared());
    assert_eq!(observe(&mut kernel).observed.ours, declared());

    // Another overlay's device on our port, whatever its VNI; and one that is flow-based as ours is.
    for (other, words) in [
        (
            "flannel.1 type vxlan id 1 dstport 8472 dev eth1",
            "in use by the device flannel.1 (a vxlan device of group 0, port 8472, VNI 1)",
        ),
        (
            "other type vxlan external dstport 8472",
            "the device other (a vxlan device of group 0, port 8472, VNI 0) keeps podlane_vxlan",
        ),
    ] {
        settle(&mut kernel, &KernelState::default());
        ip(&format!("link add {other}"));
        let name = other.split_whitespace().next().expect("a name");
        ip(&format!("link set {name} up"));
        let failed = failures(pass(&mut kernel, &declared()));
        assert!(failed[0].1.words.contains(words), "{failed:?}");
        ip(&format!("link del {name}"));
    }
}

fn a_missing_driver_is_named() {
    let tunnel = Tunnel {
        protocol: TunnelProtocol::Geneve,
        port: 6081,
        vni: 1,
    };
    let device = Device::declared(&tunnel, MacAddress([2, 0, 0, 0, 0, 1]), 1450);
    let desired = KernelState {
        devices: [(tunnel.device(), device)].into(),
        ..KernelState::default()
    };
    let mut kernel = Kernel::default();
    let failed = failures(pass(&mut kernel, &desired));
    match failed.first() {
        // This kernel has the driver: then it must do.
        None => assert_eq!(observe(&mut kernel).observed.ours.devices, desired.devices),
        Some((operation, failure)) => {
            assert_eq!(operation, "add device podlane_geneve type geneve port 6081");
            assert_eq!(failure.errno, Some(Errno::EOPNOTSUPP));
            assert!(
                failure.words.starts_with("this kernel has no geneve driver"),
                "{failure}"
            );
        }
    }
}

fn what_a_hand_changed_is_corrected() {
    underlay();
    let mut kernel = Kernel::default();
    settle(&mut kernel, &declared());
    let hands: [&[&str]; 9] = [
        &["route replace blackhole 172.20.2.0/24 proto 172"],
        &[
            "route replace 172.20.1.0/24 proto 172 nexthop via 192.168.10.101 dev eth1 nexthop via 192.168.10.102 dev eth1",
        ],
        &["route replace 172.20.1.0/24 via 192.168.10.101 dev eth1 proto 172 mtu 1400 advmss 1300"],
        &["-6 route replace blackhole fd20:3::/64 proto 172 metric 1024"],
        &[
            "link set podlane_vxlan address 02:00:00:00:00:01",
            "link set podlane_vxlan mtu 1400",
        ],
        &["link set podlane_vxlan down"],
        &["link set podlane_vxlan arp on"],
        &["link set podlane_vxlan type vxlan learning"],
        &["link del podlane_vxlan"],
    ];
    for hand in hands {
        for command in hand {
            ip(command);
        }
        assert_ne!(
            observe(&mut kernel).observed.ours,
            declared(),
            "{hand:?} is noticed"
        );
        // Bringing a device down takes its routes and neighbours along: the second round finds those that were still seen.
        settle(&mut kernel, &declared());
        settle(&mut kernel, &declared());
        assert_eq!(
            observe(&mut kernel).observed.ours,
            declared(),
            "{hand:?} is corrected"
        );
    }

    ip("route add 172.20.1.0/24 tos 0x10 via 192.168.10.102 dev eth1 proto 172");
    ip("addr add 172.20.0.9/24 dev podlane_vxlan");
    ip("addr add 172.20.0.1/24 dev podlane_vxlan");
    let seen = observe(&mut kernel);
    assert_eq!(seen.observed.ours, declared());
    let strays = kernel.remove_strays(seen.strays);
    let expected = [
        "address 172.20.0.9/24 dev podlane_vxlan",
        "address 172.20.0.1/24 dev podlane_vxlan",
        "route 172.20.1.0/24 tos 0x10",
    ];
    for what in expected {
        assert!(strays.contains(&(what.to_owned(), Ok(()))), "{what}: {strays:?}");
    }
    settle(&mut kernel, &declared());
    let seen = observe(&mut kernel);
    assert!(seen.strays.is_empty());
    assert_eq!(seen.observed.ours, declared());
}

fn only_ours_is_removed() {
    underlay();
    ip("route add 10.0.0.0/8 via 192.168.10.200 dev eth1 proto bird");
    ip("link add podlane_other type bridge");
    let before = [
        ip("route show table all"),
        ip("-6 route show table all"),
        ip("-o link show"),
        ip("-o addr show"),
    ];
    let mut kernel = Kernel::default();
    let desired = KernelState {
        sysctls: [].into(),
        ..declared()
    };
    settle(&mut kernel, &desired);
    settle(&mut kernel, &KernelState::default());
    let after = [
        ip("route show table all"),
        ip("-6 route show table all"),
        ip("-o link show"),
        ip("-o addr show"),
    ];
    assert_eq!(before, after);
}

fn underlay_addresses_and_foreign_routes_are_seen() {
    underlay();
    ip("addr add 192.168.10.77/32 dev far");
    ip("link add closed type bridge");
    ip("addr add 10.9.0.1/24 dev closed");
    ip("route add default proto 186 nexthop via 192.168.10.200 dev eth1 nexthop via 192.168.10.201 dev eth1");
    ip("route add 10.0.0.0/8 via inet6 fe80::9 dev eth1");
    ip("route add 10.1.0.0/16 via 192.168.10.200 table 99");
    ip("route add prohibit 10.2.0.0/16 metric 5");
    let mut kernel = Kernel::default();
    settle(&mut kernel, &declared());
    let seen = observe(&mut kernel).observed;
    let underlay: Vec<_> = seen
        .underlay
        .iter()
        .map(|on| format!("{} {} {}", on.device, on.address, on.mtu))
        .collect();
    assert_eq!(
        underlay,
        [
            "eth1 192.168.10.100/24 1500",
            "eth1 fd10::100/64 1500",
            "far 192.168.10.77/32 1500"
        ]
    );
    let foreign: Vec<_> = seen
        .foreign_routes
        .iter()
        .filter(|route| route.destination.addr().is_ipv4())
        .map(|route| {
            let hops: Vec<_> = route
                .next_hops
                .iter()
                .map(|hop| {
                    format!(
                        "{}@{}",
                        hop.gateway.map_or_else(|| "-".to_owned(), |it| it.to_string()),
                        hop.device
                    )
                })
                .collect();
            format!(
                "{} metric {} proto {} [{}]",
                route.destination,
                route.metric,
                route.protocol,
                hops.join(" ")
            )
        })
        .collect();
    assert_eq!(
        foreign,
        [
            "0.0.0.0/0 metric 0 proto 186 [192.168.10.200@eth1 192.168.10.201@eth1]",
            "10.0.0.0/8 metric 0 proto 3 [fe80::9@eth1]",
            "10.2.0.0/16 metric 5 proto 3 []",
            "192.168.10.0/24 metric 0 proto 2 [-@eth1]",
        ]
    );
}

fn parameters_are_those_of_the_threads_namespace() {
    let path = "net/ipv4/ip_forward";
    let sysctls = Sysctls::default();
    sysctls.write(path, "1").expect("writable");
    assert_eq!(sysctls.read(path).as_deref(), Some("1"));
    in_fresh(move || {
        // A fresh namespace takes over what the initial one has, or the kernel's own value: not what was written above.
        Sysctls::default().write(path, "0").expect("writable");
        assert_eq!(Sysctls::default().read(path).as_deref(), Some("0"));
    })
    .expect("another namespace");
    assert_eq!(sysctls.read(path).as_deref(), Some("1"));
    let mut kernel = Kernel::default();
    let seen = observe(&mut kernel).observed;
    let results = kernel.apply(
        &[
            Operation::SetSysctl {
                path: path.to_owned(),
                value: "0".to_owned(),
            },
            Operation::SetSysctl {
                path: "net/ipv4/no_such".to_owned(),
                value: "0".to_owned(),
            },
            Operation::SetSysctl {
                path: "net/../kernel/panic".to_owned(),
                value: "0".to_owned(),
            },
        ],
        &seen,
    );
    assert_eq!(
        results.iter().map(Result::is_ok).collect::<Vec<_>>(),
        [true, false, false]
    );
    assert_eq!(sysctls.read(path).as_deref(), Some("0"));
}

fn a_thousand_routes_go_in_batches() {
    underlay();
    let mut desired = declared();
    for number in 0..1000_u32 {
        let [_, _, high, low] = (number + 1024).to_be_bytes();
        let gateway = format!("10.{high}.{low}.1");
        let peer = format!("192.168.{high}.{low}");
        desired.routes.insert(
            key(&format!("10.{high}.{low}.0/24")),
            encapsulated((OUTER.0, &peer), &gateway, Some("172.20.0.1")),
        );
        desired
            .neighbours
            .insert(on("podlane_vxlan", &gateway), MacAddress::of_node(&at(&peer)));
    }
    // One that the kernel refuses in the midst of the others: its gateway is nowhere on the link.
    let bad = key("10.255.0.0/24");
    desired.routes.insert(bad, via("203.0.113.1"));
    let mut kernel = Kernel::default();
    let start = Instant::now();
    let failed = failures(pass(&mut kernel, &desired));
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert_eq!(failed.len(), 1, "{failed:?}");
    assert_eq!(failed[0].1.words, "Nexthop has invalid gateway (ENETUNREACH)");
    desired.routes.remove(&bad);
    assert_eq!(observe(&mut kernel).observed.ours, desired);
    settle(&mut kernel, &KernelState::default());
    let left = observe(&mut kernel).observed.ours;
    assert_eq!(
        KernelState {
            sysctls: [].into(),
            ..left
        },
        KernelState::default()
    );
}

fn a_dump_is_whole_while_others_change_things() {
    underlay();
    let mut kernel = Kernel::default();
    settle(&mut kernel, &declared());
    // Enough addresses that a dump takes several datagrams.
    let commands: String = (0..600)
        .map(|it| format!("addr add 10.7.{}.{}/32 dev far\n", it / 200, it % 200 + 1))
        .collect();
    let file = std::env::temp_dir().join(format!("podlane-addresses-{}", std::process::id()));
    std::fs::write(&file, commands).expect("a file");
    ip(&format!("-batch {}", file.display()));
    std::fs::remove_file(&file).expect("it is there");
    let mut churn = std::process::Command::new("sh")
        .args([
            "-c",
            "while ip addr add 10.8.0.1/32 dev far && ip addr del 10.8.0.1/32 dev far; do :; done",
        ])
        .spawn()
        .expect("sh");
    for _ in 0..50 {
        let seen = observe(&mut kernel).observed;
        assert_eq!(seen.ours, declared());
        let constant = seen
            .underlay
            .iter()
            .filter(|on| on.address.to_string() != "10.8.0.1/32")
            .count();
        assert_eq!(constant, 602);
    }
    churn.kill().expect("it runs");
    churn.wait().expect("it ends");
}

fn changes_wake_and_pods_do_not() {
    underlay();
    let mut kernel = Kernel::default();
    settle(&mut kernel, &declared());
    let seen = observe(&mut kernel);
    let wake = Arc::new(Notify::new());
    let events = Events::listen(Arc::clone(&wake)).expect("a socket");
    events.set_interest(Interest {
        devices: seen.device_indices,
        own_port: kernel.port(),
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime");
    let woken = || {
        runtime.block_on(async {
            tokio::time::timeout(Duration::from_millis(150), wake.notified())
                .await
                .is_ok()
        })
    };

    // The devices' carriers are announced in the background.
    while woken() {}
    for (command, expected) in [
        (
            "neigh add 192.168.10.55 lladdr 02:00:00:00:00:55 dev eth1 nud permanent",
            false,
        ),
        ("neigh del 172.20.2.1 dev podlane_vxlan", true),
        ("route del 172.20.1.0/24", true),
        ("route add 10.0.0.0/8 via 192.168.10.200 table 99", false),
        ("-6 route add fd99::/64 via fd10::200 dev eth1", true),
        ("addr add 192.168.10.99/24 dev eth1", true),
        ("link set far mtu 1400", true),
    ] {
        ip(command);
        assert_eq!(woken(), expected, "{command}");
        while woken() {}
    }
    // The agent's own repair tells it nothing new.
    settle(&mut kernel, &declared());
    assert!(!woken());
}

fn operations_can_be_repeated() {
    underlay();
    let mut kernel = Kernel::default();
    let seen = observe(&mut kernel).observed;
    settle(&mut kernel, &declared());
    let again = [
        Operation::AddAddress(on("podlane_vxlan", "172.20.0.1")),
        Operation::AddAddress(on("podlane_vxlan", "fd20::1")),
        Operation::SetNeighbour(on("podlane_vxlan", "172.20.2.1"), MacAddress([2; 6])),
        Operation::ReplaceRoute(key("172.20.3.0/24"), Route::UNREACHABLE),
    ];
    let gone = [
        Operation::RemoveRoute(key("172.20.1.0/24")),
        Operation::RemoveRoute(key("fd20:1::/64")),
        Operation::RemoveNeighbour(on("podlane_vxlan", "172.20.2.1")),
        Operation::RemoveAddress(on("podlane_vxlan", "172.20.0.1")),
        Operation::RemoveAddress(on("podlane_vxlan", "fd20::1")),
        Operation::DeleteDevice {
            name: "podlane_vxlan".to_owned(),
        },
    ];
    for operation in again
        .iter()
        .chain(&again)
        .chain(&gone[..5])
        .chain(&gone[..5])
        .chain(&gone[5..])
        .chain(&gone[5..])
    {
        assert_eq!(
            kernel.apply(std::slice::from_ref(operation), &seen),
            [Ok(())],
            "{operation}"
        );
    }
    // What needs a device that is gone says so; what would remove something from it has nothing to do.
    assert!(kernel.apply(&[Operation::AddAddress(on("podlane_vxlan", "172.20.0.1"))], &seen)[0].is_err());
    assert_eq!(kernel.apply(&gone[2..5], &seen), [Ok(()), Ok(()), Ok(())]);
}
