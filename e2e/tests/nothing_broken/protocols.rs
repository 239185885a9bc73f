//! What is neither TCP nor UDP, and what is not for one pod: it takes the stack's way, and is nothing to drop.

use std::net::{IpAddr, SocketAddr, SocketAddrV6, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::socket::{setsockopt, sockopt};
use podlane_e2e::lab::Lab;
use podlane_e2e::probe::ping;
use podlane_e2e::scenario::Context;
use podlane_e2e::traffic::raw::{WHOLE, send_ip};
use podlane_e2e::wait::wait_until;

use crate::family::Family;
use crate::packets::{PATIENCE, Packet, Tap};
use crate::{HERE, Lane, Over, Rules, address, dropped_at_rest, ensure_none_dropped};

/// SCTP, DCCP, ESP, GRE, and one that is assigned to any private encryption scheme (IANA, protocol numbers).
const PROTOCOLS: [u8; 5] = [132, 33, 50, 47, 99];

pub(crate) fn pass(context: &mut Context, over: Over) -> Result<()> {
    let lab = over.lab(context)?;
    let there = over.pods()[0];
    let before = dropped_at_rest(lab)?;
    for (from, to) in [(HERE, there), (there, HERE)] {
        let tap = Tap::on(lab, to, "eth0")?;
        let (source, destination) = (address(lab, from)?, address(lab, to)?);
        for protocol in PROTOCOLS {
            for octets in [1, 100, 1300, 1480] {
                let payload: Vec<u8> = (0..octets).map(|octet| octet as u8 ^ protocol).collect();
                arrives(lab, &tap, (from, source), destination, protocol, &payload)?;
            }
        }
        let report = ping(lab, from, destination, 2)?;
        ensure!(report.all_answered(), "{}", report.output);
    }
    ensure_none_dropped(lab, &before)
}

fn arrives(
    lab: &Lab,
    tap: &Tap,
    (from, source): (&str, IpAddr),
    to: IpAddr,
    protocol: u8,
    payload: &[u8],
) -> Result<()> {
    send_ip(lab, from, source, to, protocol, payload)?;
    let mut octets = 0;
    let got = tap.take(1, |frame| {
        let packet = Packet::of_frame(frame).filter(|packet| packet.protocol() == protocol)?;
        if packet.source() != source {
            return None;
        }
        let body = packet.payload();
        octets += body.len();
        if payload.len() > WHOLE {
            return (octets >= payload.len()).then_some(true);
        }
        Some(body.get(..payload.len()) == Some(payload))
    });
    ensure!(
        got == [true],
        "protocol {protocol}, {} octets from {from}: {got:?}, {octets} octets came",
        payload.len()
    );
    Ok(())
}

pub(crate) fn go_up(context: &mut Context, family: Family) -> Result<()> {
    let over = Over {
        lane: Lane::Vxlan,
        family,
    };
    let lab = over.lab(context)?;
    let node = "k8s-ctr";
    let before = dropped_at_rest(lab)?;
    multicast(lab, node, family)?;
    // Behind our hook, before the stack: IEEE 802's local experimental ethertype.
    let rules = format!(
        "chain ingress {{ type filter hook ingress device \"{HERE}\" priority 0; ether type 0x88b5 counter; }};"
    );
    let rules = Rules::add(lab, node, "netdev", &rules)?;
    let tap = Tap::on(lab, HERE, "eth0")?;
    let frame = [&[0xff; 6][..], &[2, 0, 0, 0, 0, 1], &[0x88, 0xb5], &[7; 50]].concat();
    for _ in 0..10 {
        tap.send(&frame)?;
    }
    wait_until("frames of an unknown ethertype at the node", PATIENCE, || {
        let counted = rules.counted()?;
        ensure!(counted == 10, "{counted} of 10");
        Ok(())
    })?;
    ensure_none_dropped(lab, &before)
}

/// A pod's multicast reaches its node: what every host listens to by a socket of the node's, any other group as far as the stack lets it.
fn multicast(lab: &Lab, node: &str, family: Family) -> Result<()> {
    let groups = [
        family.choose([224, 0, 0, 1], "ff02::1")?,
        family.choose([239, 1, 2, 3], "ff18::1:2:3")?,
    ];
    let rules = format!(
        "chain ingress {{ type filter hook ingress device \"{HERE}\" priority 0; {} daddr {} udp dport 5353 counter; }};",
        family.nft(),
        groups[1]
    );
    let rules = Rules::add(lab, node, "netdev", &rules)?;
    let server = lab
        .namespace(node)
        .within(|| UdpSocket::bind((family.any(), 5353)).context("cannot bind"))?;
    server.set_read_timeout(Some(Duration::from_secs(2)))?;
    // From the pod's own address, which is not what IPv6 would choose for a group on the link.
    let source = address(lab, HERE)?;
    let (client, device) = lab.namespace(HERE).within(|| {
        let client = UdpSocket::bind((source, 0)).context("cannot bind")?;
        Ok((client, nix::net::if_::if_nametoindex("eth0")?))
    })?;
    setsockopt(&client, sockopt::IpMulticastLoop, &false)?;
    let mut got = [0; 64];
    for _ in 0..10 {
        for group in groups {
            let to = match group {
                IpAddr::V4(group) => SocketAddr::from((group, 5353)),
                IpAddr::V6(group) => SocketAddrV6::new(group, 5353, 0, device).into(),
            };
            client.send_to(b"to whom it may concern", to)?;
        }
        let (length, from) = server
            .recv_from(&mut got)
            .context("what all hosts listen to is lost")?;
        ensure!(
            &got[..length] == b"to whom it may concern" && from.ip() == source,
            "{from}: {length} octets"
        );
    }
    wait_until("multicast at the node", PATIENCE, || {
        let counted = rules.counted()?;
        ensure!(counted == 10, "{counted} of 10");
        Ok(())
    })
}
