//! Everything that a run read, as it is kept in target/bench-datapath.json.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::figure::Figure;
use crate::machine::Machine;
use crate::measurement::{Lengths, Measurement};
use crate::pairs::{Outcome, Sample};
use crate::plan::{Comparison, Setting};
use crate::site::Family;
use crate::statistics::Spread;
use crate::ways::{Goal, Way};

/// Another number is another form of record.
const FORMAT: u32 = 2;

/// A run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// The number of this form of record.
    pub format: u32,
    /// What it was measured on.
    pub machine: Machine,
    /// How many pairs were wanted of each comparison.
    pub pairs_wanted: u32,
    /// How long samples of packets, round trips and connections last, in milliseconds.
    pub short_ms: u64,
    /// How long samples of TCP streams last, in milliseconds.
    pub long_ms: u64,
    /// Whether it was a quick run: fewer figures, shorter samples.
    pub quick: bool,
    /// Whether disturbed samples were kept.
    pub noise_accepted: bool,
    /// Whether something was left out on purpose.
    pub partial: bool,
    /// The ways that there are.
    pub ways: Vec<WayRecord>,
    /// What was compared.
    pub comparisons: Vec<Compared>,
}

/// A way in words.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WayRecord {
    /// Its name.
    pub name: String,
    /// A few words for a table's row.
    pub title: String,
    /// How it is set up, in one line.
    pub description: String,
    /// What it is meant to reach.
    pub goals: Vec<Goal>,
    /// Why it could not be run on the machine; none where it was.
    pub impossible: Option<String>,
}

/// A comparison and what came of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Compared {
    /// What was compared.
    pub way: Setting,
    /// With what.
    pub baseline: Setting,
    /// The pods' family.
    pub family: Family,
    /// What was measured.
    pub measured: Vec<Measured>,
}

/// One measurement of a comparison.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Which one.
    pub measurement: Measurement,
    /// Samples that were rejected since others disturbed them.
    pub rejected: u32,
    /// Pairs given up since others disturbed too many samples.
    pub given_up: u32,
    /// What others took during the samples that were kept, as a share of one processor; where none was kept, during the rejected
    /// ones.
    pub foreign: Option<Spread>,
    /// The figures.
    pub figures: Vec<FigureRecord>,
}

/// One figure of a comparison.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FigureRecord {
    /// Which one.
    pub figure: Figure,
    /// Its values, pair by pair in the order in which they were taken: the baseline's, then the way's.
    pub pairs: Vec<(f64, f64)>,
    /// Of the baseline's values.
    pub baseline: Spread,
    /// Of the way's values.
    pub way: Spread,
    /// Of the way's value divided by the baseline's, pair by pair; none for a figure of which a ratio says nothing.
    pub ratio: Option<Spread>,
}

impl Run {
    /// A run in which nothing has been compared yet.
    pub fn begun(machine: Machine, pairs_wanted: u32, lengths: Lengths, ways: &[Box<dyn Way>]) -> Self {
        let ms = |length: std::time::Duration| u64::try_from(length.as_millis()).unwrap_or(u64::MAX);
        Self {
            format: FORMAT,
            machine,
            pairs_wanted,
            short_ms: ms(lengths.short),
            long_ms: ms(lengths.long),
            quick: false,
            noise_accepted: false,
            partial: false,
            ways: ways
                .iter()
                .map(|way| WayRecord {
                    name: way.name().to_owned(),
                    title: way.title().to_owned(),
                    description: way.description().to_owned(),
                    goals: way.goals().to_vec(),
                    impossible: way.impossible(),
                })
                .collect(),
            comparisons: Vec::new(),
        }
    }

    /// Reads a run that was written.
    ///
    /// # Errors
    /// No such file, or another form.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path)
            .with_context(|| format!("cannot read {}: run `make bench-datapath` first", path.display()))?;
        let run: Self = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
        ensure!(
            run.format == FORMAT,
            "{} has form {}, and this program reads form {FORMAT}",
            path.display(),
            run.format
        );
        Ok(run)
    }

    /// Writes it, whole or not at all.
    ///
    /// # Errors
    /// The file system's.
    pub fn write(&self, path: &Path) -> Result<()> {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
        }
        let unfinished = path.with_extension("json.new");
        let text = serde_json::to_string_pretty(self).context("cannot write JSON")?;
        fs::write(&unfinished, text + "\n").with_context(|| unfinished.display().to_string())?;
        fs::rename(&unfinished, path).with_context(|| path.display().to_string())
    }

    /// Takes another run's comparisons to this one's: what one left out on purpose the other may have measured.
    ///
    /// # Errors
    /// The other is of another machine, or its samples were taken otherwise.
    pub fn join(&mut self, other: Self) -> Result<()> {
        let how = |run: &Self| (run.pairs_wanted, run.short_ms, run.long_ms, run.noise_accepted);
        ensure!(
            self.machine == other.machine && how(self) == how(&other),
            "runs of different machines, or with different samples, do not stand in one document"
        );
        self.quick |= other.quick;
        self.partial |= other.partial;
        self.comparisons.extend(other.comparisons);
        Ok(())
    }

    /// The words of a way.
    pub fn way(&self, name: &str) -> Option<&WayRecord> {
        self.ways.iter().find(|way| way.name == name)
    }
}

