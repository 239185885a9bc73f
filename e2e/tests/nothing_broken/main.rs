//! What a network does besides carrying packets, and pods rely on: errors with sensible sources, sizes, congestion and classes of service on the
//! wire, segments that kernels merge and part, pods that route, protocols that nobody has heard of. Over every lane where it could differ,
//! through the host's stack and past it, with the programs and with the kernel's drivers.

mod congestion;
mod kernel_lane;
mod packets;
mod protocols;
mod routing_pod;
mod segments;
mod sizes;
mod traceroute;

use std::net::{IpAddr, Ipv4Addr};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail, ensure};
use podlane_e2e::lab::{Lab, Options};
use podlane_e2e::metrics::Scrape;
use podlane_e2e::scenario::{Context, Scenario, run};
use podlane_e2e::story::{apply, geneve, native_and_vxlan, vxlan, wait_until_ready};
use serde_json::{Value, json};

fn main() -> ExitCode {
    run(
        Options::named("nothing-broken"),
        [
            Scenario::new(
                "a traceroute shows the nodes and ends at the pod, vxlan",
                |context| traceroute::ends_at_the_pod(context, Over::Vxlan),
            ),
            Scenario::new("what is too big is said and learned, vxlan", |context| {
                sizes::learned(context, Over::Vxlan)
            }),
            Scenario::new("congestion is told both ways, vxlan", |context| {
                congestion::told(context, Over::Vxlan)
            })
            .needs(&["nft"]),
            Scenario::new("segments arrive one by one, vxlan", |context| {
                segments::arrive(context, Over::Vxlan)
            })
            .needs(&["ethtool"]),
            Scenario::new("a pod routes, vxlan", |context| {
                routing_pod::carries(context, Over::Vxlan)
            })
            .needs(&["ethtool"]),
            Scenario::new("a pod passes connections on to another pod, vxlan", |context| {
                routing_pod::passes_on(context, Over::Vxlan)
            })
            .needs(&["nft"]),
            Scenario::new("all protocols pass, vxlan", |context| {
                protocols::pass(context, Over::Vxlan)
            }),
            Scenario::new(
                "a traceroute shows the nodes and ends at the pod, geneve",
                |context| traceroute::ends_at_the_pod(context, Over::Geneve),
            ),
            Scenario::new("what is too big is said and learned, geneve", |context| {
                sizes::learned(context, Over::Geneve)
            }),
            Scenario::new("congestion is told both ways, geneve", |context| {
                congestion::told(context, Over::Geneve)
            })
            .needs(&["nft"]),
            Scenario::new("segments arrive one by one, geneve", |context| {
                segments::arrive(context, Over::Geneve)
            })
            .needs(&["ethtool"]),
            Scenario::new("a pod routes, geneve", |context| {
                routing_pod::carries(context, Over::Geneve)
            })
            .needs(&["ethtool"]),
            Scenario::new("a pod passes connections on to another pod, geneve", |context| {
                routing_pod::passes_on(context, Over::Geneve)
            })
            .needs(&["nft"]),
            Scenario::new(
                "a traceroute shows the nodes and ends at the pod, native",
                |context| traceroute::ends_at_the_pod(context, Over::Native),
            ),
            Scenario::new("segments arrive one by one, native", |context| {
                segments::arrive(context, Over::Native)
            })
            .needs(&["ethtool"]),
            Scenario::new("a pod routes, native", |context| {
                routing_pod::carries(context, Over::Native)
            })
            .needs(&["ethtool"]),
            Scenario::new("all protocols pass, native", |context| {
                protocols::pass(context, Over::Native)
            }),
            Scenario::new(
                "multicast and unknown ethertypes go up the stack",
                protocols::go_up,
            )
            .needs(&["nft"]),
            Scenario::new("what is too big is said and learned, native", |context| {
                sizes::learned(context, Over::Native)
            }),
            Scenario::new(
                "jumbo frames on the underlay are jumbo frames for pods",
                sizes::jumbo,
            ),
            Scenario::new(
                "outer headers bear the policy's DSCP and the right ECN, whoever writes them",
                kernel_lane::classes,
            )
            .needs(&["nft"]),
        ],
    )
}

/// The lanes that a scenario is shown over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Over {
    Vxlan,
    Geneve,
    Native,
}

impl Over {
    fn spec(self) -> Value {
        match self {
            Self::Vxlan => vxlan(),
            Self::Geneve => geneve(),
            Self::Native => native_and_vxlan(),
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
        match self {
            Self::Vxlan => "vxlan",
            Self::Geneve => "geneve",
            Self::Native => "native",
        }
    }

    /// The UDP port of its tunnel.
    fn port(self) -> Result<u16> {
        match self {
            Self::Vxlan => Ok(8472),
            Self::Geneve => Ok(6081),
            Self::Native => bail!("native packets have no outer header"),
        }
    }

    /// The node at the other end, from k8s-ctr.
    fn node(self) -> &'static str {
        if self == Self::Native { "k8s-w1" } else { "k8s-w0" }
    }

    /// Its pods.
    fn pods(self) -> [&'static str; 2] {
        if self == Self::Native {
            ["pod-w1-1", "pod-w1-2"]
        } else {
            ["pod-w0-1", "pod-w0-2"]
        }
    }

    /// A node outside of that lane's two ends, and its first pod.
    fn third(self) -> &'static str {
        if self == Self::Native {
            "pod-w0-1"
        } else {
            "pod-w1-1"
        }
    }

    /// The lab with this lane in use.
    fn lab(self, context: &mut Context) -> Result<&mut Lab> {
        let lab = context.lab()?;
        ready(lab, &self.spec())?;
        Ok(lab)
    }
}

/// The pod at this end.
const HERE: &str = "pod-ctr-1";

fn ready(lab: &Lab, spec: &Value) -> Result<()> {
    apply(lab, spec)?;
    wait_until_ready(lab)
}

fn address(lab: &Lab, pod: &str) -> Result<Ipv4Addr> {
    match lab.pod_address(pod)? {
        IpAddr::V4(address) => Ok(address),
        IpAddr::V6(address) => bail!("{pod} has {address}"),
    }
}

/// A kernel limits the ICMP errors that it sends to one address: no matter of ours.
fn without_limit_of_errors(lab: &Lab) -> Result<()> {
    let nodes = lab.topology().nodes.iter();
    let all = nodes.flat_map(|node| std::iter::once(&node.name).chain(node.pods.iter().map(|pod| &pod.name)));
    for name in all {
        lab.namespace(name)
            .set_parameters(&[("ipv4/icmp_ratelimit", "0")])?;
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

/// What every node has dropped so far.
fn dropped_everywhere(lab: &Lab) -> Result<Vec<(String, f64)>> {
    lab.topology()
        .nodes
        .iter()
        .map(|node| Ok((node.name.clone(), Counted::on(lab, &node.name)?.dropped(""))))
        .collect()
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
