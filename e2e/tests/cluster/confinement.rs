//! What an agent's process may do on its node, as the node's kernel has it.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use podlane_e2e::cluster::Cluster;
use podlane_e2e::control_plane::SYSTEM_NAMESPACE;
use podlane_e2e::scenario::Context;
use podlane_e2e::wait::wait_until;

use super::{NODES, installed};

/// CAP_NET_ADMIN, CAP_PERFMON and CAP_BPF as the kernel numbers them (include/uapi/linux/capability.h).
const CAPABILITIES: u64 = 1 << 12 | 1 << 38 | 1 << 39;

/// SECCOMP_MODE_FILTER (include/uapi/linux/seccomp.h).
const FILTERED: &str = "2";

/// What of the node an agent may write to: its CNI configurations, its network's parameters, its BPF file system. The place in the
/// container, and how the place on the node ends, within its file system (the node may have one of its own at /etc).
const WRITABLE: [(&str, &str); 3] = [
    ("/host/cni", "/cni/net.d"),
    ("/host/proc/sys/net", "/sys/net"),
    ("/sys/fs/bpf", "/"),
];

/// What container runtimes mount anew for each container (the OCI runtime specification's default file systems), with its kind. Of control
/// groups of version 1 only the folder in which they are: each of them is a mount of its own.
const OWN: [(&str, &str); 6] = [
    ("/dev", "tmpfs"),
    ("/dev/mqueue", "mqueue"),
    ("/dev/pts", "devpts"),
    ("/dev/shm", "tmpfs"),
    ("/proc", "proc"),
    ("/sys/fs/cgroup", "tmpfs"),
];

/// The pod's own files, which the kubelet makes for it.
const PODS_FILES: [&str; 2] = ["/dev/termination-log", "/etc/hosts"];

pub(crate) fn of_agents(context: &mut Context) -> Result<()> {
    let cluster = installed(context)?;
    for node in NODES {
        let process = cluster.pod_process(SYSTEM_NAMESPACE, &cluster.agent_of(node)?)?;
        let status = fields(&read(process, "status")?);
        let field = |name: &str| {
            let value = status.get(name).map(String::as_str);
            value.with_context(|| format!("this kernel says nothing of {name}"))
        };
        ensure!(field("Name")? == "podlane-agent", "{node}: {status:?}");
        ensure!(
            field("Seccomp")? == FILTERED,
            "{node}: system calls are not filtered (Seccomp: {}): has the kernel, or runc, no seccomp?",
            field("Seccomp")?
        );
        ensure!(
            field("NoNewPrivs")? == "1",
            "{node}: it may gain rights by a program that it starts"
        );
        for set in ["CapEff", "CapPrm", "CapBnd"] {
            let capabilities = u64::from_str_radix(field(set)?, 16).context(set)?;
            ensure!(
                capabilities == CAPABILITIES,
                "{node}: {set} is {capabilities:#x} and not {CAPABILITIES:#x}"
            );
        }
        for set in ["CapInh", "CapAmb"] {
            let capabilities = u64::from_str_radix(field(set)?, 16).context(set)?;
            ensure!(
                capabilities & !CAPABILITIES == 0,
                "{node}: {set} is {capabilities:#x}"
            );
        }
        mounts_are_those_declared(node, &read(process, "mountinfo")?)?;
        // Of the node's namespaces it has the network, which it is there for.
        for (namespace, is_the_nodes) in [("net", true), ("pid", false), ("ipc", false), ("mnt", false)] {
            let own = fs::read_link(format!("/proc/{process}/ns/{namespace}"))?;
            let nodes = cluster
                .machine(node)?
                .run("readlink", &[&format!("/proc/self/ns/{namespace}")])?;
            ensure!(
                (own.as_os_str() == nodes.trim()) == is_the_nodes,
                "{node}: its namespace {namespace} is {}, the node's {nodes}",
                own.display()
            );
        }
    }
    programs_are_at_work(cluster)
}

