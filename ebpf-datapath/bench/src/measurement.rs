//! Loads on a site, and the figures read from them.
//!
//! Every load runs on threads of this process, with sockets that were made in the pods' namespaces. The sending side has the
//! machine's first processor, the receiving side the second; the round trip has both ends on one, since between two it measures
//! how fast a sleeping processor wakes.

mod connections;
mod numbered;
mod processors;
mod round_trip;
mod stream;
mod wire;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use crate::figure::Figure;
use crate::noise::{Before, During};
use crate::pairs::Sample;
use crate::site::{Family, Site};
use crate::statistics::percentile;

pub use numbered::{Count, carry};
pub use wire::{Tap, frames_are_real};

/// A measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Measurement {
    /// Numbered UDP packets of 64 bytes, as many as go.
    Packets,
    /// UDP packets of 64 bytes to and fro, one at a time.
    RoundTrip,
    /// One TCP stream.
    TcpOne,
    /// Four TCP streams.
    TcpFour,
    /// One TCP stream, in frames no longer than the MTU between the nodes.
    FramesOne,
    /// Four TCP streams, in frames no longer than the MTU between the nodes.
    FramesFour,
    /// Short TCP connections.
    Connections,
}

/// How long samples last.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Lengths {
    /// Of packets, round trips and connections.
    pub short: Duration,
    /// Of TCP streams.
    pub long: Duration,
    /// What TCP streams have before that to find their speed.
    pub warm_up: Duration,
}

impl Lengths {
    /// For figures that are kept.
    pub const FULL: Self = Self {
        short: Duration::from_millis(500),
        long: Duration::from_millis(1000),
        warm_up: Duration::from_millis(200),
    };

    /// For a quick run. Not so short that the least that the kernel tells of other processes, 10 ms, were too much
    /// ([`noise::LIMIT`](crate::noise::LIMIT)).
    pub const QUICK: Self = Self {
        short: Duration::from_millis(150),
        long: Duration::from_millis(250),
        warm_up: Duration::from_millis(100),
    };
}

impl Measurement {
    /// All, in the order in which they are made.
    pub const ALL: [Self; 7] = [
        Self::Packets,
        Self::RoundTrip,
        Self::TcpOne,
        Self::TcpFour,
        Self::FramesOne,
        Self::FramesFour,
        Self::Connections,
    ];

    /// What it reads.
    pub fn figures(self) -> &'static [Figure] {
        match self {
            Self::Packets => &[Figure::Packets, Figure::PacketsLost],
            Self::RoundTrip => &[Figure::RoundTripMedian, Figure::RoundTrip99],
            Self::TcpOne => &[Figure::TcpOne, Figure::TcpOneCpu],
            Self::TcpFour => &[Figure::TcpFour, Figure::TcpFourCpu],
            Self::FramesOne => &[Figure::FramesOne],
            Self::FramesFour => &[Figure::FramesFour, Figure::FramesFourCpu],
            Self::Connections => &[Figure::Connections, Figure::ConnectionCpu],
        }
    }

    /// Whether frames between the nodes have to be as a wire would carry them.
    fn wants_real_frames(self) -> bool {
        matches!(self, Self::FramesOne | Self::FramesFour)
    }

    /// Makes a site ready for it.
    ///
    /// # Errors
    /// What ethtool says.
    pub fn prepare(self, site: &Site) -> Result<()> {
        wire::set_real_frames(site, self.wants_real_frames())
    }

    /// Measures once. A site that carries nothing is an error, not a figure; where others had the processors meanwhile, the sample
    /// has no figures.
    ///
    /// # Errors
    /// Sockets' errors, and what contradicts the measurement's own premises.
    pub fn take(self, site: &Site, family: Family, lengths: Lengths) -> Result<Sample> {
        let (carried, during) = match self {
            Self::Packets => packets(site, family, lengths.short)?,
            Self::RoundTrip => round_trip(site, family, lengths.short)?,
            Self::TcpOne | Self::FramesOne => self.tcp(site, family, lengths, 1)?,
            Self::TcpFour | Self::FramesFour => self.tcp(site, family, lengths, 4)?,
            Self::Connections => connected(site, family, lengths.short)?,
        };
        let sample = Sample {
            values: carried.unwrap_or_default(),
            foreign: during.foreign,
        };
        ensure!(
            !sample.values.is_empty() || sample.is_noisy(),
            "nothing was carried, and others took only {:.0} % of a processor",
            sample.foreign * 100.0
        );
        Ok(sample)
    }

    fn tcp(self, site: &Site, family: Family, lengths: Lengths, streams: usize) -> Result<Read> {
        let frames_before = self.wants_real_frames().then(|| wire::frames(site)).transpose()?;
        let read = stream::measure(site, family, lengths, streams)?;
        if read.bytes == 0 {
            return Ok((None, read.during));
        }
        if let Some(before) = frames_before {
            frames_are_real(&before, &wire::frames(site)?)?;
        }
        let gigabytes = read.bytes as f64 / 1e9;
        let rate = gigabytes * 8.0 / read.elapsed.as_secs_f64();
        let cost = read.during.own.as_secs_f64() / gigabytes;
        let values = self.figures().iter().copied().zip([rate, cost]).collect();
        Ok((Some(values), read.during))
    }
}

/// The figures, where anything was carried.
type Read = (Option<BTreeMap<Figure, f64>>, During);

fn packets(site: &Site, family: Family, length: Duration) -> Result<Read> {
    let before = Before::now()?;
    let count = numbered::flood(site, family, length)?;
    let during = before.until_now()?;
    if count.received == 0 {
        return Ok((None, during));
    }
    let rate = count.received as f64 / count.elapsed.as_secs_f64();
    let lost = (count.sent - count.received) as f64 / count.sent as f64 * 100.0;
    let values = BTreeMap::from([(Figure::Packets, rate), (Figure::PacketsLost, lost)]);
    Ok((Some(values), during))
}

fn round_trip(site: &Site, family: Family, length: Duration) -> Result<Read> {
    let before = Before::now()?;
    let mut times = round_trip::measure(site, family, length)?;
    let during = before.until_now()?;
    times.sort_unstable();
    let microseconds = |percent| percentile(&times, percent).map(|time| time as f64 / 1e3);
    let values = microseconds(50).zip(microseconds(99)).map(|(median, high)| {
        BTreeMap::from([(Figure::RoundTripMedian, median), (Figure::RoundTrip99, high)])
    });
    Ok((values, during))
}

fn connected(site: &Site, family: Family, length: Duration) -> Result<Read> {
    let before = Before::now()?;
    let read = connections::measure(site, family, length)?;
    let during = before.until_now()?;
    if read.count == 0 {
        return Ok((None, during));
    }
    let values = BTreeMap::from([
        (
            Figure::Connections,
            read.count as f64 / read.elapsed.as_secs_f64(),
        ),
        (
            Figure::ConnectionCpu,
            during.own.as_secs_f64() * 1e6 / read.count as f64,
        ),
    ]);
    Ok((Some(values), during))
}
