//! Pods' packets that leave the cluster's networks bear the node's address, and others their own: a pod, its node and what is outside,
//! each a namespace.

mod lab;

use crate::story::{failures, observe, pass, settle};
use crate::waking::Waking;
use lab::{BEYOND, Lab, NODE, POD, ROUTER, WITHIN, ask, socket};
use podlane_agent::kernel::Kernel;
use podlane_agent::kernel::events::Interest;
use podlane_plan::kernel::KernelState;
use podlane_plan::masquerade::{Masquerade, Ports};
use podlane_test_namespaces::{Conditional, Test, command};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

pub(crate) const TESTS: Conditional = Conditional {
    lacking,
    tests: WITH_NFTABLES,
};

const WITH_NFTABLES: &[Test] = &[
    (
        "what_leaves_the_clusters_networks_bears_the_nodes_address",
        what_leaves_bears_the_nodes_address,
    ),
    ("source_ports_are_in_their_range", source_ports_are_in_their_range),
    (
        "a_table_is_replaced_without_losing_a_packet",
        a_table_is_replaced_without_losing_a_packet,
    ),
    (
        "what_others_masquerade_keeps_its_source_whatever_device_it_leaves_by",
        what_others_masquerade_keeps_its_source,
    ),
    ("other_tables_stay_as_they_are", other_tables_stay_as_they_are),
    (
        "a_table_that_a_hand_changed_is_made_anew",
        a_changed_table_is_made_anew,
    ),
    ("a_hand_on_the_table_wakes", a_hand_on_the_table_wakes),
    ("thousands_of_networks_fit", thousands_of_networks_fit),
];

fn lacking() -> Option<String> {
    let script = "table inet probe { chain c { type nat hook postrouting priority srcnat; masquerade fully-random; }; }";
    let output = Command::new("nft").arg(script).output();
    match output {
        Err(error) => Some(format!("nft(8) is not installed: {error}")),
        Ok(output) if !output.status.success() => Some(format!(
            "this kernel does not masquerade by nftables ({})",
            String::from_utf8_lossy(&output.stderr).trim_end()
        )),
        Ok(_) => None,
    }
}

fn masquerade(plain: &str, ports: Option<Ports>) -> KernelState {
    let networks = |text: &str| {
        text.split_whitespace()
            .map(|network| network.parse().expect("a CIDR"))
            .collect()
    };
    KernelState {
        masquerade: Some(Masquerade {
            pods: networks("172.20.0.0/24 fd20::/64"),
            plain: networks(plain),
            ports,
            others: networks("10.9.9.9/32 172.20.0.0/16 fd20::/48 fd99::9/128"),
            own: NODE.map(|own| at(own).into()).into(),
            routers: ROUTER.map(at).into(),
            intact: true,
        }),
        ..KernelState::default()
    }
}

const PLAIN: &str = "10.0.0.0/8 172.20.0.0/16 224.0.0.0/4 fd20::/48 fd99::/64 ff00::/8";

fn at(address: &str) -> IpAddr {
    address.parse().expect("an address")
}

fn what_leaves_bears_the_nodes_address() {
    let lab = Lab::up();
    let mut kernel = Kernel::default();
    for (address, pod) in BEYOND.into_iter().zip(POD) {
        assert_eq!(lab.seen_at(address).ip(), at(pod), "before");
    }
    let wanted = masquerade(PLAIN, None);
    assert_eq!(settle(&mut kernel, &wanted), 1);
    assert_eq!(
        observe(&mut kernel).observed.ours,
        KernelState {
            sysctls: observe(&mut kernel).observed.ours.sysctls,
            ..wanted.clone()
        }
    );
    assert_eq!(settle(&mut kernel, &wanted), 0, "nothing is left to do");
    for family in 0..2 {
        assert_eq!(lab.seen_at(BEYOND[family]).ip(), at(NODE[family]));
        assert_eq!(lab.seen_at(WITHIN[family]).ip(), at(POD[family]));
    }
    // As everybody sees it.
    let shown = command("nft list table inet podlane");
    assert!(
        shown.contains("ip saddr @pods4 ip daddr != @plain4 masquerade fully-random")
            && shown.contains("ip6 saddr @pods6 ip6 daddr != @plain6 masquerade fully-random"),
        "{shown}"
    );
    settle(&mut kernel, &KernelState::default());
    assert_eq!(lab.seen_at(BEYOND[0]).ip(), at(POD[0]), "afterwards");
    assert_eq!(command("nft list ruleset"), "");
}

