//! What a network does besides carrying packets, and pods rely on: errors with sensible sources, sizes, congestion and classes of service on the
//! wire, segments that kernels merge and part, pods that route, protocols that nobody has heard of. Over every lane where it could differ,
//! through the host's stack and past it, with the programs and with the kernel's drivers.

mod congestion;
mod family;
mod kernel_lane;
mod packets;
mod protocols;
mod routing_pod;
mod scattered;
mod segments;
mod sizes;
mod traceroute;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use podlane_e2e::lab::{Lab, Options};
use podlane_e2e::metrics::Scrape;
use podlane_e2e::scenario::{Context, Scenario, run};
use podlane_e2e::story::{SETTLED_WITHIN, apply, geneve, native_and_vxlan, vxlan, wait_until_ready};
use podlane_e2e::wait::{pause, wait_until};
use serde_json::{Value, json};

use crate::family::Family;

fn main() -> ExitCode {
    let families = [Family::Four, Family::Six];
    run(
        Options::named("nothing-broken"),
        families.into_iter().flat_map(of_family),
    )
}

/// The scenarios in a cluster of a family: over every lane where they could differ; in IPv6 over one of each kind, since what differs between vxlan and
/// geneve is not the family (`tests/families` has all lanes in both).
fn of_family(family: Family) -> Vec<Scenario> {
    let mut scenarios = Vec::new();
    for lane in [Lane::Vxlan, Lane::Geneve, Lane::Native] {
        let over = Over { lane, family };
        let mut show = |what: &str, programs, show: fn(&mut Context, Over) -> Result<()>| {
            let name = format!("{what}, {over}");
            scenarios.push(Scenario::new(name, move |context| show(context, over)).needs(programs));
        };
        let is_tunnel = lane != Lane::Native;
        let in_full = family == Family::Four || lane == Lane::Vxlan;
        if in_full || lane == Lane::Native {
            show(
                "a traceroute shows the nodes and ends at the pod",
                &[],
                traceroute::ends_at_the_pod,
            );
            show("what is too big is said and learned", &[], sizes::learned);
        }
        if is_tunnel {
            show("congestion is told both ways", &["nft"], congestion::told);
        }
        if in_full {
            show("segments arrive one by one", &["ethtool"], segments::arrive);
            show(
                "packets that lie in pieces in memory arrive as they were",
                &[],
                scattered::arrive,
            );
            show("a pod routes", &["ethtool"], routing_pod::carries);
        }
        if in_full && is_tunnel {
            show(
                "a pod passes connections on to another pod",
                &["nft"],
                routing_pod::passes_on,
            );
        }
        if lane != Lane::Geneve {
            show("all protocols pass", &[], protocols::pass);
        }
    }
    let mut show = |what: &str, programs, show: fn(&mut Context, Family) -> Result<()>| {
        let name = format!("{what}, {family}");
        scenarios.push(Scenario::new(name, move |context| show(context, family)).needs(programs));
    };
    show(
        "multicast and unknown ethertypes go up the stack",
        &["nft"],
        protocols::go_up,
    );
    show(
        "jumbo frames on the underlay are jumbo frames for pods",
        &[],
        sizes::jumbo,
    );
    show(
        "outer headers bear the policy's DSCP and the right ECN, whoever writes them",
        &["nft"],
        kernel_lane::classes,
    );
    scenarios
}

/// The lanes that a scenario is shown over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lane {
    Vxlan,
    Geneve,
    Native,
}

/// What a scenario is shown over: a lane in a cluster of a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Over {
    lane: Lane,
    family: Family,
}

impl Over {
    fn spec(self) -> Value {
        match self.lane {
            Lane::Vxlan => vxlan(),
            Lane::Geneve => geneve(),
            Lane::Native => native_and_vxlan(),
        }
    }

    /// The same without the leased bypass: every packet through the host's stack.
    fn spec_through_the_stack(self) -> Value {
        let mut spec = self.spec();
        spec["datapath"] = json!({"bypass": "Off"});
        spec
    }

    /// How the metrics call it.
    fn name(self) -> &'static str {
        match self.lane {
            Lane::Vxlan => "vxlan",
            Lane::Geneve => "geneve",
            Lane::Native => "native",
        }
    }

    /// The UDP port of its tunnel.
    fn port(self) -> Result<u16> {
        match self.lane {
            Lane::Vxlan => Ok(8472),
            Lane::Geneve => Ok(6081),
            Lane::Native => bail!("native packets have no outer header"),
        }
    }

    /// The node at the other end, from k8s-ctr.
    fn node(self) -> &'static str {
        if self.lane == Lane::Native {
            "k8s-w1"
        } else {
            "k8s-w0"
        }
    }

    /// Its pods.
    fn pods(self) -> [&'static str; 2] {
        if self.lane == Lane::Native {
            ["pod-w1-1", "pod-w1-2"]
        } else {
            ["pod-w0-1", "pod-w0-2"]
        }
    }

    /// An address out of that node's pod CIDR that none of its pods has.
    fn address_behind(self) -> Result<IpAddr> {
        if self.lane == Lane::Native {
            self.family.choose([172, 20, 1, 200], "fd00:172:1::200")
        } else {
            self.family.choose([172, 20, 2, 200], "fd00:172:2::200")
        }
    }

    /// A node outside of that lane's two ends, and its first pod.
    fn third(self) -> &'static str {
        if self.lane == Lane::Native {
            "pod-w0-1"
        } else {
            "pod-w1-1"
        }
    }

    /// The lab with this lane in use.
    fn lab(self, context: &mut Context) -> Result<&mut Lab> {
        let lab = self.family.lab(context)?;
        ready(lab, &self.spec())?;
        Ok(lab)
    }
}

