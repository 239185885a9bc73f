//! Several ways from one node to another ([`Topology::with_many_ways`]).

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use podlane_e2e::capture::Capture;
use podlane_e2e::lab::Lab;
use podlane_e2e::scenario::Context;
use podlane_e2e::story::{ensure_none_lost, native_and_vxlan, streams_between, vxlan};
use podlane_e2e::topology::{Families, ROUTER, SECOND_ROUTER, Topology};

use crate::{RATE, ensure_ways, first_pod, ready, streams, tcp_in_every_family};

/// How long the datapath may take to follow a change of the node's routes.
const FOLLOWS_WITHIN: Duration = Duration::from_secs(3);

/// k8s-w3 has IPv6 alone, so that tunnels to it are IPv6's; those between the others are IPv4's.
fn lab(context: &mut Context) -> Result<&mut Lab> {
    let mut topology = Topology::with_many_ways(1).in_families(Families::Both, Families::Both);
    let last = topology.nodes.last_mut().context("no nodes")?;
    last.addresses.retain(|address| address.addr().is_ipv6());
    context.lab_on("many ways", topology)
}

pub(crate) fn host_addresses(context: &mut Context) -> Result<()> {
    let lab = lab(context)?;
    ready(lab, &native_and_vxlan())?;
    // On one link, and behind a gateway to each other.
    ensure_ways(
        lab,
        "k8s-w2",
        &[
            ("172.20.4.0/24", "encap fd00:192:30::101"),
            ("fd00:172:4::/64", "encap fd00:192:30::101"),
            ("fd00:172::/64", "encap 192.168.10.100"),
            ("172.20.0.0/24", "encap 192.168.10.100"),
        ],
    )?;
    let streams = streams(lab, &[("k8s-w2", "k8s-w3"), ("k8s-w2", "k8s-ctr")])?;
    let router = Capture::start(lab, ROUTER, "eth3", "udp")?;
    sleep(Duration::from_millis(300));
    let seen = router.stop()?;
    ensure_none_lost(streams)?;
    // In by the gateway, and out again to the same link.
    for (filter, least) in [
        ("host fd00:192:30::100 and host fd00:192:30::101", 400),
        ("host 192.168.30.100 and host 192.168.10.100", 200),
    ] {
        let passed = seen.count(&format!("udp dst port 8472 and {filter}"))?;
        ensure!(
            passed > least,
            "only {passed} packets at the gateway with {filter}"
        );
    }
    tcp_in_every_family(lab, "pod-w2-1", "pod-w3-1")
}

pub(crate) fn two_interfaces(context: &mut Context) -> Result<()> {
    let lab = lab(context)?;
    ready(lab, &native_and_vxlan())?;
    ensure_ways(
        lab,
        "k8s-ctr",
        &[
            ("172.20.1.0/24", "via 192.168.10.101"),
            ("fd00:172:1::/64", "via fd00:192:10::101"),
            ("172.20.2.0/24", "via 192.168.20.100"),
            ("fd00:172:2::/64", "via fd00:192:20::100"),
        ],
    )?;
    let streams = streams(lab, &[("k8s-ctr", "k8s-w1"), ("k8s-ctr", "k8s-w0")])?;
    let plain = [
        ("eth0", "net 172.20.1.0/24 or net fd00:172:1::/64"),
        ("eth1", "net 172.20.2.0/24 or net fd00:172:2::/64"),
    ];
    ensure_on_interfaces(lab, &plain)?;
    ready(lab, &vxlan())?;
    // The tunnel's end is the node's first address, whichever way its packets take.
    let wrapped = [
        ("eth0", "udp dst port 8472 and dst host 192.168.10.101"),
        (
            "eth1",
            "udp dst port 8472 and src host 192.168.10.100 and dst host 192.168.20.100",
        ),
    ];
    ensure_on_interfaces(lab, &wrapped)?;
    ready(lab, &native_and_vxlan())?;
    ensure_on_interfaces(lab, &plain)?;
    ensure_none_lost(streams)?;
    tcp_in_every_family(lab, "pod-ctr-1", "pod-w0-1")
}

/// What matches passes this interface of k8s-ctr, and none of the others.
fn ensure_on_interfaces(lab: &Lab, wanted: &[(&str, &str)]) -> Result<()> {
    let mut captures = Vec::new();
    for (interface, _) in wanted {
        captures.push(Capture::start(lab, "k8s-ctr", interface, "udp")?);
    }
    sleep(Duration::from_millis(300));
    for (capture, (interface, _)) in captures.into_iter().zip(wanted) {
        let seen = capture.stop()?;
        for (other, filter) in wanted {
            let count = seen.count(filter)?;
            let is_right = if interface == other {
                count > 100
            } else {
                count == 0
            };
            ensure!(is_right, "{count} packets with {filter} at {interface}");
        }
    }
    Ok(())
}

