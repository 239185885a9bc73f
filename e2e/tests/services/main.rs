//! Services by real kube-proxies, hostPorts by the real plugins, and NetworkPolicies, over every lane: who is answered, and as whom the server
//! sees him (https://kubernetes.io/docs/reference/networking/virtual-ips/).

mod asks;
mod conversations;
mod host_ports;
mod over;
mod policies;
mod proxies;
mod servers;
mod workload;

use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use podlane_e2e::capture::Capture;
use podlane_e2e::lab::{Lab, Options};
use podlane_e2e::metrics::Scrape;
use podlane_e2e::netns::Namespace;
use podlane_e2e::programs::ClusterPrograms;
use podlane_e2e::scenario::{Context, Scenario, run};
use podlane_e2e::story::{POLICY, apply, wait_until_ready};
use podlane_e2e::topology::{Families, INTERNET, ROUTER, Topology};
use podlane_e2e::traffic::Connection;
use podlane_e2e::wait::{pause, wait_until};

use asks::{ensure_all, ensure_spread, ensure_sticky};
use conversations::Conversation;
use host_ports::Hosted;
use over::Over;
use proxies::{Mode, Proxies};
use servers::{PORT, Sizes, ask_tcp};
use workload::Workload;

fn main() -> ExitCode {
    let missing = ClusterPrograms::find()
        .err()
        .map(|error| format!("{error:#}"))
        .or_else(host_ports::missing);
    run(
        Options::named("services"),
        [
            Scenario::new("kube-proxy in nftables mode, over every lane", |context| {
                let lanes = [
                    Over::Vxlan,
                    Over::Geneve,
                    Over::Native,
                    Over::ThroughTheStack,
                    Over::Kernel,
                ];
                with_proxies(context, Mode::Nftables, &lanes)
            })
            .needs(&["nft", "iptables"])
            .lacks(missing.clone()),
            Scenario::new("kube-proxy in iptables mode, over every lane", |context| {
                let lanes = [Over::Native, Over::ThroughTheStack, Over::Vxlan, Over::Geneve];
                with_proxies(context, Mode::Iptables, &lanes)
            })
            .needs(&["nft", "iptables"])
            .lacks(missing.clone()),
            Scenario::new(
                "kube-proxy by the older iptables, natively and over a tunnel",
                |context| with_proxies(context, Mode::IptablesLegacy, &[Over::Native]),
            )
            .needs(&["nft", "iptables-legacy"])
            .lacks(missing.clone().or_else(legacy_missing)),
            Scenario::new(
                "kube-proxy in nftables mode in a cluster of IPv6, natively and over tunnels",
                |context| {
                    with_proxies_by_ipv6(
                        context,
                        Mode::Nftables,
                        &[Over::Native, Over::Vxlan, Over::Geneve],
                    )
                },
            )
            .needs(&["nft", "ip6tables"])
            .lacks(missing.clone()),
            Scenario::new(
                "kube-proxy in iptables mode in a cluster of IPv6, natively and over a tunnel",
                |context| with_proxies_by_ipv6(context, Mode::Iptables, &[Over::Native, Over::Vxlan]),
            )
            .needs(&["nft", "ip6tables"])
            .lacks(missing.clone()),
            Scenario::new(
                "kube-proxy in nftables mode in a cluster of both families, natively and over a tunnel",
                |context| {
                    let topology = Topology::seed(2).in_families(Families::Both, Families::Both);
                    let lab = context.lab_on("both", topology)?;
                    everything(lab, Mode::Nftables, &[Over::Native, Over::Vxlan])
                },
            )
            .needs(&["nft", "iptables", "ip6tables"])
            .lacks(missing),
        ],
    )
}

/// A flow that has gone on for so long bypasses the stack where it may.
const LONGER_THAN_THE_LEASE: Duration = Duration::from_millis(1500);

/// How long rules of kube-proxy may take to come, and to go.
const SYNCED_WITHIN: Duration = Duration::from_secs(240);

/// Whether the kernel has the older tables.
fn legacy_missing() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return None;
    }
    let name = format!("podlane-iptables-{}", std::process::id());
    let namespace = podlane_e2e::netns::TemporaryNamespace::add(&name).ok()?;
    let output = namespace
        .command("iptables-legacy")
        .args(["-t", "nat", "-S"])
        .output()
        .ok()?;
    (!output.status.success()).then(|| {
        format!(
            "this kernel has no tables for iptables-legacy: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        )
    })
}

