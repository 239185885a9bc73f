//! The agent's loop: something happens, a pass follows, status says how it went.

use crate::clean::Cleaner;
use crate::cni::{Directory, keep_word};
use crate::connection::Connection;
use crate::datapath::{self, Datapath};
use crate::kernel::events::{Events, Interest};
use crate::kernel::{Kernel, Modules, Sysctls};
use crate::metrics::{self, Asked, Figures};
use crate::options;
use crate::pace::{Pace, cpu_time};
use crate::pass::{Outcome, Pass};
use crate::report::{self, Programs, Subject};
use crate::retries::Retries;
use crate::world::{Told, World};
use crate::{status, watch};
use anyhow::{Context, bail};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use podlane_crds::{Bypass, ConditionType, Encapsulation, RoutingNodeStatus};
use podlane_datapath::Routed;
use podlane_plan::cni::{self, Found, Hindrance};
use podlane_plan::probes::ProbeKey;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc, watch as latest};
use tokio::task::JoinSet;

/// How long until the address for metrics is tried again.
const LISTEN_AGAIN: Duration = Duration::from_secs(5);

/// Messages from the API server that may wait for a pass to end.
const WAITING: usize = 16;

/// Runs until SIGTERM or SIGINT, and leaves the kernel as it is then.
///
/// # Errors
/// When there is no way to the API server to begin with, or no netlink.
pub async fn run(options: options::Agent, bpffs: PathBuf, cni: Option<Directory>) -> anyhow::Result<()> {
    let node: &'static str = options.node_name.context("--node-name is missing")?.leak();
    let connection = Connection::open(options.kubeconfig.as_deref()).await?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;

    // Before anything is known of the cluster: what loading takes in memory is free again for that.
    let datapath = Datapath::open(bpffs.clone(), ProbeKey(rand::random()), Instant::now());

    let (said, mut told) = mpsc::channel(WAITING);
    let (wanted_status, wanted) = latest::channel(None);
    let (held_status, held) = latest::channel(None);
    let (ask, mut asked) = mpsc::channel(1);
    let mut tasks = JoinSet::new();
    tasks.spawn(tell_metrics(options.metrics, ask));
    tasks.spawn(watch::own(connection.clients(), node, said.clone()));
    tasks.spawn(watch::slices(connection.clients(), said));
    tasks.spawn(status::keep(connection.clients(), node, wanted, held));

    let wake = Arc::new(Notify::new());
    let events = Events::listen(Arc::clone(&wake)).context("listening to the kernel")?;
    let mut kernel = Kernel::with_sysctls(Sysctls::at(options.sysctls));
    options
        .load_modules
        .into_iter()
        .for_each(|root| kernel.load_modules(Modules::at(root)));
    let mut agent = Agent {
        kernel,
        events,
        world: World::default(),
        retries: Retries::default(),
        pace: Pace::default(),
        resync: Duration::from_secs(options.resync),
        reported: RoutingNodeStatus::default(),
        unreadable: None,
        wanted_status,
        held_status,
        instance: options.instance,
        datapath,
        cni,
        connected: None,
        ready: Err("what this node is told has yet to be read from the API server".to_owned()),
        passes: 0,
        connection,
        cleaner: Cleaner::default(),
        bpffs,
    };
    tracing::info!(node, version = env!("CARGO_PKG_VERSION"), "running");
    let mut due = Instant::now() + agent.resync;
    loop {
        let probe = agent.next_probe().unwrap_or(due);
        tokio::select! {
            biased;
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            Some(ended) = tasks.join_next() => {
                ended.context("a task failed")?;
                bail!("a task ended");
            }
            Some(told) = told.recv() => if agent.take(told) {
                due = due.min(agent.pace.next(Instant::now()));
            },
            () = wake.notified() => due = due.min(agent.pace.next(Instant::now())),
            // A pass blocks this, the only thread. That is meant: what it does takes milliseconds, a second where thousands of
            // routes are new; nothing else here is worth doing before it has ended, and no second thread costs memory or needs
            // locks. What the API server says meanwhile waits in its sockets.
            () = tokio::time::sleep_until(due.into()) => due = agent.pass(),
            () = tokio::time::sleep_until(probe.into()) => if agent.probe() {
                due = due.min(agent.pace.next(Instant::now()));
            },
            Some(asked) = asked.recv() => agent.answer(asked),
        }
    }
    tracing::info!("ending; the kernel stays as it is");
    Ok(())
}

/// Without metrics a node is routed all the same. Tries again for ever: who has the address may end.
async fn tell_metrics(address: SocketAddr, ask: mpsc::Sender<Asked>) {
    let mut said = None;
    loop {
        if let Err(why) = metrics::serve(address, ask.clone()).await {
            let why = why.to_string();
            if said.as_ref() != Some(&why) {
                tracing::error!(%address, why, "no metrics, nor an answer to probes: choose another address with --metrics");
                said = Some(why);
            }
        }
        tokio::time::sleep(LISTEN_AGAIN).await;
    }
}

