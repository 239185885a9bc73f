//! The operator among 5,000 Node objects in the real API server. There are no agents; what they would report is written once.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::watcher::{self, watcher};
use kube::{Client, Config};
use podlane_crds::{PeerSlice, RoutingNode};
use podlane_e2e::lab::{Extent, Lab, Options};
use podlane_e2e::story::{policy, vxlan};
use serde_json::json;

use crate::row;

const NODES: u32 = 5_000;
const CHANGES: u32 = 50;
const AT_ONCE: usize = 32;

pub(crate) fn among_thousands() -> Result<()> {
    let mut lab = Lab::up(Options {
        extent: Extent::Types,
        ..Options::named("bench")
    })?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(run(&mut lab))?;
    lab.down()
}

async fn run(lab: &mut Lab) -> Result<()> {
    let kubeconfig = Kubeconfig::read_from(lab.kubeconfig())?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    let client = Client::try_from(config)?;
    let nodes: Api<Node> = Api::all(client.clone());
    lab.kubectl()?.create(&policy("default", &vxlan()).to_string())?;
    lab.start_operator()?;

    let start = Instant::now();
    stream::iter(0..NODES)
        .map(|number| {
            let nodes = nodes.clone();
            async move {
                let node: Node = serde_json::from_value(json!({
                    "metadata": {"name": name(number)},
                    "spec": {"podCIDR": pods(number), "podCIDRs": [pods(number)]},
                    "status": {"addresses": [{"type": "InternalIP", "address": address(number)}]},
                }))?;
                nodes.create(&PostParams::default(), &node).await?;
                anyhow::Ok(())
            }
        })
        .buffer_unordered(AT_ONCE)
        .try_collect::<Vec<()>>()
        .await?;
    println!(
        "{NODES} Node objects made in {:.1} s",
        start.elapsed().as_secs_f64()
    );

    let routing_nodes: Api<RoutingNode> = Api::all(client.clone());
    let slices: Api<PeerSlice> = Api::all(client.clone());
    let deadline = Instant::now() + Duration::from_secs(300);
    loop {
        let count: usize = slices
            .list(&ListParams::default())
            .await?
            .items
            .iter()
            .map(|slice| slice.spec.peers.len())
            .sum();
        let told = routing_nodes
            .list_metadata(&ListParams::default())
            .await?
            .items
            .len();
        if count >= NODES as usize && told >= NODES as usize {
            break;
        }
        ensure!(
            Instant::now() < deadline,
            "only {count} peers in slices and {told} RoutingNodes after 300 s"
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    println!(
        "all of them in slices, each with a RoutingNode, {:.1} s after the first",
        start.elapsed().as_secs_f64()
    );

    stream::iter(0..NODES)
        .map(|number| {
            let routing_nodes = routing_nodes.clone();
            async move {
                let status = json!({"status": {
                    "underlay": [{"address": address(number), "prefixLength": 16, "device": "eth0", "mtu": 1500}],
                    "receivesOn": ["native", "vxlan:8472:1"], "sendsOn": ["vxlan:8472:1"],
                    "counts": {"total": NODES + 2, "vxlan": NODES + 2},
                }});
                routing_nodes.patch_status(&name(number), &PatchParams::default(), &Patch::Merge(&status)).await?;
                anyhow::Ok(())
            }
        })
        .buffer_unordered(AT_ONCE)
        .try_collect::<Vec<()>>()
        .await?;
    tokio::time::sleep(Duration::from_secs(5)).await;

    let mut changes = std::pin::pin!(watcher(slices.clone(), watcher::Config::default()));
    let mut times = Vec::new();
    let mut listed = false;
    while !listed {
        listed = matches!(
            changes.next().await.context("the watch has ended")??,
            watcher::Event::InitDone
        );
    }
    for round in 0..CHANGES {
        let number = round * 97 % NODES;
        let new = format!("10.2.{}.{}", round / 250, round % 250 + 1);
        let status = json!({"status": {"addresses": [{"type": "InternalIP", "address": new}]}});
        let start = Instant::now();
        nodes
            .patch_status(&name(number), &PatchParams::default(), &Patch::Strategic(&status))
            .await?;
        loop {
            let event = tokio::time::timeout(Duration::from_secs(30), changes.next()).await;
            if let watcher::Event::Apply(slice) = event
                .context("no slice changed")?
                .context("the watch has ended")??
                && slice
                    .spec
                    .peers
                    .iter()
                    .any(|peer| peer.addresses.iter().any(|link| link.address == new))
            {
                break;
            }
        }
        times.push(start.elapsed());
    }
    row(
        &format!("among {NODES} nodes, a Node's new address is in its slice"),
        times,
        "1000",
    );
    let pid = lab.operator()?.pid();
    println!(
        "the operator's memory among {NODES} nodes: {}, at most {}  (goal 128 MiB)",
        memory(pid, "VmRSS")?,
        memory(pid, "VmHWM")?
    );
    Ok(())
}

fn name(number: u32) -> String {
    format!("node-{number:04}")
}

fn address(number: u32) -> String {
    format!("10.1.{}.{}", number / 250, number % 250 + 1)
}

/// A /24 out of 10.128.0.0/9.
fn pods(number: u32) -> String {
    format!("10.{}.{}.0/24", 128 + number / 256, number % 256)
}

fn memory(pid: i32, field: &str) -> Result<String> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status
        .lines()
        .find(|line| line.starts_with(field))
        .context("no such field")?;
    let kibibytes: u64 = line.split_whitespace().nth(1).context("no number")?.parse()?;
    Ok(format!("{:.1} MiB", kibibytes as f64 / 1024.0))
}