fn with_proxies(context: &mut Context, mode: Mode, lanes: &[Over]) -> Result<()> {
    everything(context.lab()?, mode, lanes)
}

/// The same in a cluster of IPv6 alone.
fn with_proxies_by_ipv6(context: &mut Context, mode: Mode, lanes: &[Over]) -> Result<()> {
    let topology = Topology::seed(2).in_families(Families::Six, Families::Six);
    everything(context.lab_on("IPv6", topology)?, mode, lanes)
}

fn everything(lab: &mut Lab, mode: Mode, lanes: &[Over]) -> Result<()> {
    let first = lanes.first().context("no lanes")?;
    start_agents(lab, *first)?;
    apply(lab, &first.spec())?;
    let workloads = Workload::of_families(lab)?;
    let proxies = Proxies::start(lab, mode)?;
    wait_until_ready(lab)?;
    let hosted = ["k8s-ctr", "k8s-w0"]
        .iter()
        .map(|node| Hosted::start(lab, node))
        .collect::<Result<Vec<_>>>()?;
    let mut going_on = Vec::new();
    for workload in &workloads {
        wait_for_rules(lab, &proxies, workload)?;
        going_on.extend(lasting(lab, workload)?);
    }
    let mut before = *first;
    for over in lanes {
        if (before == Over::Kernel) != (*over == Over::Kernel) {
            start_agents(lab, *over)?;
        }
        before = *over;
        apply(lab, &over.spec())?;
        wait_until_ready(lab)?;
        for conversation in &going_on {
            conversation
                .ensure_goes_on()
                .with_context(|| format!("from lane to lane, {over:?}"))?;
        }
        for workload in &workloads {
            holds(lab, *over, workload, &hosted, mode).with_context(|| format!("{over:?}"))?;
        }
    }
    for conversation in going_on {
        conversation.finish()?;
    }
    hosted.into_iter().try_for_each(|pod| pod.end(lab))?;
    proxies.ensure_run()?;
    proxies.clean(lab)?;
    for workload in workloads {
        for node in &workload.topology.nodes {
            ensure_silent(&lab.namespace(&node.name), workload.spread.cluster())?;
        }
        workload.delete(lab)?;
    }
    lab.kubectl()?.run(&["delete", "routingpolicy", POLICY]).map(drop)
}

/// Has every node's agent connect pods, and masquerade; without programs where the kernel is to carry everything.
fn start_agents(lab: &mut Lab, over: Over) -> Result<()> {
    for node in lab.topology().nodes.clone() {
        let configurations = host_ports::configurations(lab, &node.name);
        std::fs::create_dir_all(&configurations)?;
        lab.agent(&node.name)?.kill()?;
        let place = if over == Over::Kernel {
            lab.clean_agent(&node.name)?;
            lab.place_without_pins()?
        } else {
            lab.bpffs(&node.name)?.join("podlane")
        };
        let (place, configurations) = (place.display().to_string(), configurations.display().to_string());
        lab.start_agent_with(
            &node.name,
            &["--bpffs", &place, "--cni-conf-dir", &configurations],
        )?;
    }
    Ok(())
}

/// Everything that is to hold over a lane.
fn holds(lab: &Lab, over: Over, workload: &Workload, hosted: &[Hosted], mode: Mode) -> Result<()> {
    // No packet of a pod's, and none to a Service's address, is on the way between nodes as it is; what is wrapped has the nodes' own addresses.
    let router = Capture::start(
        lab,
        ROUTER,
        "any",
        "(ip and (net 172.20.0.0/16 or net 10.96.0.0/16)) or (ip6 and (net fd00:172::/32 or net fd00:10:96::/112))",
    )?;
    let (begun, before) = (Instant::now(), bypassed(lab, over)?);
    let (server, _) = over.remote();
    let direct = Conversation::start(
        lab,
        "pod-ctr-1",
        SocketAddr::new(workload.pod_address(server)?, PORT),
    )?;
    // As much as it can, beside the rules of kube-proxy that drop what connection tracking calls invalid.
    let bulk = Connection::start(lab, "pod-ctr-2", server, 2000)?;

    let mut asks = asks::all(workload)?;
    for pod in hosted {
        asks.extend(pod.asks(&workload.topology)?);
    }
    let (answered, silent) = ensure_all(lab, &asks, over.sizes())?;
    say(&format!(
        "{mode:?}, {over:?}, {}: {answered} answered, {silent} rightly not, over TCP and UDP, {:.1} s",
        workload.spread.family(),
        begun.elapsed().as_secs_f64()
    ));
    ensure_spread(lab, "pod-ctr-1", &workload.spread)?;
    ensure_spread(lab, "pod-w0-2", &workload.spread)?;
    for asker in ["pod-ctr-1", "pod-w1-1", "pod-w0-1"] {
        ensure_sticky(lab, asker, &workload.sticky)?;
    }
    api_server_answers(lab)?;

    pause(LONGER_THAN_THE_LEASE.saturating_sub(begun.elapsed()))?;
    direct.ensure_goes_on()?;
    direct.finish()?;
    let report = bulk.finish()?;
    ensure!(report.octets > 4 << 20, "it stalled: {report:?}");
    let bypassed = bypassed(lab, over)? - before;
    ensure!(
        if over.bypasses() {
            bypassed > 100.0
        } else {
            bypassed == 0.0
        },
        "{bypassed} packets bypassed the stack"
    );
    if mode == Mode::Nftables {
        policies::honoured(lab, over, workload).context("a NetworkPolicy")?;
    }
    let seen = router.stop()?;
    let leaked = seen.lines("")?;
    ensure!(
        leaked.is_empty(),
        "{} packets at the router, such as {:?}",
        leaked.len(),
        leaked.first()
    );
    Ok(())
}

