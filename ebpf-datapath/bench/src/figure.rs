//! What is measured, in which unit, and which direction is better.

use serde::{Deserialize, Serialize};

/// A figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Figure {
    /// UDP packets of 64 bytes of payload that arrived, a second.
    Packets,
    /// The share of those packets that did not arrive.
    PacketsLost,
    /// The median time of a UDP packet to the other pod and back.
    RoundTripMedian,
    /// 99 of 100 of these times are at most so long.
    RoundTrip99,
    /// What one TCP stream carries, in writes of 1 MB.
    TcpOne,
    /// Processor time of both nodes and both pods for 10⁹ bytes of that.
    TcpOneCpu,
    /// What four TCP streams carry together.
    TcpFour,
    /// Processor time of both nodes and both pods for 10⁹ bytes of that.
    TcpFourCpu,
    /// One TCP stream when no frame between the nodes is longer than the MTU.
    FramesOne,
    /// Four TCP streams when no frame between the nodes is longer than the MTU.
    FramesFour,
    /// Processor time of both nodes and both pods for 10⁹ bytes of that.
    FramesFourCpu,
    /// Short TCP connections carried, a second, of 10,000 offered.
    Connections,
    /// Processor time of both nodes and both pods for one of them.
    ConnectionCpu,
}

/// Which of two figures is the better one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    /// The higher.
    Higher,
    /// The lower.
    Lower,
}

impl Figure {
    /// All of them, in the order of tables.
    pub const ALL: [Self; 13] = [
        Self::Packets,
        Self::PacketsLost,
        Self::RoundTripMedian,
        Self::RoundTrip99,
        Self::TcpOne,
        Self::TcpOneCpu,
        Self::TcpFour,
        Self::TcpFourCpu,
        Self::FramesOne,
        Self::FramesFour,
        Self::FramesFourCpu,
        Self::Connections,
        Self::ConnectionCpu,
    ];

    /// A few words for a table's head.
    pub fn title(self) -> &'static str {
        match self {
            Self::Packets => "UDP 64 B",
            Self::PacketsLost => "UDP 64 B lost",
            Self::RoundTripMedian => "round trip p50",
            Self::RoundTrip99 => "round trip p99",
            Self::TcpOne => "TCP 1 stream",
            Self::TcpOneCpu => "CPU, TCP 1",
            Self::TcpFour => "TCP 4 streams",
            Self::TcpFourCpu => "CPU, TCP 4",
            Self::FramesOne => "MTU frames, TCP 1",
            Self::FramesFour => "MTU frames, TCP 4",
            Self::FramesFourCpu => "CPU, MTU frames, TCP 4",
            Self::Connections => "connections",
            Self::ConnectionCpu => "CPU, connections",
        }
    }

    /// The unit.
    pub fn unit(self) -> &'static str {
        match self {
            Self::Packets => "packets/s",
            Self::PacketsLost => "%",
            Self::RoundTripMedian | Self::RoundTrip99 => "µs",
            Self::TcpOne | Self::TcpFour | Self::FramesOne | Self::FramesFour => "Gbit/s",
            Self::TcpOneCpu | Self::TcpFourCpu | Self::FramesFourCpu => "s/GB",
            Self::Connections => "1/s",
            Self::ConnectionCpu => "µs each",
        }
    }

    /// Which direction is better.
    pub fn better(self) -> Better {
        match self {
            Self::Packets
            | Self::TcpOne
            | Self::TcpFour
            | Self::FramesOne
            | Self::FramesFour
            | Self::Connections => Better::Higher,
            _ => Better::Lower,
        }
    }

    /// Whether a ratio to another way's figure says something. The share of lost packets is mostly zero and stands for itself.
    pub fn has_ratio(self) -> bool {
        self != Self::PacketsLost
    }
}

/// A figure's value as people read it: three significant digits, thousands apart.
pub fn readable(value: f64) -> String {
    if value.abs() >= 1000.0 {
        let digits = format!("{:.0}", value.abs());
        let mut grouped = String::new();
        for (place, digit) in digits.chars().enumerate() {
            if place > 0 && (digits.len() - place).is_multiple_of(3) {
                grouped.push(',');
            }
            grouped.push(digit);
        }
        return if value < 0.0 {
            format!("-{grouped}")
        } else {
            grouped
        };
    }
    let decimals = match value.abs() {
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        _ => 2,
    };
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_short_and_grouped() {
        let pairs = [
            (1_234_567.4, "1,234,567"),
            (1000.0, "1,000"),
            (999.6, "1000"),
            (23.45, "23.4"),
            (0.0, "0.00"),
            (1.0 / 3.0, "0.33"),
        ];
        for (value, words) in pairs {
            assert_eq!(readable(value), words);
        }
    }

    #[test]
    fn every_figure_is_listed_once() {
        let mut listed = Figure::ALL.to_vec();
        listed.sort();
        listed.dedup();
        assert_eq!(listed, Figure::ALL);
    }
}
