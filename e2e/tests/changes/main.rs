//! Lanes change under traffic, and not a packet is lost: numbered packets in all six directions and long TCP connections,
//! through every change that a policy can ask for, with agents and operator killed on the way, and with half of the agents paused.
//!
//! `PODLANE_PROOF_PACKETS` says how many packets each proof is to see at least: a million where nothing is said, ten millions
//! with `make proof`.

mod steps;

use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use podlane_e2e::lab::{Lab, Options};
use podlane_e2e::scenario::{Context, Scenario, run};
use podlane_e2e::story::{
    LED_AGAIN_WITHIN, POLICY, apply, first_pods, geneve, native_and_vxlan, policy, streams_in_all_directions,
    vxlan, wait_for_condition, wait_until_ready,
};
use podlane_e2e::traffic::{Connection, Stream, once_told};
use podlane_e2e::wait::wait_until;
use serde_json::{Value, json};

use crate::steps::{Step, Steps};

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
            )
            .needs(&["ss"]),
            Scenario::new(
                "the same with half of the agents paused in the middle of a change",
                with_agents_paused,
            )
            .needs(&["ss"]),
        ],
    )
}

/// A policy, and in words what it changes.
struct Change {
    what: &'static str,
    spec: Value,
    /// Whether a tunnel comes and another goes, so that every step of the protocol is taken.
    is_of_a_tunnel: bool,
}