/// Makes a node's default routes of both families those, each by some next hops such as `via 192.168.10.200 dev eth0`.
fn set_default_routes(lab: &Lab, node: &str, four: &str, six: &str) -> Result<()> {
    let lines = [format!("-4 {four}"), format!("-6 {six}")];
    for line in lines {
        let (family, hops) = line.split_once(' ').context("a route")?;
        let words = [family, "route", "replace", "default"];
        let arguments: Vec<&str> = words.into_iter().chain(hops.split(' ')).collect();
        lab.namespace(node).ip(&arguments)?;
    }
    Ok(())
}

pub(crate) fn equal_cost(context: &mut Context) -> Result<()> {
    let lab = lab(context)?;
    ready(lab, &vxlan())?;
    // By ports too, not by addresses alone: between two nodes there is one pair of those.
    lab.namespace("k8s-w1").set_parameters(&[
        ("ipv4/fib_multipath_hash_policy", "1"),
        ("ipv6/fib_multipath_hash_policy", "1"),
    ])?;
    let streams = streams(lab, &[("k8s-w1", "k8s-w0"), ("k8s-w1", "k8s-w3")])?;
    set_default_routes(
        lab,
        "k8s-w1",
        "nexthop via 192.168.10.200 dev eth0 nexthop via 192.168.10.201 dev eth0",
        "nexthop via fd00:192:10::200 dev eth0 nexthop via fd00:192:10::201 dev eth0",
    )?;
    let result = scattered_over_both(lab);
    set_default_routes(
        lab,
        "k8s-w1",
        "via 192.168.10.200 dev eth0",
        "via fd00:192:10::200 dev eth0",
    )?;
    result?;
    ensure_none_lost(streams)
}

/// Many flows, of both families in tunnels of both.
fn scattered_over_both(lab: &Lab) -> Result<()> {
    let from = first_pod(lab, "k8s-w1")?;
    for (node, tunnel) in FROM_W1 {
        let captures = [ROUTER, SECOND_ROUTER].map(|router| Capture::start(lab, router, "eth1", tunnel));
        let to = first_pod(lab, node)?;
        for address in &to.addresses {
            let came = scatter(lab, &from.name, &to.name, *address)?;
            ensure!(
                came == FLOWS * EACH,
                "{came} of {} packets came to {address}",
                FLOWS * EACH
            );
        }
        let mut seen = Vec::new();
        for capture in captures {
            seen.push(capture?.stop()?.count("")?);
        }
        ensure!(
            seen.iter().all(|count| *count > FLOWS * EACH / 5),
            "of {tunnel} the routers saw {seen:?} packets"
        );
    }
    Ok(())
}

/// The tunnels of k8s-w1 to nodes behind the routers, one of each family.
const FROM_W1: [(&str, &str); 2] = [
    (
        "k8s-w0",
        "udp dst port 8472 and src host 192.168.10.101 and dst host 192.168.20.100",
    ),
    (
        "k8s-w3",
        "udp dst port 8472 and src host fd00:192:10::101 and dst host fd00:192:30::101",
    ),
];

/// Flows, and packets of each.
const FLOWS: usize = 64;
const EACH: usize = 10;

/// Sends packets of many flows from one pod to another; how many came.
fn scatter(lab: &Lab, from: &str, to: &str, address: IpAddr) -> Result<usize> {
    let any: IpAddr = if address.is_ipv4() {
        [0; 4].into()
    } else {
        [0_u16; 8].into()
    };
    let bind = move || UdpSocket::bind((any, 0)).context("a socket");
    let sink = lab.namespace(to).within(bind)?;
    sink.set_read_timeout(Some(Duration::from_millis(500)))?;
    let target = SocketAddr::new(address, sink.local_addr()?.port());
    let count = thread::spawn(move || {
        let mut packet = [0; 128];
        (0..FLOWS * EACH)
            .take_while(|_| sink.recv(&mut packet).is_ok())
            .count()
    });
    lab.namespace(from).within(move || {
        let sockets = (0..FLOWS).map(|_| bind()).collect::<Result<Vec<_>>>()?;
        for _ in 0..EACH {
            for socket in &sockets {
                socket.send_to(&[0; 64], target)?;
            }
            // A receive queue holds some hundred packets.
            sleep(Duration::from_millis(10));
        }
        Ok(())
    })?;
    let came = count
        .join()
        .map_err(|_| anyhow!("the receiver of {address} panicked"))?;
    Ok(came)
}

pub(crate) fn default_route(context: &mut Context) -> Result<()> {
    let lab = lab(context)?;
    ready(lab, &vxlan())?;
    another_gateway(lab)?;
    gateway_gone(lab)?;
    another_interface(lab)
}

