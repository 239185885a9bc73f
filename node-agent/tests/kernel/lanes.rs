//! Routes, neighbours, addresses and devices: made, changed in place, and taken away.

use crate::story::{
    OUTER, SIX_GATEWAY, at, declared, encapsulated, failures, key, observe, on, pass, settle, underlay, via,
};
use podlane_agent::kernel::Kernel;
use podlane_plan::diff::Operation;
use podlane_plan::kernel::{KernelState, MacAddress, Route, RouteTarget};
use podlane_test_namespaces::{Test, in_fresh, ip, ip_lines};

pub(crate) const TESTS: &[Test] = &[
    (
        "what_is_declared_is_there_and_nothing_is_left_to_do",
        what_is_declared_is_there_and_nothing_is_left_to_do,
    ),
    ("routes_are_what_ip_route_makes", routes_are_what_ip_route_makes),
    ("lanes_change_in_place", lanes_change_in_place),
    (
        "a_next_hop_within_the_pod_cidr_is_replaced_in_place",
        a_next_hop_within_the_pod_cidr_is_replaced_in_place,
    ),
    ("ipv6_is_carried_over_ipv6", ipv6_is_carried_over_ipv6),
    ("outer_headers_bear_a_dscp", outer_headers_bear_a_dscp),
    ("operations_can_be_repeated", operations_can_be_repeated),
    (
        "a_refused_route_among_a_thousand_fails_alone",
        a_refused_route_among_a_thousand_fails_alone,
    ),
];

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
        " udp6zerocsumrx",
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
        ip("link add podlane_vxlan group 172 type vxlan external nolearning dstport 8472 udp6zerocsumrx");
        ip("link set podlane_vxlan mtu 1450 arp off addrgenmode none up");
        ip("addr add 172.20.0.1/32 dev podlane_vxlan");
        ip("addr add fd20::1/128 dev podlane_vxlan nodad noprefixroute");
        ip("neigh add 172.20.2.1 lladdr 02:50:c0:a8:14:64 dev podlane_vxlan nud permanent");
        ip("neigh add fe80::50:c0ff:fea8:1464 lladdr 02:50:c0:a8:14:64 dev podlane_vxlan nud permanent");
        let encap = "encap ip id 1 src 192.168.10.100 dst 192.168.20.100 ttl 64";
        ip("route add 172.20.1.0/24 via 192.168.10.101 dev eth1 proto 172 metric 135");
        ip(&format!(
            "route add 172.20.2.0/24 {encap} via 172.20.2.1 dev podlane_vxlan onlink src 172.20.0.1 mtu 1450 proto 172 metric 136"
        ));
        ip("route add unreachable 172.20.3.0/24 proto 172 metric 137");
        ip("route add unreachable 172.20.0.0/16 proto 172 metric 1000000");
        ip("-6 route add fd20:1::/64 via fd10::101 dev eth1 proto 172");
        ip(&format!("-6 route add fd20:2::/64 {encap} via fe80::50:c0ff:fea8:1464 dev podlane_vxlan onlink src fd20::1 mtu 1450 proto 172"));
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
        encapsulated(OUTER, SIX_GATEWAY, Some("fd20::1")),
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

/// Agents of the first version gave the peer's IPv6 router address as the inner next hop.
fn a_next_hop_within_the_pod_cidr_is_replaced_in_place() {
    underlay();
    let mut kernel = Kernel::default();
    let desired = declared();
    let mut before = desired.clone();
    let route = encapsulated(OUTER, "fd20:2::1", Some("fd20::1"));
    before.routes.insert(key("fd20:2::/64"), route);
    let mac = before
        .neighbours
        .remove(&on("podlane_vxlan", SIX_GATEWAY))
        .expect("declared");
    before.neighbours.insert(on("podlane_vxlan", "fd20:2::1"), mac);
    settle(&mut kernel, &before);
    let done: Vec<_> = pass(&mut kernel, &desired)
        .into_iter()
        .map(|(operation, result)| {
            assert_eq!(result, Ok(()), "{operation}");
            operation
        })
        .collect();
    let [
        Operation::SetNeighbour(..),
        Operation::ReplaceRoute(..),
        Operation::RemoveNeighbour(_),
    ] = &done[..]
    else {
        panic!("{done:?}");
    };
    assert_eq!(observe(&mut kernel).observed.ours, desired);
}

fn ipv6_is_carried_over_ipv6() {
    underlay();
    let mut kernel = Kernel::default();
    let mut desired = declared();
    desired.routes.insert(
        key("fd20:2::/64"),
        encapsulated(("fd10::100", "fd11::100"), SIX_GATEWAY, Some("fd20::1")),
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

fn outer_headers_bear_a_dscp() {
    underlay();
    let mut kernel = Kernel::default();
    let mut desired = declared();
    let over_six = encapsulated(("fd10::100", "fd11::100"), SIX_GATEWAY, Some("fd20::1"));
    desired.routes.insert(key("fd20:2::/64"), over_six);
    settle(&mut kernel, &desired);
    // There and back again: each is a change of two routes, and of nothing else.
    for wanted in [46, 63, 0] {
        for route in desired.routes.values_mut() {
            if let RouteTarget::Encapsulated { dscp, .. } = &mut route.target {
                *dscp = wanted;
            }
        }
        let done = pass(&mut kernel, &desired);
        assert_eq!(done.len(), 2, "{done:?}");
        for (operation, result) in &done {
            assert!(matches!(operation, Operation::ReplaceRoute(..)), "{operation}");
            assert_eq!(result, &Ok(()));
        }
        assert_eq!(observe(&mut kernel).observed.ours, desired);
    }
    // What a hand has put beside the DSCP is taken away again.
    ip(
        "route replace 172.20.2.0/24 encap ip id 1 src 192.168.10.100 dst 192.168.20.100 ttl 64 tos 0x1 \
        via 172.20.2.1 dev podlane_vxlan onlink src 172.20.0.1 mtu 1450 proto 172 metric 136",
    );
    assert_ne!(observe(&mut kernel).observed.ours, desired);
    settle(&mut kernel, &desired);
    assert_eq!(observe(&mut kernel).observed.ours, desired);
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

fn a_refused_route_among_a_thousand_fails_alone() {
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
    let failed = failures(pass(&mut kernel, &desired));
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