/// Every kind of change, each from the one before; the last leads to the first.
fn changes() -> Vec<Change> {
    let native_and_geneve =
        json!({"routingMode": "native", "offLinkPeers": "tunnel", "tunnel": {"protocol": "geneve"}});
    let mut narrow = vxlan();
    narrow["mtu"] = json!(1400);
    let tunnel = |protocol: &str, port: u16, vni: u32| json!({"routingMode": "tunnel", "tunnel": {"protocol": protocol, "port": port, "vni": vni}});
    [
        ("to native on the link, vxlan across", native_and_vxlan(), false),
        ("native to vxlan", vxlan(), false),
        ("vxlan's MTU down", narrow, false),
        ("vxlan's MTU up", vxlan(), false),
        ("vxlan's port", tunnel("vxlan", 4789, 1), true),
        ("vxlan's VNI", tunnel("vxlan", 4789, 77), false),
        ("vxlan to geneve", geneve(), true),
        ("geneve's port and VNI", tunnel("geneve", 6082, 5), true),
        ("geneve to native on the link", native_and_geneve, true),
        ("native to geneve", geneve(), false),
        ("geneve to vxlan", vxlan(), true),
    ]
    .map(|(what, spec, is_of_a_tunnel)| Change {
        what,
        spec,
        is_of_a_tunnel,
    })
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

/// Traffic in all directions: numbered packets, and long TCP connections.
struct Traffic {
    streams: Vec<(String, Stream)>,
    connections: Vec<Connection>,
    /// What TCP sent again, by change.
    repeated: Vec<String>,
    made: u32,
    begun: Instant,
}

impl Traffic {
    fn start(lab: &Lab) -> Result<Self> {
        let pods = first_pods(lab)?;
        let mut connections = Vec::new();
        for (from, to) in [(0, 1), (0, 2), (2, 1)] {
            connections.push(Connection::start(lab, &pods[from].0, &pods[to].0, BLOCKS)?);
        }
        Ok(Self {
            streams: streams_in_all_directions(lab, RATE)?,
            connections,
            repeated: Vec::new(),
            made: 0,
            begun: Instant::now(),
        })
    }

    /// Makes a change, and notes what TCP sends again meanwhile.
    fn through(&mut self, what: &str, change: impl FnOnce() -> Result<()>) -> Result<()> {
        let before = self.sent_again()?;
        change().with_context(|| what.to_owned())?;
        let after = once_told(before, || self.sent_again())?;
        // What was told late of what had been before makes it less.
        if after > before {
            self.repeated.push(format!("{what}: {}", after - before));
        }
        self.made += 1;
        Ok(())
    }

    fn sent_again(&self) -> Result<u64> {
        self.connections.iter().map(Connection::retransmitted).sum()
    }

    /// Whether about as many packets have been sent; the count itself comes in the end.
    fn has_sent(&self, packets: u64) -> bool {
        let rate = u64::from(RATE) * self.streams.len() as u64;
        // On a busy machine a sender stays somewhat below its rate.
        self.begun.elapsed().as_secs() * rate >= packets + packets / 8
    }

    /// Ends it: nothing may be lost or doubled, and TCP have sent nothing again. Returns what was sent, in words.
    fn end(self) -> Result<String> {
        let mut sent = 0;
        let mut wrong = Vec::new();
        for (direction, stream) in self.streams {
            let report = stream.finish()?;
            sent += report.sent;
            if report.lost > 0 || report.duplicated > 0 {
                wrong.push(format!("{direction}: {report:?}"));
            }
        }
        let mut octets = 0;
        for connection in self.connections {
            octets += connection.finish()?.octets;
        }
        ensure!(
            wrong.is_empty(),
            "of {sent} packets some were lost or doubled:\n{}",
            wrong.join("\n")
        );
        ensure!(
            self.repeated.is_empty(),
            "TCP segments were sent again: {}",
            self.repeated.join(", ")
        );
        Ok(format!(
            "{sent} packets and {} MiB of TCP over {} changes: 0 lost, 0 doubled, 0 sent again",
            octets >> 20,
            self.made
        ))
    }
}

fn every_change(context: &mut Context) -> Result<()> {
    let wanted = packets_wanted()?;
    let lab = context.lab()?;
    apply(lab, &vxlan())?;
    wait_until_ready(lab)?;
    let mut traffic = Traffic::start(lab)?;
    while traffic.made == 0 || !traffic.has_sent(wanted) {
        for change in changes() {
            traffic.through(change.what, || {
                apply(lab, &change.spec)?;
                wait_until_ready(lab)
            })?;
        }
        traffic.through("a policy for a single node", || single_node(lab))?;
    }
    say(&traffic.end()?);
    Ok(())
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

/// Who is killed.
#[derive(Clone, Copy, Debug)]
enum Victim {
    /// The agent of the node at which a step is seen.
    Agent,
    /// The operator.
    Operator,
}

impl Victim {
    fn kill(self, lab: &mut Lab, node: &str) -> Result<()> {
        match self {
            Self::Agent => {
                lab.agent(node)?.kill()?;
                lab.start_agent(node)
            }
            Self::Operator => {
                lab.operator()?.kill()?;
                lab.start_operator()
            }
        }
    }
}

/// As soon as a step of the protocol is seen, some process is just gone: each step's agent and each step's operator once in seven
/// changes, not both at one step.
fn with_processes_killed(context: &mut Context) -> Result<()> {
    let wanted = packets_wanted()?;
    let lab = context.lab()?;
    apply(lab, &vxlan())?;
    wait_until_ready(lab)?;
    let mut traffic = Traffic::start(lab)?;
    let mut steps = Steps::watch(lab)?;
    let all = Step::OF_A_TUNNEL;
    let (mut turn, mut killed) = (0, 0);
    // Every kind of change where there is time; where there is not, those in which all steps are.
    let kinds = changes()
        .into_iter()
        .filter(|change| is_whole() || change.is_of_a_tunnel);
    let kinds: Vec<Change> = kinds.collect();
    for change in kinds.iter().cycle() {
        if turn >= all.len() && traffic.has_sent(wanted) {
            break;
        }
        let mut at = if change.is_of_a_tunnel {
            let (of_agent, of_operator) = (turn % all.len(), (turn + 3) % all.len());
            turn += 1;
            vec![
                (all[of_agent], Victim::Agent),
                (all[of_operator], Victim::Operator),
            ]
        } else {
            vec![(Step::Heard, Victim::Agent), (Step::Heard, Victim::Operator)]
        };
        steps.begin()?;
        traffic.through(&format!("{}, with kills {at:?}", change.what), || {
            apply(lab, &change.spec)?;
            while !at.is_empty() {
                let awaited: Vec<Step> = at.iter().map(|(step, _)| *step).collect();
                let (place, node) = steps.next(&awaited)?;
                let (_, victim) = at.remove(place);
                victim.kill(lab, &node)?;
                killed += 1;
            }
            wait_until("the policy to be ready", LED_AGAIN_WITHIN, || {
                wait_until_ready(lab)
            })
        })?;
    }
    let sent = traffic.end()?;
    say(&format!(
        "{sent}; {killed} processes were killed, an agent and the operator at every step"
    ));
    Ok(())
}

/// Two of three agents neither read nor write for a while; nothing is closed under the others meanwhile.
fn with_agents_paused(context: &mut Context) -> Result<()> {
    let paused_for = Duration::from_secs(if is_whole() { 60 } else { 5 });
    let lab = context.lab()?;
    apply(lab, &vxlan())?;
    wait_until_ready(lab)?;
    let mut traffic = Traffic::start(lab)?;
    for (what, spec) in [
        ("vxlan to geneve", geneve()),
        ("geneve to native", native_and_vxlan()),
    ] {
        traffic.through(what, || {
            for node in ["k8s-w0", "k8s-w1"] {
                lab.agent(node)?.freeze()?;
            }
            let changed = apply(lab, &spec);
            sleep(paused_for);
            for node in ["k8s-w0", "k8s-w1"] {
                lab.agent(node)?.thaw()?;
            }
            changed?;
            wait_until_ready(lab)
        })?;
    }
    let sent = traffic.end()?;
    say(&format!(
        "{sent}; 2 of 3 agents were paused for {} s",
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