/// Packets that have left k8s-ctr past the stack.
fn bypassed(lab: &Lab, over: Over) -> Result<f64> {
    Ok(Scrape::of(lab, "k8s-ctr")?.sum("podlane_lane_sent_bypassing_packets_total", over.label()))
}

/// Connections that go on while lanes change, to a pod on the same link and to one across the router: by a Service from a pod, from a node, and from
/// outside by another node's port; and a node's own to the pod itself.
fn lasting(lab: &Lab, workload: &Workload) -> Result<Vec<Conversation>> {
    let ctr = workload.topology.node("k8s-ctr").context("a node")?;
    let mut conversations = Vec::new();
    for pod in ["pod-w1-1", "pod-w0-1"] {
        let service = workload.of(pod)?;
        for (from, target) in [
            ("pod-ctr-2", service.cluster()),
            ("k8s-ctr", service.cluster()),
            (INTERNET, service.node_port(ctr)?),
            ("k8s-ctr", SocketAddr::new(workload.pod_address(pod)?, PORT)),
        ] {
            conversations.push(Conversation::start(lab, from, target)?);
        }
    }
    Ok(conversations)
}

/// Pods reach the API server by its Service, whose pod has its node's own address: two translations of one flow, kube-proxy's and Podlane's.
fn api_server_answers(lab: &Lab) -> Result<()> {
    use std::io::{Read as _, Write as _};
    let is_ipv6 = lab.pod_address("pod-ctr-1")?.is_ipv6();
    let service: IpAddr = if is_ipv6 { "fd00:10:96::1" } else { "10.96.0.1" }.parse()?;
    let target = SocketAddr::new(service, 443);
    for pod in ["pod-ctr-1", "pod-w1-1", "pod-w0-1"] {
        let answer = lab.namespace(pod).within(|| {
            let mut stream = servers::connect(target, Duration::from_secs(20))?;
            stream.write_all(b"GET /readyz HTTP/1.0\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        });
        let answer = answer.with_context(|| format!("{pod} to the API server"))?;
        // It has no certificate to offer to who does not speak TLS, but words.
        ensure!(answer.contains("HTTPS server"), "{pod}: {answer}");
    }
    Ok(())
}

/// Waits until every node's kube-proxy leads to the pods.
fn wait_for_rules(lab: &Lab, proxies: &Proxies, workload: &Workload) -> Result<()> {
    for node in &lab.topology().nodes {
        wait_until(
            &format!("kube-proxy's rules on {}", node.name),
            SYNCED_WITHIN,
            || {
                proxies.ensure_run()?;
                lab.namespace(&node.name)
                    .within(|| ask_tcp(workload.spread.cluster(), Sizes::SMALL, Duration::from_secs(1)))
            },
        )?;
    }
    Ok(())
}

fn ensure_silent(namespace: &Namespace, target: SocketAddr) -> Result<()> {
    let answer = namespace.within(|| Ok(ask_tcp(target, Sizes::SMALL, Duration::from_secs(1))))?;
    ensure!(answer.is_err(), "{target} still answers: {answer:?}");
    Ok(())
}

#[allow(
    clippy::print_stderr,
    reason = "a test program tells on standard error what it counted"
)]
fn say(line: &str) {
    eprintln!("{line}");
}
