//! Bad weather: what is killed, stopped or slow changes no packet's fate.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, ensure};
use podlane_e2e::control_plane::SYSTEM_NAMESPACE;
use podlane_e2e::lab::{Lab, Options};
use podlane_e2e::scenario::{Context, Scenario, run};
use podlane_e2e::story::{
    ENDS_WITHIN, SETTLED_WITHIN, apply, ensure_all_answer, ensure_none_lost, native_and_vxlan,
    streams_in_all_directions, vxlan, wait_until_ready, way,
};
use podlane_e2e::wait::{pause, wait_until};
use serde_json::json;

/// How long after the API server is back a change may take: the pauses between attempts grow to 30 s.
const BACK_WITHIN: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    run(
        Options::named("weather"),
        [
            Scenario::new(
                "agents and operator killed at any moment, and started again, lose no packet",
                killed,
            ),
            Scenario::new(
                "killed in the middle of a change, everybody finds the way to its end",
                killed_in_change,
            ),
            Scenario::new(
                "without an API server nothing changes on a node, and its logs stay short",
                no_apiserver,
            ),
            Scenario::new(
                "an API server that takes 5 s to answer delays changes and breaks nothing",
                slow_apiserver,
            ),
            Scenario::new("429 from the API server is waited out", too_many_requests),
            Scenario::new("a watch that was compacted away is begun anew", compacted),
            Scenario::new(
                "a second operator waits, and takes over from the first",
                second_operator,
            ),
        ],
    )
}

const AGENTS: [&str; 3] = ["k8s-ctr", "k8s-w1", "k8s-w0"];

fn killed(context: &mut Context) -> Result<()> {
    let lab = context.lab()?;
    apply(lab, &native_and_vxlan())?;
    wait_until_ready(lab)?;
    let kernel = |lab: &Lab| -> Result<Vec<String>> {
        AGENTS
            .iter()
            .map(|node| {
                let namespace = lab.namespace(node);
                let routes = namespace.ip(&["-d", "route", "show", "proto", "172"])?;
                let neighbours = namespace.ip(&["neigh", "show", "nud", "permanent"])?;
                Ok(format!("{routes}{neighbours}"))
            })
            .collect()
    };
    let before = kernel(lab)?;
    let streams = streams_in_all_directions(lab, 500)?;
    for round in 0..6_u64 {
        for node in AGENTS {
            lab.agent(node)?.kill()?;
        }
        if round % 2 == 0 {
            lab.operator()?.kill()?;
            lab.operator()?.restart()?;
        }
        for node in AGENTS {
            lab.agent(node)?.restart()?;
        }
        // Another moment of the start each time.
        pause(Duration::from_millis(50 + round * 170))?;
    }
    pause(Duration::from_secs(1))?;
    ensure_none_lost(streams)?;
    ensure!(
        kernel(lab)? == before,
        "the kernels are not as before:\n{before:#?}\n{:#?}",
        kernel(lab)?
    );
    wait_until_ready(lab)
}

fn killed_in_change(context: &mut Context) -> Result<()> {
    let lab = context.lab()?;
    apply(lab, &native_and_vxlan())?;
    wait_until_ready(lab)?;
    let streams = streams_in_all_directions(lab, 500)?;
    for round in 0..8_u64 {
        apply(
            lab,
            &if round % 2 == 0 {
                vxlan()
            } else {
                native_and_vxlan()
            },
        )?;
        pause(Duration::from_millis(round * 40))?;
        if round % 3 == 0 {
            lab.operator()?.kill()?;
            lab.operator()?.restart()?;
        }
        let victim = AGENTS[usize::try_from(round)? % 3];
        lab.agent(victim)?.kill()?;
        lab.agent(victim)?.restart()?;
        // A killed operator's lease has to run out before the next one acts.
        wait_until("the policy to be ready", BACK_WITHIN, || wait_until_ready(lab))?;
    }
    ensure_none_lost(streams)?;
    ensure_all_answer(lab)
}

