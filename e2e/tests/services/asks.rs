//! Who asks whom, and what the server is to see of it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use podlane_e2e::lab::Lab;
use podlane_e2e::topology::{INTERNET, Node, Pod, Topology};

use crate::servers::{Answer, Sizes, ask_tcp, ask_udp};
use crate::workload::{External, Service, Workload};

/// How long an answer may take that has to come.
const ANSWERS_WITHIN: Duration = Duration::from_secs(60);

/// How long an answer is waited for that must not come.
const SILENT_FOR: Duration = Duration::from_secs(1);

/// Who asks.
#[derive(Clone, Debug)]
pub(crate) enum Asker {
    /// A pod, with its node.
    Pod(Node, Pod),
    /// A process on a node.
    Node(Node),
    /// A host beyond the router.
    Outside(IpAddr),
}

impl Asker {
    /// The first and the second pod of every node, every node, and a host beyond the router.
    pub(crate) fn all(topology: &Topology) -> Result<Vec<Self>> {
        let mut all = Vec::new();
        for node in &topology.nodes {
            all.extend(
                node.pods
                    .iter()
                    .take(2)
                    .map(|pod| Self::Pod(node.clone(), pod.clone())),
            );
            all.push(Self::Node(node.clone()));
        }
        let outside = topology.uplink.internet.first().context("an uplink")?.addr();
        all.push(Self::Outside(outside));
        Ok(all)
    }

    /// Its namespace's name in the lab.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Pod(_, pod) => &pod.name,
            Self::Node(node) => &node.name,
            Self::Outside(_) => INTERNET,
        }
    }

    /// Its own address.
    pub(crate) fn address(&self) -> Result<IpAddr> {
        match self {
            Self::Pod(_, pod) => pod.address(),
            Self::Node(node) => node.internal_ip(),
            Self::Outside(address) => Some(*address),
        }
        .with_context(|| format!("{} has no address", self.name()))
    }

    /// The node that it is on, or is.
    fn node(&self) -> Option<&Node> {
        match self {
            Self::Pod(node, _) | Self::Node(node) => Some(node),
            Self::Outside(_) => None,
        }
    }

    fn is(&self, pod: &Pod) -> bool {
        matches!(self, Self::Pod(_, own) if own.name == pod.name)
    }
}

/// A question, and what is to come of it.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) asker: String,
    pub(crate) what: String,
    pub(crate) target: SocketAddr,
    /// None: nobody answers.
    pub(crate) wanted: Option<Answer>,
}

/// Every asker with every Service of one pod: by its address, and by its port at every node.
pub(crate) fn all(workload: &Workload) -> Result<Vec<Ask>> {
    let nodes = &workload.topology.nodes;
    let mut asks = Vec::new();
    for asker in Asker::all(&workload.topology)? {
        for service in &workload.single {
            let backend = service.backends.first().context("a Service of one pod")?;
            let mut ask = |what: String, target: SocketAddr, source: Option<IpAddr>| {
                asks.push(Ask {
                    asker: asker.name().to_owned(),
                    what,
                    target,
                    wanted: source.map(|source| Answer {
                        pod: backend.1.name.clone(),
                        source,
                    }),
                });
            };
            // No node has a route for it where the asker is none of the cluster's.
            if let Some(source) = by_cluster_ip(&asker, &backend.1)? {
                ask(
                    format!("Service {}", service.name),
                    service.cluster(),
                    Some(source),
                );
            }
            for node in nodes {
                ask(
                    format!("{} at {}", service.name, node.name),
                    service.node_port(node)?,
                    by_node_port(&asker, service, node, backend)?,
                );
            }
        }
    }
    Ok(asks)
}

/// The source that a pod sees of who asks by the Service's address: a pod's own, except where it is the one that answers; the router address of a
/// node's (`--cluster-cidr`: what comes from elsewhere is masqueraded).
fn by_cluster_ip(asker: &Asker, pod: &Pod) -> Result<Option<IpAddr>> {
    match asker {
        Asker::Pod(on, _) if asker.is(pod) => router_address(on).map(Some),
        Asker::Pod(..) => asker.address().map(Some),
        Asker::Node(from) => router_address(from).map(Some),
        Asker::Outside(_) => Ok(None),
    }
}

/// The same by a node's port (https://kubernetes.io/docs/reference/networking/virtual-ips/#external-traffic-policy).
fn by_node_port(
    asker: &Asker,
    service: &Service,
    at: &Node,
    (node, pod): &(Node, Pod),
) -> Result<Option<IpAddr>> {
    if service.external == External::Cluster {
        return router_address(at).map(Some);
    }
    let is_own_node = asker.node().is_some_and(|own| own.name == at.name);
    match asker {
        // At their own node, pods and the node itself are as inside of the cluster.
        _ if is_own_node => by_cluster_ip(asker, pod),
        _ if at.name != node.name => Ok(None),
        // To another node's address a pod speaks as its own node: that is Podlane's masquerading.
        Asker::Pod(own, _) => Ok(own.internal_ip()),
        _ => asker.address().map(Some),
    }
}

