//! The story's node k8s-ctr, and what the tests do with its kernel.

use podlane_agent::kernel::{Failure, Kernel, Observation};
use podlane_plan::diff::{Operation, diff};
use podlane_plan::kernel::{
    COVER_METRIC, Device, KernelState, MacAddress, OnDevice, Route, RouteKey, RouteTarget, lane_metric,
};
use podlane_plan::lane::{Tunnel, TunnelProtocol};
use podlane_test_namespaces::ip;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::thread::sleep;
use std::time::{Duration, Instant};

pub(crate) const VXLAN: Tunnel = Tunnel {
    protocol: TunnelProtocol::Vxlan,
    port: 8472,
    vni: 1,
};

pub(crate) fn at(address: &str) -> IpAddr {
    address.parse().expect("an address")
}

pub(crate) fn key(destination: &str) -> RouteKey {
    let destination = destination.parse().expect("a CIDR");
    RouteKey {
        destination,
        metric: lane_metric(&destination),
    }
}

pub(crate) fn on(device: &str, address: &str) -> OnDevice {
    OnDevice {
        device: device.to_owned(),
        address: at(address),
    }
}

/// eth1 with the story's address for k8s-ctr, and an address of each family.
pub(crate) fn underlay() {
    ip("link set lo up");
    ip("link add eth1 type veth peer name far");
    // No link-local addresses, whose duplicate detection goes on in the background.
    ip("link set eth1 addrgenmode none");
    ip("link set far addrgenmode none");
    ip("addr add 192.168.10.100/24 dev eth1");
    ip("addr add fd10::100/64 dev eth1 nodad");
    ip("link set eth1 up");
    ip("link set far up");
    // A cable that is plugged in carries a moment later (net/core/link_watch.c), and routes say so until then.
    let begun = Instant::now();
    while !ip("-o link show eth1").contains("state UP")
        || ip("route show table all").contains("linkdown")
        || ip("-6 route show table all").contains("linkdown")
    {
        assert!(begun.elapsed() < Duration::from_secs(60), "eth1 does not carry");
        sleep(Duration::from_millis(2));
    }
}

pub(crate) fn via(gateway: &str) -> Route {
    Route {
        target: RouteTarget::Via {
            gateway: at(gateway),
            device: "eth1".to_owned(),
        },
        preferred_source: None,
        mtu: None,
    }
}

pub(crate) fn encapsulated(outer: (&str, &str), gateway: &str, source: Option<&str>) -> Route {
    Route {
        target: RouteTarget::Encapsulated {
            vni: 1,
            source: at(outer.0),
            destination: at(outer.1),
            dscp: 0,
            gateway: at(gateway),
            device: "podlane_vxlan".to_owned(),
        },
        preferred_source: source.map(at),
        mtu: Some(1450),
    }
}

/// The inner next hop of IPv6: the peer's link-local address.
pub(crate) const SIX_GATEWAY: &str = "fe80::50:c0ff:fea8:1464";

pub(crate) const OUTER: (&str, &str) = ("192.168.10.100", "192.168.20.100");

/// The story's k8s-ctr with every kind of route, both families.
pub(crate) fn declared() -> KernelState {
    let mac = MacAddress::of_node(&at("192.168.10.100"));
    let peer = MacAddress::of_node(&at("192.168.20.100"));
    let device = "podlane_vxlan";
    KernelState {
        devices: [(device.to_owned(), Device::declared(&VXLAN, mac, 1450))].into(),
        addresses: [on(device, "172.20.0.1"), on(device, "fd20::1")].into(),
        neighbours: [(on(device, "172.20.2.1"), peer), (on(device, SIX_GATEWAY), peer)].into(),
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
                encapsulated(OUTER, SIX_GATEWAY, Some("fd20::1")),
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
        masquerade: None,
    }
}

pub(crate) fn observe(kernel: &mut Kernel) -> Observation {
    kernel
        .observe(|_| BTreeSet::from(["net/ipv4/ip_forward".to_owned()]))
        .expect("the kernel can be read")
}

/// Applies what is to be done, and returns it with each result.
pub(crate) fn pass(kernel: &mut Kernel, desired: &KernelState) -> Vec<(Operation, Result<(), Failure>)> {
    let seen = observe(kernel).observed;
    let operations = diff(desired, &seen.ours);
    let results = kernel.apply(&operations, &seen);
    operations.into_iter().zip(results).collect()
}

/// As [`pass`], where all must go well.
pub(crate) fn settle(kernel: &mut Kernel, desired: &KernelState) -> usize {
    let done = pass(kernel, desired);
    for (operation, result) in &done {
        assert_eq!(result, &Ok(()), "{operation}");
    }
    done.len()
}

pub(crate) fn failures(done: Vec<(Operation, Result<(), Failure>)>) -> Vec<(String, Failure)> {
    done.into_iter()
        .filter_map(|(operation, result)| Some((operation.to_string(), result.err()?)))
        .collect()
}
