//! Sizes: what a lane cannot carry is said with the right MTU and learned; what may be fragmented is; a larger underlay means larger lanes.

use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use podlane_e2e::lab::Lab;
use podlane_e2e::probe::ping_with;
use podlane_e2e::scenario::Context;
use podlane_e2e::story::{SETTLED_WITHIN, wait_until_ready};
use podlane_e2e::wait::wait_until;
use serde_json::json;

use crate::family::Family;
use crate::packets::{Flow, PATIENCE};
use crate::segments::{Transfer, transfer};
use crate::{Counted, HERE, Lane, Over, address, ready, without_limit_of_errors};

/// The header of an ICMP echo, and UDP's.
const PING: u32 = 8;
/// TCP's header with timestamps.
const TCP: u32 = 32;

pub(crate) fn learned(context: &mut Context, over: Over) -> Result<()> {
    let lab = over.family.lab(context)?;
    let (spec, mtu) = if over.lane == Lane::Native {
        // As wide as the underlay itself, unless the policy says otherwise.
        let mut narrow = over.spec();
        narrow["mtu"] = json!(1400);
        (narrow, 1400)
    } else {
        (over.spec(), 1500 - over.family.overhead())
    };
    ready(lab, &spec)?;
    without_limit_of_errors(lab, over.family)?;
    let there = over.pods()[0];
    too_big_is_said(lab, over.family, there, 1500, mtu)?;
    within_a_flow(lab, over, mtu)?;

    // What may be fragmented is, by the pod and then by the node; over IPv6 by the pod alone, which has learned the size by now.
    // The other pod learns it from its first answer, which is the price.
    match over.family {
        Family::Four => forget_sizes(lab)?,
        Family::Six => drop(ping_with(lab, HERE, address(lab, there)?, 1, &["-s", "1472"])?),
    }
    for octets in ["1472", "4000", "20000"] {
        let report = ping_with(lab, HERE, address(lab, there)?, 3, &["-M", "dont", "-s", octets])?;
        ensure!(
            report.all_answered(),
            "{octets} octets, in fragments: {}",
            report.output
        );
    }
    Ok(())
}

/// The pod's node, as the pod knows it.
fn router_address(family: Family) -> Result<IpAddr> {
    family.choose([172, 20, 0, 1], "fd00:172::1")
}

/// The pod forgets what it has learned of the way.
fn forget_sizes(lab: &Lab) -> Result<()> {
    let here = lab.namespace(HERE);
    here.ip(&["-4", "route", "flush", "cache"])?;
    here.ip(&["-6", "route", "flush", "cache"]).map(drop)
}

/// A packet of the pod's MTU that must not be fragmented is answered with the lane's, which the pod then knows; one of the lane's MTU passes.
fn too_big_is_said(lab: &Lab, family: Family, there: &str, largest: u32, mtu: u32) -> Result<()> {
    let to = address(lab, there)?;
    let here = lab.namespace(HERE);
    forget_sizes(lab)?;
    let whole = |octets: u32| {
        let octets = (octets - family.header() - PING).to_string();
        ping_with(lab, HERE, to, 2, &["-M", "do", "-s", &octets])
    };
    let refused = whole(largest)?;
    let said = match family {
        Family::Four => format!("Frag needed and DF set (mtu = {mtu})"),
        Family::Six => format!("Packet too big: mtu={mtu}"),
    };
    let said = format!("From {} icmp_seq=1 {said}", router_address(family)?);
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
    forget_sizes(lab)?;
    let flow = Flow::between(lab, HERE, over.pods()[0])?;
    let before = Counted::on(lab, "k8s-ctr")?.bypassed_outward(over);
    flow.warm(50)?;
    let bypassed = Counted::on(lab, "k8s-ctr")?.bypassed_outward(over) - before;
    ensure!(bypassed > 40.0, "only {bypassed} packets bypassed");
    let full = vec![7; (1500 - over.family.header() - PING) as usize];
    flow.client.send(&full)?;
    let error = wait_until("fragmentation needed", PATIENCE, || {
        flow.error()?.context("no error yet")
    })?;
    ensure!(
        (error.what, error.mtu, error.from) == (over.family.too_big(), mtu, router_address(over.family)?),
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

pub(crate) fn jumbo(context: &mut Context, family: Family) -> Result<()> {
    let over = |lane| Over { lane, family };
    let lab = over(Lane::Vxlan).lab(context)?;
    without_limit_of_errors(lab, family)?;
    let ends = [HERE, over(Lane::Vxlan).pods()[0]];
    let mtu = 9000 - family.overhead();
    resize(lab, &ends, 9000)?;
    for pod in ends {
        // For ten minutes a pod keeps to what it was told before of the path (`mtu_expires`, Documentation/networking/ip-sysctl.rst).
        lab.namespace(pod).ip(&["-6", "route", "flush", "cache"])?;
    }
    let result = [Lane::Vxlan, Lane::Geneve].into_iter().try_for_each(|lane| {
        ready(lab, &over(lane).spec())?;
        lanes_carry(lab, family, mtu)?;
        too_big_is_said(lab, family, ends[1], 9000, mtu)?;
        let moved = transfer(lab, ends[0], ends[1], address(lab, ends[1])?, 16 << 20)?;
        let Transfer { longest, .. } = moved;
        ensure!(
            longest == mtu - family.header() - TCP,
            "segments are {longest} octets at most: {moved:?}"
        );
        Ok(())
    });
    resize(lab, &ends, 1500)?;
    result?;
    lanes_carry(lab, family, 1500 - family.overhead())
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
fn lanes_carry(lab: &Lab, family: Family, mtu: u32) -> Result<()> {
    wait_until(&format!("lanes of {mtu} octets"), SETTLED_WITHIN, || {
        let cidrs = match family {
            Family::Four => ["172.20.2.0/24", "172.20.0.0/24"],
            Family::Six => ["fd00:172:2::/64", "fd00:172::/64"],
        };
        for (node, cidr) in ["k8s-ctr", "k8s-w0"].into_iter().zip(cidrs) {
            let version = if cidr.contains(':') { "-6" } else { "-4" };
            let route = lab.namespace(node).ip(&[version, "route", "show", cidr])?;
            ensure!(route.contains(&format!("mtu {mtu}")), "{node}: {route}");
        }
        Ok(())
    })?;
    wait_until_ready(lab)
}
