//! A real cluster as a lab: on each of the seed's nodes containerd, a kubelet and kube-proxy, beside a control plane with all its
//! controllers, a resolver, and Podlane as its chart installs it.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use podlane_e2e::cluster::{Cluster, Options};
//! use podlane_e2e::story;
//!
//! let mut cluster = Cluster::up(Options::named("mine"))?; // three nodes, not ready: nobody connects their pods
//! cluster.install_podlane(&[])?; // `helm install --wait`; further values as "key=value"
//! cluster.apply_policy(&story::vxlan())?;
//! cluster.wait_for_nodes()?;
//! cluster.wait_for_policy()?;
//!
//! cluster.add_pod("alice", "k8s-ctr")?; // a pod, and its network namespace by a name that the lab knows
//! cluster.add_pod("bob", "k8s-w0")?;
//! let stream = cluster.stream("alice", "bob", 1000)?; // numbered packets
//! cluster.machine("k8s-w0")?.containerd()?.restart()?; // and kubelet(), proxy(): kill, freeze, stop, restart
//! cluster.reboot_node("k8s-w0")?; // as if its power had been away
//! cluster.remove_node("k8s-w1")?;
//! cluster.join_node("k8s-w1", Some("172.20.9.0/24"))?;
//! cluster.upgrade_podlane(&["operator.replicas=1"])?;
//! cluster.helm(&["rollback", "podlane", "1", "--wait"])?;
//! cluster.kubectl()?.run(&["get", "nodes"])?;
//! assert_eq!(stream.finish()?.lost, 0);
//! cluster.down() // dropping it takes it down, too
//! # }
//! ```
//!
//! `lab()` has what every lab has: the nodes' and the router's namespaces, pings, captures, the API server's process. Test programs get a
//! cluster from `scenario::Context::cluster`, and say `.lacks(cluster::missing())` of their scenarios.

pub mod cgroups;
pub mod images;
mod life;
pub mod machine;
mod needs;
pub mod objects;
pub mod podlane;
mod pods;
pub mod settings;
mod traffic;
pub mod usage;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};

pub use self::machine::Machine;
pub use self::needs::{cni_folder, missing};
pub use self::traffic::Traffic;
use crate::control_plane::Identity;
use crate::kubectl::Kubectl;
use crate::lab::{self, Extent, Lab};
use crate::process::{Process, Program};
use crate::programs::ClusterPrograms;
use crate::topology::{Node, Topology};
use crate::wait::wait_until;

const READY_WITHIN: Duration = Duration::from_secs(240);

/// How kube-proxy carries out Services.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum ProxyMode {
    /// By nftables.
    #[default]
    Nftables,
    /// By iptables.
    Iptables,
}

impl fmt::Display for ProxyMode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
        })
    }
}

/// What cluster to bring up.
#[derive(Clone, Debug)]
pub struct Options {
    /// Its name, as a lab's.
    pub name: String,
    /// How Services are carried out.
    pub proxy: ProxyMode,
    /// Whether every node has Podlane's images.
    pub podlane: bool,
    /// Archives of further images that every node has.
    pub images: Vec<PathBuf>,
    /// Told what was done, as it is done.
    pub progress: fn(&str),
}

impl Options {
    /// The seed's three nodes, kube-proxy by nftables, Podlane's images on each.
    pub fn named(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            proxy: ProxyMode::default(),
            podlane: true,
            images: Vec::new(),
            progress: |_| {},
        }
    }
}

/// A cluster that is up. Dropping it takes it down.
#[derive(Debug)]
pub struct Cluster {
    // Dropped first: it ends everything, by the ledger.
    lab: Lab,
    machines: BTreeMap<String, Machine>,
    components: Vec<Process>,
    programs: ClusterPrograms,
    options: Options,
}

