//! The eBPF datapath in the lab: what encapsulates, that the node's firewall is obeyed, that a lane is proved before it is used,
//! and that a lane which stops answering is said.

mod forged;

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use podlane_e2e::capture::Capture;
use podlane_e2e::lab::{Lab, Options};
use podlane_e2e::metrics::Scrape;
use podlane_e2e::probe::ping_with;
use podlane_e2e::scenario::{Context, Scenario, run};
use podlane_e2e::story::{
    POLICY, SETTLED_WITHIN, apply, condition, ensure_all_answer, geneve, native_and_vxlan, vxlan,
    wait_for_condition, wait_until_ready, way,
};
use podlane_e2e::traffic::Stream;
use podlane_e2e::wait::wait_until;
use serde_json::json;

fn main() -> ExitCode {
    run(
        Options::named("datapath"),
        [
            Scenario::new("programs encapsulate, for vxlan and for geneve alike", programs),
            Scenario::new(
                "a flow that the stack accepts bypasses it, on every lane, and not where the policy says Off",
                bypass,
            ),
            Scenario::new(
                "a rule that drops ends an established flow within the lease, on either node",
                firewall,
            )
            .needs(&["nft"]),
            Scenario::new("a Service's answers are translated back", service).needs(&["nft"]),
            Scenario::new(
                "without programs the kernel's driver carries on",
                without_programs,
            ),
            Scenario::new("a lane carries traffic only once it is proved", unproved).needs(&["nft"]),
            Scenario::new(
                "a lane that stops answering is said within 3 seconds, with what is likely wrong",
                silent,
            )
            .needs(&["nft"]),
            Scenario::new("a network that cannot carry full-size packets is said", too_small),
            Scenario::new(
                "what is dropped is told by lane, peer and reason, and what passes by lane and peer",
                counted,
            ),
            Scenario::new(
                "what is forged is counted by lane and reason, in status and as a metric",
                forged::counted,
            ),
            Scenario::new("clean leaves nothing of ours and all of others'", clean).needs(&["tc"]),
        ],
    )
}

/// How long a flow may go on after the firewall has refused it: the lease, and the packets on their way.
const LEASE: Duration = Duration::from_millis(1500);

/// How long a lane may be silent before status says so.
const SAID_WITHIN: Duration = Duration::from_secs(3);

fn sent(lab: &Lab, node: &str, lane: &str) -> Result<f64> {
    let label = format!("lane=\"{lane}");
    Ok(Scrape::of(lab, node)?.sum("podlane_lane_sent_packets_total", &label))
}

fn bypassing(lab: &Lab, node: &str, lane: &str) -> Result<(f64, f64)> {
    let scrape = Scrape::of(lab, node)?;
    let label = format!("lane=\"{lane}");
    Ok((
        scrape.sum("podlane_lane_sent_bypassing_packets_total", &label),
        scrape.sum("podlane_lane_received_bypassing_packets_total", &label),
    ))
}

fn ready(lab: &Lab, spec: &serde_json::Value) -> Result<()> {
    apply(lab, spec)?;
    wait_until_ready(lab)
}

fn programs(context: &mut Context) -> Result<()> {
    let lab = context.lab()?;
    for (spec, lane) in [(vxlan(), "vxlan"), (geneve(), "geneve")] {
        ready(lab, &spec)?;
        let before = sent(lab, "k8s-ctr", lane)?;
        let router = Capture::start(lab, "router", "eth2", "udp")?;
        ensure_all_answer(lab)?;
        let seen = router.stop()?;
        let after = sent(lab, "k8s-ctr", lane)?;
        ensure!(
            after >= before + 8.0,
            "programs sent {before}, then {after} packets by {lane}"
        );
        let port = if lane == "vxlan" { 8472 } else { 6081 };
        let wrapped = seen.count(&format!(
            "udp dst port {port} and udp[39] = 1 and host 192.168.20.100"
        ))?;
        ensure!(wrapped >= 16, "the router saw {wrapped} packets of {lane}");
        let node = lab.kubectl()?.get(&["routingnode", "k8s-ctr"])?;
        ensure!(
            node["status"]["datapath"]["encapsulation"] == "eBPF",
            "status says {}",
            node["status"]["datapath"]
        );
    }
    Ok(())
}

