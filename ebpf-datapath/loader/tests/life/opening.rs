//! Maps and programs are taken over where they fit, and made anew where not.

use crate::story::{declared, devices, on, open, open_with, settle};
use podlane_datapath::{Hook, Options};
use podlane_test_namespaces::{Test, bpffs};
use std::fs;

pub(crate) const TESTS: &[Test] = &[
    (
        "opening_changes_nothing_on_devices",
        opening_changes_nothing_on_devices,
    ),
    ("a_second_agent_takes_over", a_second_agent_takes_over),
    (
        "maps_of_another_size_are_made_anew",
        maps_of_another_size_are_made_anew,
    ),
    (
        "half_a_set_is_completed_or_replaced",
        half_a_set_is_completed_or_replaced,
    ),
];

fn opening_changes_nothing_on_devices() {
    devices();
    let programs = open();
    assert_eq!(on("eth1", Hook::Ingress), []);
    assert_eq!(programs.hash().len(), 16);
    let rate = programs.kernel().jiffies_per_second;
    assert!([100, 250, 300, 1000].contains(&rate), "{rate} jiffies a second");
}

fn a_second_agent_takes_over() {
    devices();
    let mut first = open();
    let generation = settle(&mut first, &declared()).generation;
    let attached = on("eth1", Hook::Ingress);
    assert_eq!(attached.len(), 1);
    drop(first);
    assert_eq!(
        on("eth1", Hook::Ingress),
        attached,
        "programs stay without an agent"
    );

    let mut second = open();
    let synced = second.sync(&declared(), Some([1, 2]));
    assert_eq!(
        (synced.applied, synced.generation),
        (0, generation),
        "{:?}",
        synced.failures
    );
    assert_eq!(on("eth1", Hook::Ingress), attached);
}

fn maps_of_another_size_are_made_anew() {
    devices();
    let small = Options {
        peers: 64,
        flows: 128,
        ..Options::default()
    };
    settle(&mut open(), &declared());
    let before = on("eth1", Hook::Ingress);
    let directory = bpffs().join("podlane");
    let mut other = open_with(&small);
    assert!(directory.join("abi-1").exists() && directory.join("abi-1-2").exists());
    assert_eq!(
        on("eth1", Hook::Ingress),
        before,
        "the old ones serve until the new maps are filled"
    );
    settle(&mut other, &declared());
    assert_ne!(on("eth1", Hook::Ingress), before);
    assert_eq!(on("eth1", Hook::Ingress).len(), 1);
    assert!(!directory.join("abi-1").exists(), "what nothing uses is removed");
}

fn half_a_set_is_completed_or_replaced() {
    devices();
    settle(&mut open(), &declared());
    let directory = bpffs().join("podlane/abi-1");
    let programs = format!("programs-{}", podlane_datapath::hash());
    fs::remove_file(directory.join(programs).join("pod_ingress")).expect("it was pinned");
    settle(&mut open(), &declared());
    assert!(directory.exists(), "the maps were taken over");

    fs::remove_file(directory.join("maps/PEERS")).expect("it was pinned");
    settle(&mut open(), &declared());
    assert!(!directory.exists(), "without one of its maps a set is of no use");
}