struct Agent {
    kernel: Kernel,
    events: Events,
    world: World,
    retries: Retries,
    pace: Pace,
    resync: Duration,
    /// The status as it was reported last.
    reported: RoutingNodeStatus,
    /// Why the kernel could not be read last, so that the log says it once.
    unreadable: Option<String>,
    wanted_status: latest::Sender<Option<RoutingNodeStatus>>,
    held_status: latest::Sender<Option<RoutingNodeStatus>>,
    /// What tells this agent from others on the same node.
    instance: Option<String>,
    datapath: Datapath,
    /// Where the CNI configuration is kept; none: another plugin connects this node's pods.
    cni: Option<Directory>,
    /// What became of it in the last pass.
    connected: Option<Result<String, Hindrance>>,
    /// Where the programs are pinned, and where it is said that the node has its routes.
    bpffs: PathBuf,
    /// Whether the node was as it should be after the last pass: its state applied, and its lanes proved; or why not.
    ready: Result<(), String>,
    passes: u64,
    connection: Connection,
    cleaner: Cleaner,
}

impl Agent {
    /// Takes in what the API server said. Whether that calls for a pass.
    fn take(&mut self, told: Told) -> bool {
        let about_own = matches!(told, Told::Own(_) | Told::OwnGone);
        let changed = self.world.take(told);
        if about_own {
            let held = self.world.held().cloned();
            if self.reported == RoutingNodeStatus::default() {
                // After a start: conditions go on from where the predecessor left them.
                self.reported = held.as_ref().map(report::own_part).unwrap_or_default();
                let key = held
                    .as_ref()
                    .and_then(|held| held.probe_key.as_ref()?.parse().ok());
                key.into_iter().for_each(|key| self.datapath.learn_key(key));
                if self.cni.is_none() {
                    // It is another plugin now that connects the pods.
                    let kind = ConditionType::PodNetwork.to_string();
                    self.reported
                        .conditions
                        .retain(|condition| condition.type_ != kind);
                }
            }
            self.held_status.send_if_modified(|before| {
                let modified = *before != held;
                *before = held;
                modified
            });
        }
        if changed {
            self.retries.start_over();
        }
        changed
    }

    /// One pass, and its report. Returns when the next one is due if nothing happens.
    fn pass(&mut self) -> Instant {
        let (start, cpu) = (Instant::now(), cpu_time());
        self.passes += 1;
        if self.world.is_to_be_clean() {
            return self.clean();
        }
        if self.cleaner.is_over() {
            self.datapath.reopen(start);
        }
        let found = self.cni.as_ref().map(Directory::look);
        let connects = matches!(&found, Some(Ok(found)) if found.connects());
        self.kernel.learn_connects_pods(connects);
        let outcome = self.world.assignment().map(|assignment| {
            Pass::new(
                &mut self.kernel,
                &mut self.datapath,
                &mut self.retries,
                assignment,
                self.world.peers(),
            )
            .run(start)
        });
        let end = Instant::now();
        self.pace.ended(end, cpu_time().saturating_sub(cpu));
        match &outcome {
            Some(Ok(outcome)) => {
                self.unreadable = None;
                self.events.set_interest(Interest {
                    devices: outcome.devices.clone(),
                    own_port: self.kernel.port(),
                    own_netfilter_port: self.kernel.netfilter_port(),
                });
                tracing::debug!(took = ?(end - start), applied = outcome.applied, settled = outcome.settled, "pass");
                if let Some(assignment) = self.world.assignment() {
                    self.connection.notice(&assignment.addresses, &outcome.underlay);
                }
                let unproved = self.unproved(outcome);
                self.ready = match &unproved {
                    None => Ok(()),
                    Some(hindrance) => Err(format!("{}: {hindrance}", hindrance.reason())),
                };
                self.connect_pods(found, outcome, unproved);
                self.report(Some(Ok(outcome)));
            }
            Some(Err(error)) => {
                let text = error.to_string();
                if self.unreadable.as_ref() != Some(&text) {
                    tracing::error!(error = %text, "the kernel cannot be read; it stays as it is");
                    self.unreadable = Some(text.clone());
                }
                self.ready = Err(format!("KernelUnreadable: {text}"));
                self.report(Some(Err(&text)));
                return end + Duration::from_secs(1);
            }
            None if self.world.unreadable().is_empty() => {}
            None => self.report(None),
        }
        let retry = self.retries.next().map(|retry| retry.max(self.pace.next(end)));
        let resync = end + self.resync;
        retry.map_or(resync, |retry| retry.min(resync))
    }

    /// Takes everything off the node, and says how that went. Returns when to look again.
    fn clean(&mut self) -> Instant {
        self.datapath.close();
        self.connected = None;
        self.events.set_interest(Interest {
            devices: BTreeSet::new(),
            own_port: self.kernel.port(),
            own_netfilter_port: self.kernel.netfilter_port(),
        });
        let result = self
            .cleaner
            .clean(&mut self.kernel, &self.bpffs, self.cni.as_ref());
        self.ready = match &result {
            Ok(()) => Ok(()),
            Err(why) => Err(format!("the node is not clean: {why:#}")),
        };
        let (generation, instance) = (self.world.generation(), self.instance.as_deref());
        let status = report::cleaned(&result, generation, instance, &self.reported, &now());
        self.tell(status);
        Instant::now() + self.cleaner.wait(&result).unwrap_or(self.resync)
    }

