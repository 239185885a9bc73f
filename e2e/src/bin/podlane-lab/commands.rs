//! The commands other than the demo.

use std::io::{BufReader, Write, stdin, stdout};
use std::net::SocketAddr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use podlane_e2e::cluster::{self, Cluster, ProxyMode};
use podlane_e2e::control_plane::admin_kubeconfig;
use podlane_e2e::interrupt;
use podlane_e2e::lab::{self, Extent, Lab, Options, down_command};
use podlane_e2e::ledger;
use podlane_e2e::programs::{ClusterPrograms, ControlPlanePrograms};
use podlane_e2e::scenario::missing_for;
use podlane_e2e::topology::Topology;
use podlane_e2e::traffic::{self, Listening, Sending};

pub(crate) fn up(name: &str, pods: u8, extent: Extent, foreground: bool) -> Result<()> {
    prepare(extent)?;
    let start = Instant::now();
    let mut options = Options::named(name);
    options.topology = Topology::seed(pods);
    options.extent = extent;
    options.stays = !foreground;
    options.progress = |line| eprintln!("  {line}");
    eprintln!("bringing the lab up");
    let lab = Lab::up(options)?;
    let seconds = start.elapsed().as_secs_f64();
    let pod = lab
        .topology()
        .nodes
        .first()
        .and_then(|node| node.pods.first())
        .map(|pod| lab.namespace(&pod.name));
    let node = lab.topology().nodes.first().map(|node| lab.namespace(&node.name));
    let router = lab.namespace(podlane_e2e::topology::ROUTER);
    let directory = lab.directory();
    let held = if foreground {
        Some(lab)
    } else {
        lab.leave_up()?;
        None
    };

    println!("The lab is up ({seconds:.1} s). To look around:");
    if extent >= Extent::ControlPlane {
        println!("  export KUBECONFIG={}", admin_kubeconfig(name).display());
        println!("  kubectl get nodes -o wide");
    }
    if let Some(pod) = pod {
        println!("  ip netns exec {} ping 172.20.2.10", pod.name());
    }
    if let Some(node) = node {
        println!("  ip netns exec {} ip route", node.name());
    }
    println!("  ip netns exec {} tcpdump -nn -i eth0", router.name());
    println!("Logs are in {}.", lab::logs(&directory).display());
    let Some(lab) = held else {
        println!("To take it down: {}", down_command(name));
        return Ok(());
    };
    println!("Ctrl-C takes it down.");
    while !interrupt::raised() {
        sleep(Duration::from_millis(50));
    }
    lab.down()?;
    println!("The lab is down and nothing of it is left.");
    Ok(())
}

pub(crate) fn cluster(name: &str, proxy: ProxyMode, podlane: bool) -> Result<()> {
    interrupt::watch()?;
    ClusterPrograms::find_or_build()?;
    let start = Instant::now();
    let mut options = cluster::Options::named(name);
    options.proxy = proxy;
    options.progress = |line| eprintln!("  {line}");
    eprintln!("bringing the cluster up");
    options.podlane = podlane;
    let mut cluster = Cluster::up(options)?;
    if podlane {
        print!("{}", cluster.install_podlane(&[])?);
    }
    println!(
        "The cluster is up ({:.1} s). To look around:",
        start.elapsed().as_secs_f64()
    );
    println!("  export KUBECONFIG={}", admin_kubeconfig(name).display());
    println!("  kubectl get nodes -o wide");
    println!("Logs are in {}.", lab::logs(&cluster.lab().directory()).display());
    println!("Ctrl-C takes it down.");
    while !interrupt::raised() {
        sleep(Duration::from_millis(50));
    }
    cluster.down()?;
    println!("The cluster is down and nothing of it is left.");
    Ok(())
}

/// Looks whether this machine can have a lab, and builds the control plane where it is missing.
pub(crate) fn prepare(extent: Extent) -> Result<()> {
    interrupt::watch()?;
    if extent >= Extent::ControlPlane {
        ControlPlanePrograms::find_or_build()?;
    }
    match missing_for(extent) {
        Some(reason) => bail!("{reason}"),
        None => Ok(()),
    }
}

pub(crate) fn down(name: &str) -> Result<()> {
    let start = Instant::now();
    if lab::down(name)? {
        println!(
            "The lab {name} is down and nothing of it is left ({:.1} s).",
            start.elapsed().as_secs_f64()
        );
    } else {
        println!("There is no lab {name}.");
    }
    Ok(())
}

pub(crate) fn status(name: &str) -> Result<()> {
    let Some(state) = ledger::read(name)? else {
        println!("There is no lab {name}.");
        return Ok(());
    };
    println!("lab {} in {}", state.lab, state.directory.display());
    if state.is_held() {
        println!("process {} is working with it", state.owner.pid);
    }
    println!("namespaces: {}", state.namespaces.join(" "));
    if let Some(link) = &state.host_link {
        println!("link to this machine: {} {}", link.interface, link.network);
    }
    for process in &state.processes {
        let runs = if process.id.runs() { "runs" } else { "has ended" };
        println!("process {} {} {runs}", process.id.pid, process.name);
    }
    Ok(())
}

pub(crate) fn send(to: SocketAddr, rate: u32, size: u16, count: Option<u64>) -> Result<()> {
    let report = traffic::send(to, rate, size, count, BufReader::new(stdin()), || {
        print_json(&Sending { sending: to })
    })?;
    print_json(&report)
}

pub(crate) fn receive(bind: SocketAddr) -> Result<()> {
    let report = traffic::receive(bind, BufReader::new(stdin()), |address| {
        print_json(&Listening { listening: address })
    })?;
    print_json(&report)
}

fn print_json<T: serde::Serialize>(value: &T) -> Result<()> {
    let mut line = serde_json::to_string(value).context("cannot encode a report")?;
    line.push('\n');
    stdout()
        .write_all(line.as_bytes())
        .context("cannot write a report")
}
