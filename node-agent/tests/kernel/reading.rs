//! What is read besides: the underlay, others' routes, parameters.

use crate::story::{declared, observe, settle, underlay};
use podlane_agent::kernel::{Kernel, Sysctls};
use podlane_plan::diff::Operation;
use podlane_test_namespaces::{Test, in_fresh, ip};

pub(crate) const TESTS: &[Test] = &[
    (
        "underlay_addresses_and_foreign_routes_are_seen",
        underlay_addresses_and_foreign_routes_are_seen,
    ),
    (
        "parameters_are_those_of_the_threads_namespace",
        parameters_are_those_of_the_threads_namespace,
    ),
    (
        "a_dump_is_whole_while_others_change_things",
        a_dump_is_whole_while_others_change_things,
    ),
];

fn underlay_addresses_and_foreign_routes_are_seen() {
    underlay();
    ip("addr add 192.168.10.77/32 dev far");
    ip("link add closed type bridge");
    ip("addr add 10.9.0.1/24 dev closed");
    ip("route add default proto 186 nexthop via 192.168.10.200 dev eth1 nexthop via 192.168.10.201 dev eth1");
    ip("route add 10.0.0.0/8 via inet6 fe80::9 dev eth1");
    ip("route add 10.1.0.0/16 via 192.168.10.200 table 99");
    ip("route add prohibit 10.2.0.0/16 metric 5");
    let mut kernel = Kernel::default();
    settle(&mut kernel, &declared());
    let seen = observe(&mut kernel).observed;
    let underlay: Vec<_> = seen
        .underlay
        .iter()
        .map(|on| format!("{} {} {}", on.device, on.address, on.mtu))
        .collect();
    assert_eq!(
        underlay,
        [
            "eth1 192.168.10.100/24 1500",
            "eth1 fd10::100/64 1500",
            "far 192.168.10.77/32 1500"
        ]
    );
    let foreign: Vec<_> = seen
        .foreign_routes
        .iter()
        .filter(|route| route.destination.addr().is_ipv4())
        .map(|route| {
            let hops: Vec<_> = route
                .next_hops
                .iter()
                .map(|hop| {
                    format!(
                        "{}@{}",
                        hop.gateway.map_or_else(|| "-".to_owned(), |it| it.to_string()),
                        hop.device
                    )
                })
                .collect();
            format!(
                "{} metric {} proto {} [{}]",
                route.destination,
                route.metric,
                route.protocol,
                hops.join(" ")
            )
        })
        .collect();
    assert_eq!(
        foreign,
        [
            "0.0.0.0/0 metric 0 proto 186 [192.168.10.200@eth1 192.168.10.201@eth1]",
            "10.0.0.0/8 metric 0 proto 3 [fe80::9@eth1]",
            "10.2.0.0/16 metric 5 proto 3 []",
            "192.168.10.0/24 metric 0 proto 2 [-@eth1]",
        ]
    );
}

fn parameters_are_those_of_the_threads_namespace() {
    let path = "net/ipv4/ip_forward";
    let sysctls = Sysctls::default();
    sysctls.write(path, "1").expect("writable");
    assert_eq!(sysctls.read(path).as_deref(), Some("1"));
    in_fresh(move || {
        // A fresh namespace takes over what the initial one has, or the kernel's own value: not what was written above.
        Sysctls::default().write(path, "0").expect("writable");
        assert_eq!(Sysctls::default().read(path).as_deref(), Some("0"));
    })
    .expect("another namespace");
    assert_eq!(sysctls.read(path).as_deref(), Some("1"));
    let mut kernel = Kernel::default();
    let seen = observe(&mut kernel).observed;
    let results = kernel.apply(
        &[
            Operation::SetSysctl {
                path: path.to_owned(),
                value: "0".to_owned(),
            },
            Operation::SetSysctl {
                path: "net/ipv4/no_such".to_owned(),
                value: "0".to_owned(),
            },
            Operation::SetSysctl {
                path: "net/../kernel/panic".to_owned(),
                value: "0".to_owned(),
            },
        ],
        &seen,
    );
    assert_eq!(
        results.iter().map(Result::is_ok).collect::<Vec<_>>(),
        [true, false, false]
    );
    assert_eq!(sysctls.read(path).as_deref(), Some("0"));
}

fn a_dump_is_whole_while_others_change_things() {
    underlay();
    let mut kernel = Kernel::default();
    settle(&mut kernel, &declared());
    // Enough addresses that a dump takes several datagrams.
    let commands: String = (0..600)
        .map(|it| format!("addr add 10.7.{}.{}/32 dev far\n", it / 200, it % 200 + 1))
        .collect();
    let file = std::env::temp_dir().join(format!("podlane-addresses-{}", std::process::id()));
    std::fs::write(&file, commands).expect("a file");
    ip(&format!("-batch {}", file.display()));
    std::fs::remove_file(&file).expect("it is there");
    let mut churn = std::process::Command::new("sh")
        .args([
            "-c",
            "while ip addr add 10.8.0.1/32 dev far && ip addr del 10.8.0.1/32 dev far; do :; done",
        ])
        .spawn()
        .expect("sh");
    for _ in 0..50 {
        let seen = observe(&mut kernel).observed;
        assert_eq!(seen.ours, declared());
        let constant = seen
            .underlay
            .iter()
            .filter(|on| on.address.to_string() != "10.8.0.1/32")
            .count();
        assert_eq!(constant, 602);
    }
    churn.kill().expect("it runs");
    churn.wait().expect("it ends");
}
