//! IPv4 and IPv6, of pods and of the network between the nodes; and several ways from a node to its peers: addresses without a network, two
//! interfaces, several next hops, a default route that changes.

mod advertised;
mod ways;

use std::process::ExitCode;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use podlane_e2e::capture::Capture;
use podlane_e2e::lab::{Lab, Options};
use podlane_e2e::metrics::Scrape;
use podlane_e2e::probe::links;
use podlane_e2e::scenario::{Context, Scenario, run};
use podlane_e2e::story::{
    SETTLED_WITHIN, apply, ensure_none_lost, geneve, native_and_vxlan, streams_between, vxlan,
    wait_until_ready, way,
};
use podlane_e2e::topology::{Families, Pod, Topology};
use podlane_e2e::traffic::{Connection, Segments, Stream};
use podlane_e2e::wait::wait_until;

/// Packets a second of each stream.
const RATE: u32 = 500;

fn main() -> ExitCode {
    run(
        Options::named("families"),
        [
            Scenario::new(
                "dual-stack pods over IPv4: every lane carries both families, and changing it loses no packet",
                both_over_four,
            )
            .needs(&["ss"]),
            Scenario::new(
                "native over a link of IPv4 alone with dual-stack pods: the tunnel carries both families",
                in_part,
            ),
            Scenario::new(
                "IPv6 pods over IPv6: every lane carries them, and changing it loses no packet",
                six_over_six,
            )
            .needs(&["ss"]),
            Scenario::new(
                "dual-stack pods over IPv6: every lane carries both families, and changing it loses no packet",
                both_over_six,
            )
            .needs(&["ss"]),
            Scenario::new(
                "a node that has its default route from a router's advertisement keeps it when it begins to forward IPv6",
                advertised::keeps_its_default_route,
            ),
            Scenario::new(
                "IPv4 pods over IPv6: every lane carries them and is proved, and changing it loses no packet",
                four_over_six,
            )
            .needs(&["ss"]),
            Scenario::new(
                "IPv6 pods over IPv4: the tunnels carry them and are proved, and changing them loses no packet",
                six_over_four,
            )
            .needs(&["ss"]),
            Scenario::new(
                "over IPv6 the kernel's driver takes packets without a UDP checksum, and the programs those with one",
                checksums,
            ),
            Scenario::new(
                "node addresses as /32 and /128: peers are reached by the gateway on the link",
                ways::host_addresses,
            ),
            Scenario::new(
                "a node on two links reaches the peers of each by its own interface",
                ways::two_interfaces,
            ),
            Scenario::new(
                "several next hops of equal cost: packets take all of them, and none is lost",
                ways::equal_cost,
            ),
            Scenario::new(
                "another default route: packets follow it at once, by another gateway and by another interface",
                ways::default_route,
            ),
        ],
    )
}

fn both_over_four(context: &mut Context) -> Result<()> {
    // A link carries IPv6 as it is only where it has IPv6; the tunnels' ends are IPv4 all the same.
    every_lane(over_four(context)?, "ip")
}

/// k8s-w2 is on link1 with IPv4 alone.
fn over_four(context: &mut Context) -> Result<&mut Lab> {
    let mut topology = Topology::seed(2);
    topology.add_node("k8s-w2", "link1", "192.168.10.102/24".parse()?, 1);
    let mut topology = topology.in_families(Families::Both, Families::Both);
    let last = topology.nodes.last_mut().context("no nodes")?;
    last.addresses.retain(|address| address.addr().is_ipv4());
    context.lab_on("dual-stack pods over IPv4", topology)
}

fn six_over_six(context: &mut Context) -> Result<()> {
    let topology = Topology::seed(2).in_families(Families::Six, Families::Six);
    every_lane(context.lab_on("IPv6 alone", topology)?, "ip6")
}

fn over_six(context: &mut Context) -> Result<&mut Lab> {
    // Two pods a node: what holds for a node's only pod need not hold for one of several.
    let topology = Topology::seed(2).in_families(Families::Six, Families::Both);
    context.lab_on("dual-stack pods over IPv6", topology)
}

fn both_over_six(context: &mut Context) -> Result<()> {
    every_lane(over_six(context)?, "ip6")
}

/// No agent has anything to do with IPv6 here but for the underlay.
fn pods_of_four_over_six(context: &mut Context) -> Result<&mut Lab> {
    let topology = Topology::seed(2).in_families(Families::Six, Families::Four);
    context.lab_on("IPv4 pods over IPv6", topology)
}

fn four_over_six(context: &mut Context) -> Result<()> {
    every_lane(pods_of_four_over_six(context)?, "ip6")
}

fn six_over_four(context: &mut Context) -> Result<()> {
    let topology = Topology::seed(2).in_families(Families::Four, Families::Six);
    let lab = context.lab_on("IPv6 pods over IPv4", topology)?;
    let streams = through_tunnels(lab, "ip")?;
    // The link carries IPv4 alone.
    ready(lab, &native_and_vxlan())?;
    ensure_ways(lab, "k8s-ctr", &[("fd00:172:1::/64", "encap 192.168.10.101")])?;
    ensure_lane(lab, ROUTERS_END, ALL, "vxlan", "ip")?;
    ensure_none_lost(streams)?;
    ensure_programs(lab)
}

