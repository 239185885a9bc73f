//! Cases as directories: `input.yaml` (what a node is told, and what its kernel holds), and one expected file a node.
//!
//! `PODLANE_BLESS=1 cargo test -p podlane-plan --test golden` writes the expected files anew; read the diff.

use podlane_plan::cni;
use podlane_plan::datapath::{Datapath, Owner, datapath};
use podlane_plan::desired::{self, Assignment, Desired, Note, Peer};
use podlane_plan::diff::diff;
use podlane_plan::kernel::{Item, Observed};
use podlane_plan::lane::Lane;
use podlane_plan::probes::Proofs;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    /// What the case shows.
    about: String,
    /// What every node is told of the others (each skips itself).
    peers: BTreeMap<String, Peer>,
    /// The nodes to plan for.
    nodes: BTreeMap<String, Node>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Node {
    told: Assignment,
    #[serde(default)]
    kernel: Observed,
    #[serde(default)]
    unavailable: BTreeMap<String, String>,
}

/// The plan in words: the lane to each peer, the state with reasons, and what there is to do.
fn render(case: &Case, node: &Node) -> String {
    let plan = desired::desired(
        &node.told,
        &case.peers,
        &node.kernel,
        &node.unavailable,
        &Proofs::default(),
    );
    let mut text = String::new();
    let line = |text: &mut String, words: std::fmt::Arguments| writeln!(text, "{words}").expect("a string");
    line(&mut text, format_args!("peers:"));
    for (name, peer) in &plan.peers {
        let show = |lane: &Result<_, _>| match lane {
            Ok(lane) => format!("{lane}"),
            Err(refusal) => format!("refused: {refusal}"),
        };
        line(&mut text, format_args!("  {name}: {}", show(&peer.used)));
        if peer.used != peer.wanted {
            line(&mut text, format_args!("    wanted: {}", show(&peer.wanted)));
        }
        if let Some(refusal) = &peer.waits_for {
            line(&mut text, format_args!("    not yet, because it {refusal}"));
        }
        for (cidr, refusal) in &peer.refused {
            line(&mut text, format_args!("    {cidr}: refused: {refusal}"));
        }
    }
    let receives: Vec<_> = plan.receives_on.iter().map(ToString::to_string).collect();
    line(&mut text, format_args!("receives on: {}", receives.join(" ")));
    if !plan.notes.is_empty() {
        line(&mut text, format_args!("notes:"));
    }
    for note in &plan.notes {
        line(&mut text, format_args!("  {}: {note}", note.reason()));
    }
    line(&mut text, format_args!("state:"));
    for item in plan.state.items() {
        let value = match &item {
            Item::Route(key) => format!(" {}", plan.state.routes[key]),
            Item::Neighbour(key) => format!(" lladdr {}", plan.state.neighbours[key]),
            Item::Sysctl(path) => format!(" = {}", plan.state.sysctls[path]),
            Item::Device(name) => {
                let device = &plan.state.devices[name];
                format!(
                    " {} port {} address {} mtu {}",
                    device.driver(),
                    device.port,
                    device.mac,
                    device.mtu
                )
            }
            Item::Address(_) => String::new(),
            Item::Masquerade => plan
                .state
                .masquerade
                .as_ref()
                .map_or(String::new(), |masquerade| format!(" {masquerade}")),
        };
        let reason = plan
            .reason(&item, &case.peers)
            .unwrap_or_else(|| panic!("{item} has no reason"));
        line(&mut text, format_args!("  {item}{value}  # {reason}"));
    }
    let (programs, notes) = datapath(&node.told, &case.peers, &node.kernel, &plan);
    text.push_str(&datapath_in_words(&programs, &notes));
    if node.kernel.capabilities.connects_pods {
        text.push_str(&pods_in_words(case, node, &plan));
    }
    line(&mut text, format_args!("operations:"));
    for operation in diff(&plan.state, &node.kernel.ours) {
        line(&mut text, format_args!("  {operation}"));
    }
    text
}

/// How pods are connected.
fn pods_in_words(case: &Case, node: &Node, plan: &Desired) -> String {
    let is_settled = diff(&plan.state, &node.kernel.ours).is_empty();
    let wait = match cni::unproved(&node.told, plan, is_settled) {
        Some(hindrance) => format!("  not yet: {hindrance}\n"),
        None => String::new(),
    };
    match cni::config(&node.told, &case.peers, &node.kernel.underlay) {
        Ok(config) => format!("pods:\n{wait}{config}"),
        Err(hindrance) => format!("pods:\n{wait}  not connected: {hindrance}\n"),
    }
}

