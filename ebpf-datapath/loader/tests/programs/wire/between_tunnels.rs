//! Packets that came in by a tunnel and leave by another, as those that a node passes on to a Service's backend elsewhere: still marked as
//! encapsulated when they are to be so once more.

use super::other_end::{OTHER_NODES, OtherNode, by_family};
use super::traffic::{Pod, datagrams};
use super::{Wire, other_end};
use crate::cases::tell;
use crate::story::{network4, network6};
use podlane_datapath_common::{REASONS, Reason};
use podlane_test_namespaces::{Elsewhere, Test, command, in_fresh};
use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

pub(crate) const TESTS: &[Test] = &[
    ("a_tunnel_leads_into_another_of_its_family", || {
        each(&OF_ITS_FAMILY);
    }),
    ("a_tunnel_leads_into_another_of_the_other_family", || {
        each(&OTHER_NODES[1]);
    }),
];

/// Where the packets come from.
const FIRST: &OtherNode = &OTHER_NODES[0];

/// A third node over the same underlay.
const OF_ITS_FAMILY: OtherNode = OtherNode {
    outer: "192.168.20.103",
    here: "192.168.10.100",
    pods: [("172.20.7.10", "172.20.0.10"), ("fd20:0:0:4::a", "fd20::a")],
};

const SLOT: usize = 0;

/// With checksums that are left to a device, and super-packets; and without either.
fn each(third: &'static OtherNode) {
    for offload in [true, false] {
        in_fresh(move || relayed(third, offload)).unwrap_or_else(|reason| panic!("{reason}"));
    }
}

fn relayed(third: &'static OtherNode, offload: bool) {
    let mut wire = Wire::new();
    other_end::underlay(&wire.far, &[*FIRST]);
    FIRST.open(&wire.far, SLOT);
    let there = behind(&wire.far, third);
    third.open(&there, SLOT);
    if third.outer == OF_ITS_FAMILY.outer {
        third.lead("podlane_vxlan", SLOT);
    }
    let pairs: Vec<(IpAddr, IpAddr)> = FIRST
        .pairs()
        .iter()
        .zip(third.pairs())
        .map(|(one, two)| (one.0, two.0))
        .collect();
    for (one, two) in &pairs {
        FIRST.reach(&wire.far, &one.to_string(), &two.to_string());
        third.reach(&there, &two.to_string(), &one.to_string());
    }
    // What is for the other nodes' pods is for this one to pass on.
    let settings = &mut wire.machine.model.settings;
    settings.local4[1] = network4("172.20.2.0/24");
    settings.local6[1] = network6("fd20:0:0:2::/64");
    let of_six = third.here.contains(':');
    settings.local4[2] = network4(if of_six { "172.20.3.0/24" } else { "172.20.7.0/24" });
    settings.local6[2] = network6(if of_six {
        "fd20:0:0:3::/64"
    } else {
        "fd20:0:0:4::/64"
    });
    wire.machine.write_settings();
    if !offload {
        wire.far.run(|| command("ethtool -K eth0-end tx off"));
        there.run(|| command("ethtool -K cable tx off"));
    }
    for (one, two) in pairs {
        let words = format!("{one} to {two}, offload {offload}");
        for (server, client) in [
            ((&there, two), (&wire.far, one)),
            ((&wire.far, one), (&there, two)),
        ] {
            for length in [1, 9, 1300, 4000] {
                let back = datagrams(server, client, length, 10);
                assert_eq!(back, 10, "{words}: {length} octets");
            }
        }
        for (to, from) in [
            ((&there, two), (&wire.far, one)),
            ((&wire.far, one), (&there, two)),
        ] {
            segments(to, from);
            bulk(to, from, &words);
        }
    }
    let lane = wire.machine.lanes()[SLOT];
    assert_eq!(
        (lane.sent_bypassing, lane.received_bypassing),
        (0, 0),
        "no pod of this node's"
    );
    let mut dropped = lane.dropped;
    // Listener reports (RFC 3810) come from no pod.
    dropped[Reason::ForgedInner as usize] = 0;
    assert_eq!(dropped, [0; REASONS]);
    tell(&format!(
        "{} in, {} out",
        lane.received_packets, lane.sent_packets
    ));
}

