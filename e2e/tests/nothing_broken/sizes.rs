//! Sizes: what a lane cannot carry is said with the right MTU and learned; what may be fragmented is; a larger underlay means larger lanes.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result, ensure};
use podlane_e2e::lab::Lab;
use podlane_e2e::probe::ping_with;
use podlane_e2e::scenario::Context;
use podlane_e2e::story::{SETTLED_WITHIN, wait_until_ready};
use podlane_e2e::wait::wait_until;
use serde_json::json;

use crate::packets::{Flow, PATIENCE};
use crate::segments::{Transfer, transfer};
use crate::{Counted, HERE, Over, address, ready, without_limit_of_errors};

/// ICMP's and IPv4's headers, and UDP's.
const PING: u32 = 28;
/// TCP's header with timestamps, and IPv4's.
const TCP: u32 = 52;
/// RFC 792: destination unreachable, fragmentation needed.
const FRAGMENTATION_NEEDED: (u8, u8) = (3, 4);

pub(crate) fn learned(context: &mut Context, over: Over) -> Result<()> {
    let lab = context.lab()?;
    let (spec, mtu) = if over == Over::Native {
        // As wide as the underlay itself, unless the policy says otherwise.
        let mut narrow = over.spec();
        narrow["mtu"] = json!(1400);
        (narrow, 1400)
    } else {
        (over.spec(), 1450)
    };
    ready(lab, &spec)?;
    without_limit_of_errors(lab)?;
    let there = over.pods()[0];
    too_big_is_said(lab, there, 1500, mtu)?;
    within_a_flow(lab, over, mtu)?;

    // What may be fragmented is, by the pod and then by the node.
    lab.namespace(HERE).ip(&["route", "flush", "cache"])?;
    for octets in ["1472", "4000", "20000"] {
        let report = ping_with(
            lab,
            HERE,
            address(lab, there)?.into(),
            3,
            &["-M", "dont", "-s", octets],
        )?;
        ensure!(
            report.all_answered(),
            "{octets} octets, in fragments: {}",
            report.output
        );
    }
    Ok(())
}

/// A packet of the pod's MTU that must not be fragmented is answered with the lane's, which the pod then knows; one of the lane's MTU passes.
fn too_big_is_said(lab: &Lab, there: &str, largest: u32, mtu: u32) -> Result<()> {
    let to = address(lab, there)?;
    let here = lab.namespace(HERE);
    here.ip(&["route", "flush", "cache"])?;
    let whole = |octets: u32| {
        let octets = (octets - PING).to_string();
        ping_with(lab, HERE, to.into(), 2, &["-M", "do", "-s", &octets])
    };
    let refused = whole(largest)?;
    let said = format!("From 172.20.0.1 icmp_seq=1 Frag needed and DF set (mtu = {mtu})");
    ensure!(
        refused.errors.contains(&said),
        "{said:?} is not in {}",
        refused.output
    );
    let route = here.ip(&["route", "get", &to.to_string()])?;
    ensure!(
        route.contains(&format!("mtu {mtu}")),
        "the pod has learned {route}"
    );
    let carried = whole(mtu)?;
    ensure!(carried.all_answered(), "{mtu} octets: {}", carried.output);
    Ok(())
}

/// The same in the midst of a flow that goes past the stack: a datagram that is too big goes up for the error, and the next one comes in fragments.
fn within_a_flow(lab: &Lab, over: Over, mtu: u32) -> Result<()> {
    lab.namespace(HERE).ip(&["route", "flush", "cache"])?;
    let flow = Flow::between(lab, HERE, over.pods()[0])?;
    let before = Counted::on(lab, "k8s-ctr")?.bypassed_outward(over);
    flow.warm(50)?;
    let bypassed = Counted::on(lab, "k8s-ctr")?.bypassed_outward(over) - before;
    ensure!(bypassed > 40.0, "only {bypassed} packets bypassed");
    let full = vec![7; 1500 - PING as usize];
    flow.client.send(&full)?;
    let error = wait_until("fragmentation needed", PATIENCE, || {
        flow.error()?.context("no error yet")
    })?;
    ensure!(
        (error.kind, error.code, error.mtu, error.from)
            == (
                FRAGMENTATION_NEEDED.0,
                FRAGMENTATION_NEEDED.1,
                mtu,
                Ipv4Addr::new(172, 20, 0, 1)
            ),
        "{error:?}"
    );
    for _ in 0..5 {
        flow.client.send(&full)?;
        let got = flow.receive(PATIENCE)?;
        ensure!(
            got.as_ref().is_some_and(|got| got.payload == full),
            "a fragmented datagram: {:?}",
            got.map(|got| got.payload.len())
        );
    }
    // The largest datagram there is, in 45 fragments.
    let largest = vec![9; 65_507];
    flow.client.send(&largest)?;
    let got = flow.receive(PATIENCE)?;
    ensure!(
        got.is_some_and(|got| got.payload == largest),
        "a datagram of 65,507 octets is lost"
    );
    Ok(())
}

pub(crate) fn jumbo(context: &mut Context) -> Result<()> {
    let lab = Over::Vxlan.lab(context)?;
    without_limit_of_errors(lab)?;
    let ends = [HERE, Over::Vxlan.pods()[0]];
    resize(lab, &ends, 9000)?;
    let result = [Over::Vxlan, Over::Geneve].into_iter().try_for_each(|over| {
        ready(lab, &over.spec())?;
        lanes_carry(lab, 8950)?;
        too_big_is_said(lab, ends[1], 9000, 8950)?;
        let moved = transfer(lab, ends[0], ends[1], address(lab, ends[1])?, 16 << 20)?;
        let Transfer { longest, .. } = moved;
        ensure!(
            longest == 8950 - TCP,
            "segments are {longest} octets at most: {moved:?}"
        );
        Ok(())
    });
    resize(lab, &ends, 1500)?;
    result?;
    lanes_carry(lab, 1450)
}

/// Makes the underlay and some pods' devices as wide as this.
fn resize(lab: &Lab, pods: &[&str], mtu: u32) -> Result<()> {
    let mtu = mtu.to_string();
    let topology = lab.topology();
    let mut devices: Vec<(&str, &str)> = Vec::new();
    for link in &topology.links {
        let port = link.router_interface.as_str();
        devices.push(("router", port));
        let name = format!("router-{port}");
        lab.namespace("switch").ip(&["link", "set", &name, "mtu", &mtu])?;
    }
    for node in &topology.nodes {
        devices.push(("switch", &node.name));
        devices.push((&node.name, "eth0"));
        for pod in node.pods.iter().filter(|pod| pods.contains(&pod.name.as_str())) {
            devices.push((&node.name, &pod.name));
            devices.push((&pod.name, "eth0"));
        }
    }
    for (namespace, device) in devices {
        lab.namespace(namespace)
            .ip(&["link", "set", device, "mtu", &mtu])?;
    }
    // Bridges take the least of their ports'.
    Ok(())
}

/// Waits until the lane between the two ends has this MTU in both directions, and is ready.
fn lanes_carry(lab: &Lab, mtu: u32) -> Result<()> {
    wait_until(&format!("lanes of {mtu} octets"), SETTLED_WITHIN, || {
        for (node, cidr) in [("k8s-ctr", "172.20.2.0/24"), ("k8s-w0", "172.20.0.0/24")] {
            let route = lab.namespace(node).ip(&["route", "show", cidr])?;
            ensure!(route.contains(&format!("mtu {mtu}")), "{node}: {route}");
        }
        Ok(())
    })?;
    wait_until_ready(lab)
}
