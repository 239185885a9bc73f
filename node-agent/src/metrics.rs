//! What the datapath has counted, for Prometheus (OpenMetrics text, version 1.0.0), and beside it whether the agent is well.
//!
//! The agent's one thread reads the counters when it is asked to: nothing is sampled or remembered in between.

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};

/// Peers that are told of, at most: those with the most packets, and those with the most that were dropped.
pub const MOST_PEERS: usize = 64;

/// How long the agent may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// One lane's figures.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LaneFigures {
    /// `native`, `vxlan:PORT:VNI`, `geneve:PORT:VNI`, or `none` for what belongs to no lane.
    pub lane: String,
    /// Packets sent, and of them those that bypassed the stack.
    pub sent: [u64; 2],
    /// Packets received, and of them those that bypassed the stack.
    pub received: [u64; 2],
    /// Bytes of inner packets sent and received.
    pub bytes: [u64; 2],
    /// Packets dropped, by reason.
    pub dropped: Vec<(&'static str, u64)>,
}

/// What went to a peer and came from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerTraffic {
    /// The peer's node.
    pub peer: String,
    /// Packets sent and received.
    pub packets: [u64; 2],
    /// Bytes of inner packets sent and received.
    pub bytes: [u64; 2],
}

/// Packets of a peer's that were dropped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerDrops {
    /// The peer's node.
    pub peer: String,
    /// Packets dropped, by reason.
    pub dropped: Vec<(&'static str, u64)>,
}

/// Everything that is told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// By lane.
    pub lanes: Vec<LaneFigures>,
    /// By peer, where there were any: the [`MOST_PEERS`] with the most packets.
    pub peers: Vec<PeerTraffic>,
    /// By peer, where any were dropped: the [`MOST_PEERS`] with the most.
    pub drops: Vec<PeerDrops>,
    /// Peers by the lane that reaches them; `refused` among them.
    pub reached: Vec<(&'static str, u32)>,
    /// Whether packets are encapsulated by eBPF programs.
    pub programs: bool,
    /// Whether accepted flows bypass the stack.
    pub bypass: bool,
    /// Passes over the kernel since the agent started.
    pub passes: u64,
}

/// What is asked of the agent's loop, which answers between two things that it does.
#[derive(Debug)]
pub enum Asked {
    /// What has been counted.
    Figures(oneshot::Sender<Figures>),
    /// Whether the node is as it should be, or why not.
    Ready(oneshot::Sender<Result<(), String>>),
}

/// Serves `/metrics`, `/healthz` (the agent's loop turns) and `/readyz` (the node's lanes are proved) until the agent ends.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn serve(address: SocketAddr, ask: mpsc::Sender<Asked>) -> std::io::Result<()> {
    let listener = TcpListener::bind(address).await?;
    let router = Router::new()
        .route("/metrics", get(scrape))
        .route("/healthz", get(live))
        .route("/readyz", get(ready))
        .with_state(ask);
    axum::serve(listener, router).await
}

/// Asks the loop; none: it does not turn.
async fn answer<T>(
    ask: &mpsc::Sender<Asked>,
    question: impl FnOnce(oneshot::Sender<T>) -> Asked,
) -> Option<T> {
    let (asked, answer) = oneshot::channel();
    let answer = async {
        ask.send(question(asked)).await.ok()?;
        answer.await.ok()
    };
    tokio::time::timeout(PATIENCE, answer).await.ok()?
}

async fn live(State(ask): State<mpsc::Sender<Asked>>) -> Response {
    match answer(&ask, Asked::Ready).await {
        Some(_) => "ok\n".into_response(),
        None => (
            StatusCode::SERVICE_UNAVAILABLE,
            "the agent's loop does not turn\n",
        )
            .into_response(),
    }
}

async fn ready(State(ask): State<mpsc::Sender<Asked>>) -> Response {
    let why = match answer(&ask, Asked::Ready).await {
        Some(Ok(())) => return "ok\n".into_response(),
        Some(Err(why)) => why,
        None => "the agent's loop does not turn".to_owned(),
    };
    (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response()
}

async fn scrape(State(ask): State<mpsc::Sender<Asked>>) -> Response {
    let Some(figures) = answer(&ask, Asked::Figures).await else {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    };
    match encode(figures) {
        Ok(text) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// The figures as text.
///
/// # Errors
/// Never in practice: texts grow.
pub fn encode(figures: Figures) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("podlane");
    registry.register_collector(Box::new(figures));
    let mut text = String::new();
    text::encode(&mut text, &registry)?;
    Ok(text)
}

type Labels<'a> = Vec<(&'static str, &'a str)>;

/// A family of counters: every value with its labels.
fn counters<'a>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    values: impl IntoIterator<Item = (Labels<'a>, u64)>,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (labels, value) in values {
        Counter(value).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

fn gauges<'a>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    values: impl IntoIterator<Item = (Labels<'a>, u32)>,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, value) in values {
        Gauge(value).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

/// A metric of one value, without labels.
fn single(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    metric: &impl EncodeMetric,
) -> fmt::Result {
    metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
}

struct Counter(u64);

impl EncodeMetric for Counter {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        encoder.encode_counter::<NoLabelSet, _, u64>(&self.0, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Counter
    }
}

struct Gauge(u32);

impl EncodeMetric for Gauge {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        encoder.encode_gauge(&i64::from(self.0))
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Gauge
    }
}

