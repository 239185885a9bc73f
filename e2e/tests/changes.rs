//! Lanes change under traffic, and not a packet is lost: numbered packets in all six directions and long TCP connections,
//! through every change that a policy can ask for, with agents and operator killed on the way, and with half of the agents paused.
//!
//! `PODLANE_PROOF_PACKETS` says how many packets each proof is to see at least: a million where nothing is said, ten millions
//! with `make proof`.

use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use podlane_e2e::lab::{Lab, Options};
use podlane_e2e::scenario::{Context, Scenario, run};
use podlane_e2e::story::{
    POLICY, apply, first_pods, geneve, native_and_vxlan, policy, streams_in_all_directions, vxlan,
    wait_for_condition, wait_until_ready,
};
use podlane_e2e::traffic::{Connection, Stream};
use serde_json::{Value, json};

/// Packets a second in each direction.
const RATE: u32 = 10_000;

/// Blocks of 8 KiB that a TCP connection writes in a second.
const BLOCKS: u32 = 200;

fn main() -> ExitCode {
    run(
        Options::named("changes"),
        [
            Scenario::new(
                "every change of lane, port, VNI, MTU and governing policy loses no packet",
                every_change,
            )
            .needs(&["ss"]),
            Scenario::new(
                "the same with agents and operator killed at every step",
                with_processes_killed,
            ),
            Scenario::new(
                "the same with half of the agents paused in the middle of a change",
                with_agents_paused,
            ),
        ],
    )
}

/// A policy, and in words what it changes.
struct Change {
    what: &'static str,
    spec: Value,
}

/// Every kind of change, each from the one before; the last leads to the first.
fn changes() -> Vec<Change> {
    let native_and_geneve =
        json!({"routingMode": "native", "offLinkPeers": "tunnel", "tunnel": {"protocol": "geneve"}});
    let mut narrow = vxlan();
    narrow["mtu"] = json!(1400);
    let tunnel = |protocol: &str, port: u16, vni: u32| json!({"routingMode": "tunnel", "tunnel": {"protocol": protocol, "port": port, "vni": vni}});
    [
        ("to native on the link, vxlan across", native_and_vxlan()),
        ("native to vxlan", vxlan()),
        ("vxlan's MTU down", narrow),
        ("vxlan's MTU up", vxlan()),
        ("vxlan's port", tunnel("vxlan", 4789, 1)),
        ("vxlan's VNI", tunnel("vxlan", 4789, 77)),
        ("vxlan to geneve", geneve()),
        ("geneve's port and VNI", tunnel("geneve", 6082, 5)),
        ("geneve to native on the link", native_and_geneve),
        ("native to geneve", geneve()),
        ("geneve to vxlan", vxlan()),
    ]
    .map(|(what, spec)| Change { what, spec })
    .into()
}

/// Whether the whole proof is asked for.
fn is_whole() -> bool {
    std::env::var_os("PODLANE_PROOF_PACKETS").is_some()
}

fn packets_wanted() -> Result<u64> {
    match std::env::var("PODLANE_PROOF_PACKETS") {
        Ok(text) => text
            .parse()
            .with_context(|| format!("PODLANE_PROOF_PACKETS is no number: {text}")),
        Err(_) => Ok(1_000_000),
    }
}

/// Traffic in all directions.
struct Traffic {
    streams: Vec<(String, Stream)>,
    begun: Instant,
}

impl Traffic {
    fn start(lab: &Lab) -> Result<Self> {
        Ok(Self {
            streams: streams_in_all_directions(lab, RATE)?,
            begun: Instant::now(),
        })
    }

    /// Whether about as many packets have been sent; the count itself comes in the end.
    fn has_sent(&self, packets: u64) -> bool {
        let rate = u64::from(RATE) * self.streams.len() as u64;
        // On a busy machine a sender stays somewhat below its rate.
        self.begun.elapsed().as_secs() * rate >= packets + packets / 8
    }

    /// Ends it: nothing may be lost or doubled. Returns what was sent.
    fn end(self) -> Result<u64> {
        let mut sent = 0;
        let mut wrong = Vec::new();
        for (direction, stream) in self.streams {
            let report = stream.finish()?;
            sent += report.sent;
            if report.lost > 0 || report.duplicated > 0 {
                wrong.push(format!("{direction}: {report:?}"));
            }
        }
        ensure!(
            wrong.is_empty(),
            "of {sent} packets some were lost or doubled:\n{}",
            wrong.join("\n")
        );
        Ok(sent)
    }
}