fn source_ports_are_in_their_range() {
    let lab = Lab::up();
    let mut kernel = Kernel::default();
    let ports = Ports {
        first: 40_000,
        last: 40_999,
    };
    let wanted = masquerade(PLAIN, Some(ports));
    settle(&mut kernel, &wanted);
    assert_eq!(observe(&mut kernel).observed.ours.masquerade, wanted.masquerade);
    for (address, node) in BEYOND.into_iter().zip(NODE) {
        let seen: Vec<SocketAddr> = (0..20).map(|_| lab.seen_at(address)).collect();
        assert!(
            seen.iter()
                .all(|from| from.ip() == at(node) && (40_000..41_000).contains(&from.port())),
            "{seen:?}"
        );
        let distinct: BTreeSet<u16> = seen.iter().map(SocketAddr::port).collect();
        let in_order = seen.windows(2).all(|pair| pair[0].port() < pair[1].port());
        assert!(distinct.len() > 10 && !in_order, "not at random: {seen:?}");
    }
    assert_eq!(settle(&mut kernel, &wanted), 0);
}

/// Flows that last, and new ones all the time: each question is answered, and each answer names the node.
fn a_table_is_replaced_without_losing_a_packet() {
    let lab = Lab::up();
    let mut kernel = Kernel::default();
    settle(&mut kernel, &masquerade(PLAIN, None));
    let (goes_on, asked) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicU32::new(0)));
    let (asks, counts) = (Arc::clone(&goes_on), Arc::clone(&asked));
    let (tell, told) = std::sync::mpsc::channel();
    lab.pod.run(move || {
        std::thread::spawn(move || {
            let lasting = BEYOND.map(socket);
            let first: Vec<SocketAddr> = lasting.iter().map(|it| ask(it).expect("an answer")).collect();
            while asks.load(Ordering::Relaxed) {
                for family in 0..2 {
                    let again = ask(&lasting[family]).expect("an answer to a flow that lasts");
                    assert_eq!(again, first[family], "a flow keeps its port");
                    let new = ask(&socket(BEYOND[family])).expect("an answer to a new flow");
                    assert_eq!(new.ip(), at(NODE[family]));
                    counts.fetch_add(2, Ordering::Relaxed);
                }
            }
            tell.send(()).expect("it is waited for");
        });
    });
    let ports = Ports {
        first: 1024,
        last: 65535,
    };
    let other = format!("{PLAIN} 203.0.113.0/24");
    let start = Instant::now();
    for round in 0_u32.. {
        let asked = asked.load(Ordering::Relaxed);
        // An emulated machine takes its time, and more of it where much else is emulated beside.
        let is_slow = start.elapsed() > Duration::from_secs(20);
        let (rounds, questions) = if is_slow { (10, 100) } else { (100, 1_000) };
        if round >= rounds && asked >= questions {
            break;
        }
        let is_late = start.elapsed() > Duration::from_secs(240);
        assert!(!is_late, "only {asked} questions in {round} replacements");
        let wanted = match round % 3 {
            0 => masquerade(PLAIN, Some(ports)),
            1 => masquerade(&other, None),
            _ => masquerade(PLAIN, None),
        };
        assert_eq!(settle(&mut kernel, &wanted), 1);
    }
    goes_on.store(false, Ordering::Relaxed);
    told.recv_timeout(Duration::from_secs(60))
        .expect("no question was without its answer");
}

/// What the node sends to other nodes' pods, and what kube-proxy has marked, beside a chain that masquerades it as kube-proxy's does.
fn what_others_masquerade_keeps_its_source() {
    const KUBE_PROXY: &str = "table inet kube-proxy {
            chain marks { type filter hook prerouting priority mangle; ip saddr 172.20.0.10 meta mark set 0x4001; ip6 saddr fd20::a meta mark set 0x4001; };
            chain nat { type nat hook postrouting priority srcnat; meta mark & 0x4000 != 0 masquerade fully-random; };
            chain left { type filter hook postrouting priority 200; ct state new meta mark & 0x4000 != 0 counter; meta mark & 1 != 0 accept; };
        }";
    let lab = Lab::up();
    lab.second_way();
    // Whichever is there first.
    nft(KUBE_PROXY);
    let mut kernel = Kernel::default();
    settle(&mut kernel, &masquerade(PLAIN, None));
    for family in 0..2 {
        let address = WITHIN[family];
        let others = lab.pod.run(move || socket(address));
        let own = socket(address);
        // Bound to the node's address, as what a Service's address was routed by.
        assert_eq!(own.local_addr().expect("an address").ip(), at(NODE[family]));
        let before = [ask(&others).expect("an answer"), ask(&own).expect("an answer")];
        assert_eq!(before.map(|seen| seen.ip()), [at(ROUTER[family]); 2]);
        assert_eq!(before[1].port(), own.local_addr().expect("a port").port());
        lab.by_second_way(family);
        let after = [ask(&others).expect("an answer"), ask(&own).expect("an answer")];
        assert_eq!(after, before, "the flows are not the same any more");
        // What goes elsewhere is masqueraded as ever.
        assert_eq!(lab.seen_at(BEYOND[family]).ip(), at(NODE[family]));
        assert_eq!(
            ask(&socket(BEYOND[family])).expect("an answer").ip(),
            at(NODE[family])
        );
    }
    let left = command("nft list chain inet kube-proxy left");
    // Of the four flows two were kube-proxy's to masquerade: those to elsewhere.
    let shown = command("nft list table inet podlane");
    assert!(
        shown.contains("priority srcnat - 1")
            && shown.contains("ip daddr @others4 ip daddr != @pods4 ip saddr @own4 snat ip to 172.20.0.1")
            && shown.contains("snat ip6 to fd20::1 fully-random"),
        "{shown}"
    );
    assert!(left.contains("counter packets 2 "), "{left}");
}

