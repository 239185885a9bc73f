//! The lab as a whole: brought up in one call, taken down however it ends.

mod outside;
mod podlane;

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use nix::mount::{MsFlags, mount};

use self::outside::check_name;
pub use self::outside::{down, down_command, down_orphans};
use crate::control_plane::{ControlPlane, admin_kubeconfig};
use crate::interrupt;
use crate::kubectl::Kubectl;
use crate::ledger::{self, BaseLock, Ledger, ProcessId, State};
use crate::netns::Namespace;
use crate::network::{self, Naming};
use crate::process::Process;
use crate::programs::{self, ControlPlanePrograms};
use crate::teardown;
use crate::topology::{Node, Pod, Topology};

/// How much of the lab to bring up; each contains the ones before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Extent {
    /// Nodes, router and pods.
    Network,
    /// And an API server with a Node object for each node.
    ControlPlane,
    /// And Podlane's types and roles.
    Types,
    /// And the operator and one agent a node.
    Podlane,
}

/// What lab to bring up.
#[derive(Clone, Debug)]
pub struct Options {
    /// Its name: labs of different names do not touch each other.
    pub name: String,
    /// Its network.
    pub topology: Topology,
    /// How much of it.
    pub extent: Extent,
    /// Whether kubelets are to stand behind the Node objects, which then are theirs to describe.
    pub kubelets: bool,
    /// Whether it stays when this program ends without taking it down.
    pub stays: bool,
    /// Told what was done, as it is done.
    pub progress: fn(&str),
}

impl Options {
    /// The seed's network with two pods a node and everything in it, which does not outlive this program.
    pub fn named(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            topology: Topology::seed(2),
            extent: Extent::Podlane,
            kubelets: false,
            stays: false,
            progress: |_| {},
        }
    }
}

/// A lab that is up. Dropping it takes it down.
#[derive(Debug)]
pub struct Lab {
    options: Options,
    naming: Naming,
    ledger: Arc<Ledger>,
    agents: BTreeMap<String, Process>,
    operator: Option<Process>,
    control_plane: Option<ControlPlane>,
    ended: bool,
}

impl Lab {
    /// Brings a lab up. When that fails midway, what was made is taken down again.
    pub fn up(options: Options) -> Result<Self> {
        check_name(&options.name)?;
        // Found before anything is made: their absence is the most likely fault.
        let programs = match options.extent {
            Extent::Network => None,
            _ => Some(ControlPlanePrograms::find()?),
        };
        if options.extent == Extent::Podlane {
            programs::own("podlane-operator")?;
            programs::own("podlane-agent")?;
        }
        let start = Instant::now();
        let mut lab = Self::begin(options)?;
        network::connect(&lab.options.topology, &lab.naming, lab.nodes_forward())?;
        lab.tell("network of nodes, router and pods", start);
        if let Some(programs) = programs {
            lab.start_control_plane(&programs)?;
        }
        if lab.options.extent >= Extent::Types {
            lab.install_podlane()?;
        }
        if lab.options.extent == Extent::Podlane {
            lab.start_podlane()?;
        }
        interrupt::check()?;
        Ok(lab)
    }

    fn begin(options: Options) -> Result<Self> {
        let naming = Naming::of(&options.name);
        let owner = ProcessId::own().context("cannot read this process's start time")?;
        let lock = BaseLock::take()?;
        if ledger::directory_of(&options.name).exists() {
            bail!(
                "a lab called {} is up, or was ended in the middle: take it down first with `{}`",
                options.name,
                down_command(&options.name)
            );
        }
        network::refuse_taken(&options.topology, &naming)?;
        let directory = std::env::temp_dir().join(format!(
            "podlane-lab-{}-{}-{}",
            options.name, owner.pid, owner.start_time
        ));
        let ledger = Ledger::begin(State {
            lab: options.name.clone(),
            owner,
            outlives_owner: options.stays,
            directory: directory.clone(),
            namespaces: Vec::new(),
            host_link: None,
            processes: Vec::new(),
            cgroups: Vec::new(),
        })?;
        let lab = Self {
            options,
            naming,
            ledger: Arc::new(ledger),
            agents: BTreeMap::new(),
            operator: None,
            control_plane: None,
            ended: false,
        };
        let made = lab.make_namespaces(&directory);
        // Taking the lab down takes the lock too: it must be free when the lab is dropped.
        drop(lock);
        made.map(|()| lab)
    }

