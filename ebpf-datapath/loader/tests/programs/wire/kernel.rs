//! The kernel's own VXLAN and GENEVE devices as the other end.

use super::other_end::{OTHER_NODES, OtherNode};
use super::traffic::exchange;
use super::{Underlay, Wire, other_end};
use crate::cases::tell;
use aya::programs::tc::{TcAttachType, qdisc_add_clsact};
use podlane_datapath_common::{REASONS, Reason};
use podlane_test_namespaces::{Conditional, Test, in_fresh, index, ip};
use std::process::Command;

pub(crate) const TESTS: &[Test] = &[(
    "the_kernels_vxlan_device_is_the_other_end",
    the_kernels_vxlan_device_is_the_other_end,
)];

pub(crate) const GENEVE_TESTS: Conditional = Conditional {
    lacking: || lacking("geneve external", "GENEVE device"),
    tests: &[(
        "the_kernels_geneve_device_is_the_other_end",
        the_kernels_geneve_device_is_the_other_end,
    )],
};

pub(crate) const VLAN_TESTS: Conditional = Conditional {
    lacking: || lacking("vlan id 5", "VLAN device"),
    tests: &[("an_underlay_that_is_a_vlan", || carries(Underlay::Vlan))],
};

pub(crate) const BOND_TESTS: Conditional = Conditional {
    lacking: || lacking("bond", "bond"),
    tests: &[("an_underlay_that_is_a_bond", || carries(Underlay::Bond))],
};

/// Whether the kernel makes such a device.
fn lacking(kind: &str, name: &str) -> Option<String> {
    ip("link add cable type veth peer name cable-end");
    let link = if kind.starts_with("vlan") {
        "link cable"
    } else {
        ""
    };
    let output = Command::new("ip")
        .args(format!("link add {link} name probe type {kind}").split_whitespace())
        .output()
        .expect("ip(8) is installed");
    let words = String::from_utf8_lossy(&output.stderr);
    (!output.status.success()).then(|| format!("this kernel makes no {name} ({})", words.trim_end()))
}

fn the_kernels_vxlan_device_is_the_other_end() {
    for node in OTHER_NODES {
        in_fresh(move || {
            let mut wire = Wire::new();
            other_end::underlay(&wire.far, &[node]);
            other_end::pod(&wire);
            node.open(&wire.far, 0);
            carries_by(&mut wire, &node, 0);
        })
        .unwrap_or_else(|reason| panic!("{reason}"));
    }
}

/// The tunnels of GENEVE: of the driver, and of a stand-in.
const BY_DRIVER: usize = 1;
const BY_STAND_IN: usize = 2;

fn the_kernels_geneve_device_is_the_other_end() {
    for node in OTHER_NODES {
        for slot in [BY_DRIVER, BY_STAND_IN] {
            in_fresh(move || {
                let mut wire = Wire::new();
                other_end::underlay(&wire.far, &[node]);
                other_end::pod(&wire);
                node.open(&wire.far, slot);
                if slot == BY_DRIVER {
                    add_driver(&mut wire);
                    node.lead("podlane_gn6081", slot);
                } else {
                    node.lead("podlane_geneve", slot);
                }
                carries_by(&mut wire, &node, slot);
            })
            .unwrap_or_else(|reason| panic!("{reason}"));
        }
    }
}

/// Gives the node a device of the GENEVE driver for its second tunnel.
fn add_driver(wire: &mut Wire) {
    const DEVICE: &str = "podlane_gn6081";
    ip(&format!(
        "link add {DEVICE} address 02:50:c0:a8:0a:64 type geneve external dstport 6081 udp6zerocsumrx udp6zerocsumtx"
    ));
    ip(&format!("link set {DEVICE} mtu 1430 arp off addrgenmode none up"));
    qdisc_add_clsact(DEVICE).expect("clsact");
    wire.attach("tunnel_egress", DEVICE, TcAttachType::Egress);
    wire.attach("tunnel_ingress", DEVICE, TcAttachType::Ingress);
    wire.machine.model.settings.tunnels[BY_DRIVER].device = index(DEVICE);
    wire.machine.write_settings();
}

/// Traffic over an underlay of this kind, by each outer family.
fn carries(underlay: Underlay) {
    for node in OTHER_NODES {
        in_fresh(move || {
            let mut wire = Wire::over(underlay);
            other_end::underlay(&wire.far, &[node]);
            other_end::pod(&wire);
            node.open(&wire.far, 0);
            carries_by(&mut wire, &node, 0);
            if underlay == Underlay::Bond {
                let before = in_use("eth0");
                wire.far.ip(&format!("link set {before}-end down"));
                // Each end finds out by itself, and a frame that one sends on the old cable is lost.
                no_longer_in_use("eth0", &before);
                wire.far
                    .run(move || no_longer_in_use("eth0-end", &format!("{before}-end")));
                carries_by(&mut wire, &node, 0);
            }
        })
        .unwrap_or_else(|reason| panic!("{reason}"));
    }
}

/// Waits until a bond in the calling thread's namespace has turned to another device.
fn no_longer_in_use(bond: &str, device: &str) {
    let begun = std::time::Instant::now();
    while in_use(bond) == device {
        assert!(begun.elapsed() < super::tap::PATIENCE, "{device} is still in use");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

/// The device of a bond that is in use.
fn in_use(bond: &str) -> String {
    std::fs::read_to_string(format!("/proc/thread-self/net/bonding/{bond}"))
        .expect("a bond")
        .lines()
        .find_map(|line| line.strip_prefix("Currently Active Slave: "))
        .expect("one is in use")
        .to_owned()
}

/// All kinds of traffic with the other node's pods by the tunnel of this slot, through the stack and past it, and nothing dropped.
fn carries_by(wire: &mut Wire, node: &OtherNode, slot: usize) {
    let before = wire.machine.lanes()[slot];
    for (there, here) in node.pairs() {
        let words = format!("{there} over {}, slot {slot}", node.outer);
        exchange((&wire.pod, here), (&wire.far, there), &words);
    }
    let lanes = wire.machine.lanes();
    let lane = lanes[slot];
    let sent = [
        lane.sent_packets - before.sent_packets,
        lane.sent_bypassing - before.sent_bypassing,
    ];
    let received = [
        lane.received_packets - before.received_packets,
        lane.received_bypassing - before.received_bypassing,
    ];
    for [all, bypassing] in [sent, received] {
        assert!(all > bypassing && bypassing > 0, "{lane:?}");
    }
    for (slot, lane) in lanes.iter().enumerate() {
        let mut dropped = lane.dropped;
        // The far device's own listener reports (RFC 3810) come from no pod.
        dropped[Reason::ForgedInner as usize] = 0;
        assert_eq!(dropped, [0; REASONS], "slot {slot}");
    }
    tell(&format!(
        "over {}, slot {slot}: sent {sent:?}, received {received:?}",
        node.outer
    ));
}
