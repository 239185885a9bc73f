//! Congestion: what a pod says of it is said on the wire, and what the underlay marks arrives in the pod (RFC 6040), through the stack and past it.

use anyhow::{Context as _, Result, ensure};
use podlane_e2e::lab::Lab;
use podlane_e2e::scenario::Context;
use podlane_e2e::wait::wait_until;

use crate::packets::{ECN, Flow, PATIENCE, Packet, SILENCE, Tap};
use crate::{Counted, HERE, Over, Rules, ready};

/// Datagrams of each codepoint.
pub(crate) const DATAGRAMS: usize = 5;

/// A class of service that the inner packets have for themselves: expedited forwarding (RFC 3246).
const INNER_DSCP: u8 = 46 << 2;

const NOT_ECT: u8 = 0b00;
/// Congestion experienced.
pub(crate) const CE: u8 = 0b11;

pub(crate) fn told(context: &mut Context, over: Over) -> Result<()> {
    let lab = over.family.lab(context)?;
    for (bypasses, spec) in [(true, over.spec()), (false, over.spec_through_the_stack())] {
        ready(lab, &spec)?;
        let (here, there) = (HERE, over.pods()[0]);
        let flow = Flow::between(lab, here, there)?;
        let before = (Counted::on(lab, "k8s-ctr")?, Counted::on(lab, over.node())?);
        flow.warm(20)?;
        said_on_the_wire(lab, over, &flow, |inner| inner)?;
        let mark = mark_congestion(lab, over, &flow)?;
        for codepoint in [0b01, 0b10, CE] {
            marked_arrives(&flow, codepoint)
                .with_context(|| format!("the router has marked {:?} packets", mark.counted()))?;
        }
        let dropped_before = Counted::on(lab, over.node())?.dropped("ECNInvalid");
        not_ect_is_lost(&flow)?;
        let after = wait_until("the packets to be counted", PATIENCE, || {
            let after = Counted::on(lab, over.node())?;
            let dropped = after.dropped("ECNInvalid") - dropped_before;
            ensure!(
                dropped == DATAGRAMS as f64,
                "{dropped} packets are counted as dropped, not {DATAGRAMS}"
            );
            Ok(after)
        })?;
        drop(mark);
        let out = Counted::on(lab, "k8s-ctr")?.bypassed_outward(over) - before.0.bypassed_outward(over);
        let back = after.bypassed_inward(over) - before.1.bypassed_inward(over);
        let wanted = (20 + 7 * DATAGRAMS) as f64 / 2.0;
        let as_told = if bypasses {
            out > wanted && back > wanted
        } else {
            out == 0.0 && back == 0.0
        };
        ensure!(
            as_told,
            "{out} packets bypassed outward and {back} inward, with bypass {bypasses}"
        );
    }
    Ok(())
}

/// Sends of each codepoint and sees what the outer header on the router's far side says, and that the pod gets what was sent. `outer` is the
/// ECN that belongs around an inner one.
pub(crate) fn said_on_the_wire(
    lab: &Lab,
    over: Over,
    flow: &Flow,
    outer: impl Fn(u8) -> u8,
) -> Result<Vec<u8>> {
    let port = over.port()?;
    let tap = Tap::on(lab, "router", "eth2")?;
    let mut classes = Vec::new();
    for codepoint in 0..=CE {
        let inner = INNER_DSCP | codepoint;
        for _ in 0..DATAGRAMS {
            flow.send_in_class(inner, b"a pod's")?;
            let got = flow.receive(PATIENCE)?.map(|got| got.class);
            ensure!(got == Some(inner), "class {inner:#x} arrived as {got:x?}");
        }
        let seen = tap.take(DATAGRAMS, |frame| {
            let packet = Packet::of_frame(frame)?;
            let inside = packet.inside(port)?;
            let is_ours = inside.destination_port() == Some(flow.to.port());
            is_ours.then(|| (packet.class(), inside.class()))
        });
        ensure!(
            seen.len() == DATAGRAMS
                && seen
                    .iter()
                    .all(|(is, inside)| (*inside, is & ECN) == (inner, outer(codepoint))),
            "inner class {inner:#x}: the router saw {seen:x?} (outer, inner)"
        );
        classes.extend(seen.iter().map(|(is, _)| is & !ECN));
    }
    Ok(classes)
}

/// The router marks this flow's packets as having met congestion; not the lane's probes, which cannot say so.
pub(crate) fn mark_congestion<'a>(lab: &'a Lab, over: Over, flow: &Flow) -> Result<Rules<'a>> {
    let family = over.family;
    // From the outer UDP header on: that and the tunnel's header, Ethernet, IP, and UDP's source port.
    let inner_port = (16 + 14 + family.header() + 2) * 8;
    let rules = format!(
        "chain forward {{ type filter hook forward priority 0; \
         udp dport {} @th,{inner_port},16 {} {} ecn set ce counter; }};",
        over.port()?,
        flow.to.port(),
        family.nft()
    );
    Rules::add(lab, "router", family.nft(), &rules)
}

/// What can say that there was congestion arrives saying so, with all else of its class.
pub(crate) fn marked_arrives(flow: &Flow, codepoint: u8) -> Result<()> {
    for _ in 0..DATAGRAMS {
        flow.send_in_class(INNER_DSCP | codepoint, b"marked")?;
        let got = flow.receive(PATIENCE)?.map(|got| got.class);
        ensure!(
            got == Some(INNER_DSCP | CE),
            "codepoint {codepoint:#b}, marked on the way, arrived in class {got:x?}"
        );
    }
    Ok(())
}

/// What cannot is dropped: a sender that knows nothing of ECN learns of congestion by loss (RFC 6040, section 4.2).
pub(crate) fn not_ect_is_lost(flow: &Flow) -> Result<()> {
    for _ in 0..DATAGRAMS {
        flow.send_in_class(INNER_DSCP | NOT_ECT, b"not capable")?;
    }
    let got = flow.receive(SILENCE)?;
    ensure!(
        got.is_none(),
        "what cannot say that it met congestion arrived: {got:?}"
    );
    Ok(())
}
