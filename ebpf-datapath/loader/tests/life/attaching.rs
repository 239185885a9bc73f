//! Programs sit where they are declared, whatever happens to devices and links.

use crate::story::{declared, devices, has_tcx, on, open, settle};
use podlane_datapath::{Cause, Hook};
use podlane_test_namespaces::{Test, bpffs, command, index};
use std::fs;

pub(crate) const TESTS: &[Test] = &[
    ("programs_sit_where_declared", programs_sit_where_declared),
    (
        "a_device_made_anew_is_attached_again",
        a_device_made_anew_is_attached_again,
    ),
    (
        "a_device_with_the_index_of_another_is_attached",
        a_device_with_the_index_of_another_is_attached,
    ),
    ("clean_leaves_nothing_of_ours", clean_leaves_nothing_of_ours),
];

/// Those that are about links.
pub(crate) const TCX_TESTS: &[Test] = &[("a_removed_pin_is_put_back", a_removed_pin_is_put_back)];

/// How many attachments are pinned; without tcx none is.
fn assert_pinned(expected: usize) {
    let expected = if has_tcx() { expected } else { 0 };
    assert_eq!(links().len(), expected, "{:?}", links());
}

fn links() -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(bpffs().join("podlane/links"))
        .expect("the directory of links")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("text"))
        .collect();
    names.sort();
    names
}

fn programs_sit_where_declared() {
    devices();
    let mut programs = open();
    let mut datapath = declared();
    settle(&mut programs, &datapath);
    for (device, hook) in [
        ("eth1", Hook::Ingress),
        ("eth1", Hook::Egress),
        ("podlane_vxlan", Hook::Ingress),
        ("podlane_vxlan", Hook::Egress),
        ("pod1", Hook::Ingress),
        ("pod1", Hook::Egress),
    ] {
        assert_eq!(on(device, hook).len(), 1, "{device} {hook:?}");
    }
    datapath.attached.pods.insert("pod1".to_owned(), false);
    settle(&mut programs, &datapath);
    assert_eq!(
        on("pod1", Hook::Egress),
        [],
        "several pods behind it: nothing is stamped there"
    );
    assert_eq!(on("pod1", Hook::Ingress).len(), 1);
    datapath.attached.pods.clear();
    settle(&mut programs, &datapath);
    assert_eq!(on("pod1", Hook::Ingress), []);
    assert_pinned(4);
}

fn a_device_made_anew_is_attached_again() {
    devices();
    let mut programs = open();
    settle(&mut programs, &declared());
    command("ip link del pod1");
    command("ip link add pod1 type veth peer name pod1_end");
    assert_eq!(on("pod1", Hook::Ingress), []);
    settle(&mut programs, &declared());
    assert_eq!(on("pod1", Hook::Ingress).len(), 1);
    // The dead device's pins are gone.
    assert_pinned(6);

    command("ip link del pod1");
    let synced = programs.sync(&declared(), Some([1, 2]));
    assert_eq!(
        synced
            .failures
            .iter()
            .map(|failure| failure.why.cause)
            .collect::<Vec<_>>(),
        [Cause::NoDevice]
    );
    assert_pinned(4);
}

fn a_device_with_the_index_of_another_is_attached() {
    devices();
    let mut programs = open();
    settle(&mut programs, &declared());
    let old = index("pod1");
    command("ip link del pod1");
    command(&format!(
        "ip link add pod1 index {old} type veth peer name pod1_end"
    ));
    assert_eq!(on("pod1", Hook::Ingress), []);
    settle(&mut programs, &declared());
    assert_eq!(on("pod1", Hook::Ingress).len(), 1);
}

fn a_removed_pin_is_put_back() {
    devices();
    let mut programs = open();
    settle(&mut programs, &declared());
    let pin = format!("{}-underlay_ingress", index("eth1"));
    fs::remove_file(bpffs().join("podlane/links").join(pin)).expect("it was pinned");
    // Without its pin a link goes, some time later.
    let gone = (0..200).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(10));
        on("eth1", Hook::Ingress).is_empty()
    });
    assert!(gone);
    assert_eq!(settle(&mut programs, &declared()).applied, 1);
    assert_eq!(on("eth1", Hook::Ingress).len(), 1);
}

fn clean_leaves_nothing_of_ours() {
    devices();
    let mut programs = open();
    settle(&mut programs, &declared());
    drop(programs);
    let theirs = bpffs().join("theirs");
    fs::create_dir(&theirs).expect("a directory");
    let directory = bpffs().join("podlane");
    fs::create_dir(directory.join("theirs")).expect("a directory");
    let removed = podlane_datapath::clean(&directory).expect("it is on a bpffs");
    assert!(removed.iter().all(|(_, result)| result.is_ok()), "{removed:?}");
    let things = if has_tcx() { 7 } else { 10 };
    assert_eq!(
        removed.len(),
        things,
        "attachments (and three queueing disciplines), a set of maps and programs: {removed:?}"
    );
    for device in ["eth1", "podlane_vxlan", "pod1"] {
        assert_eq!(
            (on(device, Hook::Ingress), on(device, Hook::Egress)),
            (vec![], vec![])
        );
    }
    assert!(theirs.exists());
    let left: Vec<_> = fs::read_dir(&directory).expect("a directory").collect();
    assert_eq!(left.len(), 1, "what is not ours stays: {left:?}");
    fs::remove_dir(directory.join("theirs")).expect("it is empty");
    assert_eq!(podlane_datapath::clean(&directory), Ok(vec![]));
    assert!(!directory.exists());
    assert_eq!(
        podlane_datapath::clean(&directory),
        Ok(vec![]),
        "twice is as good as once"
    );
}