/// By the second router, while the first one goes on: nothing may be lost.
fn another_gateway(lab: &Lab) -> Result<()> {
    let streams = streams(lab, &[("k8s-w1", "k8s-w0"), ("k8s-w1", "k8s-w3")])?;
    let places = |by: &'static str, not: &'static str| [(by, "eth1"), (not, "eth1")];
    let filters = FROM_W1.map(|(_, tunnel)| tunnel);
    set_default_routes(
        lab,
        "k8s-w1",
        "via 192.168.10.201 dev eth0",
        "via fd00:192:10::201 dev eth0",
    )?;
    let result = wait_for_way(lab, places(SECOND_ROUTER, ROUTER), filters);
    set_default_routes(
        lab,
        "k8s-w1",
        "via 192.168.10.200 dev eth0",
        "via fd00:192:10::200 dev eth0",
    )?;
    result?;
    wait_for_way(lab, places(ROUTER, SECOND_ROUTER), filters)?;
    ensure_none_lost(streams)
}

/// Waits until packets of all these kinds pass the first of two interfaces (each in a namespace), and none passes the second.
fn wait_for_way(lab: &Lab, places: [(&str, &str); 2], filters: [&str; 2]) -> Result<()> {
    let changed = Instant::now();
    loop {
        // To capture may take a busy machine long: what counts is when it began.
        let begun = changed.elapsed();
        let captures = places.map(|(namespace, interface)| Capture::start(lab, namespace, interface, "udp"));
        sleep(Duration::from_millis(300));
        let [right, wrong] = captures.map(|capture| capture?.stop());
        let (right, wrong) = (right?, wrong?);
        let mut other = Vec::new();
        for filter in filters {
            let (right, wrong) = (right.count(filter)?, wrong.count(filter)?);
            if right <= 20 || wrong > 0 {
                other.push(format!(
                    "of {filter} {right} pass {:?}, {wrong} {:?}",
                    places[0], places[1]
                ));
            }
        }
        if other.is_empty() {
            return Ok(());
        }
        ensure!(
            begun < FOLLOWS_WITHIN,
            "{begun:?} after the change {}",
            other.join("; ")
        );
    }
}

/// The gateway stops forwarding, and some time later the default route leads to another: from then on packets are to arrive.
fn gateway_gone(lab: &Lab) -> Result<()> {
    let from = first_pod(lab, "k8s-w1")?;
    let mut streams = Vec::new();
    for (node, _) in FROM_W1 {
        streams.extend(streams_between(lab, from, first_pod(lab, node)?, RATE)?);
    }
    let router = lab.namespace(ROUTER);
    let stops = |family: &str, what: &str| {
        router.ip(&[family, "rule", what, "iif", "eth1", "pref", "10", "blackhole"])
    };
    sleep(Duration::from_millis(300));
    let gone = Instant::now();
    stops("-4", "add")?;
    stops("-6", "add")?;
    sleep(Duration::from_millis(200));
    let changed = set_default_routes(
        lab,
        "k8s-w1",
        "via 192.168.10.201 dev eth0",
        "via fd00:192:10::201 dev eth0",
    );
    let without_gateway = gone.elapsed();
    // For longer than is allowed, so that it would be seen.
    sleep(FOLLOWS_WITHIN * 2);
    stops("-4", "del")?;
    stops("-6", "del")?;
    set_default_routes(
        lab,
        "k8s-w1",
        "via 192.168.10.200 dev eth0",
        "via fd00:192:10::200 dev eth0",
    )?;
    changed?;
    for (direction, stream) in streams {
        let report = stream.finish()?;
        let lost_for = Duration::from_secs(report.lost) / RATE;
        say(&format!(
            "{direction}: no gateway for {} ms, {} packets lost, which are {} ms' worth",
            without_gateway.as_millis(),
            report.lost,
            lost_for.as_millis()
        ));
        ensure!(report.lost > 0, "{direction}: nothing was lost without a gateway");
        if lost_for > without_gateway + FOLLOWS_WITHIN {
            bail!("{direction}: the datapath did not follow: {report:?}");
        }
    }
    Ok(())
}

/// By the other interface, to another link's gateway.
fn another_interface(lab: &Lab) -> Result<()> {
    let streams = streams(lab, &[("k8s-ctr", "k8s-w2"), ("k8s-ctr", "k8s-w3")])?;
    let places = |by: &'static str, not: &'static str| [("k8s-ctr", by), ("k8s-ctr", not)];
    let filters = [
        "udp dst port 8472 and dst host 192.168.30.100",
        "udp dst port 8472 and dst host fd00:192:30::101",
    ];
    let moved = set_default_routes(
        lab,
        "k8s-ctr",
        "via 192.168.20.200 dev eth1",
        "via fd00:192:20::200 dev eth1",
    )
    .and_then(|()| wait_for_way(lab, places("eth1", "eth0"), filters));
    set_default_routes(
        lab,
        "k8s-ctr",
        "via 192.168.10.200 dev eth0",
        "via fd00:192:10::200 dev eth0",
    )?;
    moved?;
    wait_for_way(lab, places("eth0", "eth1"), filters)?;
    ensure_none_lost(streams)
}

#[allow(
    clippy::print_stderr,
    reason = "a test program tells on standard error what it counted"
)]
fn say(line: &str) {
    eprintln!("{line}");
}