    /// What of the node's lanes has yet to be proved, or to be applied.
    fn unproved(&self, outcome: &Outcome) -> Option<Hindrance> {
        let is_settled = outcome.settled && outcome.unfinished.is_empty();
        cni::unproved(self.world.assignment()?, &outcome.desired, is_settled)
    }

    /// Keeps the CNI configuration, and the word by which it connects pods.
    fn connect_pods(
        &mut self,
        found: Option<Result<Found, Hindrance>>,
        outcome: &Outcome,
        unproved: Option<Hindrance>,
    ) {
        let Some(assignment) = self.world.assignment() else {
            return;
        };
        let is_former = matches!(&found, Some(Ok(found)) if found.numbers_otherwise(&assignment.pod_cidrs));
        // Also where this agent keeps no configuration: one before it may have left one.
        let word = Routed::below(&self.bpffs).ok();
        let word = word.filter(|word| keep_word(word, outcome.routed, is_former));
        let (Some(directory), Some(found)) = (&self.cni, found) else {
            return;
        };
        let stands = found.and_then(|found| {
            let routed = word
                .as_ref()
                .and_then(|word| Some(word.path().to_str()?.to_owned()));
            let wanted = cni::config(assignment, self.world.peers(), &outcome.underlay)
                .map(|config| cni::Config { routed, ..config });
            let verdict = cni::verdict(wanted, unproved, &found);
            let is_written = verdict.write.is_some();
            let stands = directory.carry_out(verdict, &found);
            if let (true, Ok(_), Some(word)) = (is_former && is_written, &stands, &word) {
                keep_word(word, outcome.routed, false);
            }
            stands
        });
        if let Err(why) = &stands
            && self.connected.as_ref() != Some(&stands)
        {
            tracing::info!(reason = why.reason(), "pods are not connected: {why}");
        }
        self.connected = Some(stands);
    }

    /// When probes are to be sent or looked for.
    fn next_probe(&self) -> Option<Instant> {
        self.datapath.next_probe()
    }

    /// Sends probes and takes in answers. Whether that calls for a pass.
    fn probe(&mut self) -> bool {
        self.datapath.probe(Instant::now())
    }

    fn answer(&mut self, asked: Asked) {
        // Whoever asked may have gone.
        match asked {
            Asked::Figures(asked) => drop(asked.send(self.figures())),
            Asked::Ready(asked) => drop(asked.send(self.ready.clone())),
        }
    }

    fn figures(&mut self) -> Figures {
        let counters = self.datapath.counters();
        let (datapath, counts) = (
            self.reported.datapath.as_ref(),
            self.reported.counts.unwrap_or_default(),
        );
        Figures {
            lanes: datapath::figures_of_lanes(&counters.lanes),
            peers: datapath::traffic(&counters),
            drops: datapath::drops(&counters),
            reached: vec![
                ("native", counts.native),
                ("underlay", counts.underlay),
                ("vxlan", counts.vxlan),
                ("geneve", counts.geneve),
                ("refused", counts.refused),
            ],
            programs: datapath.is_some_and(|datapath| datapath.encapsulation == Encapsulation::Ebpf),
            bypass: datapath.is_some_and(|datapath| datapath.bypass == Bypass::On),
            passes: self.passes,
        }
    }

    fn report(&mut self, outcome: Option<Result<&Outcome, &str>>) {
        let counted = self.datapath.lane_figures();
        // Of thousands of peers they take their time to read: not before there is something new to say.
        let drops = report::drops_differ(&counted, &self.reported)
            .then(|| datapath::drops(&self.datapath.counters()));
        let datapath = &self.datapath;
        let subject = Subject {
            instance: self.instance.as_deref(),
            assignment: self.world.assignment(),
            generation: self.world.generation(),
            unreadable: self.world.unreadable(),
            connected: self.connected.as_ref(),
            programs: Some(Programs {
                loaded: datapath
                    .hash()
                    .ok_or_else(|| datapath.hindrance().unwrap_or_default()),
                probe_key: datapath.key(),
                tally: datapath.tally(),
                counted: &counted,
                drops: drops.as_deref(),
            }),
        };
        let status = report::status(subject, outcome, &self.reported, &now());
        self.tell(status);
    }

    /// Has a status written where it differs from the last one.
    fn tell(&mut self, status: RoutingNodeStatus) {
        if status != self.reported || self.wanted_status.borrow().is_none() {
            self.reported.clone_from(&status);
            self.wanted_status.send_replace(Some(status));
        }
    }
}

/// As the API server keeps times: without fractions of a second.
fn now() -> Time {
    Time(Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default())
}
