//! Figures of the whole: repairs by hand-made damage, changes of policy, and the operator among thousands of nodes. Printed as
//! min, median, p99 and max in milliseconds; the goal stands beside each figure and nothing fails when one is missed.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a benchmark prints its table"
)]

mod operator;

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use podlane_e2e::lab::{Extent, Lab, Options};
use podlane_e2e::scenario::missing_for;
use podlane_e2e::story::{
    POLICY, apply, native, native_and_vxlan, vxlan, wait_for_condition, wait_until_ready, way,
};
use podlane_e2e::{interrupt, wait};

const REPAIRS: usize = 200;
const CHANGES: usize = 50;
const NODES: [(&str, &str, &str); 3] = [
    ("k8s-ctr", "192.168.10.100", "172.20.0.0/24"),
    ("k8s-w1", "192.168.10.101", "172.20.1.0/24"),
    ("k8s-w0", "192.168.20.100", "172.20.2.0/24"),
];

fn main() -> Result<()> {
    if let Some(reason) = missing_for(Extent::Podlane) {
        eprintln!("SKIPPED: the lab's benchmarks: {reason}");
        return Ok(());
    }
    interrupt::watch()?;
    println!(
        "{:<72} {:>8} {:>8} {:>8} {:>8}  goal",
        "ms", "min", "median", "p99", "max"
    );
    let lab = Lab::up(Options::named("bench"))?;
    apply(&lab, &native_and_vxlan())?;
    wait_until_ready(&lab)?;
    repairs(&lab)?;
    changes(&lab)?;
    lab.down()?;
    operator::among_thousands()
}

/// Prints one row.
pub(crate) fn row(what: &str, mut times: Vec<Duration>, goal: &str) {
    times.sort();
    let at = |share: usize| times[(times.len() - 1) * share / 100].as_secs_f64() * 1e3;
    let what = format!("{what} ({} times)", times.len());
    println!(
        "{what:<72} {:>8.1} {:>8.1} {:>8.1} {:>8.1}  {goal}",
        at(0),
        at(50),
        at(99),
        at(100)
    );
}

/// Something of ours is removed by hand until it is back. Looking takes about 2 ms a time.
fn repairs(lab: &Lab) -> Result<()> {
    let node = lab.namespace("k8s-ctr");
    for (what, removal, look, sign) in [
        (
            "a route removed by hand is back",
            "route del 172.20.2.0/24 proto 172",
            "route show proto 172",
            "172.20.2.0/24 encap",
        ),
        (
            "a neighbour removed by hand is back",
            "neigh del 172.20.2.1 dev podlane_vxlan",
            "neigh show dev podlane_vxlan nud permanent",
            "172.20.2.1 ",
        ),
        (
            "the device removed by hand is back, and the route through it",
            "link del podlane_vxlan",
            "route show proto 172",
            "172.20.2.0/24 encap",
        ),
    ] {
        let words = |text: &'static str| text.split(' ').collect::<Vec<_>>();
        let mut times = Vec::new();
        for _ in 0..REPAIRS {
            node.ip(&words(removal))?;
            let start = Instant::now();
            // Without a pause between the looks, which would count as time.
            while !node
                .ip(&words(look))
                .unwrap_or_default()
                .replace("  ", " ")
                .contains(sign)
            {
                interrupt::check()?;
                ensure!(
                    start.elapsed() < Duration::from_secs(10),
                    "{what}: not after 10 s"
                );
            }
            times.push(start.elapsed());
            // So that the next removal does not fall into the pass that this repair has woken.
            wait::pause(Duration::from_millis(20))?;
        }
        row(what, times, "p99 100");
    }
    Ok(())
}

/// The policy changes between native and vxlan, which changes all six routes between the three nodes; the time starts when kubectl
/// does. Under native k8s-w0 is refused, so only the other half of the changes ends in Ready.
fn changes(lab: &Lab) -> Result<()> {
    let (mut in_kernels, mut ready) = (Vec::new(), Vec::new());
    for round in 0..2 * CHANGES {
        let tunnel = round % 2 == 1;
        let start = Instant::now();
        apply(lab, &if tunnel { vxlan() } else { native() })?;
        for (node, _, _) in NODES {
            for (peer, address, cidr) in NODES.iter().filter(|(peer, _, _)| *peer != node) {
                let across = node == "k8s-w0" || *peer == "k8s-w0";
                let wanted = match (tunnel, across) {
                    (true, _) => format!("encap {address}"),
                    (false, true) => "unreachable".to_owned(),
                    (false, false) => format!("via {address}"),
                };
                while way(lab, node, cidr)? != wanted {
                    interrupt::check()?;
                    ensure!(
                        start.elapsed() < Duration::from_secs(20),
                        "{node} does not reach {peer} by {wanted}"
                    );
                }
            }
        }
        in_kernels.push(start.elapsed());
        if tunnel {
            wait_until_ready(lab)?;
            ready.push(start.elapsed());
        } else {
            wait_for_condition(lab, "routingpolicy", POLICY, "Ready", "False", "OffLink")?;
        }
    }
    row(
        "a policy change is in all kernels, kubectl's start included",
        in_kernels,
        "p99 1000",
    );
    row(
        "a policy change is reported as Ready, kubectl's start included",
        ready,
        "2000",
    );
    Ok(())
}