fn bypass(context: &mut Context) -> Result<()> {
    let lab = context.lab()?;
    for (spec, lane) in [
        (vxlan(), "vxlan"),
        (geneve(), "geneve"),
        (native_and_vxlan(), "native"),
    ] {
        ready(lab, &spec)?;
        let to = if lane == "native" { "pod-w1-1" } else { "pod-w0-1" };
        let before = bypassing(lab, "k8s-ctr", lane)?.0;
        let stream = Stream::start(lab, "pod-ctr-1", to, 1000)?;
        sleep(Duration::from_secs(2));
        let report = stream.finish()?;
        ensure!(report.lost == 0 && report.duplicated == 0, "{lane}: {report:?}");
        let bypassed = bypassing(lab, "k8s-ctr", lane)?.0 - before;
        let expected = report.sent as f64;
        ensure!(
            bypassed > 0.9 * expected && bypassed < expected,
            "{lane}: {bypassed} of {expected} packets bypassed the stack"
        );
    }
    let mut off = vxlan();
    off["datapath"] = json!({"bypass": "Off"});
    ready(lab, &off)?;
    let before = bypassing(lab, "k8s-ctr", "vxlan")?;
    let stream = Stream::start(lab, "pod-ctr-1", "pod-w0-1", 1000)?;
    sleep(Duration::from_millis(500));
    let report = stream.finish()?;
    ensure!(report.lost == 0, "{report:?}");
    let after = bypassing(lab, "k8s-ctr", "vxlan")?;
    ensure!(before == after, "with bypass: Off {before:?} became {after:?}");
    Ok(())
}

/// Takes the table away however the scenario ends.
struct Table<'a>(&'a Lab, String);

impl<'a> Table<'a> {
    fn add(lab: &'a Lab, node: &str, rules: &str) -> Result<Self> {
        lab.namespace(node)
            .nft(&format!("add table inet test; {rules}"))?;
        Ok(Self(lab, node.to_owned()))
    }
}

impl Drop for Table<'_> {
    fn drop(&mut self) {
        // Where it is gone already there is nothing to do.
        let _ = self.0.namespace(&self.1).nft("delete table inet test");
    }
}

const DROP_FORWARDED: &str = "add chain inet test forward { type filter hook forward priority 0; }; \
     add rule inet test forward ip protocol udp ip saddr 172.20.0.0/16 drop";

fn firewall(context: &mut Context) -> Result<()> {
    let lab = context.lab()?;
    for (spec, to) in [
        (vxlan(), "pod-w0-1"),
        (geneve(), "pod-w0-1"),
        (native_and_vxlan(), "pod-w1-1"),
    ] {
        ready(lab, &spec)?;
        let receiving = if to == "pod-w0-1" { "k8s-w0" } else { "k8s-w1" };
        for node in ["k8s-ctr", receiving] {
            let stream = Stream::start(lab, "pod-ctr-1", to, 1000)?;
            sleep(Duration::from_millis(500));
            let table = Table::add(lab, node, DROP_FORWARDED)?;
            sleep(LEASE);
            let capture = Capture::start(lab, to, "eth0", "udp")?;
            sleep(Duration::from_millis(500));
            let through = capture.stop()?.count("")?;
            drop(table);
            ensure!(through == 0, "{through} packets passed the firewall of {node}");
            // And with the rule gone it flows again.
            let capture = Capture::start(lab, to, "eth0", "udp")?;
            sleep(Duration::from_millis(300));
            let through = capture.stop()?.count("")?;
            ensure!(through > 0, "no packets after the rule of {node} was gone");
            stream.finish()?;
        }
    }
    Ok(())
}

/// A Service as kube-proxy makes it: its address is translated where the pod's packets enter the stack.
fn service(context: &mut Context) -> Result<()> {
    let lab = context.lab()?;
    for spec in [vxlan(), geneve()] {
        ready(lab, &spec)?;
        let backend = lab.pod_address("pod-w0-1")?;
        let listener = lab
            .namespace("pod-w0-1")
            .within(|| TcpListener::bind("0.0.0.0:0").context("cannot listen"))?;
        let port = listener.local_addr()?.port();
        let rules = format!(
            "add chain inet test prerouting {{ type nat hook prerouting priority -100; }}; \
             add rule inet test prerouting ip daddr 10.96.0.10 tcp dport 80 dnat ip to {backend}:{port}"
        );
        let _table = Table::add(lab, "k8s-ctr", &rules)?;
        let server = thread::spawn(move || -> Result<()> {
            let (mut stream, _) = listener.accept()?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            std::io::copy(&mut stream.try_clone()?, &mut stream)?;
            Ok(())
        });
        lab.namespace("pod-ctr-1").within(|| {
            let service = SocketAddr::new(IpAddr::from([10, 96, 0, 10]), 80);
            let mut stream = TcpStream::connect_timeout(&service, Duration::from_secs(5))
                .context("the Service does not answer")?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            // Long enough for a flow to qualify for the bypass, if it did.
            for number in 0_u32..1000 {
                use std::io::{Read, Write};
                stream.write_all(&number.to_be_bytes())?;
                let mut answer = [0; 4];
                stream.read_exact(&mut answer)?;
                ensure!(answer == number.to_be_bytes(), "the wrong answer to {number}");
                sleep(Duration::from_millis(1));
            }
            Ok(())
        })?;
        server.join().map_err(|_| anyhow!("the backend panicked"))??;
    }
    Ok(())
}

