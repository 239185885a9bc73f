//! Uninstalling: what a Job runs before Helm deletes the release.
//!
//! The operator is sent home and its lease taken, so that nobody works against it. Then every agent is told to take everything off
//! its node (`spec.clean` of its RoutingNode), and waited for; then what the operator has made is deleted, and the rest is told. With
//! [`Uninstall::keep_datapath`] nodes and what they were told stay as they are, and only the agents go.

mod nodes;
mod objects;

pub use nodes::{NodeResult, Results, Standing, Told};

use crate::failure::words;
use crate::leader::{Election, Lost, Terms};
use crate::rollout::agent_labels;
use crate::seen::Seen;
use clap::Args;
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::core::PartialObjectMeta;
use kube::{Api, Client, Error, ResourceExt};
use objects::{Left, list, unless_gone};
use podlane_crds::{PeerSlice, RoutingNode};
use serde_json::json;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// Requests in flight at a time, at most.
const AT_A_TIME: usize = 16;
/// How long an operator that was told to end may go on leading: its lease, and what it takes to see that that has run out.
const STAND_DOWN: Duration = Duration::from_secs(60);
/// How often it is looked what nodes say. Where they are many, less often: a list takes the API server some milliseconds a hundred.
const LOOK: Duration = Duration::from_secs(1);

/// How to uninstall.
#[derive(Clone, Debug, Args)]
pub struct Uninstall {
    /// Leave nodes as they are: pods go on reaching each other, and whoever is installed next takes the lanes over.
    #[arg(long)]
    pub keep_datapath: bool,
    /// Seconds to wait for nodes' agents.
    #[arg(long, default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub patience: u64,
    /// The operator's Deployment.
    #[arg(long, default_value = "podlane-operator")]
    pub deployment: String,
    /// The agents' DaemonSet.
    #[arg(long, default_value = "podlane-agent")]
    pub daemon_set: String,
    /// A file that the result is written to as well, up to 4 KiB of it: a container's termination message.
    #[arg(long, value_name = "FILE")]
    pub result: Option<PathBuf>,
}

/// Why uninstalling has not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum UninstallError {
    /// The API server refused something, or does not answer.
    #[error("cannot {0}: {1}")]
    Api(&'static str, String),
    /// The operator goes on.
    #[error(
        "another operator goes on leading {0} s after it was told to end: see that its Deployment is scaled down"
    )]
    Leads(u64),
    /// Another operator has begun to lead.
    #[error("another operator works against this: {0}")]
    Lost(#[from] Lost),
    /// Some nodes are not clean, though their agents are there: what became of all.
    #[error(
        "some nodes could not be cleaned; their agents are still there. Mend what they name and uninstall again, or have the rest \
         deleted all the same with `helm uninstall --no-hooks`"
    )]
    Failed(Results),
}

/// What uninstalling came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Uninstalled {
    /// The nodes are as they were.
    Kept,
    /// What became of them.
    Cleaned(Results),
}

/// Uninstalls. `identity` is who holds the lease meanwhile.
///
/// # Errors
/// When something of Podlane's is left that could be removed by another attempt.
pub async fn run(
    client: &Client,
    namespace: &str,
    lease: &str,
    identity: &str,
    options: &Uninstall,
) -> Result<Uninstalled, UninstallError> {
    let work = Work {
        client,
        namespace,
        options,
    };
    work.send_the_operator_home().await?;
    let mut election = Election::new(client.clone(), namespace, lease, identity, Terms::default());
    let Ok(acquired) = timeout(STAND_DOWN, election.acquire()).await else {
        return Err(UninstallError::Leads(STAND_DOWN.as_secs()));
    };
    tracing::info!("the operator has ended");
    let outcome = tokio::select! {
        outcome = work.carry_out() => outcome,
        lost = election.keep(acquired) => Err(lost.into()),
    };
    election.release().await;
    let uninstalled = outcome?;
    // After that nobody is left to lead.
    let leases: Api<Lease> = Api::namespaced(client.clone(), namespace);
    unless_gone(leases.delete(lease, &DeleteParams::default()).await).map_err(api("delete the lease"))?;
    Ok(uninstalled)
}

struct Work<'a> {
    client: &'a Client,
    namespace: &'a str,
    options: &'a Uninstall,
}

fn api(what: &'static str) -> impl Fn(Error) -> UninstallError {
    move |error| UninstallError::Api(what, words(&error))
}

