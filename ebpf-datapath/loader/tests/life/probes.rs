//! Probes between two nodes, each with programs of its own.

use crate::story::{VXLAN, address, declared, devices, forward, open, other_node, settle};
use podlane_datapath::{LaneName, Options, Over, ProbeFailure, ProbeToSend, Programs, Reason};
use podlane_test_namespaces::{Test, bpffs, command};
use std::net::UdpSocket;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub(crate) const TESTS: &[Test] = &[
    (
        "a_probe_is_answered_on_each_lane",
        a_probe_is_answered_on_each_lane,
    ),
    (
        "a_probe_under_a_wrong_key_is_counted",
        a_probe_under_a_wrong_key_is_counted,
    ),
    ("an_impossible_probe_is_refused", an_impossible_probe_is_refused),
];

/// The other node's key.
const KEY: [u64; 2] = [3, 4];

fn probe(number: u64, over: Over) -> ProbeToSend {
    ProbeToSend {
        number,
        over,
        source: address("172.20.0.1"),
        destination: address("172.20.1.1"),
        device: "eth1".to_owned(),
        next_hop: address("192.168.10.101"),
        length: 1450,
        short_reply: false,
        key: KEY,
    }
}

fn tunnel() -> Over {
    Over::Tunnel {
        tunnel: VXLAN,
        source: address("192.168.10.100"),
        destination: address("192.168.10.101"),
        dscp: 10,
    }
}

/// The other node, in a namespace of its own, at the other end of `eth1`, until the sender is dropped. Gives back what it has counted.
fn neighbour() -> (Sender<()>, JoinHandle<podlane_datapath::Counters>) {
    let (tell, hear) = channel();
    let (end, ended) = channel::<()>();
    let (moved, wait) = channel::<()>();
    let (done, ready) = channel::<()>();
    let thread = std::thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("a namespace");
        tell.send(nix::unistd::gettid().as_raw()).expect("somebody waits");
        wait.recv().expect("the device has come");
        for line in [
            "ip link set far name eth1",
            "ip addr add 192.168.10.101/24 dev eth1",
            "ip link set eth1 up",
            "ip link add podlane_vxlan type veth peer name tunnel_end",
        ] {
            command(line);
        }
        forward();
        let mut programs = Programs::open(&bpffs().join("other"), &Options::default()).expect("programs");
        let synced = programs.sync(&other_node(), Some(KEY));
        assert_eq!(synced.failures, []);
        done.send(()).expect("somebody waits");
        assert!(ended.recv().is_err(), "nothing is sent, the sender is dropped");
        programs.counters().expect("counters")
    });
    command(&format!(
        "ip link set far netns {}",
        hear.recv().expect("a thread")
    ));
    moved.send(()).expect("somebody waits");
    ready.recv().expect("the other node is ready");
    (end, thread)
}

/// Has the kernel resolve the neighbour, as the agent does after [`ProbeFailure::NoNeighbour`].
fn send(programs: &mut Programs, probe: &ProbeToSend) {
    for _ in 0..3000 {
        match programs.send_probe(probe) {
            Ok(()) => return,
            Err(ProbeFailure::NoNeighbour(next_hop)) => {
                let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
                socket.send_to(b"who is it", (next_hop, 9)).expect("sent");
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(failure) => panic!("{failure}"),
        }
    }
    panic!("the neighbour is not resolved");
}

fn answers(programs: &mut Programs, numbers: &[u64]) -> Vec<podlane_datapath::ProbeAnswer> {
    let mut answers = Vec::new();
    // An emulated machine takes long.
    for _ in 0..2000 {
        answers.extend(programs.probe_answers(numbers).expect("the map is read"));
        if answers.len() == numbers.len() {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    answers
}

fn a_probe_is_answered_on_each_lane() {
    devices();
    let mut programs = open();
    settle(&mut programs, &declared());
    let (end, other) = neighbour();
    let short = ProbeToSend {
        short_reply: true,
        ..probe(9, Over::Native)
    };
    let begun = Instant::now();
    for probe in [&probe(7, tunnel()), &probe(8, Over::Native), &short] {
        send(&mut programs, probe);
    }
    let mut answers = answers(&mut programs, &[7, 8, 9]);
    answers.sort_by_key(|answer| answer.number);
    let seen: Vec<_> = answers
        .iter()
        .map(|answer| (answer.number, answer.length, answer.over))
        .collect();
    assert_eq!(
        seen,
        [
            (7, 1450, Some(LaneName::Tunnel(VXLAN))),
            (8, 1450, Some(LaneName::Native)),
            (9, 44, Some(LaneName::Native))
        ]
    );
    for answer in answers {
        assert!(
            answer.round_trip < begun.elapsed() && !answer.round_trip.is_zero(),
            "{answer:?}"
        );
    }
    assert_eq!(
        programs.probe_answers(&[7, 8, 9]),
        Ok(vec![]),
        "each answer is given once"
    );
    drop(end);
    other.join().expect("the other node ends well");
}

fn a_probe_under_a_wrong_key_is_counted() {
    devices();
    let mut programs = open();
    settle(&mut programs, &declared());
    let (end, other) = neighbour();
    let wrong = ProbeToSend {
        key: [5, 6],
        ..probe(7, tunnel())
    };
    send(&mut programs, &wrong);
    assert_eq!(answers(&mut programs, &[7]), []);
    programs.forget_probes(&[7]);
    drop(end);
    let counted = other.join().expect("the other node ends well");
    let lane = &counted.lanes[&LaneName::Tunnel(VXLAN)];
    assert_eq!(lane.dropped.get(&Reason::Probe), Some(&1), "{counted:?}");
    assert_eq!(
        counted.peers["node-0"].dropped.get(&Reason::Probe),
        Some(&1),
        "{counted:?}"
    );
}

fn an_impossible_probe_is_refused() {
    devices();
    let mut programs = open();
    settle(&mut programs, &declared());
    let short = ProbeToSend {
        length: 43,
        ..probe(7, tunnel())
    };
    let mixed = ProbeToSend {
        destination: address("fd20::1"),
        ..probe(7, tunnel())
    };
    for wrong in [short, mixed] {
        assert!(
            matches!(programs.send_probe(&wrong), Err(ProbeFailure::Impossible(_))),
            "{wrong:?}"
        );
    }
    let elsewhere = ProbeToSend {
        device: "eth9".to_owned(),
        ..probe(7, tunnel())
    };
    let failure = programs.send_probe(&elsewhere).expect_err("no such device");
    assert_eq!(failure.to_string(), "there is no device eth9");
    assert_eq!(programs.probe_answers(&[7]), Ok(vec![]));
}
