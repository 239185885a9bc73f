//! What pods are numbered from, how a runtime is told to connect them, and as whom they speak beyond the cluster.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, ensure};
use ipnet::IpNet;
use podlane_e2e::capture::Capture;
use podlane_e2e::lab::{Lab, Options};
use podlane_e2e::probe::ping;
use podlane_e2e::programs;
use podlane_e2e::scenario::{Context, Scenario, run};
use podlane_e2e::story::{
    ENDS_WITHIN, POLICY, SETTLED_WITHIN, apply, condition, ensure_all_answer, ensure_refused,
    native_and_vxlan, vxlan, wait_for_condition, wait_until_ready, way,
};
use podlane_e2e::topology::{Pod, Topology};
use podlane_e2e::wait::wait_until;
use serde_json::{Value, json};

fn main() -> ExitCode {
    run(
        Options::named("pods"),
        [
            Scenario::new(
                "nodes without pod CIDRs have a block of the pool each, whatever becomes of the operator",
                blocks_of_a_pool,
            ),
            Scenario::new(
                "nodes with a block of each family's pool: lanes carry their pods, and the CNI configuration numbers them from it",
                routed_blocks,
            ),
            Scenario::new("a pool that makes no sense is refused in words", nonsense_pools),
            Scenario::new(
                "pods are connected once lanes are proved, and speak beyond the cluster as their node",
                connected,
            ),
        ],
    )
}

const NODES: [&str; 3] = ["k8s-ctr", "k8s-w1", "k8s-w0"];

fn blocks_of_a_pool(context: &mut Context) -> Result<()> {
    // Eight blocks, of which the lab's three nodes have three.
    const POOL: [&str; 2] = ["--cluster-pool-ipv4-pod-cidr-list", "172.20.0.0/21"];
    let names: Vec<String> = (1..=6).map(|number| format!("pooled-{number}")).collect();
    let lab = context.lab()?;
    lab.operator()?.stop(ENDS_WITHIN)?;
    lab.start_operator_with(&POOL)?;
    let nodes: Vec<Value> = names
        .iter()
        .zip(1..)
        .map(|(name, host)| node(name, host))
        .collect();
    let list = json!({"apiVersion": "v1", "kind": "List", "items": nodes});
    lab.kubectl()?.create(&list.to_string())?;
    let message = wait_for_condition(
        lab,
        "routingnode",
        "pooled-6",
        "Accepted",
        "False",
        "PodCIDRPoolEmpty",
    )?;
    ensure!(message.contains("no block is left in 172.20.0.0/21"), "{message}");
    let given = blocks(lab, &names[..5])?;
    let wanted: BTreeSet<String> = (3..8).map(|number| format!("172.20.{number}.0/24")).collect();
    ensure!(
        given.iter().cloned().collect::<BTreeSet<_>>() == wanted,
        "{given:?}"
    );

    // Another operator knows what the last one gave, and a block comes back with its node.
    lab.operator()?.stop(ENDS_WITHIN)?;
    lab.start_operator_with(&POOL)?;
    lab.kubectl()?.run(&["delete", "node", "pooled-2"])?;
    wait_for_condition(lab, "routingnode", "pooled-6", "Accepted", "True", "Accepted")?;
    ensure!(
        blocks(lab, &names[5..])? == given[1..2],
        "not the block that is free"
    );
    let others = [&names[..1], &names[2..5]].concat();
    ensure!(
        blocks(lab, &others)? == [&given[..1], &given[2..]].concat(),
        "a node has another block than before"
    );

    let mut delete = vec!["delete", "node"];
    delete.extend(
        names
            .iter()
            .filter(|name| *name != "pooled-2")
            .map(String::as_str),
    );
    lab.kubectl()?.run(&delete)?;
    lab.operator()?.stop(ENDS_WITHIN)?;
    lab.start_operator()
}

fn node(name: &str, host: u8) -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
        "status": {"addresses": [{"type": "InternalIP", "address": format!("192.168.30.{host}")}]}})
}

/// The only pod CIDR of each node.
fn blocks(lab: &Lab, names: &[String]) -> Result<Vec<String>> {
    names
        .iter()
        .map(|name| {
            let node = lab.kubectl()?.get(&["routingnode", name])?;
            let cidrs = node["spec"]["podCIDRs"].as_array().context("no podCIDRs")?;
            ensure!(cidrs.len() == 1, "{name} has {cidrs:?}");
            Ok(cidrs[0].as_str().unwrap_or_default().to_owned())
        })
        .collect()
}

