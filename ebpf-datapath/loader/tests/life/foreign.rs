//! Other people's programs on the same hooks stay, and run.

use crate::story::{declared, devices, on, open, settle, stranger};
use aya::programs::links::LinkOrder;
use aya::programs::tc::{NlOptions, TcAttachOptions};
use aya::programs::{SchedClassifier, TcAttachType};
use aya::sys::{Stats, enable_stats};
use podlane_datapath::{Followers, Hook};
use podlane_test_namespaces::{Test, command};

pub(crate) const TESTS: &[Test] = &[("filters_of_others_run_and_stay", filters_of_others_run_and_stay)];

pub(crate) const TCX_TESTS: &[Test] = &[(
    "programs_of_others_run_before_and_after_ours",
    programs_of_others_run_before_and_after_ours,
)];

/// Sends frames out of the veth's far end.
fn send(count: usize) {
    use std::net::UdpSocket;
    command("ip addr add 192.168.10.101/24 dev far");
    // Within one namespace the kernel would deliver by loopback: a broadcast bound to the device goes through it.
    let socket = UdpSocket::bind("192.168.10.101:0").expect("a socket");
    socket.set_broadcast(true).expect("it may");
    nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::BindToDevice, &"far".into())
        .expect("bound");
    for _ in 0..count {
        socket.send_to(b"here", "192.168.10.255:9").expect("sent");
    }
    command("ip addr del 192.168.10.101/24 dev far");
    std::thread::sleep(std::time::Duration::from_millis(100));
}

fn programs_of_others_run_before_and_after_ours() {
    devices();
    let _counting = enable_stats(Stats::RunTime).expect("run counts");
    let mut before = stranger();
    let mut after = stranger();
    let last = || TcAttachOptions::TcxOrder(LinkOrder::last());
    before
        .attach_with_options("eth1", TcAttachType::Ingress, last())
        .expect("attached");
    let mut programs = open();
    assert_eq!(settle(&mut programs, &declared()).followers, []);
    after
        .attach_with_options("eth1", TcAttachType::Ingress, last())
        .expect("attached");
    let (first, third) = (
        before.info().expect("info").id(),
        after.info().expect("info").id(),
    );
    let [one, ours, three] = on("eth1", Hook::Ingress)[..] else {
        panic!("three programs")
    };
    assert_eq!((one, three), (first, third), "ours came after the first");

    let synced = programs.sync(&declared(), Some([1, 2]));
    let expected = Followers {
        device: "eth1".to_owned(),
        hook: Hook::Ingress,
        programs: vec![third],
    };
    assert_eq!((synced.applied, synced.followers), (0, vec![expected]));
    send(20);
    for stranger in [&before, &after] {
        let count = stranger.info().expect("info").run_count();
        assert!(count >= 20, "{count} of 20 packets");
    }

    drop(programs);
    let removed =
        podlane_datapath::clean(&podlane_test_namespaces::bpffs().join("podlane")).expect("cleaned");
    assert!(removed.iter().all(|(_, result)| result.is_ok()), "{removed:?}");
    assert_eq!(on("eth1", Hook::Ingress), [first, third], "{ours} alone is gone");
}

fn filters_of_others_run_and_stay() {
    devices();
    let _counting = enable_stats(Stats::RunTime).expect("run counts");
    command("tc qdisc add dev eth1 clsact");
    let mut theirs = stranger();
    attach_filter(&mut theirs, "eth1", TcAttachType::Ingress);
    let mut programs = open();
    settle(&mut programs, &declared());
    send(20);
    let count = theirs.info().expect("info").run_count();
    assert!(count >= 20, "{count} of 20 packets");
    drop(programs);
    podlane_datapath::clean(&podlane_test_namespaces::bpffs().join("podlane")).expect("cleaned");
    assert!(command("tc filter show dev eth1 ingress").contains("pref 7 bpf"));
}

/// Attaches a program as a filter of a clsact queueing discipline, which has to be there.
pub(crate) fn attach_filter(program: &mut SchedClassifier, device: &str, hook: TcAttachType) {
    let options = NlOptions {
        priority: 7,
        ..NlOptions::default()
    };
    let id = program
        .attach_with_options(device, hook, TcAttachOptions::Netlink(options))
        .expect("attached");
    // It is to stay when the program is dropped.
    std::mem::forget(program.take_link(id).expect("the link"));
}
