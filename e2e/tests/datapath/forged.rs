//! Forged packets, each kind so many times: the node's status names lane and reason of all, and its metrics have the exact numbers.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result, ensure};
use podlane_e2e::lab::Lab;
use podlane_e2e::metrics::Scrape;
use podlane_e2e::scenario::Context;
use podlane_e2e::story::{SETTLED_WITHIN, vxlan, wait_until_ready};
use podlane_e2e::traffic::raw::send_ip;
use podlane_e2e::wait::wait_until;

use crate::ready;

/// The node that they come to.
const NODE: &str = "k8s-w0";
const NODE_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 168, 20, 100);
const NODES_POD: Ipv4Addr = Ipv4Addr::new(172, 20, 2, 10);
/// A peer, and a pod of its own.
const PEER: &str = "k8s-ctr";
const PEER_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 168, 10, 100);
const PEERS_POD: Ipv4Addr = Ipv4Addr::new(172, 20, 0, 10);
/// A pod of another peer's.
const OTHERS_POD: Ipv4Addr = Ipv4Addr::new(172, 20, 1, 10);

const UDP: u8 = 17;
const VXLAN: u16 = 8472;
/// RFC 7348, section 5: there is a VNI, and it is 1.
const HEADER: [u8; 8] = [0x08, 0, 0, 0, 0, 0, 1, 0];

/// A kind of forged packet.
struct Forged {
    /// What is counted.
    reason: &'static str,
    /// On which lane; none in particular where it is absent.
    lane: Option<&'static str>,
    /// Whether it is the peer's.
    is_of_peer: bool,
    /// How many are sent.
    count: u32,
    /// Where, from whom, to whom, and what UDP has.
    from: &'static str,
    source: Ipv4Addr,
    to: Ipv4Addr,
    datagram: Vec<u8>,
}

fn kinds() -> Vec<Forged> {
    let tunnel = Some("vxlan:8472:1");
    let wrapped = |reason, is_of_peer, count, source, header, inner| Forged {
        reason,
        lane: tunnel,
        is_of_peer,
        count,
        from: "router",
        source,
        to: NODE_ADDRESS,
        datagram: wrap(header, inner),
    };
    let strange = Ipv4Addr::new(192, 168, 10, 77);
    let mut flags = HEADER;
    flags[0] |= 0x04;
    let from_pod = |reason, count, source, to, port| Forged {
        reason,
        lane: None,
        is_of_peer: false,
        count,
        from: "pod-w0-1",
        source,
        to,
        datagram: udp(port, b"a pod's"),
    };
    vec![
        wrapped("NoPeer", false, 40, strange, HEADER, (PEERS_POD, NODES_POD)),
        wrapped(
            "ForgedInner",
            true,
            24,
            PEER_ADDRESS,
            HEADER,
            (OTHERS_POD, NODES_POD),
        ),
        wrapped("NotHere", true, 17, PEER_ADDRESS, HEADER, (PEERS_POD, OTHERS_POD)),
        wrapped("BadHeader", false, 9, PEER_ADDRESS, flags, (PEERS_POD, NODES_POD)),
        Forged {
            reason: "PlainPodSource",
            lane: Some("native"),
            is_of_peer: true,
            count: 33,
            from: "router",
            source: PEERS_POD,
            to: NODE_ADDRESS,
            datagram: udp(9, b"plain"),
        },
        from_pod("PodSource", 12, Ipv4Addr::new(172, 20, 2, 99), PEERS_POD, 9),
        from_pod("TunnelPort", 5, NODES_POD, PEER_ADDRESS, VXLAN),
    ]
}

pub(crate) fn counted(context: &mut Context) -> Result<()> {
    let lab = context.lab()?;
    ready(lab, &vxlan())?;
    // Status follows with a pass, and where nothing else happens the next one is the resync.
    let bpffs = lab.bpffs(NODE)?.join("podlane").display().to_string();
    lab.agent(NODE)?.kill()?;
    lab.start_agent_with(NODE, &["--bpffs", &bpffs, "--resync", "1"])?;
    let result = wait_until_served(lab).and_then(|()| counted_twice(lab));
    lab.agent(NODE)?.kill()?;
    lab.start_agent(NODE)?;
    result?;
    wait_until_ready(lab)
}