fn log_lines(lab: &mut Lab) -> Result<Vec<(String, usize)>> {
    lab.podlane_processes()
        .map(|process| {
            Ok((
                process.name().to_owned(),
                std::fs::read_to_string(process.log())?.lines().count(),
            ))
        })
        .collect()
}

fn no_apiserver(context: &mut Context) -> Result<()> {
    let lab = context.lab()?;
    apply(lab, &vxlan())?;
    wait_until_ready(lab)?;
    let streams = streams_in_all_directions(lab, 500)?;
    let before = log_lines(lab)?;
    lab.control_plane()?.stop_apiserver()?;
    pause(Duration::from_secs(8))?;
    // An agent that runs goes on repairing its kernel; one that starts now finds nothing to go by, and touches nothing.
    let node = lab.namespace("k8s-w1");
    node.ip(&["route", "del", "unreachable", "172.20.0.0/16", "proto", "172"])?;
    wait_until("the cover removed by hand to be back", SETTLED_WITHIN, || {
        ensure!(
            node.ip(&["route", "show", "proto", "172"])?
                .contains("unreachable 172.20.0.0/16")
        );
        Ok(())
    })?;
    lab.agent("k8s-w0")?.kill()?;
    lab.agent("k8s-w0")?.restart()?;
    pause(Duration::from_secs(8))?;
    ensure!(
        way(lab, "k8s-w0", "172.20.0.0/24")? == "encap 192.168.10.100",
        "the restarted agent has changed its kernel"
    );
    let after = log_lines(lab)?;
    for ((name, before), (_, after)) in before.iter().zip(&after) {
        ensure!(
            after.saturating_sub(*before) < 40,
            "{name} wrote {before} to {after} lines in 16 s"
        );
    }
    // It has lost its lease, and starts over in its process: who restarts it would let it wait.
    lab.operator()?.ensure_runs()?;
    lab.control_plane()?.start_apiserver()?;
    lab.control_plane()?.wait_until_ready()?;
    apply(lab, &native_and_vxlan())?;
    wait_until("a change to be carried out again", BACK_WITHIN, || {
        wait_until_ready(lab)
    })?;
    ensure_none_lost(streams)
}

fn slow_apiserver(context: &mut Context) -> Result<()> {
    let lab = context.lab()?;
    apply(lab, &vxlan())?;
    wait_until_ready(lab)?;
    let streams = streams_in_all_directions(lab, 300)?;
    apply(lab, &native_and_vxlan())?;
    for _ in 0..4 {
        // Whatever was asked in the meantime is answered after 5 s, and be it that it takes a busy machine long.
        let before = renewed(lab)?;
        lab.control_plane()?.apiserver().freeze()?;
        pause(Duration::from_secs(5))?;
        lab.control_plane()?.apiserver().thaw()?;
        wait_until("the operator's lease to be renewed", BACK_WITHIN, || {
            let after = renewed(lab)?;
            ensure!(after != before, "renewed at {after}");
            Ok(())
        })?;
    }
    wait_until("the change to be carried out", BACK_WITHIN, || {
        wait_until_ready(lab)
    })?;
    ensure_none_lost(streams)
}

/// When the operator's lease was renewed last.
fn renewed(lab: &Lab) -> Result<String> {
    lab.kubectl()?.run(&[
        "get",
        "lease/podlane-operator",
        "--namespace",
        SYSTEM_NAMESPACE,
        "-o",
        "jsonpath={.spec.renewTime}",
    ])
}