fn other_tables_stay_as_they_are() {
    const OTHERS: &str = "table inet filter { chain forward { type filter hook forward priority filter; }; }
        table ip kube-proxy { chain nat { type nat hook postrouting priority srcnat; }; }
        table ip podlane { set plain4 { type ipv4_addr; }; }";
    let mut kernel = Kernel::default();
    nft(OTHERS);
    let before = command("nft list ruleset");
    settle(&mut kernel, &masquerade(PLAIN, None));
    settle(&mut kernel, &KernelState::default());
    assert_eq!(command("nft list ruleset"), before);

    // One with the name of ours.
    nft("table inet podlane { chain postrouting { type nat hook postrouting priority srcnat; }; }");
    let before = command("nft list ruleset");
    assert!(observe(&mut kernel).observed.foreign_table);
    let failed = failures(pass(&mut kernel, &masquerade(PLAIN, None)));
    assert!(
        failed[0]
            .1
            .words
            .contains("a table that is not Podlane's has the name podlane")
            || failed[0].1.words.contains("nftables table that is not Podlane's"),
        "{failed:?}"
    );
    settle(&mut kernel, &KernelState::default());
    assert_eq!(command("nft list ruleset"), before);
}

fn nft(script: &str) {
    let output = Command::new("nft").arg(script).output().expect("nft(8)");
    assert!(
        output.status.success(),
        "{script}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn a_changed_table_is_made_anew() {
    let mut kernel = Kernel::default();
    let ports = Some(Ports {
        first: 1024,
        last: 2047,
    });
    let wanted = masquerade(PLAIN, ports);
    settle(&mut kernel, &wanted);
    // Whichever of its two names a set has.
    let listed = || {
        let text = command("nft list ruleset").replace("_2", "");
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let whole = listed();
    for change in [
        "flush chain inet podlane postrouting",
        "delete table inet podlane",
        "flush set inet podlane pods4",
        "flush set inet podlane others4",
        "add element inet podlane own4 { 12.0.0.1 }",
        "add element inet podlane plain4 { 12.0.0.0/8 }",
        "insert rule inet podlane postrouting accept",
        "add rule inet podlane postrouting accept",
        "add chain inet podlane postrouting { policy drop; }",
        "add chain inet podlane other",
        "add table inet podlane { flags dormant; }",
        "flush ruleset",
    ] {
        nft(change);
        assert_eq!(settle(&mut kernel, &wanted), 1, "{change}");
        assert_eq!(listed(), whole, "{change}");
        assert_eq!(settle(&mut kernel, &wanted), 0, "{change}");
    }
}

fn a_hand_on_the_table_wakes() {
    let mut kernel = Kernel::default();
    settle(&mut kernel, &masquerade(PLAIN, None));
    let waking = Waking::listen(Interest {
        own_netfilter_port: kernel.netfilter_port(),
        ..Interest::default()
    });
    for (change, expected) in [
        ("add table inet other", false),
        ("flush set inet podlane plain4", true),
        ("delete table inet podlane", true),
    ] {
        waking.ensure(change, nft, expected);
    }
    waking.ensure(
        "our own change",
        |_| settle(&mut kernel, &masquerade(PLAIN, None)),
        false,
    );
}

fn thousands_of_networks_fit() {
    let mut kernel = Kernel::default();
    let mut wanted = masquerade(PLAIN, None);
    let table = wanted.masquerade.as_mut().expect("it is wanted");
    // Every other one, so that none can be joined to another.
    table.plain = (0..5_000_u32)
        .map(|number| {
            let address = Ipv4Addr::from(0x0b00_0000 + (number << 9));
            ipnet::IpNet::new(address.into(), 24).expect("a CIDR")
        })
        .collect();
    assert_eq!(settle(&mut kernel, &wanted), 1);
    assert_eq!(observe(&mut kernel).observed.ours.masquerade, wanted.masquerade);
    assert_eq!(settle(&mut kernel, &KernelState::default()), 1);
}
