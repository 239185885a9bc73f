//! What is somebody else's stays as it is, and is named where it is in the way.

use crate::story::{OUTER, declared, encapsulated, failures, key, observe, on, pass, settle, underlay};
use nix::errno::Errno;
use podlane_agent::kernel::Kernel;
use podlane_plan::diff::Operation;
use podlane_plan::kernel::{Device, KernelState, MacAddress, Route};
use podlane_plan::lane::{Tunnel, TunnelProtocol};
use podlane_test_namespaces::{Test, ip, ip_lines};
use std::time::Duration;

pub(crate) const TESTS: &[Test] = &[
    ("a_foreign_route_keeps_its_place", a_foreign_route_keeps_its_place),
    ("a_foreign_device_is_not_touched", a_foreign_device_is_not_touched),
    (
        "a_taken_port_is_named_with_its_holder",
        a_taken_port_is_named_with_its_holder,
    ),
    ("a_missing_driver_is_named", a_missing_driver_is_named),
    ("only_ours_is_removed", only_ours_is_removed),
];

fn a_foreign_route_keeps_its_place() {
    underlay();
    ip("route add 172.20.2.0/24 via 192.168.10.200 dev eth1 proto static metric 136");
    ip("-6 route add fd20:2::/64 via fd10::200 dev eth1 proto static metric 1024");
    let mut kernel = Kernel::default();
    let failed = failures(pass(&mut kernel, &declared()));
    assert_eq!(failed.len(), 2, "{failed:?}");
    assert!(
        failed
            .iter()
            .all(|(_, failure)| failure.errno == Some(Errno::EEXIST)),
        "{failed:?}"
    );
    assert!(
        failed[0]
            .1
            .words
            .contains("172.20.2.0/24 via 192.168.10.200 dev eth1 metric 136 proto 4"),
        "{failed:?}"
    );
    assert_eq!(
        ip_lines("route show 172.20.2.0/24"),
        ["172.20.2.0/24 via 192.168.10.200 dev eth1 proto static metric 136"]
    );

    // Ours is there already, and somebody puts theirs in front of it: neither is replaced.
    ip("route add 172.20.9.0/24 via 192.168.10.101 dev eth1 proto 172 metric 143");
    ip("route prepend 172.20.9.0/24 via 192.168.10.200 dev eth1 proto static metric 143");
    let seen = observe(&mut kernel).observed;
    let results = kernel.apply(
        &[Operation::ReplaceRoute(key("172.20.9.0/24"), Route::UNREACHABLE)],
        &seen,
    );
    assert!(results[0].is_err());
    assert_eq!(ip_lines("route show 172.20.9.0/24").len(), 2);
    // And removing ours leaves theirs.
    assert_eq!(
        kernel.apply(&[Operation::RemoveRoute(key("172.20.9.0/24"))], &seen),
        [Ok(())]
    );
    assert_eq!(
        ip_lines("route show 172.20.9.0/24"),
        ["172.20.9.0/24 via 192.168.10.200 dev eth1 proto static metric 143"]
    );
}

fn a_foreign_device_is_not_touched() {
    underlay();
    ip("link add podlane_vxlan type vxlan id 7 dstport 4789 dev eth1");
    ip("link add podlane_odd group 172 type bridge");
    let before = ip("-d link show");
    let mut kernel = Kernel::default();
    let seen = observe(&mut kernel).observed;
    assert!(seen.ours.devices.is_empty());
    assert_eq!(
        seen.foreign_devices["podlane_vxlan"],
        "a vxlan device of group 0, port 4789, VNI 7"
    );
    assert_eq!(
        seen.foreign_devices["podlane_odd"],
        "a bridge device of group 172"
    );

    let state = declared();
    let device = state.devices["podlane_vxlan"].clone();
    let name = "podlane_vxlan".to_owned();
    let results = kernel.apply(
        &[
            Operation::CreateDevice {
                name: name.clone(),
                device: device.clone(),
            },
            Operation::ConfigureDevice {
                name: name.clone(),
                device,
            },
            Operation::AddAddress(on("podlane_vxlan", "172.20.0.1")),
            Operation::SetNeighbour(on("podlane_vxlan", "172.20.2.1"), MacAddress([2; 6])),
            Operation::AddRoute(key("172.20.2.0/24"), encapsulated(OUTER, "172.20.2.1", None)),
            Operation::DeleteDevice { name },
            Operation::DeleteDevice {
                name: "podlane_odd".to_owned(),
            },
        ],
        &seen,
    );
    for result in results {
        let failure = result.expect_err("refused");
        assert!(
            failure
                .words
                .contains("a device that is not Podlane's has the name podlane_"),
            "{failure}"
        );
    }
    assert_eq!(ip("-d link show"), before);
    assert_eq!(ip("route show proto 172"), "");
}

