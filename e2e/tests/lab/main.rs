//! The lab itself: without Podlane it shows the seed's fault, its stream counts exactly, and nothing of it stays.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test program")]

mod life;

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use podlane_e2e::capture::Capture;
use podlane_e2e::control_plane::Identity;
use podlane_e2e::lab::{Extent, Options, while_frozen};
use podlane_e2e::probe::{ping, routes_to};
use podlane_e2e::scenario::{Context, Scenario, run};
use podlane_e2e::traffic::{Range, Stream};
use podlane_e2e::wait::{pause, wait_until};

fn main() -> ExitCode {
    let options = Options {
        extent: Extent::Types,
        ..Options::named("lab")
    };
    run(
        options,
        [
            Scenario::new(
                "without podlane the router sends pod traffic to the internet",
                the_seeds_fault,
            ),
            Scenario::new(
                "neighbours on a link do not need the router",
                neighbours_on_a_link,
            ),
            Scenario::new("a stream within a node loses nothing", stream_within_a_node),
            Scenario::new("a stream to nowhere loses everything", stream_to_nowhere),
            Scenario::new(
                "a stream names the numbers that an outage took",
                stream_with_an_outage,
            ),
            Scenario::new("the api server has the seed's nodes", the_seeds_nodes),
            Scenario::new("the api server can be frozen and taken away", api_server_away),
            Scenario::new("an agent may not do what an operator may", identities_differ),
            Scenario::new("a capture decodes a tunnel made by hand", tunnel_by_hand).needs(&["tshark"]),
            Scenario::new("down leaves nothing", life::down_leaves_nothing),
            Scenario::new("up twice is refused and touches nothing", life::up_twice),
            Scenario::new(
                "a namespace of somebody else is not touched",
                life::foreign_namespace,
            ),
            Scenario::new("what a killed up leaves is taken down", life::killed_up),
            Scenario::new("an interrupted up leaves nothing", life::interrupted_up),
            Scenario::new(
                "the processes of a lab that does not stay die with it",
                life::killed_foreground,
            ),
        ],
    )
}

fn the_seeds_fault(context: &mut Context) -> Result<()> {
    let lab = context.lab()?;
    let target = lab.pod_address("pod-w0-1")?;
    ensure!(
        routes_to(lab, "k8s-ctr", "172.20.2.0/24")?.is_empty(),
        "a lab without Podlane has no such route"
    );
    let outside = Capture::start(lab, "internet", "eth0", &format!("icmp and dst host {target}"))?;
    let answer = ping(lab, "pod-ctr-1", target, 3)?;
    let outside = outside.stop()?;
    ensure!(
        answer.replies == 0 && answer.errors.is_empty(),
        "{}",
        answer.output
    );
    ensure!(outside.count("")? == 3, "{:?}", outside.lines("")?);
    Ok(())
}

fn neighbours_on_a_link(context: &mut Context) -> Result<()> {
    let lab = context.lab()?;
    let neighbour = "192.168.10.101".parse()?;
    let across = "192.168.20.100".parse()?;
    let at_router = Capture::start(lab, "router", "eth1", "icmp")?;
    ensure!(
        ping(lab, "k8s-ctr", neighbour, 2)?.all_answered(),
        "k8s-ctr does not reach k8s-w1"
    );
    ensure!(
        ping(lab, "k8s-ctr", across, 2)?.all_answered(),
        "k8s-ctr does not reach k8s-w0"
    );
    let at_router = at_router.stop()?;
    ensure!(
        at_router.count(&format!("host {neighbour}"))? == 0,
        "{:?}",
        at_router.lines("")?
    );
    ensure!(
        at_router.count(&format!("host {across}"))? == 4,
        "{:?}",
        at_router.lines("")?
    );
    Ok(())
}

fn stream_within_a_node(context: &mut Context) -> Result<()> {
    let lab = context.lab()?;
    let stream = Stream::start(lab, "pod-ctr-1", "pod-ctr-2", 10_000)?;
    // Bursts are bounded, so a busy machine makes it slower.
    pause(Duration::from_secs(3))?;
    let report = stream.finish()?;
    ensure!(report.sent > 5_000, "too slow: {report:?}");
    ensure!(report.lost == 0 && report.received == report.sent, "{report:?}");
    ensure!(
        report.duplicated == 0 && report.lost_ranges.is_empty(),
        "{report:?}"
    );
    Ok(())
}

