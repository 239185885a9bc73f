//! How long deciding takes: `cargo bench -p podlane-operator -- [NODES] [RUNS]`.
#![allow(clippy::print_stdout, reason = "a program for the command line")]

use k8s_openapi::jiff::Timestamp;
use podlane_operator::decide::{Decision, decide};
use podlane_operator::world::{Kind, Settings, Source, World};
use podlane_operator::write::{What, Write};
use podlane_plan::pool::{Family, Pool, Pools};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

fn main() {
    // Cargo passes --bench.
    let mut arguments = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with('-'));
    let mut number = |default| {
        arguments
            .next()
            .and_then(|text| text.parse().ok())
            .unwrap_or(default)
    };
    let (nodes, runs) = (number(5_000_usize), number(20_usize));
    println!(
        "{:<52} {:>9} {:>9} {:>9} {:>7}",
        format!("deciding for {nodes} nodes"),
        "min",
        "median",
        "p99",
        "writes"
    );
    for case in CASES {
        let mut world = settled(nodes);
        (case.prepare)(&mut world, nodes);
        let mut times = Vec::with_capacity(runs);
        let mut writes = 0;
        for run in 0..runs {
            (case.change)(&mut world, nodes, run);
            let start = Instant::now();
            let decision = decide(&world, now(3_000));
            times.push(start.elapsed());
            writes = decision.writes.len();
        }
        times.sort_unstable();
        let milliseconds = |time: Duration| format!("{:.2} ms", time.as_secs_f64() * 1e3);
        let p99 = times[(times.len() * 99).div_ceil(100) - 1];
        println!(
            "{:<52} {:>9} {:>9} {:>9} {writes:>7}",
            case.name,
            milliseconds(times[0]),
            milliseconds(times[times.len() / 2]),
            milliseconds(p99)
        );
    }
}

struct Case {
    name: &'static str,
    prepare: fn(&mut World, usize),
    change: fn(&mut World, usize, usize),
}

const CASES: [Case; 6] = [
    Case {
        name: "nothing to do",
        prepare: |_, _| {},
        change: |_, _, _| {},
    },
    Case {
        name: "one node has another address",
        prepare: |_, _| {},
        change: |world, nodes, run| see_node(world, run % nodes, 10),
    },
    Case {
        name: "the policy has changed",
        prepare: |world, _| see_policy(world, 2, json!({"routingMode": "tunnel"})),
        change: |_, _, _| {},
    },
    Case {
        name: "nothing is there yet",
        prepare: |world, nodes| *world = bare(nodes),
        change: |_, _, _| {},
    },
    Case {
        name: "nothing is there yet, and each gets a block of a pool",
        prepare: |world, nodes| *world = pooled(nodes),
        change: |_, _, _| {},
    },
    Case {
        name: "every node refuses 64 others",
        prepare: |world, nodes| {
            for number in 0..nodes {
                answer(world, number, nodes, 64);
            }
        },
        change: |_, _, _| {},
    },
];

fn now(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap_or_default()
}

fn name(number: usize) -> String {
    format!(
        "ip-10-0-{:03}-{:03}.compute.example.internal",
        number / 250,
        number % 250
    )
}

/// Puts an object into the picture.
fn see(world: &mut World, kind: Kind, object: Value) {
    let read = |error: serde_json::Error| -> ! { panic!("{error}") };
    let source = Source::List;
    match kind {
        Kind::Node => world.see_node(
            serde_json::from_value(object).unwrap_or_else(|error| read(error)),
            source,
        ),
        Kind::RoutingPolicy => world.see_policy(
            serde_json::from_value(object).unwrap_or_else(|error| read(error)),
            source,
        ),
        Kind::RoutingNode => world.see_routing_node(
            serde_json::from_value(object).unwrap_or_else(|error| read(error)),
            source,
        ),
        Kind::PeerSlice => world.see_slice(
            serde_json::from_value(object).unwrap_or_else(|error| read(error)),
            source,
        ),
    };
}

fn see_node(world: &mut World, number: usize, subnet: usize) {
    let labels: serde_json::Map<_, _> = (0..20)
        .map(|label| {
            (
                format!("example.com/label-{label}"),
                json!(format!("value-{label}")),
            )
        })
        .collect();
    let has_pool = world.settings.pools != Pools::default();
    let pod_cidrs = if has_pool {
        Vec::new()
    } else {
        vec![format!("172.{}.{}.0/24", 16 + number / 256, number % 256)]
    };
    let object = json!({
        "metadata": {"name": name(number), "uid": format!("uid-{number}"), "labels": labels,
            "creationTimestamp": now(number as i64).to_string()},
        "spec": {"podCIDRs": pod_cidrs},
        "status": {"addresses": [{"type": "InternalIP",
            "address": format!("192.{}.{}.{}", 168 + subnet, number / 250, number % 250 + 1)}]},
    });
    see(world, Kind::Node, object);
}

