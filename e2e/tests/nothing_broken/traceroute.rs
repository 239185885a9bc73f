//! Who is on the way: each hop that a packet runs out at answers with an address that says which node it is.

use std::net::IpAddr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use podlane_e2e::scenario::Context;

use crate::family;
use crate::packets::{Flow, IcmpError, PATIENCE};
use crate::{Counted, HERE, Lane, Over, address, without_limit_of_errors};

/// What became of a datagram.
#[derive(Debug, PartialEq)]
enum End {
    Error(IcmpError),
    Arrived,
}

pub(crate) fn ends_at_the_pod(context: &mut Context, over: Over) -> Result<()> {
    let lab = over.lab(context)?;
    let family = over.family;
    without_limit_of_errors(lab, family)?;
    let there = over.pods()[0];
    // The first hop is the pod's own node, by its router address. The second one has the pod's packet from a lane: where it answers over a tunnel its
    // router address is the source, and else the address by which it is on the link.
    let second = if over.lane == Lane::Native {
        family.choose([192, 168, 10, 101], "fd00:192:10::101")?
    } else {
        family.choose([172, 20, 2, 1], "fd00:172:2::1")?
    };
    let hops = [family.choose([172, 20, 0, 1], "fd00:172::1")?, second];

    // As traceroute does it: new flows, to a port where nobody listens.
    let mut asking = Flow::between(lab, HERE, there)?;
    asking.to = Flow::between(lab, HERE, there)?.to;
    asking.client.connect(asking.to)?;
    for (number, hop) in hops.iter().enumerate() {
        let error = answer(&asking, number as u32 + 1)?;
        ensure!(
            is(&error, family.time_exceeded(), *hop),
            "hop {} of a new flow: {error:?} in place of {hop}",
            number + 1
        );
    }
    let last = answer(&asking, 3)?;
    ensure!(
        is(&last, family.port_unreachable(), address(lab, there)?),
        "the end of a new flow: {last:?}"
    );

    // And within a flow that goes past the stack.
    let flow = Flow::between(lab, HERE, there)?;
    let before = (Counted::on(lab, "k8s-ctr")?, Counted::on(lab, over.node())?);
    flow.warm(50)?;
    for (number, hop) in hops.iter().enumerate() {
        let error = answer(&flow, number as u32 + 1)?;
        ensure!(
            is(&error, family.time_exceeded(), *hop),
            "hop {} of a flow that bypasses: {error:?} in place of {hop}",
            number + 1
        );
    }
    let last = answer(&flow, 3)?;
    ensure!(last == End::Arrived, "the end of a flow that bypasses: {last:?}");
    let out = Counted::on(lab, "k8s-ctr")?.bypassed_outward(over) - before.0.bypassed_outward(over);
    let back = Counted::on(lab, over.node())?.bypassed_inward(over) - before.1.bypassed_inward(over);
    ensure!(
        out > 40.0 && back > 40.0,
        "{out} packets bypassed outward and {back} inward: that was no flow that bypasses"
    );
    Ok(())
}

fn is(end: &End, what: family::Error, from: IpAddr) -> bool {
    matches!(end, End::Error(error) if error.what == what && error.from == from)
}

/// Sends a datagram with so many hops to go, and waits for what becomes of it.
fn answer(flow: &Flow, hops: u32) -> Result<End> {
    flow.set_hops(hops)?;
    flow.client.send(b"whoever is there")?;
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        if let Some(error) = flow.error()? {
            return Ok(End::Error(error));
        }
        if flow.receive(Duration::from_millis(1))?.is_some() {
            return Ok(End::Arrived);
        }
        sleep(Duration::from_millis(1));
    }
    bail!("nothing came of a datagram of {hops} hops to {}", flow.to)
}