fn a_taken_port_is_named_with_its_holder() {
    underlay();
    let mut kernel = Kernel::default();
    let socket = std::net::UdpSocket::bind("0.0.0.0:8472").expect("the port is free");
    let failed = failures(pass(&mut kernel, &declared()));
    let (operation, failure) = &failed[0];
    assert!(operation.starts_with("set device podlane_vxlan"), "{operation}");
    assert_eq!(failure.errno, Some(Errno::EADDRINUSE));
    let process = format!("(PID {})", std::process::id());
    assert!(
        failure
            .words
            .starts_with("UDP port 8472 is already in use by the process "),
        "{failure}"
    );
    assert!(failure.words.contains(&process), "{failure}");
    assert!(!observe(&mut kernel).observed.ours.devices["podlane_vxlan"].up);

    drop(socket);
    // A child that another test is just starting has it until it has begun.
    while std::net::UdpSocket::bind("0.0.0.0:8472").is_err() {
        std::thread::sleep(Duration::from_millis(5));
    }
    // Coming up, the device loses the neighbours that it was given while it was down.
    settle(&mut kernel, &declared());
    settle(&mut kernel, &declared());
    assert_eq!(observe(&mut kernel).observed.ours, declared());

    // Another overlay's device on our port, whatever its VNI; one that is flow-based; and one that is so as ours is, to the last option.
    for (other, words) in [
        (
            "flannel.1 type vxlan id 1 dstport 8472 dev eth1",
            "in use by the device flannel.1 (a vxlan device of group 0, port 8472, VNI 1)",
        ),
        (
            "other type vxlan external dstport 8472",
            "in use by the device other (a vxlan device of group 0, port 8472, VNI 0)",
        ),
        (
            "other type vxlan external dstport 8472 udp6zerocsumrx",
            "the device other (a vxlan device of group 0, port 8472, VNI 0) keeps podlane_vxlan",
        ),
    ] {
        settle(&mut kernel, &KernelState::default());
        ip(&format!("link add {other}"));
        let name = other.split_whitespace().next().expect("a name");
        ip(&format!("link set {name} up"));
        let failed = failures(pass(&mut kernel, &declared()));
        assert!(failed[0].1.words.contains(words), "{failed:?}");
        ip(&format!("link del {name}"));
    }
}

fn a_missing_driver_is_named() {
    let tunnel = Tunnel {
        protocol: TunnelProtocol::Geneve,
        port: 6081,
        vni: 1,
    };
    let device = Device::declared(&tunnel, MacAddress([2, 0, 0, 0, 0, 1]), 1450);
    let desired = KernelState {
        devices: [(tunnel.device(), device)].into(),
        ..KernelState::default()
    };
    let mut kernel = Kernel::default();
    let failed = failures(pass(&mut kernel, &desired));
    match failed.first() {
        // This kernel has the driver: then it must do.
        None => assert_eq!(observe(&mut kernel).observed.ours.devices, desired.devices),
        Some((operation, failure)) => {
            assert_eq!(operation, "add device podlane_geneve type geneve port 6081");
            assert_eq!(failure.errno, Some(Errno::EOPNOTSUPP));
            assert!(
                failure.words.starts_with("this kernel has no geneve driver"),
                "{failure}"
            );
        }
    }
}

fn only_ours_is_removed() {
    underlay();
    ip("route add 10.0.0.0/8 via 192.168.10.200 dev eth1 proto bird");
    ip("link add podlane_other type bridge");
    let before = [
        ip("route show table all"),
        ip("-6 route show table all"),
        ip("-o link show"),
        ip("-o addr show"),
    ];
    let mut kernel = Kernel::default();
    let desired = KernelState {
        sysctls: [].into(),
        ..declared()
    };
    settle(&mut kernel, &desired);
    settle(&mut kernel, &KernelState::default());
    let after = [
        ip("route show table all"),
        ip("-6 route show table all"),
        ip("-o link show"),
        ip("-o addr show"),
    ];
    assert_eq!(before, after);
}
