//! Scenarios as tests: what this machine cannot run is reported as ignored and said loudly, and a failure brings with it
//! what the lab looked like.

use std::any::Any;
use std::fmt::{self, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result, anyhow};
use libtest_mimic::{Arguments, Failed, Trial};

use crate::cluster::{self, Cluster};
use crate::interrupt;
use crate::lab::{self, Extent, Lab, Options};
use crate::process::tail;
use crate::programs::{self, ControlPlanePrograms};
use crate::topology::Topology;

/// What a scenario does.
type Run = dyn Fn(&mut Context) -> Result<()> + Send + Sync;

/// A scenario: a name that says what is true afterwards, and the function that shows it.
#[derive(Clone)]
pub struct Scenario {
    name: String,
    programs: &'static [&'static str],
    missing: Option<String>,
    run: Arc<Run>,
}

impl fmt::Debug for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Scenario({:?})", self.name)
    }
}

impl Scenario {
    /// A scenario that needs what every lab needs.
    pub fn new(
        name: impl Into<String>,
        run: impl Fn(&mut Context) -> Result<()> + Send + Sync + 'static,
    ) -> Self {
        Self {
            name: name.into(),
            programs: &[],
            missing: None,
            run: Arc::new(run),
        }
    }

    /// The same scenario; it is ignored where one of these programs is missing.
    #[must_use]
    pub fn needs(self, programs: &'static [&'static str]) -> Self {
        Self { programs, ..self }
    }

    /// The same scenario; it is ignored where something is missing, for the reason given.
    #[must_use]
    pub fn lacks(self, missing: Option<String>) -> Self {
        Self { missing, ..self }
    }
}

/// What the scenarios of one test program share.
#[derive(Debug)]
pub struct Context {
    options: Options,
    lab: Option<Lab>,
    cluster: Option<Cluster>,
    /// What the shared lab's network is called, where it is not that of the options.
    network: Option<&'static str>,
    further_labs: u32,
}

impl Context {
    /// The shared lab, brought up by the scenario that asks first. A scenario leaves it as it was; after one that fails
    /// there is a new one.
    pub fn lab(&mut self) -> Result<&mut Lab> {
        let topology = self.options.topology.clone();
        self.share(None, topology)
    }

    /// The same on another network, `called` so: scenarios that name the same one share a lab when nobody between them names another.
    pub fn lab_on(&mut self, called: &'static str, topology: Topology) -> Result<&mut Lab> {
        self.share(Some(called), topology)
    }

    fn share(&mut self, network: Option<&'static str>, topology: Topology) -> Result<&mut Lab> {
        if self.network != network {
            self.end_lab()?;
        }
        if self.lab.is_none() {
            let options = Options {
                topology,
                ..self.options.clone()
            };
            self.lab = Some(Lab::up(options).context("cannot bring the lab up")?);
            self.network = network;
        }
        self.lab.as_mut().context("the lab is gone")
    }

    /// What the shared lab is made with, under another name: for a scenario that needs a lab of its own.
    pub fn options_for_own_lab(&mut self) -> Options {
        self.further_labs += 1;
        Options {
            name: format!("{}-{}", self.options.name, self.further_labs),
            ..self.options.clone()
        }
    }

    /// The shared cluster, brought up without Podlane by the scenario that asks first. After a scenario that fails there is a new one.
    pub fn cluster(&mut self) -> Result<&mut Cluster> {
        if self.cluster.is_none() {
            let options = cluster::Options {
                progress: self.options.progress,
                ..cluster::Options::named(self.options_for_own_lab().name)
            };
            self.cluster = Some(Cluster::up(options).context("cannot bring the cluster up")?);
        }
        self.cluster.as_mut().context("the cluster is gone")
    }

    /// Takes the shared lab and the shared cluster down, so that the next scenario that asks for one has a new one.
    pub fn end_lab(&mut self) -> Result<()> {
        let lab = self.lab.take().map_or(Ok(()), Lab::down);
        self.cluster.take().map_or(Ok(()), Cluster::down).and(lab)
    }
}

