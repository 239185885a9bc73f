//! Programs are replaced while packets flow.

use crate::pods::Nodes;
use crate::story::{declared, devices, on, open, open_with, settle, stranger};
use aya::programs::SchedClassifier;
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::SchedClassifierLink;
use podlane_datapath::{Hook, Options};
use podlane_test_namespaces::{Test, bpffs, index};
use std::time::Duration;

pub(crate) const TESTS: &[Test] = &[
    ("new_maps_under_traffic_lose_nothing", || {
        new_maps_under_traffic(false)
    }),
    ("new_maps_by_filters_under_traffic_lose_nothing", || {
        new_maps_under_traffic(true)
    }),
];

pub(crate) const TCX_TESTS: &[Test] = &[
    (
        "another_versions_program_is_replaced",
        another_versions_program_is_replaced,
    ),
    (
        "replacing_under_traffic_loses_nothing",
        replacing_under_traffic_loses_nothing,
    ),
];

/// Puts a program of another version where ours is, as that version's agent would.
fn put_back(old: &mut SchedClassifier, device: &str, role: &str) {
    let pin = bpffs()
        .join("podlane/links")
        .join(format!("{}-{role}", index(device)));
    let link = FdLink::from(PinnedLink::from_pin(pin).expect("a pinned link"));
    let link = SchedClassifierLink::try_from(link).expect("a tcx link");
    let id = old.attach_to_link(link).expect("replaced");
    old.take_link(id).expect("the link");
}

fn another_versions_program_is_replaced() {
    devices();
    let mut programs = open();
    settle(&mut programs, &declared());
    let ours = on("eth1", Hook::Ingress);
    let mut old = stranger();
    put_back(&mut old, "eth1", "underlay_ingress");
    assert_ne!(on("eth1", Hook::Ingress), ours);
    let synced = settle(&mut programs, &declared());
    assert_eq!(synced.applied, 1);
    assert_eq!(on("eth1", Hook::Ingress), ours);
}

fn replacing_under_traffic_loses_nothing() {
    let nodes = Nodes::new();
    let mut programs = open();
    settle(&mut programs, &declared());
    let mut old = stranger();
    let traffic = nodes.under_traffic(|| {
        for _ in 0..200 {
            put_back(&mut old, "eth1", "underlay_ingress");
            assert_eq!(programs.sync(&declared(), Some([1, 2])).applied, 1);
            std::thread::sleep(Duration::from_millis(10));
        }
    });
    nodes.carried(traffic, &[programs.lane_counters().expect("the maps are read")]);
}

fn new_maps_under_traffic(clsact: bool) {
    let nodes = Nodes::new();
    let options = Options {
        clsact,
        ..Options::default()
    };
    let mut programs = open_with(&options);
    settle(&mut programs, &declared());
    let mut counted = Vec::new();
    let traffic = nodes.under_traffic(|| {
        for round in 0..10 {
            let options = Options {
                flows: 1024 << (round % 2),
                ..options
            };
            let mut replaced = std::mem::replace(&mut programs, open_with(&options));
            settle(&mut programs, &declared());
            std::thread::sleep(Duration::from_millis(50));
            // No packet meets that set any more.
            counted.push(replaced.lane_counters().expect("the maps are read"));
        }
    });
    counted.push(programs.lane_counters().expect("the maps are read"));
    nodes.carried(traffic, &counted);
}
