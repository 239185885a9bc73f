//! What somebody changes by hand: noticed, and put right.

use crate::story::{declared, observe, settle, underlay};
use crate::waking::Waking;
use podlane_agent::kernel::Kernel;
use podlane_agent::kernel::events::Interest;
use podlane_test_namespaces::{Test, ip};

pub(crate) const TESTS: &[Test] = &[
    (
        "what_a_hand_changed_is_corrected",
        what_a_hand_changed_is_corrected,
    ),
    ("changes_wake_and_pods_do_not", changes_wake_and_pods_do_not),
];

fn what_a_hand_changed_is_corrected() {
    underlay();
    let mut kernel = Kernel::default();
    settle(&mut kernel, &declared());
    let hands: [&[&str]; 9] = [
        &["route replace blackhole 172.20.2.0/24 proto 172 metric 136"],
        &[
            "route replace 172.20.1.0/24 proto 172 metric 135 nexthop via 192.168.10.101 dev eth1 nexthop via 192.168.10.102 dev eth1",
        ],
        &[
            "route replace 172.20.1.0/24 via 192.168.10.101 dev eth1 proto 172 metric 135 mtu 1400 advmss 1300",
        ],
        &["-6 route replace blackhole fd20:3::/64 proto 172 metric 1024"],
        &[
            "link set podlane_vxlan address 02:00:00:00:00:01",
            "link set podlane_vxlan mtu 1400",
        ],
        &["link set podlane_vxlan down"],
        &["link set podlane_vxlan arp on"],
        &["link set podlane_vxlan type vxlan learning"],
        &["link del podlane_vxlan"],
    ];
    for hand in hands {
        for command in hand {
            ip(command);
        }
        assert_ne!(
            observe(&mut kernel).observed.ours,
            declared(),
            "{hand:?} is noticed"
        );
        // Bringing a device down takes its routes and neighbours along: the second round finds those that were still seen.
        settle(&mut kernel, &declared());
        settle(&mut kernel, &declared());
        assert_eq!(
            observe(&mut kernel).observed.ours,
            declared(),
            "{hand:?} is corrected"
        );
    }

    ip("route add 172.20.1.0/24 tos 0x10 via 192.168.10.102 dev eth1 proto 172 metric 135");
    ip("addr add 172.20.0.9/24 dev podlane_vxlan");
    ip("addr add 172.20.0.1/24 dev podlane_vxlan");
    let seen = observe(&mut kernel);
    assert_eq!(seen.observed.ours, declared());
    let strays = kernel.remove_strays(seen.strays);
    let expected = [
        "address 172.20.0.9/24 dev podlane_vxlan",
        "address 172.20.0.1/24 dev podlane_vxlan",
        "route 172.20.1.0/24 tos 0x10",
    ];
    for what in expected {
        assert!(strays.contains(&(what.to_owned(), Ok(()))), "{what}: {strays:?}");
    }
    settle(&mut kernel, &declared());
    let seen = observe(&mut kernel);
    assert!(seen.strays.is_empty());
    assert_eq!(seen.observed.ours, declared());
}

fn changes_wake_and_pods_do_not() {
    underlay();
    let mut kernel = Kernel::default();
    settle(&mut kernel, &declared());
    let seen = observe(&mut kernel);
    let waking = Waking::listen(Interest {
        devices: seen.device_indices,
        own_port: kernel.port(),
        own_netfilter_port: kernel.netfilter_port(),
    });
    for (command, expected) in [
        (
            "neigh add 192.168.10.55 lladdr 02:00:00:00:00:55 dev eth1 nud permanent",
            false,
        ),
        ("neigh del 172.20.2.1 dev podlane_vxlan", true),
        ("route del 172.20.1.0/24", true),
        ("route add 10.0.0.0/8 via 192.168.10.200 table 99", false),
        ("-6 route add fd99::/64 via fd10::200 dev eth1", true),
        ("addr add 192.168.10.99/24 dev eth1", true),
        ("link set far mtu 1400", true),
    ] {
        waking.ensure(command, ip, expected);
    }
    waking.ensure(
        "the agent's own repair",
        |_| settle(&mut kernel, &declared()),
        false,
    );
}