/// So that nobody takes for confined what does not work confined: without programs everything would be as declared, too, by the kernel's
/// drivers.
fn programs_are_at_work(cluster: &Cluster) -> Result<()> {
    for node in NODES {
        wait_until(
            &format!("programs at work on {node}"),
            Duration::from_secs(60),
            || {
                let object = cluster.kubectl()?.get(&["routingnode", node])?;
                let datapath = &object["status"]["datapath"];
                ensure!(
                    datapath["encapsulation"] == "eBPF"
                        && datapath["bypass"] == "On"
                        && datapath["programs"].as_str().is_some_and(|hash| !hash.is_empty()),
                    "{datapath}"
                );
                Ok(())
            },
        )?;
    }
    Ok(())
}

fn mounts_are_those_declared(node: &str, mountinfo: &str) -> Result<()> {
    let mounts = mounts(mountinfo);
    let root = mounts
        .iter()
        .find(|mount| mount.place == "/")
        .context("no root")?;
    ensure!(!root.writable, "{node}: the container's root can be written to");
    for (place, on_the_node) in WRITABLE {
        let mount = mounts.iter().find(|mount| mount.place == place);
        ensure!(
            mount.is_some_and(|mount| mount.writable && mount.of.ends_with(on_the_node)),
            "{node}: {place} is to be the node's {on_the_node}, to be written to: {mount:?}"
        );
    }
    let undeclared: Vec<&Mount> = mounts
        .iter()
        .filter(|mount| mount.writable && !WRITABLE.iter().any(|(place, _)| *place == mount.place))
        .filter(|mount| !is_the_containers_own(mount))
        .collect();
    ensure!(
        undeclared.is_empty(),
        "{node}: to be written to, and not declared: {undeclared:?}"
    );
    Ok(())
}

fn is_the_containers_own(mount: &Mount) -> bool {
    // What is hidden from it has the null device in its place.
    let hidden = mount.place.starts_with("/proc/") && mount.of == "/null";
    let made_for_it = OWN
        .iter()
        .any(|(place, kind)| *place == mount.place && *kind == mount.kind && mount.of == "/");
    let the_pods = PODS_FILES.contains(&mount.place.as_str()) && mount.of.contains("/pods/");
    hidden || made_for_it || the_pods
}

/// A line of /proc/PID/mountinfo.
#[derive(Debug)]
struct Mount {
    place: String,
    /// What of its file system is mounted.
    of: String,
    /// Neither this mount nor its file system is read-only.
    writable: bool,
    kind: String,
}

/// The mounts that can be reached: of those at one place the last, which covers the others.
fn mounts(mountinfo: &str) -> Vec<Mount> {
    let mut found = BTreeMap::new();
    for line in mountinfo.lines() {
        let Some((before, after)) = line.split_once(" - ") else {
            continue;
        };
        // NUMBER PARENT DEVICE ROOT PLACE OPTIONS … - KIND SOURCE OPTIONS
        let [before, after]: [Vec<&str>; 2] = [before, after].map(|part| part.split(' ').collect());
        let (Some(of), Some(place), Some(options)) = (before.get(3), before.get(4), before.get(5)) else {
            continue;
        };
        let of_all = after.get(2).copied().unwrap_or_default();
        let read_only = |options: &str| options.split(',').any(|option| option == "ro");
        found.insert(
            (*place).to_owned(),
            Mount {
                place: (*place).to_owned(),
                of: (*of).to_owned(),
                writable: !read_only(options) && !read_only(of_all),
                kind: after.first().copied().unwrap_or_default().to_owned(),
            },
        );
    }
    found.into_values().collect()
}

/// `NAME:\tVALUE` by name.
fn fields(status: &str) -> BTreeMap<String, String> {
    status
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect()
}

fn read(process: i32, file: &str) -> Result<String> {
    let path = format!("/proc/{process}/{file}");
    fs::read_to_string(&path).with_context(|| path.clone())
}