/// What the programs are told, in words.
fn datapath_in_words(programs: &Datapath, notes: &BTreeSet<Note>) -> String {
    if *programs == Datapath::default() {
        return "programs: none\n".to_owned();
    }
    let mut lines = vec!["programs:".to_owned()];
    let flags = [
        ("native lane open", programs.native),
        ("bypass", programs.bypass),
        ("plain sources checked", programs.check_underlay),
        ("enters by the tunnel device", programs.enter_by_tunnel),
        ("watched leaving", programs.attached.leaving_plain),
    ];
    let set: Vec<_> = flags
        .iter()
        .filter(|(_, set)| *set)
        .map(|(name, _)| *name)
        .collect();
    lines.push(format!("  {}; DSCP {}", set.join(", "), programs.dscp));
    for note in notes {
        lines.push(format!("  {}: {note}", note.reason()));
    }
    for (tunnel, open) in &programs.tunnels {
        let stand_in = if open.stand_in { ", a stand-in" } else { "" };
        let lane = Lane::Tunnel(*tunnel);
        lines.push(format!(
            "  tunnel {lane} on {} ({}){stand_in}",
            open.device, open.mac
        ));
    }
    for (outer, peer) in &programs.peers {
        let way = peer.way.as_ref().map_or("no way".to_owned(), |way| {
            let several = if way.several { " and other ways" } else { "" };
            format!("via {} dev {}{several}", way.next_hop, way.device)
        });
        lines.push(format!(
            "  peer {outer} {} from {} {way} mtu {}",
            peer.name, peer.source, peer.mtu
        ));
        let tunnels: Vec<_> = peer
            .tunnels
            .iter()
            .map(|tunnel| Lane::Tunnel(*tunnel).to_string())
            .collect();
        let tunnels = if tunnels.is_empty() {
            "no tunnel".to_owned()
        } else {
            tunnels.join(" ")
        };
        let cidrs: Vec<_> = peer.pod_cidrs.iter().map(ToString::to_string).collect();
        lines.push(format!("    may use {tunnels} from {}", cidrs.join(" ")));
    }
    for (network, owner) in &programs.networks {
        let whose = match owner {
            Owner::Unassigned => "nobody's".to_owned(),
            Owner::Local { device: None } => "here".to_owned(),
            Owner::Local { device: Some(device) } => format!("here, behind {device}"),
            Owner::Peer { outer, native } => {
                let outer = outer.map_or("a peer without an address".to_owned(), |outer| outer.to_string());
                let native = native.as_ref().map_or(String::new(), |lane| {
                    let checked = if lane.on_link {
                        " from its own link-layer address"
                    } else {
                        ""
                    };
                    format!(
                        ", native via {} dev {} mtu {}{checked}",
                        lane.next_hop, lane.device, lane.mtu
                    )
                });
                format!("{outer}'s{native}")
            }
        };
        lines.push(format!("  network {network} {whose}"));
    }
    let attached = &programs.attached;
    let pods = attached.pods.iter().map(|(device, single)| match single {
        true => format!("{device} (one pod)"),
        false => format!("{device} (pods)"),
    });
    let on: Vec<_> = attached
        .tunnels
        .iter()
        .chain(&attached.underlay)
        .cloned()
        .chain(pods)
        .collect();
    lines.push(format!("  on {}", on.join(" ")));
    lines.push(String::new());
    lines.join("\n")
}

#[test]
fn every_case_plans_as_written_down() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let bless = std::env::var_os("PODLANE_BLESS").is_some();
    let mut cases: Vec<_> = std::fs::read_dir(&folder)
        .expect("the cases")
        .map(|entry| entry.expect("a case").path())
        .collect();
    cases.sort();
    assert!(cases.len() >= 10, "cases are missing");
    let mut wrong = Vec::new();
    for path in cases {
        let text = std::fs::read_to_string(path.join("input.yaml")).expect("input.yaml");
        let case: Case =
            serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert!(!case.about.is_empty());
        for (name, node) in &case.nodes {
            let expected = path.join(format!("{name}.expected"));
            let planned = render(&case, node);
            if bless {
                std::fs::write(&expected, &planned).expect("written");
            } else if std::fs::read_to_string(&expected).unwrap_or_default() != planned {
                wrong.push(format!("{} ({})\n{planned}", expected.display(), case.about));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