impl Cluster {
    /// Brings a cluster up: nodes are registered, and not ready, for nobody connects their pods yet.
    pub fn up(options: Options) -> Result<Self> {
        if let Some(reason) = missing() {
            bail!("{reason}");
        }
        let programs = ClusterPrograms::find()?;
        let lab = Lab::up(lab::Options {
            topology: Topology::seed(0),
            extent: Extent::ControlPlane,
            kubelets: true,
            progress: options.progress,
            ..lab::Options::named(&options.name)
        })?;
        let mut cluster = Self {
            lab,
            machines: BTreeMap::new(),
            components: Vec::new(),
            programs,
            options,
        };
        let start = Instant::now();
        cluster.start_components()?;
        cluster.boot()?;
        cluster.tell("containerd on each node, with its images", start);
        let start = Instant::now();
        cluster.start_nodes()?;
        cluster.tell("a kubelet and kube-proxy on each node", start);
        cluster
            .kubectl()?
            .apply(&objects::resolver("k8s-ctr", &cluster.programs.coredns).to_string())?;
        Ok(cluster)
    }

    /// The control group that has all nodes' in it.
    fn cgroup(&self) -> String {
        cgroup_of(self.lab.name())
    }

    fn start_components(&mut self) -> Result<()> {
        let node = self.lab.topology().nodes.first().context("no node")?.clone();
        let namespace = self.lab.namespace(&node.name);
        let cidrs: Vec<String> = self
            .lab
            .topology()
            .cluster_pod_cidrs
            .iter()
            .map(ToString::to_string)
            .collect();
        let control_plane = self.lab.control_plane()?;
        let own = |identity: Identity| {
            let kubeconfig = control_plane
                .kubeconfig_for(&identity, &node)?
                .display()
                .to_string();
            Ok::<_, anyhow::Error>([
                format!("--kubeconfig={kubeconfig}"),
                format!("--authentication-kubeconfig={kubeconfig}"),
                format!("--authorization-kubeconfig={kubeconfig}"),
                "--bind-address=127.0.0.1".to_owned(),
                "--leader-elect=false".to_owned(),
            ])
        };
        let mut controllers = vec![self.programs.kube_controller_manager.display().to_string()];
        controllers.extend(own(Identity::ControllerManager)?);
        controllers.extend([
            "--use-service-account-credentials".to_owned(),
            "--allocate-node-cidrs".to_owned(),
            format!("--cluster-cidr={}", cidrs.join(",")),
            "--node-cidr-mask-size=24".to_owned(),
            "--configure-cloud-routes=false".to_owned(),
            format!(
                "--root-ca-file={}",
                control_plane.authority().certificate().display()
            ),
            format!(
                "--service-account-private-key-file={}",
                control_plane.service_accounts_key().display()
            ),
        ]);
        let mut scheduler = vec![self.programs.kube_scheduler.display().to_string()];
        scheduler.extend(own(Identity::Scheduler)?);
        for (name, arguments) in [
            ("kube-controller-manager", controllers),
            ("kube-scheduler", scheduler),
        ] {
            let program = Program::new(name, arguments).within(&namespace);
            self.components.push(Process::start(program, self.lab.ledger())?);
        }
        Ok(())
    }

    /// Makes the machines, all at once, with their container runtimes and images.
    fn boot(&mut self) -> Result<()> {
        let cgroup = self.cgroup();
        self.lab
            .ledger()
            .change(|state| state.cgroups.push(cgroup.clone()))?;
        cgroups::make(&cgroup)?;
        let mut archives = vec![images::lab_image(&self.lab.directory())?];
        if self.options.podlane {
            archives.extend(podlane::archives(&self.lab.directory())?);
        }
        archives.extend(self.options.images.iter().cloned());
        let lab = &self.lab;
        let boot = |node| {
            let mut machine = Machine::boot(node, &lab.namespace(&node.name), &cgroup, lab.ledger())?;
            machine.start_containerd()?;
            machine.import(&archives)?;
            Ok::<_, anyhow::Error>(machine)
        };
        let machines: Vec<Result<Machine>> = thread::scope(|scope| {
            let started: Vec<_> = lab
                .topology()
                .nodes
                .iter()
                .map(|node| scope.spawn(move || boot(node)))
                .collect();
            started
                .into_iter()
                .map(|thread| {
                    thread
                        .join()
                        .map_err(|_| anyhow!("panicked"))
                        .and_then(|machine| machine)
                })
                .collect()
        });
        for (node, machine) in lab.topology().nodes.iter().zip(machines) {
            self.machines.insert(node.name.clone(), machine?);
        }
        Ok(())
    }