fn stream_to_nowhere(context: &mut Context) -> Result<()> {
    let lab = context.lab()?;
    let stream = Stream::start(lab, "pod-ctr-1", "pod-w0-1", 1000)?;
    pause(Duration::from_millis(300))?;
    let report = stream.finish()?;
    ensure!(
        report.sent > 100 && report.lost == report.sent && report.received == 0,
        "{report:?}"
    );
    ensure!(
        report.lost_ranges
            == [Range {
                first: 0,
                last: report.sent - 1
            }],
        "{report:?}"
    );
    // And where the pod's own kernel refuses each packet, the count goes on.
    let pod = lab.namespace("pod-ctr-1");
    pod.ip(&["route", "add", "unreachable", "192.0.2.0/24"])?;
    let stream = Stream::start_to(lab, "pod-ctr-1", "pod-w0-1", "192.0.2.1".parse()?, 1000, 64)?;
    pause(Duration::from_millis(300))?;
    let report = stream.finish();
    pod.ip(&["route", "delete", "unreachable", "192.0.2.0/24"])?;
    let report = report?;
    ensure!(report.sent > 100 && report.lost == report.sent, "{report:?}");
    ensure!(report.refused.values().sum::<u64>() == report.sent, "{report:?}");
    Ok(())
}

fn stream_with_an_outage(context: &mut Context) -> Result<()> {
    let lab = context.lab()?;
    let node = lab.namespace("k8s-ctr");
    let stream = Stream::start(lab, "pod-ctr-1", "pod-ctr-2", 1000)?;
    pause(Duration::from_millis(200))?;
    node.ip(&["route", "add", "blackhole", "172.20.0.11/32", "metric", "1"])?;
    node.ip(&["route", "delete", "172.20.0.11/32", "dev", "pod-ctr-2"])?;
    pause(Duration::from_millis(200))?;
    node.ip(&[
        "route",
        "add",
        "172.20.0.11/32",
        "dev",
        "pod-ctr-2",
        "scope",
        "host",
    ])?;
    node.ip(&["route", "delete", "blackhole", "172.20.0.11/32", "metric", "1"])?;
    pause(Duration::from_millis(200))?;
    let report = stream.finish()?;
    let [outage] = report.lost_ranges[..] else {
        bail!("one outage, but {report:?}")
    };
    ensure!(
        report.lost == outage.last - outage.first + 1 && report.lost > 50,
        "{report:?}"
    );
    ensure!(outage.first > 0 && outage.last < report.sent - 1, "{report:?}");
    ensure!(report.sent == report.received + report.lost, "{report:?}");
    Ok(())
}

/// The kernel's own tunnel between k8s-ctr and k8s-w0, as somebody would make it by hand.
const TUNNEL_BY_HAND: [(&str, &str, &str, &str, &str, &str); 2] = [
    (
        "k8s-ctr",
        "02:00:00:00:00:01",
        "02:00:00:00:00:02",
        "172.20.2",
        "172.20.0.1",
        "192.168.20.100",
    ),
    (
        "k8s-w0",
        "02:00:00:00:00:02",
        "02:00:00:00:00:01",
        "172.20.0",
        "172.20.2.1",
        "192.168.10.100",
    ),
];

fn tunnel_by_hand(context: &mut Context) -> Result<()> {
    let lab = context.lab()?;
    for (node, own, peer, cidr, source, outer) in TUNNEL_BY_HAND {
        lab.namespace(node).ip_batch(&[
            format!("link add byhand address {own} type vxlan external dstport 8472 nolearning"),
            "link set byhand up".to_owned(),
            format!("neigh add {cidr}.1 lladdr {peer} dev byhand nud permanent"),
            format!(
                "route add {cidr}.0/24 encap ip id 1 dst {outer} ttl 64 via {cidr}.1 dev byhand onlink src {source} mtu 1450"
            ),
        ])?;
    }
    let routes = routes_to(lab, "k8s-ctr", "172.20.2.0/24")?;
    ensure!(
        routes.len() == 1 && routes[0]["prefsrc"] == "172.20.0.1",
        "{routes:?}"
    );
    ensure!(
        routes[0]["dev"] == "byhand" && routes[0]["encap"] == "ip",
        "{routes:?}"
    );
    let capture = Capture::start(lab, "router", "eth2", "ip")?;
    let answer = ping(lab, "pod-ctr-1", lab.pod_address("pod-w0-1")?, 3)?;
    let capture = capture.stop()?;
    for (node, ..) in TUNNEL_BY_HAND {
        lab.namespace(node).ip(&["link", "delete", "byhand"])?;
    }
    ensure!(answer.all_answered(), "{}", answer.output);
    ensure!(
        capture.count("udp port 8472")? == 6 && capture.count("net 172.20.0.0/16")? == 0,
        "{:?}",
        capture.lines("")?
    );
    let requests = capture.fields(8472, "icmp.type == 8", &["vxlan.vni", "ip.src", "ip.dst"])?;
    ensure!(requests.len() == 3, "{requests:?}");
    for request in requests {
        ensure!(
            request == ["1", "192.168.10.100,172.20.0.10", "192.168.20.100,172.20.2.10"],
            "{request:?}"
        );
    }
    Ok(())
}