/// The Nodes say nothing of pods, as in a cluster whose controllers hand out no pod CIDRs.
fn routed_blocks(context: &mut Context) -> Result<()> {
    const POOLS: [&str; 4] = [
        "--cluster-pool-ipv4-pod-cidr-list",
        "10.244.0.0/20",
        "--cluster-pool-ipv6-pod-cidr-list",
        "fd00:10:244::/112",
    ];
    let mut topology = Topology::seed(0);
    topology.cluster_pod_cidrs.clear();
    topology.nodes.iter_mut().for_each(|node| node.pod_cidrs.clear());
    let lab = context.lab_on("pooled nodes", topology)?;
    lab.operator()?.stop(ENDS_WITHIN)?;
    lab.start_operator_with(&POOLS)?;
    for node in NODES {
        fs::create_dir_all(directory(lab, node))?;
        lab.agent(node)?.kill()?;
        start_agent(lab, node)?;
    }
    apply(lab, &vxlan())?;
    wait_until_ready(lab)?;
    for node in NODES {
        let cidrs = blocks_of_node(lab, node)?;
        let lengths: Vec<u8> = cidrs.iter().map(IpNet::prefix_len).collect();
        ensure!(lengths == [24, 120], "{node} has {cidrs:?}");
        let value = configured(lab, node, 1450)?;
        let ranges = &value["plugins"][0]["ipam"]["ranges"];
        let subnets: Vec<Value> = cidrs
            .iter()
            .map(|cidr| json!([{"subnet": cidr.to_string()}]))
            .collect();
        ensure!(
            ranges == &json!(subnets),
            "{node} has {cidrs:?}, and its file {ranges}"
        );
        let object = lab.kubectl()?.get(&["node", node])?;
        ensure!(object["spec"]["podCIDRs"].is_null(), "{object}");
        lab.learn_pod_cidrs(node, cidrs.clone())?;
        lab.add_pod(node, pod_out_of(node, &cidrs)?)?;
    }
    ensure_families_answer(lab)?;
    let other = blocks_of_node(lab, "k8s-w0")?;
    for cidr in &other {
        let is = way(lab, "k8s-ctr", &cidr.to_string())?;
        ensure!(
            is == "encap 192.168.20.100",
            "{cidr} of k8s-w0 is reached by {is}"
        );
    }
    // Of a block that nobody has nothing leaks.
    let uplink = Capture::start(lab, "router", "eth0", "net 10.244.0.0/20")?;
    ensure_refused(lab, "pod-ctr-1", "10.244.15.10".parse()?)?;
    let leaked = uplink.stop()?;
    ensure!(leaked.count("")? == 0, "{:?}", leaked.lines("")?);

    apply(lab, &native_and_vxlan())?;
    wait_until_ready(lab)?;
    ensure_families_answer(lab)
}

/// A node's blocks, as its RoutingNode has them.
fn blocks_of_node(lab: &Lab, node: &str) -> Result<Vec<IpNet>> {
    let object = lab.kubectl()?.get(&["routingnode", node])?;
    let cidrs = object["spec"]["podCIDRs"].as_array().context("no podCIDRs")?;
    let texts = cidrs.iter().filter_map(Value::as_str);
    Ok(texts.map(str::parse::<IpNet>).collect::<Result<Vec<_>, _>>()?)
}

/// A pod with the tenth address of each of these blocks.
fn pod_out_of(node: &str, blocks: &[IpNet]) -> Result<Pod> {
    let short = node.strip_prefix("k8s-").unwrap_or(node);
    let tenth = |cidr: &IpNet| {
        cidr.hosts()
            .nth(9)
            .with_context(|| format!("{cidr} is too small"))
    };
    Ok(Pod {
        name: format!("pod-{short}-1"),
        addresses: blocks.iter().map(tenth).collect::<Result<_>>()?,
    })
}

/// Pings between the pods of all nodes, in every direction and family.
fn ensure_families_answer(lab: &Lab) -> Result<()> {
    let pods = || lab.topology().nodes.iter().flat_map(|node| &node.pods);
    for from in pods() {
        for to in pods().filter(|to| to.name != from.name) {
            ensure!(to.addresses.len() == 2, "{to:?}");
            for address in &to.addresses {
                let report = ping(lab, &from.name, *address, 2)?;
                ensure!(
                    report.all_answered(),
                    "{} to {address}: {}",
                    from.name,
                    report.output
                );
            }
        }
    }
    Ok(())
}