fn ready(lab: &Lab, spec: &serde_json::Value) -> Result<()> {
    apply(lab, spec)?;
    wait_until_ready(lab)
}

/// Streams in every direction and family, through all lanes; on each, the programs' bypass carries them, and the router sees the outer family
/// `outer` (as tcpdump calls it) and nothing of the pods.
fn every_lane(lab: &Lab, outer: &str) -> Result<()> {
    let streams = through_tunnels(lab, outer)?;
    ready(lab, &native_and_vxlan())?;
    for cidr in &lab.topology().node("k8s-w1").context("no k8s-w1")?.pod_cidrs {
        let is = way(lab, "k8s-ctr", &cidr.to_string())?;
        ensure!(is.starts_with("via "), "{cidr} is reached by {is}");
    }
    ensure_bypass(lab, "native", &["k8s-ctr", "k8s-w1"])?;
    ensure_lane(lab, ROUTERS_END, ALL, "vxlan", outer)?;
    tcp_in_every_family(lab, "pod-ctr-1", "pod-w1-1")?;
    ensure_none_lost(streams)?;
    ensure_programs(lab)
}

/// Starts the streams on VXLAN, and has them go on by GENEVE.
fn through_tunnels(lab: &Lab, outer: &str) -> Result<Vec<(String, Stream)>> {
    ready(lab, &vxlan())?;
    let streams = streams(lab, PAIRS)?;
    ensure_lane(lab, ROUTERS_END, ALL, "vxlan", outer)?;
    tcp_in_every_family(lab, "pod-ctr-1", "pod-w0-1")?;
    ready(lab, &geneve())?;
    ensure_lane(lab, ROUTERS_END, ALL, "geneve", outer)?;
    tcp_in_every_family(lab, "pod-ctr-1", "pod-w0-1")?;
    Ok(streams)
}

/// That on every node status says that programs encapsulate and flows bypass the stack.
fn ensure_programs(lab: &Lab) -> Result<()> {
    for node in &lab.topology().nodes {
        let status = lab.kubectl()?.get(&["routingnode", &node.name])?;
        let datapath = &status["status"]["datapath"];
        ensure!(
            datapath["encapsulation"] == "eBPF" && datapath["bypass"] == "On",
            "{}: {datapath}",
            node.name
        );
    }
    Ok(())
}

/// A node that has IPv4 alone, with pods of both families: the link to it carries no IPv6, and so the tunnel everything.
fn in_part(context: &mut Context) -> Result<()> {
    let lab = over_four(context)?;
    ready(lab, &vxlan())?;
    let streams = streams(lab, &[("k8s-ctr", "k8s-w2")])?;
    ready(lab, &native_and_vxlan())?;
    ensure_ways(
        lab,
        "k8s-ctr",
        &[
            ("172.20.3.0/24", "encap 192.168.10.102"),
            ("fd00:172:3::/64", "encap 192.168.10.102"),
        ],
    )?;
    ensure_lane(lab, ("k8s-w2", "eth0"), &["k8s-ctr", "k8s-w2"], "vxlan", "ip")?;
    ensure_none_lost(streams)
}

/// Where all of k8s-w0's packets pass.
const ROUTERS_END: (&str, &str) = ("router", "eth2");
const ALL: &[&str] = &["k8s-ctr", "k8s-w1", "k8s-w0"];
const PAIRS: &[(&str, &str)] = &[("k8s-ctr", "k8s-w1"), ("k8s-ctr", "k8s-w0"), ("k8s-w1", "k8s-w0")];

/// What passes an interface under the streams is encapsulated by this lane and outer family alone; and these nodes' bypass carries it.
fn ensure_lane(lab: &Lab, at: (&str, &str), nodes: &[&str], lane: &str, outer: &str) -> Result<()> {
    ensure_bypass(lab, lane, nodes)?;
    let port = if lane == "vxlan" { 8472 } else { 6081 };
    let capture = Capture::start(lab, at.0, at.1, "udp")?;
    sleep(Duration::from_millis(300));
    let seen = capture.stop()?;
    let wrapped = seen.count(&format!("{outer} and udp dst port {port}"))?;
    let all = seen.count("")?;
    ensure!(
        wrapped > 100 && wrapped == all,
        "{lane}: of {all} packets at {at:?} {wrapped} are {outer} to UDP port {port}: {:?}",
        seen.lines(&format!("not ({outer} and udp dst port {port})"))?
            .first()
    );
    Ok(())
}

/// Waits until the bypass carries flows by a lane on these nodes, out and in.
fn ensure_bypass(lab: &Lab, lane: &str, nodes: &[&str]) -> Result<()> {
    let label = format!("lane=\"{lane}");
    for node in nodes {
        let bypassed = || -> Result<[f64; 2]> {
            let scrape = Scrape::of(lab, node)?;
            let sum = |way: &str| scrape.sum(&format!("podlane_lane_{way}_bypassing_packets_total"), &label);
            Ok([sum("sent"), sum("received")])
        };
        let before = bypassed()?;
        wait_until(
            &format!("flows to bypass the stack of {node} by {lane}"),
            Duration::from_secs(20),
            || {
                let now = bypassed()?;
                ensure!(
                    now[0] > before[0] + 100.0 && now[1] > before[1] + 100.0,
                    "sent and received: {before:?}, then {now:?}"
                );
                Ok(())
            },
        )?;
    }
    Ok(())
}