fn the_seeds_nodes(context: &mut Context) -> Result<()> {
    let nodes = context.lab()?.kubectl()?.get(&["nodes"])?;
    let nodes = nodes["items"].as_array().context("no list of nodes")?;
    let seen: BTreeSet<String> = nodes
        .iter()
        .map(|node| {
            let text = |pointer| {
                node.pointer(pointer)
                    .and_then(serde_json::Value::as_str)
                    .unwrap_or("-")
            };
            format!(
                "{} {} {}",
                text("/metadata/name"),
                text("/status/addresses/0/address"),
                text("/spec/podCIDR")
            )
        })
        .collect();
    let expected = [
        "k8s-ctr 192.168.10.100 172.20.0.0/24",
        "k8s-w0 192.168.20.100 172.20.2.0/24",
        "k8s-w1 192.168.10.101 172.20.1.0/24",
    ];
    ensure!(seen.iter().eq(&expected), "{seen:?}");
    Ok(())
}

fn api_server_away(context: &mut Context) -> Result<()> {
    let control_plane = context.lab()?.control_plane()?;
    let kubectl = control_plane.kubectl().clone();
    let ask = || kubectl.run(&["get", "--raw=/livez", "--request-timeout=1s"]);
    ask()?;
    while_frozen(control_plane.apiserver(), || {
        ensure!(ask().is_err(), "a frozen API server has answered");
        Ok(())
    })?;
    wait_until(
        "an API server that runs again to answer",
        Duration::from_secs(20),
        &ask,
    )?;
    control_plane.stop_apiserver()?;
    ensure!(ask().is_err(), "an API server that was stopped has answered");
    control_plane.start_apiserver()?;
    kubectl.run(&["get", "node", "k8s-w0"]).map(drop)
}

fn identities_differ(context: &mut Context) -> Result<()> {
    let lab = context.lab()?;
    let admin = lab.kubectl()?.clone();
    let may = |identity: &[&str], action: &[&str]| {
        let question: Vec<&str> = ["auth", "can-i"]
            .iter()
            .chain(action)
            .chain(identity)
            .copied()
            .collect();
        // `can-i` says no by its exit code too.
        admin.run(&question).is_ok_and(|answer| answer.trim() == "yes")
    };
    let operator = |action: &[&str]| may(&["--as=podlane-operator", "--as-group=podlane"], action);
    let agent = |action: &[&str]| {
        may(
            &["--as=podlane-agent:k8s-w0", "--as-group=podlane:agents"],
            action,
        )
    };
    for action in [&["create", "peerslices.podlane.io"], &["watch", "nodes"]] {
        ensure!(operator(action) && !agent(action), "{action:?}");
    }
    let (node, status) = ("routingnodes.podlane.io", "--subresource=status");
    ensure!(agent(&["patch", node, status]) && !agent(&["patch", node]));
    for action in [
        &["patch", "nodes"],
        &["get", "secrets"],
        &["patch", "routingpolicies.podlane.io"],
    ] {
        ensure!(!operator(action) && !agent(action), "{action:?}");
    }

    // The certificate is one that the API server knows the identity by, from within a node.
    let node = lab.topology().node("k8s-w0").context("no k8s-w0")?.clone();
    let kubeconfig = lab
        .control_plane()?
        .kubeconfig_for(&Identity::Agent(node.name.clone()), &node)?;
    let environment = lab.kubectl()?.environment();
    let output = lab
        .namespace("k8s-w0")
        .command("kubectl")
        .args(["auth", "whoami", "-o", "jsonpath={.status.userInfo.username}"])
        .envs(environment)
        .env("KUBECONFIG", kubeconfig)
        .output()?;
    let name = String::from_utf8_lossy(&output.stdout);
    ensure!(
        name == "podlane-agent:k8s-w0",
        "{name} {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