fn too_many_requests(context: &mut Context) -> Result<()> {
    let lab = context.lab()?;
    apply(lab, &vxlan())?;
    wait_until_ready(lab)?;
    // The API server's own priority and fairness: Podlane's users get one request at a time between them, and no queue; what
    // comes meanwhile is answered with 429.
    let closed = json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "PriorityLevelConfiguration",
            "metadata": {"name": "closed"},
            "spec": {"type": "Limited", "limited": {"nominalConcurrencyShares": 0, "lendablePercent": 0,
                "borrowingLimitPercent": 0, "limitResponse": {"type": "Reject"}}}},
        {"apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "FlowSchema", "metadata": {"name": "closed"},
            "spec": {"matchingPrecedence": 2, "priorityLevelConfiguration": {"name": "closed"},
                "distinguisherMethod": {"type": "ByUser"},
                "rules": [{"subjects": [{"kind": "Group", "group": {"name": "podlane:agents"}},
                        {"kind": "User", "user": {"name": "podlane-operator"}}],
                    "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "clusterScope": true,
                        "namespaces": ["*"]}]}]}},
    ]});
    let kubectl = lab.kubectl()?;
    kubectl.create(&closed.to_string())?;
    let open = || {
        kubectl
            .run(&["delete", "flowschema/closed", "prioritylevelconfiguration/closed"])
            .map(drop)
    };
    let result = (|| {
        pause(Duration::from_secs(2))?;
        let streams = streams_in_all_directions(lab, 300)?;
        for spec in [
            native_and_vxlan(),
            vxlan(),
            native_and_vxlan(),
            vxlan(),
            native_and_vxlan(),
        ] {
            apply(lab, &spec)?;
            pause(Duration::from_secs(2))?;
        }
        let levels = kubectl.run(&[
            "get",
            "--raw",
            "/debug/api_priority_and_fairness/dump_priority_levels",
        ])?;
        let closed = levels
            .lines()
            .find(|line| line.starts_with("closed"))
            .unwrap_or_default();
        let rejected = closed
            .split(',')
            .nth(7)
            .and_then(|number| number.trim().parse::<u32>().ok());
        ensure!(
            rejected > Some(0),
            "the API server has rejected nothing:\n{levels}"
        );
        anyhow::Ok(streams)
    })();
    open()?;
    let streams = result?;
    wait_until("the change to be carried out", BACK_WITHIN, || {
        wait_until_ready(lab)
    })?;
    ensure_none_lost(streams)
}

fn compacted(context: &mut Context) -> Result<()> {
    let lab = context.lab()?;
    apply(lab, &vxlan())?;
    wait_until_ready(lab)?;
    for node in AGENTS {
        lab.agent(node)?.freeze()?;
    }
    lab.operator()?.freeze()?;
    // A restarted API server remembers no event from before its start: old resource versions are answered with 410.
    lab.control_plane()?.stop_apiserver()?;
    lab.control_plane()?.start_apiserver()?;
    lab.control_plane()?.wait_until_ready()?;
    for port in [4001, 4002, 4003] {
        apply(
            lab,
            &json!({"routingMode": "tunnel", "tunnel": {"protocol": "vxlan", "port": port}}),
        )?;
    }
    apply(lab, &native_and_vxlan())?;
    lab.operator()?.thaw()?;
    for node in AGENTS {
        lab.agent(node)?.thaw()?;
    }
    wait_until("the change to be carried out", BACK_WITHIN, || {
        wait_until_ready(lab)
    })?;
    ensure_all_answer(lab)
}

fn second_operator(context: &mut Context) -> Result<()> {
    let lab = context.lab()?;
    apply(lab, &vxlan())?;
    wait_until_ready(lab)?;
    let holder = |lab: &Lab| -> Result<String> {
        let lease = lab
            .kubectl()?
            .get(&["lease", "-n", "podlane-system", "podlane-operator"])?;
        Ok(lease["spec"]["holderIdentity"]
            .as_str()
            .unwrap_or_default()
            .to_owned())
    };
    let first = holder(lab)?;
    ensure!(!first.is_empty(), "nobody holds the lease");
    // A polite end gives the lease back, so that the next one need not wait for it to run out.
    lab.operator()?.stop(ENDS_WITHIN)?;
    wait_until("the lease to be given back", SETTLED_WITHIN, || {
        ensure!(holder(lab)?.is_empty(), "{} holds it", holder(lab)?);
        Ok(())
    })?;
    lab.operator()?.restart()?;
    wait_until("another holder", SETTLED_WITHIN, || {
        let now = holder(lab)?;
        ensure!(!now.is_empty() && now != first, "{now} holds it");
        Ok(())
    })?;
    apply(lab, &native_and_vxlan())?;
    wait_until_ready(lab)
}