fn nonsense_pools(_: &mut Context) -> Result<()> {
    for (pool, words) in [
        (
            "172.20.0.0/16,172.20.4.0/24",
            "172.20.0.0/16 and 172.20.4.0/24 overlap",
        ),
        ("172.20.0.1/16", "has host bits: is 172.20.0.0/16 meant?"),
        ("172.20.0.0/28", "it must be 28 to 30"),
        ("fd00::/48", "is no IPv4 network"),
        ("172.20", "invalid value"),
    ] {
        let output = Command::new(programs::own("podlane-operator")?)
            .args(["--cluster-pool-ipv4-pod-cidr-list", pool])
            .output()
            .context("cannot run podlane-operator")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success() && said.contains(words), "{pool}: {said}");
    }
    Ok(())
}

/// A node's directory of CNI configurations.
fn directory(lab: &Lab, node: &str) -> PathBuf {
    lab.directory().join("cni").join(node)
}

fn start_agent(lab: &mut Lab, node: &str) -> Result<()> {
    let bpffs = lab.bpffs(node)?.join("podlane").display().to_string();
    let directory = directory(lab, node).display().to_string();
    let arguments = ["--bpffs", &bpffs, "--cni-conf-dir", &directory, "--resync", "1"];
    lab.start_agent_with(node, &arguments)
}

fn network_unavailable(lab: &Lab, node: &str, status: &str, reason: &str) -> Result<String> {
    wait_for_condition(lab, "node", node, "NetworkUnavailable", status, reason)
}

/// What the file says, once it says it of this MTU.
fn configured(lab: &Lab, node: &str, mtu: u32) -> Result<Value> {
    let file = directory(lab, node).join("10-podlane.conflist");
    wait_until(
        &format!("{node} to be configured with {mtu}"),
        SETTLED_WITHIN,
        || {
            let value: Value = serde_json::from_str(&fs::read_to_string(&file)?)?;
            ensure!(value["plugins"][0]["mtu"] == mtu, "{value}");
            Ok(value)
        },
    )
}

fn connected(context: &mut Context) -> Result<()> {
    let lab = context.lab()?;
    for node in NODES {
        fs::create_dir_all(directory(lab, node))?;
        lab.agent(node)?.kill()?;
        start_agent(lab, node)?;
    }
    for node in NODES {
        network_unavailable(lab, node, "True", "PodlaneNoPolicy")?;
        ensure!(
            fs::read_dir(directory(lab, node))?.next().is_none(),
            "{node} is configured"
        );
    }
    apply(lab, &vxlan())?;
    for (node, number) in NODES.iter().zip(0..) {
        network_unavailable(lab, node, "False", "PodlaneConfigured")?;
        let value = configured(lab, node, 1450)?;
        let subnet = format!("172.20.{number}.0/24");
        ensure!(
            value["plugins"][0]["ipam"]["ranges"] == json!([[{"subnet": subnet}]]),
            "{value}"
        );
    }
    wait_until_ready(lab)?;

    beyond_the_cluster(lab)?;
    kept_and_changed(lab)?;
    others_files(lab)?;
    cleaned(lab)
}

/// The internet knows the nodes' addresses alone.
fn beyond_the_cluster(lab: &Lab) -> Result<()> {
    let internet = lab
        .topology()
        .uplink
        .internet
        .first()
        .context("an uplink")?
        .addr();
    let uplink = Capture::start(lab, "router", "eth0", "icmp")?;
    for pod in ["pod-ctr-1", "pod-w0-1"] {
        let report = ping(lab, pod, internet, 2)?;
        ensure!(report.all_answered(), "{pod} to the internet: {}", report.output);
    }
    let seen = uplink.stop()?;
    for node in ["192.168.10.100", "192.168.20.100"] {
        ensure!(
            seen.count(&format!("src host {node}"))? == 2,
            "{:?}",
            seen.lines("")?
        );
    }
    ensure!(seen.count("net 172.20.0.0/16")? == 0, "{:?}", seen.lines("")?);

    // Another node's address is beyond, too; another node's pods are not.
    let report = ping(lab, "pod-ctr-1", "192.168.20.100".parse()?, 2)?;
    ensure!(report.all_answered(), "a pod to another node: {}", report.output);
    let to = Capture::start(lab, "pod-w0-1", "eth0", "icmp")?;
    ensure_all_answer(lab)?;
    let seen = to.stop()?;
    let own = lab.pod_address("pod-ctr-1")?;
    ensure!(
        seen.count(&format!("src host {own}"))? >= 2,
        "{:?}",
        seen.lines("")?
    );
    ensure!(seen.count("not net 172.20.0.0/16")? == 0, "{:?}", seen.lines("")?);
    Ok(())
}