fn without_programs(context: &mut Context) -> Result<()> {
    let lab = context.lab()?;
    ready(lab, &vxlan())?;
    lab.replace_agent_by_one_without_programs("k8s-w0")?;
    let result = wait_until(
        "k8s-w0 to say that the kernel encapsulates",
        SETTLED_WITHIN,
        || {
            let node = lab.kubectl()?.get(&["routingnode", "k8s-w0"])?;
            let datapath = &node["status"]["datapath"];
            ensure!(
                datapath["encapsulation"] == "Kernel" && datapath["bypass"] == "Off",
                "status says {datapath}"
            );
            ensure!(
                datapath["message"]
                    .as_str()
                    .is_some_and(|why| why.contains("BPF")),
                "no reason: {datapath}"
            );
            Ok(())
        },
    )
    .and_then(|()| wait_until_ready(lab))
    .and_then(|()| ensure_all_answer(lab));
    lab.agent("k8s-w0")?.kill()?;
    lab.start_agent("k8s-w0")?;
    result?;
    wait_until("k8s-w0 to encapsulate by programs again", SETTLED_WITHIN, || {
        let node = lab.kubectl()?.get(&["routingnode", "k8s-w0"])?;
        ensure!(node["status"]["datapath"]["encapsulation"] == "eBPF", "{node}");
        Ok(())
    })
}

/// A rule on the router that lets no packet to this UDP port pass.
fn filter(port: u16) -> String {
    format!(
        "add chain inet test forward {{ type filter hook forward priority 0; }}; \
         add rule inet test forward udp dport {port} drop"
    )
}

fn unproved(context: &mut Context) -> Result<()> {
    let lab = context.lab()?;
    ready(lab, &vxlan())?;
    let stream = Stream::start(lab, "pod-ctr-1", "pod-w0-1", 1000)?;
    let table = Table::add(lab, "router", &filter(6081))?;
    apply(lab, &geneve())?;
    let message = wait_until(
        "k8s-ctr to say that geneve does not answer",
        SETTLED_WITHIN,
        || {
            let (status, reason, message) = condition(lab, "routingnode", "k8s-ctr", "Ready")?;
            ensure!(
                status == "False" && reason == "LaneSilent",
                "it is {status}, {reason}: {message}"
            );
            Ok(message)
        },
    )?;
    ensure!(
        message.contains("6081") && message.contains("k8s-w0"),
        "no advice: {message}"
    );
    ensure!(
        way(lab, "k8s-ctr", "172.20.2.0/24")? == "encap 192.168.20.100",
        "the lane was left"
    );
    drop(table);
    wait_until_ready(lab)?;
    let report = stream.finish()?;
    ensure!(report.lost == 0 && report.duplicated == 0, "{report:?}");
    Ok(())
}

fn silent(context: &mut Context) -> Result<()> {
    let lab = context.lab()?;
    ready(lab, &vxlan())?;
    // A busy machine may stand still for longer than that: it is to be said in time, not every time.
    let mut late = Vec::new();
    for _ in 0..3 {
        let said = silence_is_said(lab)?;
        if said <= SAID_WITHIN {
            return Ok(());
        }
        late.push(said);
    }
    bail!("not said in time: {late:?}")
}

/// Filters a tunnel's port; the time after which status did not say so yet.
fn silence_is_said(lab: &Lab) -> Result<Duration> {
    let table = Table::add(lab, "router", &filter(8472))?;
    let begun = Instant::now();
    let mut last_asked = Duration::ZERO;
    let message = wait_until("k8s-ctr to say that its lane is silent", SETTLED_WITHIN, || {
        // To ask may take long, too: what counts is when it was asked.
        last_asked = begun.elapsed();
        let (status, reason, message) = condition(lab, "routingnode", "k8s-ctr", "Ready")?;
        ensure!(
            status == "False" && reason == "LaneSilent",
            "it is {status}, {reason}: {message}"
        );
        Ok(message)
    })?;
    drop(table);
    ensure!(
        message.contains("8472") && message.contains("k8s-w0") && !message.contains("k8s-w1"),
        "no advice: {message}"
    );
    wait_until_ready(lab)?;
    Ok(last_asked)
}

