//! Every reason that status can give stands in the operating guide.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Where reasons are given.
const SOURCES: [&str; 9] = [
    "crds/src/conditions.rs",
    "node-agent/src/report",
    "node-agent/src/report.rs",
    "operator/src/decide",
    "operator/src/world/policies.rs",
    "plan/src/cluster.rs",
    "plan/src/cni.rs",
    "plan/src/pair.rs",
    "plan/src/probes/doubt.rs",
];

/// Words there that are no reasons, or that stand for the absence of one.
const OTHERS: [&str; 9] = [
    "Accepted",
    "False",
    "PodNetwork",
    "Ready",
    "RoutingNode",
    "RoutingNodes",
    "Settled",
    "True",
    "Unknown",
];

/// Reasons of notes (plan/src/desired/reason.rs) that only tell how a node is as declared.
const AS_DECLARED: [&str; 2] = ["ClusterPodCIDRCoversNode", "MTUBeyondUnderlay"];

fn files(path: &Path) -> Vec<PathBuf> {
    if path.is_file() {
        return vec![path.to_owned()];
    }
    let entries = fs::read_dir(path).expect("a folder");
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    // Tests have reasons of their own.
    files.retain(|file| {
        let name = file
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        file.is_file()
            && !name.contains("tests")
            && !["documented.rs", "simulation.rs"].contains(&name.as_str())
    });
    files
}

/// The words in capitals that a file has as texts, outside of its tests.
fn words(file: &Path) -> BTreeSet<String> {
    let text = fs::read_to_string(file).expect("a source file");
    let text = text.split("#[cfg(test)]").next().unwrap_or_default();
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    code.flat_map(|line| line.split('"').skip(1).step_by(2))
        .filter(|word| {
            let mut letters = word.chars();
            letters.next().is_some_and(|first| first.is_ascii_uppercase())
                && word.len() > 1
                && letters.all(|letter| letter.is_ascii_alphabetic())
        })
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_reason_stands_in_the_operating_guide() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let guide = fs::read_to_string(root.join("docs/operating.md")).expect("the guide");
    let told: BTreeSet<&str> = guide
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.split(" | ").next())
        .flat_map(|cell| cell.split(", "))
        .map(str::trim)
        .collect();
    let mut reasons: BTreeSet<String> = SOURCES
        .iter()
        .flat_map(|source| files(&root.join(source)))
        .flat_map(|file| words(&file))
        .collect();
    reasons.extend(words(&root.join("plan/src/desired/reason.rs")));
    reasons.retain(|reason| !OTHERS.contains(&reason.as_str()) && !AS_DECLARED.contains(&reason.as_str()));
    assert!(
        reasons.len() > 40 && reasons.contains("OffLink") && reasons.contains("NotApplied"),
        "{reasons:?}"
    );
    let untold: Vec<_> = reasons
        .iter()
        .filter(|reason| !told.contains(reason.as_str()))
        .collect();
    assert!(
        untold.is_empty(),
        "docs/operating.md does not say what these mean: {untold:?}"
    );
}