impl Compared {
    /// A comparison of which nothing has been measured yet.
    pub fn begun(comparison: &Comparison) -> Self {
        Self {
            way: comparison.way.clone(),
            baseline: comparison.baseline.clone(),
            family: comparison.family,
            measured: Vec::new(),
        }
    }

    /// A figure, where it was measured.
    pub fn figure(&self, figure: Figure) -> Option<&FigureRecord> {
        self.measured
            .iter()
            .flat_map(|measured| &measured.figures)
            .find(|record| record.figure == figure)
    }
}

impl Measured {
    /// What an outcome says. A figure of which no pair is left is not among the figures.
    pub fn of(measurement: Measurement, outcome: &Outcome) -> Self {
        let figures = measurement
            .figures()
            .iter()
            .filter_map(|figure| FigureRecord::of(*figure, outcome));
        let kept = outcome.pairs.iter().flat_map(|pair| [&pair.baseline, &pair.way]);
        let foreign = Spread::of(kept.map(|sample| sample.foreign));
        Self {
            measurement,
            rejected: u32::try_from(outcome.rejected.len()).unwrap_or(u32::MAX),
            given_up: outcome.given_up,
            foreign: foreign.or_else(|| Spread::of(outcome.rejected.iter().copied())),
            figures: figures.collect(),
        }
    }
}

impl FigureRecord {
    fn of(figure: Figure, outcome: &Outcome) -> Option<Self> {
        let value = |sample: &Sample| sample.values.get(&figure).copied();
        let pairs: Vec<(f64, f64)> = outcome
            .pairs
            .iter()
            .filter_map(|pair| Some((value(&pair.baseline)?, value(&pair.way)?)))
            .collect();
        let ratios = pairs
            .iter()
            .filter(|(baseline, _)| *baseline > 0.0)
            .map(|(baseline, way)| way / baseline);
        Some(Self {
            figure,
            baseline: Spread::of(pairs.iter().map(|(baseline, _)| *baseline))?,
            way: Spread::of(pairs.iter().map(|(_, way)| *way))?,
            ratio: figure.has_ratio().then(|| Spread::of(ratios)).flatten(),
            pairs,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pairs::Pair;

    fn sample(packets: f64, lost: f64) -> Sample {
        Sample {
            values: [(Figure::Packets, packets), (Figure::PacketsLost, lost)].into(),
            foreign: packets / 10_000.0,
        }
    }

    #[test]
    fn ratios_are_taken_pair_by_pair() {
        // The ratio of the medians would be 1.5: the second pair was taken while the machine was twice as fast.
        let outcome = Outcome {
            pairs: vec![
                Pair {
                    baseline: sample(100.0, 0.0),
                    way: sample(50.0, 1.0),
                },
                Pair {
                    baseline: sample(200.0, 0.0),
                    way: sample(300.0, 3.0),
                },
                Pair {
                    baseline: sample(100.0, 0.0),
                    way: sample(150.0, 2.0),
                },
            ],
            rejected: vec![0.2, 0.3],
            given_up: 1,
        };
        let measured = Measured::of(Measurement::Packets, &outcome);
        assert_eq!((measured.rejected, measured.given_up), (2, 1));
        assert_eq!(measured.foreign.map(|it| it.max), Some(0.03));
        let [packets, lost] = &measured.figures[..] else {
            panic!("{measured:?}");
        };
        let spread = Spread {
            median: 1.5,
            min: 0.5,
            max: 1.5,
        };
        assert_eq!(packets.ratio, Some(spread));
        assert_eq!(packets.pairs, [(100.0, 50.0), (200.0, 300.0), (100.0, 150.0)]);
        assert_eq!((lost.ratio, lost.way.median), (None, 2.0));
    }

    #[test]
    fn runs_join_where_they_are_alike() {
        let machine = || Machine {
            processor: "Some Processor".to_owned(),
            processors: 2,
            virtual_machine: true,
            memory_mib: 2048,
            kernel: "6.18.0".to_owned(),
            optimised: true,
        };
        let mut run = Run::begun(machine(), 10, Lengths::QUICK, &[]);
        let mut other = Run::begun(machine(), 10, Lengths::QUICK, &[]);
        other.partial = true;
        run.join(other).unwrap();
        assert!(run.partial);
        let longer = Run::begun(machine(), 10, Lengths::FULL, &[]);
        assert!(run.join(longer).is_err());
        let mut elsewhere = Run::begun(machine(), 10, Lengths::QUICK, &[]);
        elsewhere.machine.processors = 4;
        assert!(run.join(elsewhere).is_err());
    }

    #[test]
    fn without_pairs_there_are_no_figures() {
        let outcome = Outcome {
            rejected: vec![0.5, 0.9],
            ..Outcome::default()
        };
        let measured = Measured::of(Measurement::RoundTrip, &outcome);
        assert!(measured.figures.is_empty());
        assert_eq!(measured.foreign.map(|it| it.max), Some(0.9));
    }
}