/// The node's own address among its pods'.
pub(crate) fn router_address(node: &Node) -> Result<IpAddr> {
    node.pod_gateways()
        .next()
        .with_context(|| format!("{} has no pod CIDR", node.name))
}

/// How a question is put.
#[derive(Clone, Copy, Debug)]
enum Transport {
    Tcp,
    Udp,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        })
    }
}

/// Asks all of them over TCP and UDP, each asker one after the other and all askers at once; what is refused or left unanswered is waited for
/// together. How many were answered, and how many were not.
pub(crate) fn ensure_all(lab: &Lab, asks: &[Ask], sizes: Sizes) -> Result<(usize, usize)> {
    let mut by_asker: BTreeMap<&str, Vec<&Ask>> = BTreeMap::new();
    for ask in asks {
        by_asker.entry(&ask.asker).or_default().push(ask);
    }
    let wrong: Vec<String> = thread::scope(|scope| {
        let workers: Vec<_> = by_asker
            .into_iter()
            .map(|(asker, asks)| scope.spawn(move || ask_from(lab, asker, &asks, sizes)))
            .collect();
        workers
            .into_iter()
            .map(|worker| worker.join().map_err(|_| anyhow!("an asker panicked"))?)
            .collect::<Result<Vec<_>>>()
    })?
    .concat();
    if !wrong.is_empty() {
        let shown: Vec<&str> = wrong.iter().take(30).map(String::as_str).collect();
        bail!("{} are not as they should be:\n{}", wrong.len(), shown.join("\n"));
    }
    let answered = asks.iter().filter(|ask| ask.wanted.is_some()).count();
    Ok((answered, asks.len() - answered))
}

/// What is wrong with the answers.
fn ask_from(lab: &Lab, asker: &str, asks: &[&Ask], sizes: Sizes) -> Result<Vec<String>> {
    lab.namespace(asker).within(|| {
        let (spoken, silent): (Vec<&Ask>, Vec<&Ask>) = asks.iter().partition(|ask| ask.wanted.is_some());
        let transports = [Transport::Tcp, Transport::Udp];
        let wrong = thread::scope(|scope| {
            // Threads of this one are in its network namespace.
            let waiting: Vec<_> = silent
                .iter()
                .flat_map(|ask| transports.map(|transport| (ask, transport)))
                .map(|(ask, transport)| scope.spawn(move || try_ask(ask, transport, sizes, SILENT_FOR)))
                .collect();
            let mut wrong: Vec<String> = Vec::new();
            for ask in spoken {
                wrong.extend(
                    transports
                        .iter()
                        .filter_map(|transport| try_ask(ask, *transport, sizes, ANSWERS_WITHIN)),
                );
            }
            for one in waiting {
                wrong.extend(
                    one.join()
                        .unwrap_or_else(|_| Some("an asker panicked".to_owned())),
                );
            }
            wrong
        });
        Ok(wrong)
    })
}

/// What is wrong with the answer.
fn try_ask(ask: &Ask, transport: Transport, sizes: Sizes, limit: Duration) -> Option<String> {
    let answer = match transport {
        Transport::Tcp => ask_tcp(ask.target, sizes, limit),
        Transport::Udp => ask_udp(ask.target, sizes, limit),
    };
    let told = match (&answer, &ask.wanted) {
        (Ok(answer), Some(wanted)) if answer == wanted => return None,
        (Err(_), None) => return None,
        (Ok(answer), _) => format!("{} saw {}", answer.pod, answer.source),
        (Err(error), _) => format!("{error:#}"),
    };
    let wanted = ask.wanted.as_ref().map_or_else(
        || "nothing".to_owned(),
        |wanted| format!("{} to see {}", wanted.pod, wanted.source),
    );
    Some(format!(
        "{} asks {} ({}, {transport}): {told}; wanted {wanted}",
        ask.asker, ask.what, ask.target
    ))
}

/// Each pod behind a Service answers some of the questions that one pod asks.
pub(crate) fn ensure_spread(lab: &Lab, asker: &str, service: &Service) -> Result<()> {
    // By chance one of three pods is left out of so many questions once in 10^17 times.
    let counts = answers(lab, asker, service, 100)?;
    ensure!(
        counts.len() == service.backends.len(),
        "{asker} was answered by {counts:?} only"
    );
    Ok(())
}

/// One pod behind a Service answers all that a pod asks.
pub(crate) fn ensure_sticky(lab: &Lab, asker: &str, service: &Service) -> Result<()> {
    let counts = answers(lab, asker, service, 30)?;
    ensure!(counts.len() == 1, "{asker} was answered by {counts:?}");
    Ok(())
}

/// How often each pod answers so many questions over connections of their own.
fn answers(lab: &Lab, asker: &str, service: &Service, questions: usize) -> Result<BTreeMap<String, usize>> {
    let target = service.cluster();
    lab.namespace(asker).within(|| {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for _ in 0..questions {
            *counts
                .entry(ask_tcp(target, Sizes::SMALL, ANSWERS_WITHIN)?.pod)
                .or_default() += 1;
        }
        Ok(counts)
    })
}