fn counted_twice(lab: &Lab) -> Result<()> {
    let kinds = kinds();
    // Twice: what status shows at first is exact, and what it shows then follows in steps.
    for round in 1..=2 {
        let before = Scrape::of(lab, NODE)?;
        for kind in &kinds {
            for _ in 0..kind.count {
                send_ip(
                    lab,
                    kind.from,
                    kind.source.into(),
                    kind.to.into(),
                    UDP,
                    &kind.datagram,
                )?;
            }
        }
        for kind in &kinds {
            is_counted(lab, kind, &before).with_context(|| format!("{}, round {round}", kind.reason))?;
        }
    }
    Ok(())
}

fn wait_until_served(lab: &Lab) -> Result<()> {
    let served = || Scrape::of(lab, NODE).map(drop);
    wait_until("the agent's metrics", SETTLED_WITHIN, served)
}

/// That so many more than before are counted, no more and no less, and that status says so up to an eighth.
fn is_counted(lab: &Lab, kind: &Forged, before: &Scrape) -> Result<()> {
    let lane = kind.lane.unwrap_or("none");
    let labels = format!("lane=\"{lane}\",reason=\"{}\"", kind.reason);
    let by_peer = format!("peer=\"{PEER}\",reason=\"{}\"", kind.reason);
    let of_lane = |scrape: &Scrape| scrape.sum("podlane_dropped_packets_total", &labels);
    let of_peer = |scrape: &Scrape| scrape.sum("podlane_peer_dropped_packets_total", &by_peer);
    wait_until("status and metrics to count them", SETTLED_WITHIN, || {
        let now = Scrape::of(lab, NODE)?;
        let more = of_lane(&now) - of_lane(before);
        ensure!(
            more == f64::from(kind.count),
            "{more} of {} are counted as {labels}",
            kind.count
        );
        let wanted = if kind.is_of_peer { kind.count } else { 0 };
        let more = of_peer(&now) - of_peer(before);
        ensure!(
            more == f64::from(wanted),
            "{more} of {wanted} are counted as {by_peer}"
        );
        let node = lab.kubectl()?.get(&["routingnode", NODE])?;
        let dropped = node["status"]["dropped"].as_array();
        let shown = dropped
            .into_iter()
            .flatten()
            .find(|one| one["reason"] == kind.reason && one["lane"].as_str() == kind.lane)
            .and_then(|one| one["packets"].as_u64())
            .with_context(|| format!("it is not in {:?}", node["status"]["dropped"]))?;
        let counted = of_lane(&now);
        let (least, most) = (shown as f64, (shown + shown / 8) as f64);
        ensure!(
            (least..=most).contains(&counted),
            "status shows {shown}, and {counted} are counted"
        );
        Ok(())
    })
}

/// A UDP datagram without a checksum (RFC 768).
fn udp(port: u16, content: &[u8]) -> Vec<u8> {
    let length = 8 + content.len() as u16;
    let mut datagram = [40_000, port, length, 0].map(u16::to_be_bytes).concat();
    datagram.extend(content);
    datagram
}

/// A tunnel's datagram with a packet between two pods inside.
fn wrap(header: [u8; 8], (source, to): (Ipv4Addr, Ipv4Addr)) -> Vec<u8> {
    let inner = udp(9, b"forged");
    let mut content = header.to_vec();
    content.extend([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x08, 0x00]);
    content.extend([0x45, 0, 0, 20 + inner.len() as u8, 0, 0, 0, 0, 64, UDP, 0, 0]);
    content.extend(source.octets());
    content.extend(to.octets());
    content.extend(inner);
    udp(VXLAN, &content)
}