impl Collector for Figures {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let encoder = &mut encoder;
        let lanes = |figure: fn(&LaneFigures) -> u64| {
            self.lanes
                .iter()
                .map(move |lane| (vec![("lane", lane.lane.as_str())], figure(lane)))
        };
        counters(
            encoder,
            "lane_sent_packets",
            "Packets sent on a lane",
            lanes(|lane| lane.sent[0]),
        )?;
        counters(
            encoder,
            "lane_sent_bypassing_packets",
            "Packets sent on a lane past the host's stack",
            lanes(|lane| lane.sent[1]),
        )?;
        counters(
            encoder,
            "lane_sent_bytes",
            "Bytes of inner packets sent on a lane",
            lanes(|lane| lane.bytes[0]),
        )?;
        counters(
            encoder,
            "lane_received_packets",
            "Packets received on a lane",
            lanes(|lane| lane.received[0]),
        )?;
        counters(
            encoder,
            "lane_received_bypassing_packets",
            "Packets received on a lane past the host's stack",
            lanes(|lane| lane.received[1]),
        )?;
        counters(
            encoder,
            "lane_received_bytes",
            "Bytes of inner packets received on a lane",
            lanes(|lane| lane.bytes[1]),
        )?;
        counters(
            encoder,
            "dropped_packets",
            "Packets dropped, by lane and reason",
            self.lanes.iter().flat_map(|lane| {
                let labels = |reason| vec![("lane", lane.lane.as_str()), ("reason", reason)];
                lane.dropped
                    .iter()
                    .map(move |(reason, count)| (labels(*reason), *count))
            }),
        )?;
        let peers = |figure: fn(&PeerTraffic) -> u64| {
            self.peers
                .iter()
                .map(move |peer| (vec![("peer", peer.peer.as_str())], figure(peer)))
        };
        counters(
            encoder,
            "peer_sent_packets",
            "Packets sent to a peer; the 64 peers with the most packets",
            peers(|peer| peer.packets[0]),
        )?;
        counters(
            encoder,
            "peer_sent_bytes",
            "Bytes of inner packets sent to a peer; the 64 peers with the most packets",
            peers(|peer| peer.bytes[0]),
        )?;
        counters(
            encoder,
            "peer_received_packets",
            "Packets received from a peer; the 64 peers with the most packets",
            peers(|peer| peer.packets[1]),
        )?;
        counters(
            encoder,
            "peer_received_bytes",
            "Bytes of inner packets received from a peer; the 64 peers with the most packets",
            peers(|peer| peer.bytes[1]),
        )?;
        counters(
            encoder,
            "peer_dropped_packets",
            "Packets of a peer's dropped, by reason; the 64 peers with the most",
            self.drops.iter().flat_map(|peer| {
                let labels = |reason| vec![("peer", peer.peer.as_str()), ("reason", reason)];
                peer.dropped
                    .iter()
                    .map(move |(reason, count)| (labels(*reason), *count))
            }),
        )?;
        gauges(
            encoder,
            "peers",
            "Peers by the lane that reaches them",
            self.reached
                .iter()
                .map(|(lane, count)| (vec![("lane", *lane)], *count)),
        )?;
        let programs = Gauge(u32::from(self.programs));
        single(
            encoder,
            "programs_loaded",
            "1 where eBPF programs encapsulate, 0 where the kernel's driver does",
            &programs,
        )?;
        let bypass = Gauge(u32::from(self.bypass));
        single(
            encoder,
            "bypass_on",
            "1 where accepted flows bypass the host's stack",
            &bypass,
        )?;
        single(
            encoder,
            "passes",
            "Passes over the kernel since the agent started",
            &Counter(self.passes),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_openmetrics() {
        let text = encode(Figures {
            lanes: vec![LaneFigures {
                lane: "vxlan:8472:1".to_owned(),
                sent: [10, 7],
                received: [3, 0],
                bytes: [1000, 300],
                dropped: vec![("ForgedInner", 2)],
            }],
            peers: vec![PeerTraffic {
                peer: "k8s-w0".to_owned(),
                packets: [10, 3],
                bytes: [1000, 300],
            }],
            drops: vec![PeerDrops {
                peer: "k8s-w0".to_owned(),
                dropped: vec![("ForgedInner", 2)],
            }],
            reached: vec![("vxlan", 1)],
            programs: true,
            bypass: false,
            passes: 4,
        })
        .expect("text");
        for line in [
            "podlane_lane_sent_packets_total{lane=\"vxlan:8472:1\"} 10",
            "podlane_lane_sent_bypassing_packets_total{lane=\"vxlan:8472:1\"} 7",
            "podlane_lane_received_bytes_total{lane=\"vxlan:8472:1\"} 300",
            "podlane_dropped_packets_total{lane=\"vxlan:8472:1\",reason=\"ForgedInner\"} 2",
            "podlane_peer_sent_packets_total{peer=\"k8s-w0\"} 10",
            "podlane_peer_sent_bytes_total{peer=\"k8s-w0\"} 1000",
            "podlane_peer_received_packets_total{peer=\"k8s-w0\"} 3",
            "podlane_peer_received_bytes_total{peer=\"k8s-w0\"} 300",
            "podlane_peer_dropped_packets_total{peer=\"k8s-w0\",reason=\"ForgedInner\"} 2",
            "podlane_peers{lane=\"vxlan\"} 1",
            "podlane_programs_loaded 1",
            "podlane_bypass_on 0",
            "podlane_passes_total 4",
            "# EOF",
        ] {
            assert!(text.lines().any(|is| is == line), "{line} is not in\n{text}");
        }
    }
}