fn see_policy(world: &mut World, generation: i64, spec: Value) {
    let metadata = json!({"name": "default", "uid": "p", "generation": generation, "creationTimestamp": now(1).to_string()});
    let status = world.policies.get("default").map(|record| json!(record.status));
    let object = json!({"metadata": metadata, "spec": spec, "status": status});
    see(world, Kind::RoutingPolicy, object);
}

fn bare(nodes: usize) -> World {
    joined(nodes, Settings::default())
}

/// The same where nobody but the operator hands out pod CIDRs.
fn pooled(nodes: usize) -> World {
    let network = "10.0.0.0/8".parse().unwrap_or_default();
    let pool = Pool::new(Family::V4, vec![network], 24);
    let pools = Pools::new(pool.ok());
    joined(
        nodes,
        Settings {
            pools,
            ..Settings::default()
        },
    )
}

fn joined(nodes: usize, settings: Settings) -> World {
    let mut world = World::new(settings);
    for number in 0..nodes {
        see_node(&mut world, number, 0);
    }
    see_policy(&mut world, 1, json!({"routingMode": "native"}));
    world
}

/// A cluster in which everybody has done what he was told.
fn settled(nodes: usize) -> World {
    let mut world = bare(nodes);
    for round in 0..6 {
        let Decision {
            writes, is_settled, ..
        } = decide(&world, now(2_000));
        world.note_decided(is_settled, now(2_000));
        for write in writes {
            carry_out(&mut world, write);
        }
        if round == 0 {
            for number in 0..nodes {
                answer(&mut world, number, nodes, 0);
            }
        }
    }
    world
}

fn carry_out(world: &mut World, write: Write) {
    let name = write.name;
    let metadata = json!({"name": name, "uid": format!("of-{name}"), "generation": 1});
    match write.what {
        What::CreateSlice(peers) | What::UpdateSlice { peers, .. } => {
            see(
                world,
                Kind::PeerSlice,
                json!({"metadata": metadata, "spec": {"peers": peers}}),
            );
        }
        What::CreateNode { owner, spec } | What::UpdateNode { owner, spec, .. } => {
            let mut metadata = metadata;
            metadata["ownerReferences"] =
                json!([{"apiVersion": "v1", "kind": "Node", "name": name, "uid": owner}]);
            see(
                world,
                Kind::RoutingNode,
                json!({"metadata": metadata, "spec": spec}),
            );
        }
        What::PolicyStatus { status, .. } => {
            if let Some(record) = world.policies.get_mut(&name) {
                record.status = *status;
            }
        }
        // No agent here connects pods.
        What::NodeNetwork { .. } | What::ClearNodeNetwork { .. } => {}
        What::NodeAccepted { condition, .. } => {
            if let Some(record) = world.routing_nodes.get_mut(&name) {
                record.accepted = Some(*condition);
            }
        }
        What::DeleteSlice(_) | What::DeleteNode(_) => {}
    }
}

/// An agent answers, and refuses so many of its peers.
fn answer(world: &mut World, number: usize, nodes: usize, refused: usize) {
    let me = name(number);
    let Some(record) = world.routing_nodes.get(&me) else {
        return;
    };
    let owner = record.owner.clone().unwrap_or_default();
    let peers: Vec<_> = (1..=refused)
        .map(|step| {
            let peer = name((number + step * 61) % nodes);
            json!({"name": peer, "lane": "refused", "reason": "OffLink", "message": format!("{peer} is off-link: set offLinkPeers")})
        })
        .collect();
    let mut conditions = vec![
        json!({"type": "Ready", "status": if refused == 0 { "True" } else { "False" },
        "reason": if refused == 0 { "AsDeclared" } else { "OffLink" }, "message": "", "lastTransitionTime": now(1)}),
    ];
    conditions.extend(record.accepted.as_ref().map(|accepted| json!(accepted)));
    let spec = record.spec.clone().unwrap_or_default();
    let object = json!({
        "metadata": {"name": me, "uid": record.identity.uid, "generation": 1,
            "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": me, "uid": owner}]},
        "status": {"observedGeneration": 1, "receivesOn": ["native"], "sendsOn": ["native"],
            "counts": {"total": nodes - 1}, "conditions": conditions, "peers": peers,
            "underlay": [{"address": spec.addresses.first(), "prefixLength": 24, "device": "eth0", "mtu": 1500}]},
        "spec": spec,
    });
    see(world, Kind::RoutingNode, object);
}
