//! One node without programs: its drivers write the outer headers, and read those of the other's programs.

use anyhow::{Context as _, Result, ensure};
use podlane_e2e::lab::Lab;
use podlane_e2e::scenario::Context;
use podlane_e2e::story::{SETTLED_WITHIN, wait_until_ready};
use podlane_e2e::wait::wait_until;
use serde_json::{Value, json};

use crate::congestion::{CE, DATAGRAMS, mark_congestion, marked_arrives, not_ect_is_lost, said_on_the_wire};
use crate::family::Family;
use crate::packets::{Flow, PATIENCE};
use crate::{HERE, Lane, Over, ready};

/// A policy's DSCP: the least effort (RFC 8622).
const DSCP: u8 = 1;

pub(crate) fn classes(context: &mut Context, family: Family) -> Result<()> {
    let over = Over {
        lane: Lane::Vxlan,
        family,
    };
    let lab = over.family.lab(context)?;
    let mut spec = over.spec();
    spec["datapath"] = json!({"dscp": DSCP});
    ready(lab, &spec)?;
    // Programs on both sides first.
    bears_the_dscp(lab, over, HERE, over.pods()[0], |inner| inner)?;
    lab.replace_agent_by_one_without_programs(over.node())?;
    let result = encapsulation_is(lab, over, "Kernel")
        .and_then(|()| wait_until_ready(lab))
        .and_then(|()| by_the_driver(lab, over));
    lab.agent(over.node())?.kill()?;
    lab.start_agent(over.node())?;
    result?;
    encapsulation_is(lab, over, "eBPF")
}

fn encapsulation_is(lab: &Lab, over: Over, by: &str) -> Result<()> {
    wait_until(&format!("encapsulation by {by}"), SETTLED_WITHIN, || {
        let node = lab.kubectl()?.get(&["routingnode", over.node()])?;
        let is = &node["status"]["datapath"]["encapsulation"];
        ensure!(is == by, "it is {is}");
        Ok(())
    })
}

fn by_the_driver(lab: &Lab, over: Over) -> Result<()> {
    let (here, there) = (HERE, over.pods()[0]);
    // The driver leaves congestion to the inner header (RFC 3168, section 9.1.1, "full functionality"; INET_ECN_encapsulate in
    // include/net/inet_ecn.h): RFC 6040 takes what it writes for what programs write (section 4.3).
    bears_the_dscp(
        lab,
        over,
        there,
        here,
        |inner| if inner == CE { 0b10 } else { inner },
    )?;
    bears_the_dscp(lab, over, here, there, |inner| inner)?;

    let flow = Flow::between(lab, here, there)?;
    flow.warm(5)?;
    let mark = mark_congestion(lab, over, &flow)?;
    for codepoint in [0b01, 0b10, CE] {
        marked_arrives(&flow, codepoint)?;
    }
    let before = refused_by_the_driver(lab, over)?;
    not_ect_is_lost(&flow)?;
    drop(mark);
    wait_until("the driver to count them", PATIENCE, || {
        let refused = refused_by_the_driver(lab, over)? - before;
        ensure!(
            refused == DATAGRAMS as u64,
            "the driver counts {refused} packets in error, not {DATAGRAMS}"
        );
        Ok(())
    })
}

/// That the outer headers between two pods bear the policy's DSCP, and this ECN for an inner one.
fn bears_the_dscp(lab: &Lab, over: Over, from: &str, to: &str, outer: impl Fn(u8) -> u8) -> Result<()> {
    let flow = Flow::between(lab, from, to)?;
    flow.warm(5)?;
    let classes = said_on_the_wire(lab, over, &flow, outer)?;
    ensure!(
        classes.iter().all(|class| *class == DSCP << 2),
        "{from} to {to}: outer headers have the classes {classes:x?}"
    );
    Ok(())
}

fn refused_by_the_driver(lab: &Lab, over: Over) -> Result<u64> {
    let devices: Vec<Value> = serde_json::from_str(&lab.namespace(over.node()).ip(&[
        "-j",
        "-s",
        "link",
        "show",
        "podlane_vxlan",
    ])?)?;
    devices
        .first()
        .and_then(|device| device["stats64"]["rx"]["errors"].as_u64())
        .with_context(|| format!("no count of errors: {devices:?}"))
}
