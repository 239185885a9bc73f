//! Every way is set up, carries numbered packets in the form that it claims, and carries none once it is taken away. Runs in
//! network namespaces of its own, as root; elsewhere these tests count as ignored.

use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use nix::sched::{CloneFlags, unshare};
use podlane_datapath_bench::condition::Condition;
use podlane_datapath_bench::figure::Better;
use podlane_datapath_bench::measurement::{Lengths, Measurement, Tap, carry};
use podlane_datapath_bench::site::{self, Family, Site};
use podlane_datapath_bench::ways::{self, Way};
use podlane_e2e::wait::wait_until;

const PACKETS: u64 = 1000;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Packets are counted one by one: a receiver that waits for a processor behind other tests might be too slow for them.
    arguments.test_threads = Some(1);
    let impossible = no_namespaces().or_else(|| site::sweep().err().map(|error| format!("{error:#}")));
    let mut trials = Vec::new();
    for way in ways::all() {
        let name = way.name();
        let cannot = impossible.clone().or_else(|| way.impossible());
        say_left_out(name, cannot.as_deref());
        let trial = move || carries_and_stops(&*way).map_err(|error| Failed::from(format!("{error:#}")));
        trials.push(
            Trial::test(
                format!("{name}_carries_every_packet_until_it_is_taken_away"),
                trial,
            )
            .with_ignored_flag(cannot.is_some()),
        );
    }
    let cannot = impossible
        .clone()
        .or_else(|| named(AROUND).ok().and_then(|way| way.impossible()));
    let trial = || a_fall_back_is_seen().map_err(|error| Failed::from(format!("{error:#}")));
    trials.push(
        Trial::test("a_fall_back_to_the_kernel_lane_is_seen", trial).with_ignored_flag(cannot.is_some()),
    );
    for condition in Condition::ALL {
        let trial = move || holds(condition).map_err(|error| Failed::from(format!("{error:#}")));
        trials.push(
            Trial::test(format!("packets_pass_under_{condition:?}"), trial)
                .with_ignored_flag(impossible.is_some()),
        );
    }
    let trial = || everything_measures().map_err(|error| Failed::from(format!("{error:#}")));
    trials.push(
        Trial::test("every_measurement_reads_its_figures", trial).with_ignored_flag(impossible.is_some()),
    );
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Why no network namespace can be made here.
fn no_namespaces() -> Option<String> {
    let tried = thread::spawn(|| unshare(CloneFlags::CLONE_NEWNET)).join();
    match tried {
        Ok(Ok(())) => None,
        Ok(Err(errno)) => Some(format!(
            "no network namespace can be made ({errno}); run it as root"
        )),
        Err(_) => Some("trying panicked".to_owned()),
    }
}

#[expect(clippy::print_stderr, reason = "a test that is left out has to be seen")]
fn say_left_out(name: &str, reason: Option<&str>) {
    if let Some(reason) = reason {
        eprintln!("\n*** the way {name} is NOT TESTED: {reason}\n");
    }
}

fn site_for(name: &str, way: &dyn Way) -> Result<Site> {
    // A second peer, so that the tables have more than the one that is used.
    Site::up(name, way.pods(), 2)
}

/// All packets arrive once, in both directions and families, and the router sees them in the way's form.
fn carries_and_stops(way: &dyn Way) -> Result<()> {
    let site = site_for(way.name(), way)?;
    let installed = way.set_up(&site).context("cannot be set up")?;
    for family in Family::ALL {
        for from in [0, 1] {
            let tap = Tap::place(&site, way.wire())?;
            let count = carry(&site, from, family, PACKETS)?;
            ensure!(
                (count.sent, count.received, count.duplicated) == (PACKETS, PACKETS, 0),
                "{} from node {from}: {count:?}",
                family.title()
            );
            let seen = tap.count()?;
            ensure!(
                seen >= PACKETS,
                "{} from node {from}: the router saw {seen} of {PACKETS} as {:?}",
                family.title(),
                way.wire()
            );
        }
    }
    installed.evidence()?;
    installed.tear_down(&site).context("cannot be taken away")?;
    for family in Family::ALL {
        let count = carry(&site, 0, family, 10)?;
        ensure!(count.received == 0, "{} packets pass without it", count.received);
    }
    Ok(())
}

/// Layer 2, and the layer below it with the same device.
const AROUND: &str = "podlane-2-vxlan";
const BELOW: &str = "podlane-1-vxlan";
const DEVICE: &str = "podlane_vxlan";

fn named(name: &str) -> Result<Box<dyn Way>> {
    let way = ways::all().into_iter().find(|way| way.name() == name);
    way.with_context(|| format!("there is no way {name}"))
}

/// Programs that are gone with a device are not missed by packets, for the kernel lane carries them: the evidence has to say so.
fn a_fall_back_is_seen() -> Result<()> {
    let (around, below) = (named(AROUND)?, named(BELOW)?);
    let site = site_for("fall-back", &*around)?;
    let installed = around.set_up(&site)?;
    for node in &site.nodes {
        node.namespace.ip(&["link", "delete", DEVICE])?;
    }
    let _kernel_lane = below.set_up(&site)?;
    for from in [0, 1] {
        let count = carry(&site, from, Family::Ipv4, PACKETS)?;
        ensure!(count.received == PACKETS, "{count:?}");
    }
    let Err(words) = installed.evidence() else {
        bail!("the kernel lane's packets were taken for those of the programs");
    };
    ensure!(
        words.to_string().contains("the programs sent no packet"),
        "{words}"
    );
    Ok(())
}

/// The baseline under a condition: packets pass, and connection tracking has seen them.
fn holds(condition: Condition) -> Result<()> {
    let ways = ways::all();
    let native = ways.first().context("no way at all")?;
    let site = site_for("condition", &**native)?;
    let _installed = native.set_up(&site)?;
    condition.apply(&site)?;
    for family in Family::ALL {
        let count = carry(&site, 0, family, PACKETS)?;
        ensure!(count.received == PACKETS, "{}: {count:?}", family.title());
    }
    condition.check(&site)
}

/// Not how fast: that every measurement yields each of its figures, and none of its rates is zero.
fn everything_measures() -> Result<()> {
    let ways = ways::all();
    let native = ways.first().context("no way at all")?;
    let site = site_for("measure", &**native)?;
    let _installed = native.set_up(&site)?;
    for measurement in Measurement::ALL {
        measurement.prepare(&site)?;
        // On a machine that builds something meanwhile, a sample may have nothing in it.
        let sample = wait_until("a sample with figures", Duration::from_secs(20), || {
            let sample = measurement.take(&site, Family::Ipv4, Lengths::QUICK)?;
            ensure!(!sample.values.is_empty(), "{measurement:?} has none");
            Ok(sample)
        })?;
        for figure in measurement.figures() {
            let value = sample
                .values
                .get(figure)
                .with_context(|| format!("no {figure:?}"))?;
            let least = if figure.better() == Better::Higher {
                f64::MIN_POSITIVE
            } else {
                0.0
            };
            ensure!(value.is_finite() && *value >= least, "{figure:?} is {value}");
        }
    }
    Ok(())
}
