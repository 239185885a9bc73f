//! The operator as a whole: watch, be elected, lead, and end.

use crate::apply::Applier;
use crate::configuration::{CannotRead, Configuration};
use crate::leader::{Election, Lost};
use crate::options::{Command, Options};
use crate::seen::{Seen, SeenNode};
use crate::uninstall::{self, Uninstall, UninstallError, Uninstalled};
use crate::watch::{Shared, follow};
use crate::world::{Rollout, World};
use crate::{first_policy, health, passes, rollout};
use kube::client::ClientBuilder;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use podlane_crds::{PeerSlice, RoutingNode, RoutingPolicy};
use std::convert::Infallible;
use std::future::pending;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tower::timeout::TimeoutLayer;

/// How long an answer may take to begin.
const ANSWER: Duration = Duration::from_secs(30);
/// How long a connection may be silent: the API server sends a bookmark about once a minute where there is nothing else.
const SILENCE: Duration = Duration::from_secs(150);

/// How much of a termination message is kept (kubelet, `MaxContainerTerminationMessageLength`).
const RESULT: usize = 4096;

/// Why the operator ended, other than because it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// There is no way to the API server.
    #[error("cannot tell how to reach the API server: {0}")]
    Config(String),
    /// The nodes cannot be given blocks out of such a pool.
    #[error(transparent)]
    Pool(#[from] podlane_plan::pool::NoPool),
    /// There is no configuration.
    #[error(transparent)]
    Configuration(#[from] CannotRead),
    /// A handler for signals could not be installed.
    #[error("cannot wait for signals: {0}")]
    Signals(#[from] std::io::Error),
    /// An operator that was asked whether it is well is not.
    #[error("{0}")]
    Unwell(String),
    /// Nobody could be told whether this operator is well.
    #[error("cannot answer at {0}: {1}")]
    Health(PathBuf, std::io::Error),
    /// Uninstalling has not come to its end: what is to be read, and why.
    #[error("{0}")]
    Uninstall(String, #[source] UninstallError),
}

/// Does what the command line says. What is to be read in the end, if anything.
///
/// # Errors
/// When it has to end by itself, or without success.
pub async fn carry_out(options: &Options) -> Result<Option<String>, RunError> {
    match &options.command {
        None => run(options).await.map(|()| None),
        Some(Command::Uninstall(how)) => uninstall(options, how).await.map(Some),
        Some(Command::Health { question, socket }) => {
            health::ask(socket, *question).map_err(RunError::Unwell)?;
            Ok(None)
        }
    }
}

async fn uninstall(options: &Options, how: &Uninstall) -> Result<String, RunError> {
    let client = client(options).await?;
    let identity = format!("uninstall-{}", options.identity());
    let lease = &options.leader_election_id;
    let outcome = uninstall::run(&client, &options.namespace, lease, &identity, how).await;
    let said = match &outcome {
        Ok(Uninstalled::Kept) => "the agents are gone; nodes stay as they are".to_owned(),
        Ok(Uninstalled::Cleaned(results)) => results.to_string(),
        Err(UninstallError::Failed(results)) => {
            format!("{results}\n{}", UninstallError::Failed(results.clone()))
        }
        Err(why) => why.to_string(),
    };
    if let Some(file) = &how.result {
        // What does not fit is cut from the front: what went wrong is in the end.
        let start = said.ceil_char_boundary(said.len().saturating_sub(RESULT));
        if let Err(why) = std::fs::write(file, &said[start..]) {
            tracing::warn!(file = %file.display(), %why, "the result cannot be written");
        }
    }
    match outcome {
        Ok(_) => Ok(said),
        Err(why) => Err(RunError::Uninstall(said, why)),
    }
}

/// Runs until it is asked to end.
///
/// # Errors
/// When it has to end by itself.
pub async fn run(options: &Options) -> Result<(), RunError> {
    let settings = options.settings()?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let configuration = match &options.configuration {
        Some(file) => Configuration::read(file)?,
        None => Configuration::default(),
    };
    let identity = options.identity();
    tracing::info!(identity, version = env!("CARGO_PKG_VERSION"), "started");
    loop {
        let asked_to_end = async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        let world = World::new(settings.clone());
        match live(options, &identity, &configuration, world, asked_to_end).await? {
            None => break,
            Some(lost) => tracing::warn!("{lost}; starting over"),
        }
    }
    tracing::info!("ended");
    Ok(())
}

/// Watches, waits to be elected and leads, with nothing known but the world given. Returns when it is asked to end, or when leadership
/// is lost: then whatever it was about to write stays unwritten.
async fn live(
    options: &Options,
    identity: &str,
    configuration: &Configuration,
    world: World,
    asked_to_end: impl Future<Output = ()>,
) -> Result<Option<Lost>, RunError> {
    let client = client(options).await?;
    let shared = Arc::new(Shared::new(world));
    // Ended when this is dropped.
    let mut watches = JoinSet::new();
    spawn_watches(&mut watches, &client, &shared);
    let mut election = Election::new(
        client.clone(),
        &options.namespace,
        &options.leader_election_id,
        identity,
        options.terms(),
    );
    let mut leader = Leader {
        applier: Applier::new(client.clone(), identity),
        client,
        namespace: &options.namespace,
        configuration,
    };
    tokio::select! {
        lost = lead(&mut election, &mut leader, &shared, identity) => return Ok(Some(lost)),
        error = answer_health(options.health.as_deref(), &shared) => return Err(error),
        () = asked_to_end => {}
    }
    drop(watches);
    election.release().await;
    Ok(None)
}

/// What only a leader does.
struct Leader<'a> {
    client: Client,
    applier: Applier,
    namespace: &'a str,
    configuration: &'a Configuration,
}

impl Leader<'_> {
    async fn act(&mut self, shared: &Shared) -> Infallible {
        let agents = self.configuration.agents.as_ref();
        let rollout = async {
            match agents {
                Some(agents) => rollout::run(&self.client, self.namespace, agents, shared).await,
                None => {
                    shared.world().rollout = Rollout::Goes;
                    pending().await
                }
            }
        };
        let first_policy = self.configuration.first_policy.as_ref();
        let passes = async {
            if let Some(spec) = first_policy {
                first_policy::make(&self.client, spec, shared).await;
            }
            passes::run(shared, &mut self.applier).await
        };
        tokio::select! {
            never = passes => never,
            never = rollout => never,
        }
    }
}

/// Answers whether this operator is well, where that is wanted. Comes to an end only where that cannot be.
async fn answer_health(socket: Option<&Path>, shared: &Shared) -> RunError {
    match socket {
        Some(socket) => match health::serve(socket, shared).await {
            Err(why) => RunError::Health(socket.to_owned(), why),
            Ok(()) => pending().await,
        },
        None => pending().await,
    }
}

async fn lead(election: &mut Election, leader: &mut Leader<'_>, shared: &Shared, identity: &str) -> Lost {
    let acquired = election.acquire().await;
    tracing::info!(identity, "leading");
    tokio::select! {
        lost = election.keep(acquired) => lost,
        never = leader.act(shared) => match never {},
    }
}

fn spawn_watches(watches: &mut JoinSet<()>, client: &Client, shared: &Arc<Shared>) {
    macro_rules! spawn {
        ($($kind:ty),+) => {$({
            let (client, shared) = (client.clone(), Arc::clone(shared));
            watches.spawn(async move { follow::<$kind>(client, &shared).await });
        })+};
    }
    spawn!(SeenNode, Seen<RoutingPolicy>, Seen<RoutingNode>, Seen<PeerSlice>);
}

pub(crate) async fn client(options: &Options) -> Result<Client, RunError> {
    let words = |error: &dyn std::error::Error| RunError::Config(error.to_string());
    let mut config = match &options.kubeconfig {
        Some(path) => {
            let kubeconfig = Kubeconfig::read_from(path).map_err(|error| words(&error))?;
            Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
                .await
                .map_err(|error| words(&error))?
        }
        None => Config::infer().await.map_err(|error| words(&error))?,
    };
    // Trying again is the business of whoever decides anew.
    config.default_retry = false;
    config.connect_timeout = Some(Duration::from_secs(10));
    config.read_timeout = Some(SILENCE);
    config.reset_reader_on_write = true;
    let builder = ClientBuilder::try_from(config).map_err(|error| words(&error))?;
    Ok(builder.with_layer(&TimeoutLayer::new(ANSWER)).build())
}