/// How long a stream may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// A connection from one to the other.
fn connected((listens, at): Pod<'_>, (connects, from): Pod<'_>) -> [TcpStream; 2] {
    let listener = listens.run(move || TcpListener::bind((at, 0)).expect("bound"));
    let at = listener.local_addr().expect("an address");
    let client = connects.run(move || TcpStream::connect_timeout(&at, PATIENCE).expect("connected"));
    assert_eq!(client.local_addr().expect("an address").ip(), from);
    let (server, _) = listener.accept().expect("accepted");
    for socket in [&client, &server] {
        socket.set_nodelay(true).expect("an option");
        socket.set_read_timeout(Some(PATIENCE)).expect("a time limit");
    }
    [client, server]
}

/// Single segments of a connection, there and back.
fn segments(to: Pod<'_>, from: Pod<'_>) {
    let [mut client, mut server] = connected(to, from);
    let mut answer = [0; 1000];
    for round in 0..20 {
        client.write_all(&[round; 1000]).expect("written");
        server.read_exact(&mut answer).expect("read");
        server.write_all(&answer).expect("written");
        answer.fill(0xff);
        client.read_exact(&mut answer).expect("read");
        assert_eq!(answer, [round; 1000]);
    }
}

/// Octets enough for super-packets, each looked at.
fn bulk(to: Pod<'_>, from: Pod<'_>, words: &str) {
    let octets: Vec<u8> = (0..1_000_000_u32).map(|octet| (octet % 251) as u8).collect();
    let [mut client, mut server] = connected(to, from);
    let begun = Instant::now();
    let mut read = vec![0; octets.len()];
    std::thread::scope(|scope| {
        scope.spawn(|| client.write_all(&octets).expect("written"));
        let done = server.read_exact(&mut read);
        assert!(done.is_ok(), "{words}, to {}: {done:?}", to.1);
    });
    assert!(read == octets, "{words}, to {}: other octets", to.1);
    assert!(
        begun.elapsed() < PATIENCE,
        "{words}, to {}: {:?}",
        to.1,
        begun.elapsed()
    );
}

/// A node of its own, whose router is the far end's namespace.
fn behind(far: &Elsewhere, node: &OtherNode) -> Elsewhere {
    let there = Elsewhere::new();
    there.ip("link set lo up");
    far.run(super::quiet);
    far.ip(&format!(
        "link add behind address 02:00:00:00:99:01 type veth peer name cable address 02:00:00:00:99:02 netns {}",
        there.tid()
    ));
    far.ip("link set behind addrgenmode none up");
    there.ip("link set cable addrgenmode none up");
    let (six, length, nodad) = by_family(node.outer);
    let (router, own) = if six.is_empty() {
        ("192.168.99.1/24", "192.168.99.2/24")
    } else {
        ("fd00:99::1/64", "fd00:99::2/64")
    };
    let address = |prefix: &'static str| prefix.split_once('/').map_or(prefix, |(address, _)| address);
    far.ip(&format!("addr add {router} dev behind {nodad}"));
    there.ip(&format!("addr add {own} dev cable {nodad}"));
    there.ip(&format!("addr add {}/{length} dev lo {nodad}", node.outer));
    there.ip(&format!("{six}route add default via {}", address(router)));
    // Without link-local addresses nothing is asked for (`ndisc_send_ns`, net/ipv6/ndisc.c).
    for (there, device, router, mac) in [(far, "behind", own, 2), (&there, "cable", router, 1)] {
        there.ip(&format!(
            "neigh add {} lladdr 02:00:00:00:99:0{mac} dev {device} nud permanent",
            address(router)
        ));
    }
    far.ip(&format!(
        "{six}route add {}/{length} via {}",
        node.outer,
        address(own)
    ));
    there
}
