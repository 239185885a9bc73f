//! A whole run: one comparison after the other, each on two fresh sites.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use podlane_datapath_bench::figure::readable;
use podlane_datapath_bench::machine::Machine;
use podlane_datapath_bench::measurement::{Lengths, Tap, carry};
use podlane_datapath_bench::pairs::{self, Pairing, Side};
use podlane_datapath_bench::plan::{self, Comparison, Selection, Setting};
use podlane_datapath_bench::record::{Compared, Measured, Run};
use podlane_datapath_bench::site::{self, Family, Site};
use podlane_datapath_bench::ways::{Installed, Way};
use podlane_e2e::interrupt;

/// Packets that show that a way carries, and how they look on their way.
const FIRST_PACKETS: u64 = 100;

/// Measures everything that is wanted. The record is written after every comparison; one that fails keeps no other from being
/// made.
pub(crate) fn run(
    ways: &[Box<dyn Way>],
    selection: &Selection,
    pairing: Pairing,
    lengths: Lengths,
    record: &Path,
) -> Result<()> {
    site::sweep()?;
    let begin = Instant::now();
    let mut run = Run::begun(Machine::here()?, pairing.pairs, lengths, ways);
    run.quick = selection.quick;
    (run.noise_accepted, run.partial) = (pairing.accept_noise, selection.is_partial());
    if !run.machine.optimised {
        eprintln!("built without optimisation: the figures are of no use");
    }
    let comparisons = plan::comparisons(ways, selection);
    ensure!(!comparisons.is_empty(), "nothing is left to measure");
    let mut failed = Vec::new();
    for (number, comparison) in comparisons.iter().enumerate() {
        let Comparison {
            way,
            baseline,
            family,
            ..
        } = comparison;
        println!(
            "\n[{}/{}] {}, {}, {} peers: {} against {} ({} s so far)",
            number + 1,
            comparisons.len(),
            family.title(),
            way.condition.title(),
            way.peers,
            way.way,
            told(baseline, way),
            begin.elapsed().as_secs()
        );
        if let Some(reason) = run.way(&way.way).and_then(|way| way.impossible.clone()) {
            println!("  not measured: {reason}");
            continue;
        }
        let mut compared = Compared::begun(comparison);
        let measured = compare(ways, comparison, pairing, lengths, &mut compared);
        run.comparisons.push(compared);
        run.write(record)?;
        if let Err(error) = measured {
            interrupt::check()?;
            println!("  FAILED: {error:#}");
            failed.push(format!("{} against {}: {error:#}", way.way, baseline.way));
        }
    }
    println!("\nkept in {}", record.display());
    ensure!(failed.is_empty(), "failed:\n  {}", failed.join("\n  "));
    Ok(())
}

/// A baseline's name, with its condition where that is another one.
fn told(baseline: &Setting, way: &Setting) -> String {
    let mut words = baseline.way.clone();
    if baseline.condition != way.condition {
        words += &format!(" with {}", baseline.condition.title());
    }
    if baseline.peers != way.peers {
        words += &format!(" with {} peers", baseline.peers);
    }
    words
}

fn compare(
    ways: &[Box<dyn Way>],
    comparison: &Comparison,
    pairing: Pairing,
    lengths: Lengths,
    compared: &mut Compared,
) -> Result<()> {
    let family = comparison.family;
    let (baseline, _baseline_way) = set_up(ways, &comparison.baseline, family, "a")?;
    let (way, installed) = set_up(ways, &comparison.way, family, "b")?;
    for &measurement in &comparison.measurements {
        for site in [&baseline, &way] {
            measurement.prepare(site)?;
        }
        let outcome = pairs::take(pairing, |side| {
            interrupt::check()?;
            let site = match side {
                Side::Baseline => &baseline,
                Side::Way => &way,
            };
            measurement.take(site, family, lengths)
        })
        .with_context(|| format!("{measurement:?}"))?;
        let measured = Measured::of(measurement, &outcome);
        print(&measured);
        compared.measured.push(measured);
    }
    // Figures of packets that another layer carried would be told as this way's.
    installed.evidence().context("after the measurements")
}

/// A site with a way on it that has been seen to carry packets as it should.
fn set_up(
    ways: &[Box<dyn Way>],
    setting: &Setting,
    family: Family,
    name: &str,
) -> Result<(Site, Box<dyn Installed>)> {
    let Some(way) = ways.iter().find(|way| way.name() == setting.way) else {
        bail!("there is no way {}", setting.way);
    };
    let site = Site::up(name, way.pods(), setting.peers)?;
    let installed = way
        .set_up(&site)
        .with_context(|| format!("cannot set {} up", way.name()))?;
    setting.condition.apply(&site)?;
    let tap = Tap::place(&site, way.wire())?;
    for from in [0, 1] {
        let count = carry(&site, from, family, FIRST_PACKETS)?;
        ensure!(
            count.received > 0,
            "{} carries no packet from node {from} to the other",
            way.name()
        );
    }
    let seen = tap.count()?;
    ensure!(
        seen >= FIRST_PACKETS,
        "{}: of {} packets the router saw {seen} that look like {:?}",
        way.name(),
        2 * FIRST_PACKETS,
        way.wire()
    );
    drop(tap);
    installed.evidence()?;
    setting.condition.check(&site)?;
    Ok((site, installed))
}

fn print(measured: &Measured) {
    if measured.figures.is_empty() {
        println!(
            "  {:?}: no pair is left, {} samples rejected: others took {:.0} % of a processor",
            measured.measurement,
            measured.rejected,
            measured.foreign.map_or(f64::NAN, |it| it.median * 100.0)
        );
    }
    for record in &measured.figures {
        let ratio = record.ratio.map_or_else(String::new, |it| {
            format!("{:.2} ({:.2}–{:.2})", it.median, it.min, it.max)
        });
        println!(
            "  {:<24} {ratio:<20} {:>10} against {:>10} {:<9} {} pairs, {} samples rejected",
            record.figure.title(),
            readable(record.way.median),
            readable(record.baseline.median),
            record.figure.unit(),
            record.pairs.len(),
            measured.rejected
        );
    }
}
