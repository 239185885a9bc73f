//! Cases as directories: `input.yaml` (what a node is told, and what its kernel holds), and one expected file a node.
//!
//! `PODLANE_BLESS=1 cargo test -p podlane-plan --test golden` writes the expected files anew; read the diff.

use podlane_plan::desired::{self, Assignment, Peer};
use podlane_plan::diff::diff;
use podlane_plan::kernel::{Item, Observed};
use serde::Deserialize;
use std::collections::BTreeMap;
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
    let plan = desired::desired(&node.told, &case.peers, &node.kernel, &node.unavailable);
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
                    device.protocol, device.port, device.mac, device.mtu
                )
            }
            Item::Address(_) => String::new(),
        };
        let reason = plan
            .reason(&item, &case.peers)
            .unwrap_or_else(|| panic!("{item} has no reason"));
        line(&mut text, format_args!("  {item}{value}  # {reason}"));
    }
    line(&mut text, format_args!("operations:"));
    for operation in diff(&plan.state, &node.kernel.ours) {
        line(&mut text, format_args!("  {operation}"));
    }
    text
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