/// Runs the scenarios of a test program, one after the other, each finding a lab made with `options` (its name is
/// replaced by one that no other test program uses). Takes the arguments of an ordinary test program.
pub fn run(options: Options, scenarios: impl IntoIterator<Item = Scenario>) -> ExitCode {
    let mut arguments = Arguments::from_args();
    // They share the lab, and the machine.
    arguments.test_threads = Some(1);
    let listing = arguments.list;
    if let Err(error) = interrupt::watch() {
        say(&format!("{error:#}"));
        return ExitCode::FAILURE;
    }
    let missing = if listing {
        None
    } else {
        missing_for(options.extent)
    };
    if missing.is_none() && !listing {
        match lab::down_orphans() {
            Ok(names) if names.is_empty() => {}
            Ok(names) => say(&format!(
                "took down what earlier tests had left: {}",
                names.join(", ")
            )),
            Err(error) => say(&format!("{error:#}")),
        }
    }
    let name = format!("test-{}", std::process::id());
    let context = Context {
        options: Options { name, ..options },
        lab: None,
        cluster: None,
        network: None,
        further_labs: 0,
    };
    let context = Arc::new(Mutex::new(context));
    let trials = scenarios
        .into_iter()
        .map(|scenario| {
            let missing = missing.clone().or_else(|| scenario.missing.clone()).or_else(|| {
                let program = programs::first_missing(scenario.programs)?;
                Some(format!("{program} is not installed"))
            });
            if let Some(reason) = &missing {
                say(&format!("SKIPPED: {}: {reason}", scenario.name));
            }
            let context = Arc::clone(&context);
            Trial::test(scenario.name.clone(), move || run_one(&scenario, &context))
                .with_ignored_flag(missing.is_some())
        })
        .collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    let ended = context.lock().unwrap_or_else(PoisonError::into_inner).end_lab();
    if let Err(error) = ended {
        say(&format!("FAILED: the lab was not taken down: {error:#}"));
        return ExitCode::FAILURE;
    }
    conclusion.exit_code()
}

fn run_one(scenario: &Scenario, context: &Mutex<Context>) -> Result<(), Failed> {
    interrupt::check().map_err(|error| Failed::from(format!("{error:#}")))?;
    let mut context = context.lock().unwrap_or_else(PoisonError::into_inner);
    let result = catch_unwind(AssertUnwindSafe(|| (scenario.run)(&mut context)))
        .unwrap_or_else(|panic| Err(anyhow!("panicked: {}", panic_message(panic.as_ref()))));
    let Err(error) = result else { return Ok(()) };
    let mut message = format!("{error:#}\n");
    if let Some(lab) = &context.lab {
        message.push_str(&describe(lab));
    }
    if let Some(cluster) = &context.cluster {
        message.push_str(&cluster.describe());
    }
    if let Err(error) = context.end_lab() {
        let _ = writeln!(message, "and the lab was not taken down: {error:#}");
    }
    Err(message.into())
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("without a message")
}

/// What a lab looks like: the ends of Podlane's logs, the nodes' routes, Podlane's objects.
pub fn describe(lab: &Lab) -> String {
    let mut text = String::new();
    for process in lab.podlane_processes() {
        let state = if process.runs() { "runs" } else { "has ended" };
        let _ = writeln!(
            text,
            "--- {} ({state}), the end of its log\n{}",
            process.name(),
            tail(process.log(), 40)
        );
    }
    for node in &lab.topology().nodes {
        let namespace = lab.namespace(&node.name);
        for what in ["-d route show", "-6 -d route show", "-d neigh show"] {
            let what: Vec<&str> = what.split(' ').collect();
            let answer = namespace.ip(&what).unwrap_or_else(|error| format!("{error:#}\n"));
            let _ = write!(text, "--- {}: ip {}\n{answer}", node.name, what.join(" "));
        }
    }
    if let Ok(kubectl) = lab.kubectl() {
        let what = ["get", "rp,rn,peerslices", "-o", "yaml", "--request-timeout=5s"];
        let answer = kubectl.run(&what).unwrap_or_else(|error| format!("{error:#}\n"));
        let _ = write!(text, "--- kubectl {}\n{answer}", what.join(" "));
    }
    text
}

/// What this machine lacks for a lab; none when it can have one.
pub fn missing_for(extent: Extent) -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("not root, and network namespaces need it".to_owned());
    }
    if let Some(program) = programs::first_missing(&["ip", "nsenter", "setpriv", "ping", "tcpdump"]) {
        return Some(format!(
            "{program} is not installed; `make deps` installs what is missing"
        ));
    }
    if extent >= Extent::ControlPlane
        && let Err(error) = ControlPlanePrograms::find()
    {
        return Some(format!("{error:#}"));
    }
    if extent == Extent::Podlane {
        return ["podlane-operator", "podlane-agent"]
            .into_iter()
            .find_map(|name| programs::own(name).err())
            .map(|error| format!("{error:#}"));
    }
    None
}

#[allow(clippy::print_stderr, reason = "a test program speaks on standard error")]
fn say(line: &str) {
    eprintln!("{line}");
}