impl fmt::Display for Over {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}", self.name(), self.family)
    }
}

/// The pod at this end.
const HERE: &str = "pod-ctr-1";

fn ready(lab: &Lab, spec: &Value) -> Result<()> {
    apply(lab, spec)?;
    wait_until_ready(lab)
}

fn address(lab: &Lab, pod: &str) -> Result<IpAddr> {
    lab.pod_address(pod)
}

/// A kernel limits the ICMP errors that it sends to one address: no matter of ours.
fn without_limit_of_errors(lab: &Lab, family: Family) -> Result<()> {
    let nodes = lab.topology().nodes.iter();
    let all = nodes.flat_map(|node| std::iter::once(&node.name).chain(node.pods.iter().map(|pod| &pod.name)));
    for name in all {
        lab.namespace(name)
            .set_parameters(&[(family.limit_of_errors(), "0")])?;
    }
    Ok(())
}

/// What programs have counted on a node.
#[derive(Clone, Debug)]
struct Counted(Scrape);

impl Counted {
    fn on(lab: &Lab, node: &str) -> Result<Self> {
        Scrape::of(lab, node).map(Self)
    }

    fn bypassed_outward(&self, over: Over) -> f64 {
        self.of_lane("podlane_lane_sent_bypassing_packets_total", over)
    }

    fn bypassed_inward(&self, over: Over) -> f64 {
        self.of_lane("podlane_lane_received_bypassing_packets_total", over)
    }

    fn of_lane(&self, metric: &str, over: Over) -> f64 {
        self.0.sum(metric, &format!("lane=\"{}", over.name()))
    }

    /// Packets dropped for a reason; for all of them, where it is empty.
    fn dropped(&self, reason: &str) -> f64 {
        let label = if reason.is_empty() {
            String::new()
        } else {
            format!("reason=\"{reason}\"")
        };
        self.0.sum("podlane_dropped_packets_total", &label)
    }
}

/// What every node has dropped so far, by lane and reason.
fn dropped_everywhere(lab: &Lab) -> Result<BTreeMap<String, f64>> {
    let mut dropped = BTreeMap::new();
    for node in &lab.topology().nodes {
        let scrape = Scrape::of(lab, &node.name)?;
        let of_node = scrape.series("podlane_dropped_packets_total");
        dropped.extend(of_node.map(|(series, packets)| (format!("{}: {series}", node.name), packets)));
    }
    Ok(dropped)
}

/// The same once nothing is dropped any more: what is under way on a lane that has just been closed is, its probes above all.
fn dropped_at_rest(lab: &Lab) -> Result<BTreeMap<String, f64>> {
    wait_until("nodes that drop nothing", SETTLED_WITHIN, || {
        let before = dropped_everywhere(lab)?;
        pause(Duration::from_secs(2))?;
        ensure_none_dropped(lab, &before).map(|()| before)
    })
}

/// Fails where something has been dropped since.
fn ensure_none_dropped(lab: &Lab, before: &BTreeMap<String, f64>) -> Result<()> {
    let mut after = dropped_everywhere(lab)?;
    after.retain(|series, packets| before.get(series) != Some(packets));
    ensure!(after.is_empty(), "dropped: {after:?}");
    Ok(())
}

/// Runs a program in a namespace; what it prints.
fn command(lab: &Lab, namespace: &str, words: &[&str]) -> Result<String> {
    let (program, arguments) = words.split_first().context("no program")?;
    let output = lab
        .namespace(namespace)
        .command(program)
        .args(arguments)
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    ensure!(
        output.status.success(),
        "in {namespace}: {}: {}",
        words.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Rules of nftables that go however the scenario ends.
struct Rules<'a> {
    lab: &'a Lab,
    namespace: String,
    table: String,
}

impl<'a> Rules<'a> {
    /// A table of this family, with what `rules` says of its inside.
    fn add(lab: &'a Lab, namespace: &str, family: &str, rules: &str) -> Result<Self> {
        let table = format!("{family} nothing_broken");
        command(lab, namespace, &["nft", &format!("table {table} {{ {rules} }}")])?;
        Ok(Self {
            lab,
            namespace: namespace.to_owned(),
            table,
        })
    }

    /// The packets that the table's one counter has counted.
    fn counted(&self) -> Result<u64> {
        let text = command(
            self.lab,
            &self.namespace,
            &["nft", &format!("list table {}", self.table)],
        )?;
        let (_, after) = text.split_once("packets ").with_context(|| text.clone())?;
        let number = after.split_whitespace().next().unwrap_or_default();
        number.parse().with_context(|| text.clone())
    }
}

impl Drop for Rules<'_> {
    fn drop(&mut self) {
        // Nothing to do about a failure: the lab goes with the scenario that fails.
        let _ = command(
            self.lab,
            &self.namespace,
            &["nft", &format!("delete table {}", self.table)],
        );
    }
}