fn every_change(context: &mut Context) -> Result<()> {
    let wanted = packets_wanted()?;
    let lab = context.lab()?;
    apply(lab, &vxlan())?;
    wait_until_ready(lab)?;
    let pods = first_pods(lab)?;
    let mut connections = Vec::new();
    for (from, to) in [(0, 1), (0, 2), (2, 1)] {
        connections.push(Connection::start(lab, &pods[from].0, &pods[to].0, BLOCKS)?);
    }
    let traffic = Traffic::start(lab)?;
    let mut repeated = Vec::new();
    let mut made = 0;
    while made == 0 || !traffic.has_sent(wanted) {
        for change in changes() {
            let before = total(&connections)?;
            apply(lab, &change.spec)?;
            wait_until_ready(lab).with_context(|| change.what.to_owned())?;
            let after = total_once_told(&connections, before)?;
            if after != before {
                repeated.push(format!("{}: {}", change.what, after - before));
            }
            made += 1;
        }
        single_node(lab)?;
        made += 1;
    }
    let sent = traffic.end()?;
    for connection in connections {
        connection.finish()?;
    }
    ensure!(
        repeated.is_empty(),
        "TCP segments were sent again: {}",
        repeated.join(", ")
    );
    say(&format!("{sent} packets over {made} changes: 0 lost, 0 doubled"));
    Ok(())
}

fn total(connections: &[Connection]) -> Result<u64> {
    connections.iter().map(Connection::retransmitted).sum()
}

/// The same after something, by when receivers have told what was sent again without need.
fn total_once_told(connections: &[Connection], before: u64) -> Result<u64> {
    let begun = Instant::now();
    loop {
        let after = total(connections)?;
        if after == before || begun.elapsed() > Duration::from_secs(2) {
            return Ok(after);
        }
        sleep(Duration::from_millis(50));
    }
}

/// A policy of its own for one node comes, and goes again.
fn single_node(lab: &Lab) -> Result<()> {
    let mut edge = geneve();
    edge["priority"] = json!(10);
    edge["nodeSelector"] = json!({"matchLabels": {"kubernetes.io/hostname": "k8s-w0"}});
    lab.kubectl()?.create(&policy("edge", &edge).to_string())?;
    let result = wait_for_condition(lab, "routingpolicy", "edge", "Ready", "True", "AsDeclared")
        .and_then(|_| wait_until_ready(lab));
    lab.kubectl()?.run(&["delete", "routingpolicy", "edge"])?;
    result?;
    wait_until_ready(lab)
}

/// At each step of the protocol (told, opened, published, moved, withdrawn, closed) some process is just gone: the kills fall
/// ever later after the change.
fn with_processes_killed(context: &mut Context) -> Result<()> {
    let wanted = packets_wanted()?;
    let lab = context.lab()?;
    apply(lab, &vxlan())?;
    wait_until_ready(lab)?;
    let nodes: Vec<String> = lab
        .topology()
        .nodes
        .iter()
        .map(|node| node.name.clone())
        .collect();
    let traffic = Traffic::start(lab)?;
    let (mut made, mut killed) = (0, 0);
    while made == 0 || !traffic.has_sent(wanted) {
        // Every kind of change where there is time.
        let some = if is_whole() { 1 } else { 3 };
        for (turn, change) in changes().into_iter().step_by(some).enumerate() {
            apply(lab, &change.spec)?;
            // From at once to three seconds, in which the slowest step, closing, falls.
            sleep(Duration::from_millis(
                [0, 60, 250, 3000, 20, 120, 500, 1000, 2000][turn % 9],
            ));
            let node = &nodes[turn % nodes.len()];
            lab.agent(node)?.kill()?;
            lab.start_agent(node)?;
            killed += 1;
            if turn % 2 == 0 {
                lab.operator()?.kill()?;
                lab.start_operator()?;
                killed += 1;
            }
            wait_until_ready(lab).with_context(|| change.what.to_owned())?;
            made += 1;
        }
    }
    let sent = traffic.end()?;
    say(&format!(
        "{sent} packets over {made} changes with {killed} processes killed: 0 lost, 0 doubled"
    ));
    Ok(())
}

/// Two of three agents neither read nor write for a while; nothing is closed under the others meanwhile.
fn with_agents_paused(context: &mut Context) -> Result<()> {
    let paused_for = Duration::from_secs(if is_whole() { 60 } else { 5 });
    let lab = context.lab()?;
    apply(lab, &vxlan())?;
    wait_until_ready(lab)?;
    let traffic = Traffic::start(lab)?;
    for spec in [geneve(), native_and_vxlan()] {
        for node in ["k8s-w0", "k8s-w1"] {
            lab.agent(node)?.freeze()?;
        }
        let changed = apply(lab, &spec);
        sleep(paused_for);
        for node in ["k8s-w0", "k8s-w1"] {
            lab.agent(node)?.thaw()?;
        }
        changed?;
        wait_until_ready(lab)?;
    }
    let sent = traffic.end()?;
    say(&format!(
        "{sent} packets over 2 changes with 2 of 3 agents paused for {} s: 0 lost, 0 doubled",
        paused_for.as_secs()
    ));
    lab.kubectl()?.get(&["routingpolicy", POLICY]).map(drop)
}

#[allow(
    clippy::print_stderr,
    reason = "a test program tells on standard error what it counted"
)]
fn say(line: &str) {
    eprintln!("{line}");
}