fn too_small(context: &mut Context) -> Result<()> {
    let lab = context.lab()?;
    ready(lab, &vxlan())?;
    let router = lab.namespace("router");
    router.ip(&["link", "set", "eth2", "mtu", "1400"])?;
    let result = wait_for_condition(lab, "routingnode", "k8s-ctr", "Ready", "False", "LaneTooSmall")
        .and_then(|message| {
            for word in ["k8s-w0", "no packets of 1500 bytes", "Lower spec.mtu (now 1450)"] {
                ensure!(message.contains(word), "{word:?} is not in {message}");
            }
            // What the narrow link carries, less the tunnel's overhead, is found soon after, and to be done as advised.
            wait_until("advice with a length", SETTLED_WITHIN, || {
                let (_, _, message) = condition(lab, "routingnode", "k8s-ctr", "Ready")?;
                let advice = "but some of 1400 bytes. Lower spec.mtu (now 1450) to 1350,";
                ensure!(message.contains(advice), "it is {message}");
                Ok(())
            })?;
            let mut narrow = vxlan();
            narrow["mtu"] = json!(1350);
            ready(lab, &narrow)
        });
    router.ip(&["link", "set", "eth2", "mtu", "1500"])?;
    result?;
    ready(lab, &vxlan())
}

/// Plain packets from beyond the router that claim to come from one of k8s-w0's pods, where no native lane leads to it.
fn counted(context: &mut Context) -> Result<()> {
    const FORGED: u32 = 20;
    let lab = context.lab()?;
    ready(lab, &vxlan())?;
    let figures = || -> Result<[f64; 3]> {
        let scrape = Scrape::of(lab, "k8s-ctr")?;
        let of_peer = |what: &str, label: &str| {
            let name = format!("podlane_peer_{what}_packets_total");
            scrape.sum(&name, &format!("peer=\"k8s-w0\"{label}"))
        };
        Ok([
            of_peer("dropped", ",reason=\"PlainPodSource\""),
            of_peer("sent", ""),
            of_peer("received", ""),
        ])
    };
    let before = figures()?;
    let router = lab.namespace("router");
    router.ip(&["address", "add", "172.20.2.99/32", "dev", "lo"])?;
    let forged = ping_with(
        lab,
        "router",
        "192.168.10.100".parse()?,
        FORGED,
        &["-i", "0.01", "-I", "172.20.2.99"],
    );
    router.ip(&["address", "delete", "172.20.2.99/32", "dev", "lo"])?;
    let forged = forged?;
    ensure!(forged.replies == 0, "{}", forged.output);
    ensure_all_answer(lab)?;
    let after = figures()?;
    ensure!(
        after[0] - before[0] == f64::from(FORGED)
            && after[1] >= before[1] + 4.0
            && after[2] >= before[2] + 4.0,
        "dropped of k8s-w0's, sent to it and received from it: {before:?}, then {after:?}"
    );
    // An agent that has nothing to do looks every half minute.
    ready(lab, &geneve())?;
    // Shown in steps of an eighth.
    let (least, most) = (after[0] * 8.0 / 9.0, after[0]);
    wait_until(
        "status to say by lane and by peer what was dropped",
        SETTLED_WITHIN,
        || {
            let node = lab.kubectl()?.get(&["routingnode", "k8s-ctr"])?;
            let dropped = node["status"]["dropped"].as_array().context("nothing dropped")?;
            for (lane, peer) in [(json!("native"), json!(null)), (json!(null), json!("k8s-w0"))] {
                let is_it = |one: &&serde_json::Value| {
                    one["reason"] == "PlainPodSource" && one["lane"] == lane && one["peer"] == peer
                };
                let packets = dropped.iter().find(is_it).and_then(|one| one["packets"].as_f64());
                ensure!(
                    packets.is_some_and(|packets| (least..=most).contains(&packets)),
                    "{lane}, {peer}: {dropped:?}"
                );
            }
            Ok(())
        },
    )
}

fn clean(context: &mut Context) -> Result<()> {
    let lab = context.lab()?;
    ready(lab, &vxlan())?;
    let node = lab.namespace("k8s-w1");
    let foreign = ["qdisc", "add", "dev", "eth0", "clsact"];
    let output = node
        .command("tc")
        .args(foreign)
        .output()
        .context("cannot run tc")?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    lab.agent("k8s-w1")?.kill()?;
    lab.clean_agent("k8s-w1")?;
    let pins = lab.bpffs("k8s-w1")?.join("podlane");
    let left: Vec<_> = std::fs::read_dir(&pins).into_iter().flatten().flatten().collect();
    let links = node.ip(&["-br", "link"])?;
    let qdiscs = node
        .command("tc")
        .args(["qdisc", "show", "dev", "eth0"])
        .output()?;
    let qdiscs = String::from_utf8_lossy(&qdiscs.stdout).into_owned();
    lab.start_agent("k8s-w1")?;
    node.command("tc")
        .args(["qdisc", "del", "dev", "eth0", "clsact"])
        .output()?;
    ensure!(left.is_empty(), "pins are left: {left:?}");
    ensure!(!links.contains("podlane_"), "{links}");
    ensure!(
        qdiscs.contains("clsact"),
        "somebody else's qdisc is gone: {qdiscs}"
    );
    wait_for_condition(lab, "routingpolicy", POLICY, "Ready", "True", "AsDeclared").map(drop)
}