fn kept_and_changed(lab: &mut Lab) -> Result<()> {
    let file = directory(lab, "k8s-w1").join("10-podlane.conflist");
    let before = fs::metadata(&file)?.ino();
    lab.agent("k8s-w1")?.kill()?;
    ensure!(file.exists(), "it went with the agent");
    start_agent(lab, "k8s-w1")?;
    let mut spec = vxlan();
    spec["mtu"] = json!(1400);
    spec["masquerade"] = json!({"mode": "Never"});
    apply(lab, &spec)?;
    configured(lab, "k8s-w0", 1400)?;
    configured(lab, "k8s-w1", 1400)?;
    ensure!(fs::metadata(&file)?.ino() != before, "it was written in place");
    wait_until_ready(lab)?;
    ensure!(masquerades(lab, "k8s-w1")?.is_none(), "it still masquerades");
    spec["masquerade"] = json!({"mode": "Always", "ports": {"first": 40000, "last": 40999}});
    apply(lab, &spec)?;
    wait_until("k8s-w1 to masquerade by other ports", SETTLED_WITHIN, || {
        let table = masquerades(lab, "k8s-w1")?.context("no table")?;
        ensure!(table.contains(":40000-40999"), "{table}");
        Ok(())
    })
}

/// The node's table of ours, as nft(8) shows it.
fn masquerades(lab: &Lab, node: &str) -> Result<Option<String>> {
    let output = lab
        .namespace(node)
        .command("nft")
        .args(["list", "table", "inet", "podlane"])
        .output()
        .context("cannot run nft")?;
    Ok(output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).into_owned()))
}

fn others_files(lab: &Lab) -> Result<()> {
    let other = directory(lab, "k8s-w1").join("05-other.conflist");
    let text = r#"{"cniVersion": "1.0.0", "name": "other", "plugins": [{"type": "bridge"}]}"#;
    fs::write(&other, text)?;
    // The other connects pods: the node stays schedulable, and the policy says what to do.
    wait_until(
        "Podlane to take back its word of the Node k8s-w1",
        SETTLED_WITHIN,
        || {
            let node = lab.kubectl()?.get(&["node", "k8s-w1"])?;
            let conditions = node["status"]["conditions"].as_array().into_iter().flatten();
            let said = conditions.filter(|condition| condition["type"] == "NetworkUnavailable");
            let said: Vec<&Value> = said.collect();
            ensure!(said.is_empty(), "{said:?}");
            Ok(())
        },
    )?;
    let reason = "ForeignCNIConfiguration";
    wait_for_condition(lab, "routingnode", "k8s-w1", "PodNetwork", "False", reason)?;
    wait_until("the policy to name the other plugin", SETTLED_WITHIN, || {
        let (ready, _, message) = condition(lab, "routingpolicy", POLICY, "Ready")?;
        ensure!(
            ready == "True" && message.contains("05-other.conflist") && message.contains("cni.install=false"),
            "Ready is {ready}: {message}"
        );
        Ok(())
    })?;
    ensure!(fs::read_to_string(&other)? == text, "it was changed");
    fs::remove_file(&other)?;
    network_unavailable(lab, "k8s-w1", "False", "PodlaneConfigured").map(drop)
}

fn cleaned(lab: &mut Lab) -> Result<()> {
    let directory = directory(lab, "k8s-w1");
    fs::write(directory.join("20-other.conflist"), "{}")?;
    lab.agent("k8s-w1")?.kill()?;
    lab.clean_agent_with("k8s-w1", &["--cni-conf-dir", &directory.display().to_string()])?;
    let left: Vec<_> = fs::read_dir(&directory)?
        .map(|entry| Ok(entry?.file_name()))
        .collect::<Result<_>>()?;
    ensure!(left == ["20-other.conflist"], "{left:?}");
    ensure!(masquerades(lab, "k8s-w1")?.is_none(), "the table is still there");
    lab.kubectl()?.run(&["delete", "routingpolicy", POLICY]).map(drop)
}