    fn start_nodes(&mut self) -> Result<()> {
        let topology = self.lab.topology().clone();
        for node in &topology.nodes {
            self.start_programs_of(node)?;
        }
        for node in &topology.nodes {
            self.wait_until_registered(&node.name)?;
        }
        Ok(())
    }

    /// Starts a node's kubelet and kube-proxy.
    fn start_programs_of(&mut self, node: &Node) -> Result<()> {
        let topology = self.lab.topology().clone();
        let control_plane = self.lab.control_plane()?;
        let machine = self
            .machines
            .get_mut(&node.name)
            .with_context(|| format!("{} was not booted", node.name))?;
        machine.start_kubelet(&self.programs, control_plane, node)?;
        let mode = self.options.proxy;
        machine.start_proxy(&self.programs, control_plane, mode, (node, &topology))
    }

    /// Has kube-proxy carry out Services in another way, on every node. It clears away itself what the way before had set up.
    pub fn restart_proxies(&mut self, mode: ProxyMode) -> Result<()> {
        self.options.proxy = mode;
        let topology = self.lab.topology().clone();
        let control_plane = self.lab.control_plane()?;
        for node in &topology.nodes {
            let machine = self
                .machines
                .get_mut(&node.name)
                .with_context(|| format!("{} was not booted", node.name))?;
            machine.proxy()?.kill()?;
            machine.start_proxy(&self.programs, control_plane, mode, (node, &topology))?;
        }
        Ok(())
    }

    /// Waits until a kubelet speaks for a node.
    pub fn wait_until_registered(&self, node: &str) -> Result<()> {
        let kubectl = self.kubectl()?;
        wait_until(
            &format!("the kubelet of {node} to register it"),
            READY_WITHIN,
            || {
                if let Some(kubelet) = self.machines.get(node).and_then(Machine::kubelet_process) {
                    kubelet.ensure_runs()?;
                }
                let object = kubectl.get(&["node", node])?;
                let version = &object["status"]["nodeInfo"]["kubeletVersion"];
                ensure!(
                    version.as_str().is_some_and(|version| !version.is_empty()),
                    "nobody has described it"
                );
                Ok(())
            },
        )
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.lab.kubeconfig()
    }

    /// The address of the API server as nodes reach it.
    pub fn server(&self) -> String {
        let node = self.lab.topology().nodes.first();
        node.and_then(Node::internal_ip)
            .map(|address| address.to_string())
            .unwrap_or_default()
    }

    /// kubectl as the administrator.
    pub fn kubectl(&self) -> Result<&Kubectl> {
        self.lab.kubectl()
    }

    /// The nodes' namespaces, the router, the control plane.
    pub fn lab(&mut self) -> &mut Lab {
        &mut self.lab
    }

    /// A node.
    pub fn machine(&mut self, node: &str) -> Result<&mut Machine> {
        self.machines
            .get_mut(node)
            .with_context(|| format!("the cluster has no node {node}"))
    }

    /// Takes it down. Fails when something is left.
    pub fn down(self) -> Result<()> {
        let Self { lab, .. } = self;
        lab.down()
    }

    fn tell(&self, what: &str, since: Instant) {
        (self.options.progress)(&format!("{what}: {:.1} s", since.elapsed().as_secs_f64()));
    }
}

/// The control group that has all nodes of a cluster of this name in it.
pub fn cgroup_of(name: &str) -> String {
    format!("podlane-{name}")
}
