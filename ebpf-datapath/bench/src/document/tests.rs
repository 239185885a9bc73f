//! A small record, and what the document makes of it.

use super::*;
use crate::machine::Machine;
use crate::measurement::{Lengths, Measurement};
use crate::pairs::{Outcome, Pair, Sample};
use crate::record::Measured;
use crate::ways::{self, Goal};

fn machine() -> Machine {
    Machine {
        processor: "Some Processor".to_owned(),
        processors: 2,
        virtual_machine: true,
        memory_mib: 2048,
        kernel: "6.18.0".to_owned(),
        optimised: true,
    }
}

fn setting(way: &str, condition: Condition) -> Setting {
    Setting {
        way: way.to_owned(),
        condition,
        peers: FEW,
    }
}

/// `ratios` times 1000 packets a second.
fn compared(way: Setting, baseline: Setting, ratios: &[f64], lost: f64) -> Compared {
    let sample = |packets: f64, lost: f64| Sample {
        values: [(Figure::Packets, packets), (Figure::PacketsLost, lost)].into(),
        foreign: 0.0,
    };
    let outcome = Outcome {
        pairs: ratios
            .iter()
            .map(|ratio| Pair {
                baseline: sample(1000.0, 0.0),
                way: sample(1000.0 * ratio, lost),
            })
            .collect(),
        rejected: Vec::new(),
        given_up: 0,
    };
    Compared {
        way,
        baseline,
        family: Family::Ipv4,
        measured: vec![Measured::of(Measurement::Packets, &outcome)],
    }
}

fn run(comparisons: Vec<Compared>) -> Run {
    Run {
        comparisons,
        ..Run::begun(machine(), 3, Lengths::FULL, &ways::all())
    }
}

#[test]
fn a_row_has_median_and_range_and_the_baseline_its_own_value() {
    let none = Condition::None;
    let text = render(&run(vec![compared(
        setting("cilium", none),
        setting(NATIVE, none),
        &[0.5, 0.75, 0.7],
        0.0,
    )]));
    assert!(text.contains("## IPv4, no rules\n"), "{text}");
    assert!(text.contains("|  | UDP 64 B ↑ |\n"), "{text}");
    assert!(
        text.contains("| native routing, itself | 1,000 packets/s |\n"),
        "{text}"
    );
    assert!(
        text.contains("| Cilium's way, no policy | **0.70** (0.50–0.75) |\n"),
        "{text}"
    );
    assert!(!text.contains("did not arrive"), "{text}");
}

#[test]
fn losses_and_missing_pairs_are_said() {
    let none = Condition::None;
    let text = render(&run(vec![compared(
        setting("cilium", none),
        setting(NATIVE, none),
        &[0.5, 0.5],
        4.0,
    )]));
    assert!(text.contains("**0.50** (0.50–0.50, 2 pairs)"), "{text}");
    assert!(
        text.contains("Cilium's way, no policy: 4.0 % of the UDP packets sent did not arrive (4.0–4.0).\n"),
        "{text}"
    );
}

#[test]
fn native_under_rules_stands_apart() {
    let text = render(&run(vec![compared(
        setting(NATIVE, Condition::KubeProxy),
        setting(NATIVE, Condition::None),
        &[0.75, 0.75, 0.75],
        0.0,
    )]));
    assert!(!text.contains("## IPv4, kube-proxy's rules"), "{text}");
    assert!(
        text.contains("| IPv4, kube-proxy's rules, 1 peer | **0.75** (0.75–0.75) |"),
        "{text}"
    );
}

#[test]
fn what_spoils_a_run_is_said_first() {
    let mut noisy = run(Vec::new());
    noisy.noise_accepted = true;
    noisy.machine.optimised = false;
    let text = render(&noisy);
    assert!(text.contains("a first look only"), "{text}");
    assert!(text.contains("of no use"), "{text}");
    assert!(!render(&run(Vec::new())).contains("of no use"));
}

#[test]
fn a_record_survives_its_file() {
    let none = Condition::None;
    let run = run(vec![compared(
        setting("cilium", none),
        setting(NATIVE, none),
        &[0.1, 1.0 / 3.0, 0.7],
        0.5,
    )]);
    let path = std::env::temp_dir().join(format!("podlane-bench-record-{}.json", std::process::id()));
    run.write(&path).unwrap();
    let read = Run::read(&path);
    std::fs::remove_file(&path).unwrap();
    assert_eq!(read.unwrap(), run);
}

#[test]
fn goals_are_compared_with_medians_in_the_figures_own_direction() {
    let none = Condition::None;
    let goal = |figure, ratio| Goal {
        figure,
        condition: none,
        ratio,
    };
    let mut run = run(vec![compared(
        setting("cilium", none),
        setting(NATIVE, none),
        &[1.0, 1.2, 1.3],
        0.0,
    )]);
    assert!(!render(&run).contains("What is wanted"));
    let way = run.ways.iter_mut().find(|way| way.name == "cilium").unwrap();
    way.goals = vec![
        goal(Figure::Packets, 1.1),
        goal(Figure::Packets, 1.25),
        goal(Figure::RoundTripMedian, 0.92),
    ];
    let text = render(&run);
    let rows: Vec<&str> = text.lines().filter(|line| line.contains('≥')).collect();
    assert_eq!(
        rows,
        [
            "| Cilium's way, no policy | UDP 64 B | IPv4, no rules | ≥ 1.10 | 1.20 (1.00–1.30) | yes |",
            "| Cilium's way, no policy | UDP 64 B | IPv4, no rules | ≥ 1.25 | 1.20 (1.00–1.30) | **no** |",
        ]
    );
    // What was not measured is neither reached nor missed.
    assert!(!text.contains('≤'), "{text}");
}

#[test]
fn how_it_was_made_is_said() {
    let whole = run(Vec::new());
    assert!(render(&whole).contains("\nA whole run: all figures"));
    let quick = Run { quick: true, ..whole };
    let text = render(&quick);
    assert!(
        text.contains("\n**A quick run** (`make bench-datapath BENCH=--quick`"),
        "{text}"
    );
    assert!(!text.contains("A whole run"), "{text}");
}
