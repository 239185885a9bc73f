//! `make bench-datapath`: measures, keeps what it read as JSON, and writes docs/performance.md out of that.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a benchmark prints its table"
)]

mod run;

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::{Args, Parser, Subcommand};
use podlane_datapath_bench::condition::Condition;
use podlane_datapath_bench::document;
use podlane_datapath_bench::measurement::{Lengths, Measurement};
use podlane_datapath_bench::pairs::Pairing;
use podlane_datapath_bench::plan::{self, Selection};
use podlane_datapath_bench::record::Run;
use podlane_datapath_bench::site::Family;
use podlane_datapath_bench::ways;
use podlane_e2e::interrupt;

/// Where a run is kept.
const RECORD: &str = "target/bench-datapath.json";

/// Measures the ways between two pods on two nodes against each other.
#[derive(Debug, Parser)]
#[command(name = "bench-datapath")]
struct Command {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Measure, and keep what was read.
    Run(Options),
    /// Write the document out of what a run has kept.
    Render {
        /// The run; given again, one more of the same machine.
        #[arg(long = "record", default_value = RECORD)]
        records: Vec<PathBuf>,
        /// The document.
        #[arg(long, default_value = "docs/performance.md")]
        document: PathBuf,
    },
}

#[derive(Debug, Args)]
struct Options {
    /// What tells most, in about eight minutes: IPv4, one peer, packets and round trips and (but with 500 rules) one TCP stream, in
    /// shorter samples. What is chosen besides is measured all the same.
    #[arg(long)]
    quick: bool,
    /// How many pairs of samples each comparison has.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(2..=1000))]
    pairs: u32,
    /// A sample that others disturbed is taken again at most so often.
    #[arg(long, default_value_t = 10)]
    repetitions: u32,
    /// Keep samples that others disturbed.
    #[arg(long)]
    accept_noise: bool,
    /// Only this way (by name; may be given again).
    #[arg(long = "only", value_name = "WAY")]
    ways: Vec<String>,
    /// Only this condition (may be given again).
    #[arg(long = "condition")]
    conditions: Vec<Condition>,
    /// Only this family of pods (may be given again).
    #[arg(long = "family")]
    families: Vec<Family>,
    /// Only this measurement (may be given again).
    #[arg(long = "measurement")]
    measurements: Vec<Measurement>,
    /// Only with so many peers (1 or 5000; may be given again).
    #[arg(long)]
    peers: Vec<u16>,
    /// Where the run is kept.
    #[arg(long, default_value = RECORD)]
    record: PathBuf,
}

fn main() -> Result<()> {
    match Command::parse().action {
        Action::Run(options) => measure(&options),
        Action::Render { records, document } => {
            let mut runs = records.iter().map(|record| Run::read(record));
            let mut run = runs.next().context("no record")??;
            for other in runs {
                run.join(other?)?;
            }
            let text = document::render(&run);
            std::fs::write(&document, text).with_context(|| document.display().to_string())?;
            println!("written: {}", document.display());
            Ok(())
        }
    }
}

fn measure(options: &Options) -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "root is needed: the benchmark makes network namespaces and loads eBPF programs"
    );
    let ways = ways::all();
    let known = plan::names(&ways);
    for name in &options.ways {
        ensure!(
            known.contains(&name.as_str()),
            "there is no way {name}; there are {}",
            known.join(", ")
        );
    }
    let selection = Selection {
        ways: options.ways.clone(),
        conditions: options.conditions.clone(),
        families: options.families.clone(),
        measurements: options.measurements.clone(),
        peers: options.peers.clone(),
        quick: options.quick,
    };
    let pairing = Pairing {
        pairs: options.pairs,
        repetitions: options.repetitions,
        accept_noise: options.accept_noise,
    };
    let lengths = if options.quick {
        Lengths::QUICK
    } else {
        Lengths::FULL
    };
    interrupt::watch()?;
    run::run(&ways, &selection, pairing, lengths, &options.record)
}