fn ensure_ways(lab: &Lab, node: &str, wanted: &[(&str, &str)]) -> Result<()> {
    for (cidr, wanted) in wanted {
        let is = way(lab, node, cidr)?;
        ensure!(is == *wanted, "{node} reaches {cidr} by {is}, not by {wanted}");
    }
    Ok(())
}

fn first_pod<'a>(lab: &'a Lab, node: &str) -> Result<&'a Pod> {
    let node = lab
        .topology()
        .node(node)
        .with_context(|| format!("no node {node}"))?;
    node.pods
        .first()
        .with_context(|| format!("{} has no pod", node.name))
}

/// Streams between the first pods of pairs of nodes, both ways and in every family.
fn streams(lab: &Lab, pairs: &[(&str, &str)]) -> Result<Vec<(String, Stream)>> {
    let mut all = Vec::new();
    for (one, other) in pairs {
        let (one, other) = (first_pod(lab, one)?, first_pod(lab, other)?);
        all.extend(streams_between(lab, one, other, RATE)?);
        all.extend(streams_between(lab, other, one, RATE)?);
    }
    Ok(all)
}

/// A few MiB in every family that both pods have, in segments that the lane cannot carry at first: the node says how large they may be.
fn tcp_in_every_family(lab: &Lab, from: &str, to: &str) -> Result<()> {
    /// Blocks of 8 KiB a second, and how many octets are to arrive.
    const BLOCKS: u32 = 2000;
    const ENOUGH: u64 = 2 << 20;
    let (_, pod) = lab.topology().pod(to).with_context(|| format!("no pod {to}"))?;
    for address in &pod.addresses {
        let connection = Connection::start_to(lab, from, to, *address, BLOCKS, Segments::Full)?;
        // Blocks are written in their time, or later; what counts is what has arrived in the end. There is time for a segment to be sent again.
        sleep(Duration::from_millis(700));
        let report = connection.finish()?;
        ensure!(report.octets >= ENOUGH, "{from} to {address}: {report:?}");
    }
    Ok(())
}

/// A node without programs among those that have them, over IPv6.
fn checksums(context: &mut Context) -> Result<()> {
    let lab = over_six(context)?;
    ready(lab, &vxlan())?;
    lab.replace_agent_by_one_without_programs("k8s-w0")?;
    let result = wait_for_encapsulation(lab, "Kernel")
        .and_then(|()| wait_until_ready(lab))
        .and_then(|()| between_driver_and_programs(lab));
    lab.agent("k8s-w0")?.kill()?;
    lab.start_agent("k8s-w0")?;
    result?;
    wait_for_encapsulation(lab, "eBPF")
}

fn wait_for_encapsulation(lab: &Lab, by: &str) -> Result<()> {
    wait_until(
        &format!("k8s-w0 to say that {by} encapsulates"),
        SETTLED_WITHIN,
        || {
            let node = lab.kubectl()?.get(&["routingnode", "k8s-w0"])?;
            let datapath = &node["status"]["datapath"];
            ensure!(datapath["encapsulation"] == by, "status says {datapath}");
            Ok(())
        },
    )
}

/// RFC 6935 and RFC 6936: the programs send none, to a port for which the receiver has asked for that; the driver sends one.
fn between_driver_and_programs(lab: &Lab) -> Result<()> {
    let device = links(lab, "k8s-w0")?
        .into_iter()
        .find(|link| link["ifname"] == "podlane_vxlan")
        .context("no podlane_vxlan")?;
    let data = &device["linkinfo"]["info_data"];
    ensure!(data["udp_zero_csum6_rx"] == true, "{data}");

    let streams = streams(lab, PAIRS)?;
    let capture = Capture::start(lab, "router", "eth2", "ip6 and udp port 8472")?;
    sleep(Duration::from_millis(500));
    let seen = capture.stop()?;
    ensure_none_lost(streams)?;
    let driver = "src host fd00:192:20::100";
    // The checksum stands six octets behind the IPv6 header's forty.
    let count = |from: &str, checksum: &str| -> Result<usize> {
        seen.count(&format!(
            "{from} and udp dst port 8472 and ip6[46:2] {checksum} 0"
        ))
    };
    let (with, without) = (count(driver, "!=")?, count(driver, "=")?);
    ensure!(
        with > 100 && without == 0,
        "the driver sent {with} packets with a checksum and {without} without"
    );
    let programs = format!("not {driver}");
    let (with, without) = (count(&programs, "!=")?, count(&programs, "=")?);
    ensure!(
        with == 0 && without > 100,
        "the programs sent {with} packets with a checksum and {without} without"
    );
    Ok(())
}
