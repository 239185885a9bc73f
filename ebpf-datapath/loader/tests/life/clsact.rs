//! Where there is no tcx, filters of a clsact queueing discipline do; here they are asked for, so that they are tried on every kernel.

use crate::foreign::attach_filter;
use crate::story::{declared, devices, open, open_with, settle, stranger};
use aya::programs::TcAttachType;
use podlane_datapath::{Options, Programs};
use podlane_test_namespaces::{Test, bpffs, command};

pub(crate) const TESTS: &[Test] = &[
    (
        "filters_are_put_replaced_and_removed",
        filters_are_put_replaced_and_removed,
    ),
    (
        "a_queueing_discipline_of_others_stays",
        a_queueing_discipline_of_others_stays,
    ),
    (
        "a_queueing_discipline_that_others_use_stays",
        a_queueing_discipline_that_others_use_stays,
    ),
    (
        "filters_are_removed_without_their_pins",
        filters_are_removed_without_their_pins,
    ),
    (
        "an_ingress_queueing_discipline_is_said",
        an_ingress_queueing_discipline_is_said,
    ),
];

fn filters() -> Programs {
    open_with(&clsact())
}

fn clsact() -> Options {
    Options {
        clsact: true,
        ..Options::default()
    }
}

fn shown(device: &str, hook: &str) -> String {
    command(&format!("tc filter show dev {device} {hook}"))
}

fn filters_are_put_replaced_and_removed() {
    devices();
    let mut programs = filters();
    settle(&mut programs, &declared());
    let before = shown("eth1", "ingress");
    assert!(
        before.contains("pref 60000") && before.contains("podlane:underlay_ingress direct-action"),
        "{before}"
    );
    assert!(shown("pod1", "egress").contains("podlane:pod_egress"));

    // Another set of maps has other programs.
    let options = Options {
        flows: 1024,
        ..clsact()
    };
    let mut other = open_with(&options);
    settle(&mut other, &declared());
    let after = shown("eth1", "ingress");
    assert_ne!(after, before);
    assert_eq!(after.matches("podlane:").count(), 1, "{after}");

    command("ip link del pod1");
    command("ip link add pod1 type veth peer name pod1_end");
    settle(&mut other, &declared());
    assert!(shown("pod1", "egress").contains("podlane:pod_egress"));
    let mut datapath = declared();
    datapath.attached.pods.clear();
    settle(&mut other, &datapath);
    assert!(
        !command("tc qdisc show dev pod1").contains("clsact"),
        "made by us, and used by nobody"
    );

    let removed = podlane_datapath::clean(&bpffs().join("podlane")).expect("cleaned");
    assert!(removed.iter().all(|(_, result)| result.is_ok()), "{removed:?}");
    assert!(!command("tc qdisc show").contains("clsact"));
    assert!(!bpffs().join("podlane").exists());
}

fn a_queueing_discipline_of_others_stays() {
    devices();
    command("tc qdisc add dev eth1 clsact");
    settle(&mut filters(), &declared());
    assert!(shown("eth1", "egress").contains("podlane:underlay_egress"));
    podlane_datapath::clean(&bpffs().join("podlane")).expect("cleaned");
    assert!(
        command("tc qdisc show dev eth1").contains("clsact"),
        "it was there before"
    );
    assert!(!shown("eth1", "egress").contains("podlane"));
    assert!(!command("tc qdisc show dev pod1").contains("clsact"));
}

fn a_queueing_discipline_that_others_use_stays() {
    devices();
    let mut programs = filters();
    settle(&mut programs, &declared());
    let mut theirs = stranger();
    for hook in [TcAttachType::Ingress, TcAttachType::Egress] {
        attach_filter(&mut theirs, "eth1", hook);
    }
    assert_eq!(programs.sync(&declared(), Some([1, 2])).applied, 0);
    podlane_datapath::clean(&bpffs().join("podlane")).expect("cleaned");
    let (ingress, egress) = (shown("eth1", "ingress"), shown("eth1", "egress"));
    assert!(
        ingress.contains("pref 7 bpf") && egress.contains("pref 7 bpf"),
        "{ingress}{egress}"
    );
    assert!(!ingress.contains("podlane") && !egress.contains("podlane"));
}

fn filters_are_removed_without_their_pins() {
    devices();
    let mut programs = filters();
    settle(&mut programs, &declared());
    attach_filter(&mut stranger(), "eth1", TcAttachType::Ingress);
    let pins = bpffs().join("podlane");
    drop(programs);
    std::fs::remove_dir_all(&pins).expect("removed by somebody");
    assert!(
        shown("eth1", "ingress").contains("podlane:underlay_ingress"),
        "filters need no pin"
    );

    let removed = podlane_datapath::clean(&pins).expect("cleaned");
    assert_eq!(removed.len(), 6, "{removed:?}");
    assert!(removed.iter().all(|(_, result)| result.is_ok()), "{removed:?}");
    for device in ["eth1", "podlane_vxlan", "pod1"] {
        for hook in ["ingress", "egress"] {
            assert!(!shown(device, hook).contains("podlane"), "{device} {hook}");
        }
    }
    assert!(
        shown("eth1", "ingress").contains("pref 7 bpf"),
        "others' filters stay"
    );
    assert_eq!(podlane_datapath::clean(&pins), Ok(vec![]));
}

fn an_ingress_queueing_discipline_is_said() {
    devices();
    command("tc qdisc add dev eth1 ingress");
    let synced = filters().sync(&declared(), Some([1, 2]));
    assert_eq!(synced.failures.len(), 2, "ingress and egress: {synced:?}");
    assert!(
        synced.failures[0].why.words.contains("tc qdisc add dev … clsact"),
        "{synced:?}"
    );
    let _ = open();
}