impl Work<'_> {
    async fn send_the_operator_home(&self) -> Result<(), UninstallError> {
        let deployments: Api<Deployment> = Api::namespaced(self.client.clone(), self.namespace);
        let none = Patch::Merge(json!({"spec": {"replicas": 0}}));
        let scaled = deployments
            .patch_scale(&self.options.deployment, &PatchParams::default(), &none)
            .await;
        unless_gone(scaled).map_err(api("scale the operator down"))
    }

    async fn carry_out(&self) -> Result<Uninstalled, UninstallError> {
        if self.options.keep_datapath {
            self.delete_agents().await?;
            objects::tell_policies(self.client, &Left::Kept)
                .await
                .map_err(api("write the status of policies"))?;
            return Ok(Uninstalled::Kept);
        }
        let results = self.clean().await?;
        tracing::info!("{}", results.summary());
        objects::tell_policies(self.client, &Left::Cleaned(results.summary()))
            .await
            .map_err(api("write the status of policies"))?;
        if results.has_failed() {
            return Err(UninstallError::Failed(results));
        }
        // Once nobody keeps them any more.
        self.delete_agents().await?;
        objects::tell_nodes(self.client, &results.cleaned())
            .await
            .map_err(api("write the condition NetworkUnavailable of Nodes"))?;
        objects::delete_all::<PeerSlice>(self.client)
            .await
            .map_err(api("delete PeerSlices"))?;
        objects::delete_all::<RoutingNode>(self.client)
            .await
            .map_err(api("delete RoutingNodes"))?;
        Ok(Uninstalled::Cleaned(results))
    }

    async fn delete_agents(&self) -> Result<(), UninstallError> {
        let sets: Api<DaemonSet> = Api::namespaced(self.client.clone(), self.namespace);
        let deleted = sets
            .delete(&self.options.daemon_set, &DeleteParams::background())
            .await;
        unless_gone(deleted).map_err(api("delete the agents' DaemonSet"))
    }

    /// Has all nodes clean themselves, and waits for those that may still answer.
    async fn clean(&self) -> Result<Results, UninstallError> {
        self.tell().await?;
        let start = Instant::now();
        let patience = Duration::from_secs(self.options.patience);
        loop {
            let nodes = list::<Seen<RoutingNode>>(&self.routing_nodes(), ListParams::default())
                .await
                .map_err(api("list RoutingNodes"))?;
            let with_pod = self.nodes_with_agents().await.map_err(api("list agents' pods"))?;
            let waited = start.elapsed();
            let results = Results(
                nodes
                    .iter()
                    .map(|node| result(node, &with_pod, waited, patience))
                    .collect(),
            );
            if results.is_complete() {
                return Ok(results);
            }
            sleep(LOOK.max(Duration::from_millis(2) * u32::try_from(nodes.len()).unwrap_or(u32::MAX))).await;
        }
    }

    fn routing_nodes(&self) -> Api<Seen<RoutingNode>> {
        Api::all(self.client.clone())
    }

    async fn tell(&self) -> Result<(), UninstallError> {
        let api_of = self.routing_nodes();
        let nodes =
            list::<PartialObjectMeta<RoutingNode>>(&Api::all(self.client.clone()), ListParams::default())
                .await
                .map_err(api("list RoutingNodes"))?;
        let clean = json!({"spec": {"clean": true}});
        stream::iter(nodes)
            .map(|node| {
                let (api_of, clean) = (&api_of, &clean);
                async move {
                    let parameters = PatchParams::default();
                    unless_gone(
                        api_of
                            .patch(&node.name_any(), &parameters, &Patch::Merge(clean))
                            .await,
                    )
                }
            })
            .buffer_unordered(AT_A_TIME)
            .try_collect::<()>()
            .await
            .map_err(api("tell nodes to be clean"))
    }

    async fn nodes_with_agents(&self) -> Result<BTreeSet<String>, Error> {
        let labels = agent_labels();
        let labels: Vec<_> = labels
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), self.namespace);
        let pods = list::<Pod>(&pods, ListParams::default().labels(&labels.join(","))).await?;
        let nodes = pods.into_iter().filter_map(|pod| pod.spec?.node_name);
        Ok(nodes.collect())
    }
}

fn result(
    node: &Seen<RoutingNode>,
    with_pod: &BTreeSet<String>,
    waited: Duration,
    patience: Duration,
) -> NodeResult {
    let standing = match &node.decoded {
        Ok(node) => Told::of(node).standing(with_pod, waited, patience),
        Err(why) => Standing::Unreachable(format!("its RoutingNode cannot be read: {why}")),
    };
    NodeResult {
        name: node.name_any(),
        standing,
    }
}
