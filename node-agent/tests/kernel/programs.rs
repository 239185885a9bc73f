//! Passes with programs loaded, pinned to a BPF file system of the test's own.

use crate::passes::Node;
use podlane_agent::clean::clean;
use podlane_agent::datapath::Datapath;
use podlane_agent::kernel::Kernel;
use podlane_plan::desired::Note;
use podlane_plan::lane::{Lane, Tunnel, TunnelProtocol};
use podlane_plan::policy::RoutingMode;
use podlane_plan::probes::ProbeKey;
use podlane_test_namespaces::{Conditional, bpffs, ip, ip_lines, own_bpffs};
use std::path::PathBuf;
use std::time::Instant;

pub(crate) const TESTS: Conditional = Conditional {
    lacking: || datapath().hindrance().map(str::to_owned),
    tests: &[
        (
            "with_programs_a_missing_geneve_driver_has_a_stand_in",
            with_programs_a_missing_geneve_driver_has_a_stand_in,
        ),
        ("clean_leaves_no_program", clean_leaves_no_program),
    ],
};

fn directory() -> PathBuf {
    bpffs().join("podlane")
}

/// Programs on a file system that only the calling thread sees, and that goes with it.
fn datapath() -> Datapath {
    own_bpffs().unwrap_or_else(|reason| panic!("{reason}"));
    Datapath::open(directory(), ProbeKey([7; 16]), Instant::now())
}

fn with_programs_a_missing_geneve_driver_has_a_stand_in() {
    let geneve = Tunnel {
        protocol: TunnelProtocol::Geneve,
        port: 6081,
        vni: 1,
    };
    let lanes = [Lane::Native, Lane::Tunnel(geneve)];
    let mut node = Node::new(RoutingMode::Tunnel, &lanes);
    node.datapath = datapath();
    let policies = node.peers.values_mut().map(|peer| &mut peer.policy);
    for policy in policies.chain([&mut node.assignment.policy]).flatten() {
        policy.routing.tunnel = geneve;
    }
    let outcome = node.pass();
    let driver = node.kernel.capabilities().geneve_driver;
    let has_driver = driver.expect("it was tried");
    // One pass, whether the driver is there or not: the device is there, the lane open, and packets take it.
    assert!(outcome.settled, "{:?}", outcome.unfinished);
    assert_eq!(outcome.unfinished, []);
    assert_eq!(outcome.desired.receives_on, lanes.into());
    assert_eq!(outcome.sends_on, [Lane::Tunnel(geneve)].into());
    assert!(outcome.desired.notes.is_empty(), "{:?}", outcome.desired.notes);
    let told = outcome.datapath.expect("programs are loaded");
    assert_eq!(
        told.tunnels.get(&geneve).map(|open| open.stand_in),
        Some(!has_driver)
    );
    let link = ip("-d link show podlane_geneve");
    let kind = if has_driver { "geneve" } else { "vxlan" };
    assert!(
        link.contains(kind) && link.contains("external") && link.contains("dstport 6081"),
        "{link}"
    );
    assert_eq!(node.pass().applied, 0);

    // Without programs nothing leaves by what stands in, and status says why.
    if !has_driver {
        let loaded = std::mem::replace(&mut node.datapath, Datapath::without("gone", node.now));
        let outcome = node.pass();
        assert_eq!(outcome.desired.receives_on, [Lane::Native].into());
        assert!(outcome.sends_on.is_empty(), "{:?}", outcome.sends_on);
        let said: Vec<_> = outcome.desired.notes.iter().map(Note::to_string).collect();
        assert!(said.len() == 1 && said[0].contains("eBPF programs"), "{said:?}");
        // Once they are back, packets take it again.
        node.datapath = loaded;
        assert_eq!(node.pass().sends_on, [Lane::Tunnel(geneve)].into());
    }
}

fn clean_leaves_no_program() {
    let vxlan = Lane::Tunnel(crate::story::VXLAN);
    let mut node = Node::new(RoutingMode::Tunnel, &[Lane::Native, vxlan]);
    let before = (ip_lines("route show table all"), ip_lines("-o link show"));
    node.datapath = datapath();
    let outcome = node.pass();
    assert!(
        outcome.settled && outcome.unfinished.is_empty(),
        "{:?}",
        outcome.unfinished
    );
    assert!(directory().exists(), "pinned");
    clean(&mut Kernel::default(), &directory(), None).expect("nothing is left");
    assert!(!directory().exists(), "nothing is pinned");
    assert_eq!(
        before,
        (ip_lines("route show table all"), ip_lines("-o link show"))
    );
}
