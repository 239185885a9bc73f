//! Programs are replaced while packets flow.

use crate::story::{declared, devices, on, open, open_with, settle, stranger};
use aya::programs::SchedClassifier;
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::SchedClassifierLink;
use podlane_datapath::{Hook, Options, Programs};
use podlane_test_namespaces::{Test, bpffs, command, index};
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
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

/// How many numbered packets a second are sent.
const RATE: u64 = 10_000;

/// Sends numbered packets from another namespace to this one, through `eth1`, while something happens. How many were sent, and how many of them came, each once.
fn under_traffic(happens: impl FnOnce()) -> (usize, usize) {
    let receiver = UdpSocket::bind("192.168.10.100:7000").expect("a socket");
    nix::sys::socket::setsockopt(&receiver, nix::sys::socket::sockopt::RcvBufForce, &(64 << 20))
        .expect("room");
    receiver
        .set_read_timeout(Some(Duration::from_secs(3)))
        .expect("a limit");
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let (ready, moved) = (
        std::sync::mpsc::channel::<i32>(),
        std::sync::mpsc::channel::<()>(),
    );
    let (tell, hear) = (ready.0, moved.1);
    let sender = std::thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("a namespace");
        tell.send(nix::unistd::gettid().as_raw()).expect("somebody waits");
        hear.recv().expect("the device has come");
        for line in ["ip addr add 192.168.10.101/24 dev far", "ip link set far up"] {
            command(line);
        }
        let socket = UdpSocket::bind("192.168.10.101:7001").expect("a socket");
        let begun = std::time::Instant::now();
        let mut sent = 0_u64;
        while !stopped.load(Ordering::Relaxed) {
            let due = u64::try_from(begun.elapsed().as_micros()).expect("not that long") * RATE / 1_000_000;
            // What could not be sent in time is made up for in small bursts, which no queue on the way is too short for.
            let most = due.min(sent + 100);
            while sent < most {
                socket
                    .send_to(&sent.to_be_bytes(), "192.168.10.100:7000")
                    .expect("sent");
                sent += 1;
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        sent
    });
    let thread = ready.1.recv().expect("a thread");
    command(&format!("ip link set far netns {thread}"));
    // The first packet finds the neighbour, so that none waits for it.
    moved.0.send(()).expect("somebody waits");
    let received = std::thread::spawn(move || {
        let mut seen = Vec::new();
        let mut packet = [0; 8];
        while receiver.recv(&mut packet).is_ok() {
            seen.push(u64::from_be_bytes(packet));
        }
        seen
    });
    std::thread::sleep(Duration::from_millis(300));
    happens();
    stop.store(true, Ordering::Relaxed);
    let sent = usize::try_from(sender.join().expect("it sent")).expect("a number");
    let mut seen = received.join().expect("it received");
    let all = seen.len();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), all, "none came twice");
    (sent, all)
}

fn replacing_under_traffic_loses_nothing() {
    devices();
    let mut programs = open();
    settle(&mut programs, &declared());
    let mut old = stranger();
    let (sent, came) = under_traffic(|| {
        for _ in 0..200 {
            put_back(&mut old, "eth1", "underlay_ingress");
            assert_eq!(programs.sync(&declared(), Some([1, 2])).applied, 1);
            std::thread::sleep(Duration::from_millis(10));
        }
    });
    assert!(sent > 1_000, "{sent} packets");
    assert_eq!(came, sent, "packets that came of those that were sent");
}

fn new_maps_under_traffic(clsact: bool) {
    devices();
    let options = Options {
        clsact,
        ..Options::default()
    };
    let mut programs: Programs = open_with(&options);
    settle(&mut programs, &declared());
    let (sent, came) = under_traffic(|| {
        for round in 0..10 {
            let options = Options {
                flows: 1024 << (round % 2),
                ..options
            };
            programs = open_with(&options);
            settle(&mut programs, &declared());
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    assert!(sent > 1_000, "{sent} packets");
    assert_eq!(came, sent, "packets that came of those that were sent");
}
