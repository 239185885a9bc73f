//! The Helm chart: what it renders, what it refuses, and a lab that runs with what it grants and nothing else.

mod health;
mod installed;
mod lifecycle;
mod network_condition;
mod own_node;
mod rendering;
mod rights;
mod rollout;
mod uninstall;

use std::process::ExitCode;

use podlane_e2e::helm::HelmPrograms;
use podlane_e2e::lab::{Extent, Options};
use podlane_e2e::scenario::{Context, Scenario, run};

fn main() -> ExitCode {
    let missing = HelmPrograms::find().err().map(|error| format!("{error:#}"));
    let options = Options {
        extent: Extent::ControlPlane,
        ..Options::named("chart")
    };
    let scenario =
        |name, run: fn(&mut Context) -> anyhow::Result<()>| Scenario::new(name, run).lacks(missing.clone());
    run(
        options,
        [
            scenario(
                "a value that the chart does not know is refused with its name",
                rendering::refused,
            ),
            scenario(
                "Helm 3 and 4 render the same, which Kubernetes 1.30 to 1.37 know and the operator reads",
                rendering::rendered,
            ),
            scenario(
                "the notes say what to do next, with a first policy and without",
                rendering::noted,
            ),
            scenario(
                "no role of the chart reads Secrets or has a wildcard",
                rights::least,
            ),
            scenario(
                "the lab of all other tests grants what the chart grants, rule by rule",
                rights::as_the_labs,
            ),
            scenario(
                "installed by Helm, operator and agents route the cluster with their service accounts' rights",
                installed::routed,
            ),
            scenario(
                "operator and agents say whether they are well, to the probes that the chart has of them",
                health::told,
            ),
            scenario(
                "where the API server refuses the first policy, agents come all the same, and the operator says why it is not ready",
                health::first_policy_refused,
            ),
            scenario(
                "an agent's token writes its own node's status and nothing else",
                own_node::enforced,
            ),
            scenario(
                "of Nodes the operator's account writes the condition NetworkUnavailable and nothing else",
                network_condition::enforced,
            ),
            scenario(
                "the agents' DaemonSet is put back when somebody changes or deletes it",
                rollout::put_back,
            ),
            scenario(
                "a DaemonSet that the API server refuses is said on the policies, and no agent is touched",
                rollout::refused,
            ),
            scenario(
                "a node whose kernel is too old has no agent, and its policy says why",
                rollout::left_out,
            ),
            scenario(
                "agents are replaced one by one, each once the last one has proved its lanes",
                rollout::one_by_one,
            ),
            scenario(
                "upgraded and rolled back, what a user has changed stays",
                lifecycle::stays,
            ),
            scenario(
                "once another plugin connects pods, Nodes say nothing of Podlane's network any more",
                lifecycle::connects_no_more,
            ),
            scenario(
                "uninstalled with keepDatapath and installed again, no packet is lost",
                uninstall::keeps_datapath,
            ),
            scenario(
                "uninstalled, nodes are clean, what is not is named, and pods of a node go on reaching each other",
                uninstall::cleans,
            )
            .needs(&["nft"]),
            scenario(
                "where an agent cannot clean its node uninstalling fails in words, and another attempt goes on",
                uninstall::fails_loudly,
            )
            .needs(&["nft"]),
        ],
    )
}