    fn make_namespaces(&self, directory: &Path) -> Result<()> {
        DirBuilder::new()
            .mode(0o700)
            .create(directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        teardown::note_netns_mount()?;
        network::add_namespaces(&self.options.topology, &self.naming, &self.ledger)
    }

    fn start_control_plane(&mut self, programs: &ControlPlanePrograms) -> Result<()> {
        let start = Instant::now();
        let node = self
            .options
            .topology
            .nodes
            .first()
            .context("a control plane needs a node")?
            .clone();
        let namespace = self.namespace(&node.name);
        let host_link = network::add_host_link(&namespace, &self.naming, &self.ledger)?;
        let kubeconfig = admin_kubeconfig(&self.options.name);
        let control_plane =
            ControlPlane::start(programs, &node, &namespace, &host_link, &kubeconfig, &self.ledger)?;
        self.tell(
            &format!("etcd and the Kubernetes API server on {}", node.name),
            start,
        );
        let start = Instant::now();
        control_plane.create_nodes(&self.options.topology, self.options.kubelets)?;
        self.control_plane = Some(control_plane);
        self.tell("Node objects", start);
        Ok(())
    }

    /// Where a node's BPF file system is mounted: its own, as on a machine of its own, and mounted by the first who asks. It goes with
    /// the lab's directory.
    pub fn bpffs(&self, node: &str) -> Result<PathBuf> {
        let place = self.directory().join("bpf").join(node);
        if !place.exists() {
            fs::create_dir_all(&place).with_context(|| format!("cannot make {}", place.display()))?;
            mount(
                Some("bpf"),
                &place,
                Some("bpf"),
                MsFlags::empty(),
                Some("mode=0700"),
            )
            .with_context(|| format!("cannot mount a BPF file system at {}", place.display()))?;
        }
        Ok(place)
    }

    /// Says what the pods of a node are numbered from from now on: its Node has no pod CIDRs, and Podlane has given it these.
    pub fn learn_pod_cidrs(&mut self, node: &str, pod_cidrs: Vec<IpNet>) -> Result<()> {
        let Some(place) = self.options.topology.nodes.iter_mut().find(|it| it.name == node) else {
            bail!("the lab has no node {node}");
        };
        place.pod_cidrs = pod_cidrs;
        Ok(())
    }

    /// Adds a pod to a node that is up.
    pub fn add_pod(&mut self, node: &str, pod: Pod) -> Result<()> {
        let Some(place) = self.options.topology.nodes.iter_mut().find(|it| it.name == node) else {
            bail!("the lab has no node {node}");
        };
        network::add_pod(place, &pod, &self.naming, &self.ledger)?;
        place.pods.push(pod);
        Ok(())
    }

    /// Takes a node off the network, with everything that its kernel held; see [`network::unplug`].
    pub fn unplug(&self, node: &str) -> Result<network::Plugs> {
        network::unplug(self.node(node)?, &self.naming)
    }

    /// Puts it back.
    pub fn plug(&self, node: &str, plugs: &network::Plugs) -> Result<()> {
        network::plug(
            self.topology(),
            self.node(node)?,
            &self.naming,
            plugs,
            self.nodes_forward(),
        )
    }

    /// Whether nodes forward packets from the start, as where another plugin connects pods. A lab's agents have to see to it themselves.
    fn nodes_forward(&self) -> bool {
        self.options.extent < Extent::Podlane
    }

    fn node(&self, node: &str) -> Result<&Node> {
        self.topology()
            .node(node)
            .with_context(|| format!("the lab has no node {node}"))
    }

    /// The lab's name.
    pub fn name(&self) -> &str {
        &self.options.name
    }

    /// Its network.
    pub fn topology(&self) -> &Topology {
        &self.options.topology
    }

    /// What it has made.
    pub fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }

    /// Where its files are; they go with it.
    pub fn directory(&self) -> PathBuf {
        self.ledger.state().directory
    }

    /// The administrator's kubeconfig on the machine itself.
    pub fn kubeconfig(&self) -> PathBuf {
        admin_kubeconfig(self.name())
    }

    /// The namespace of a node, a pod, the router, the switch or the internet.
    pub fn namespace(&self, name: &str) -> Namespace {
        self.naming.namespace(name)
    }

    /// The first address of a pod.
    pub fn pod_address(&self, pod: &str) -> Result<IpAddr> {
        let (_, pod) = self
            .topology()
            .pod(pod)
            .with_context(|| format!("the lab has no pod {pod}"))?;
        pod.address()
            .with_context(|| format!("{} has no address", pod.name))
    }

    /// etcd and the API server.
    pub fn control_plane(&mut self) -> Result<&mut ControlPlane> {
        self.control_plane.as_mut().context("this lab has no API server")
    }

    /// kubectl as the administrator.
    pub fn kubectl(&self) -> Result<&Kubectl> {
        Ok(self
            .control_plane
            .as_ref()
            .context("this lab has no API server")?
            .kubectl())
    }

    /// Takes it down. Fails when something is left.
    pub fn down(mut self) -> Result<()> {
        self.end()
    }

    /// Leaves it up when this program ends; it must be one that stays.
    pub fn leave_up(mut self) -> Result<()> {
        if !self.options.stays {
            bail!("the lab {} ends with this program", self.name());
        }
        self.ended = true;
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        self.ended = true;
        let result = teardown::take_down(&self.ledger.state());
        // They have ended by now; this waits for them, as their parent must.
        self.agents.clear();
        self.operator = None;
        self.control_plane = None;
        result
    }

    fn tell(&self, what: &str, since: Instant) {
        (self.options.progress)(&format!("{what}: {:.1} s", since.elapsed().as_secs_f64()));
    }
}

impl Drop for Lab {
    #[allow(
        clippy::print_stderr,
        reason = "what is left over must be told, and a drop returns no error"
    )]
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        if let Err(error) = self.end() {
            eprintln!("{error:#}");
        }
    }
}

/// Stops something for as long as `during` runs, then lets it go on, also when that fails.
pub fn while_frozen<T>(process: &Process, during: impl FnOnce() -> Result<T>) -> Result<T> {
    process.freeze()?;
    let result = during();
    process.thaw()?;
    result
}

/// Where a lab's logs are.
pub fn logs(directory: &Path) -> PathBuf {
    directory.join("logs")
}
