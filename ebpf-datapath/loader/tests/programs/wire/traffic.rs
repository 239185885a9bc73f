//! Sockets' traffic between two pods, both ways, each octet looked at.

use nix::sys::socket::{setsockopt, sockopt};
use podlane_test_namespaces::Elsewhere;
use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

/// Octets of a stream, each way: super-packets, some tens of them.
pub(crate) const STREAM: usize = 1 << 20;
/// How long a stream may stand still: an emulated machine may get a twentieth of a processor.
const PATIENCE: Duration = Duration::from_secs(60);
/// For a datagram, which is sent again when it is lost.
const SOON: Duration = Duration::from_secs(20);

/// A pod: where it is, and its address.
pub(crate) type Pod<'a> = (&'a Elsewhere, IpAddr);

/// All kinds of traffic between two pods: datagrams small, whole and in fragments; datagrams of a sender with UDP_SEGMENT; streams. Whoever of them begins.
pub(crate) fn exchange(one: Pod<'_>, other: Pod<'_>, words: &str) {
    for (server, client) in [(one, other), (other, one)] {
        for length in [1, 9, 1300, 4000] {
            let back = datagrams(server, client, length, 5);
            assert_eq!(back, 5, "{words}: datagrams of {length} octets to {}", server.1);
        }
        assert_eq!(
            segmented(server, client),
            200,
            "{words}: segments to {}",
            server.1
        );
        assert_eq!(stream(server, client), [STREAM; 2], "{words}: to {}", server.1);
    }
}

/// Sends a stream from who listens to who connects, and back.
pub(crate) fn stream((listens, at): Pod<'_>, (connects, _): Pod<'_>) -> [usize; 2] {
    let listener = listens.run(move || TcpListener::bind((at, 0)).expect("bound"));
    let at = listener.local_addr().expect("an address");
    let client = connects.run(move || TcpStream::connect_timeout(&at, PATIENCE).expect("connected"));
    let (server, _) = listener.accept().expect("accepted");
    [(&client, &server), (&server, &client)].map(|(from, to)| {
        from.set_write_timeout(Some(PATIENCE)).expect("a time limit");
        to.set_read_timeout(Some(PATIENCE)).expect("a time limit");
        let (mut from, mut to) = (
            from.try_clone().expect("a socket"),
            to.try_clone().expect("a socket"),
        );
        let writer = std::thread::spawn(move || {
            let block: Vec<u8> = (0..65536_u32).map(|octet| octet as u8).collect();
            for _ in 0..STREAM / block.len() {
                from.write_all(&block).expect("written");
            }
        });
        let mut read = 0;
        let mut block = vec![0; 65536];
        while read < STREAM {
            let length = to.read(&mut block).expect("read");
            assert!(length > 0);
            for (at, octet) in block[..length].iter().enumerate() {
                assert_eq!(*octet, (read + at) as u8, "octet {}", read + at);
            }
            read += length;
        }
        writer.join().expect("all is written");
        read
    })
}

/// So many datagrams of this length there and back again: those that are back.
pub(crate) fn datagrams((listens, at): Pod<'_>, (asks, from): Pod<'_>, length: usize, count: usize) -> usize {
    // Any port: a program that another test just starts may still hold the socket of the last one.
    let server = listens.run(move || UdpSocket::bind((at, 0)).expect("bound"));
    let at = server.local_addr().expect("an address");
    let client = asks.run(move || UdpSocket::bind((from, 0)).expect("bound"));
    for socket in [&server, &client] {
        socket.set_read_timeout(Some(SOON)).expect("a time limit");
    }
    client.connect(at).expect("connected");
    let question: Vec<u8> = (0..length).map(|octet| octet as u8).collect();
    let mut answer = vec![0; 65536];
    (0..count)
        .filter(|_| {
            client.send(&question).expect("sent");
            server.recv_from(&mut answer).is_ok_and(|(got, asker)| {
                server.send_to(&answer[..got], asker).expect("sent");
                client
                    .recv(&mut answer)
                    .is_ok_and(|got| answer[..got] == question)
            })
        })
        .count()
}

/// Datagrams of a sender that hands the kernel ten at once (UDP_SEGMENT, as QUIC does), of twenty such: those that arrive.
pub(crate) fn segmented((listens, at): Pod<'_>, (sends, from): Pod<'_>) -> usize {
    // Any port: a program that another test just starts may still hold the socket of the last one.
    let server = listens.run(move || UdpSocket::bind((at, 0)).expect("bound"));
    let at = server.local_addr().expect("an address");
    let client = sends.run(move || UdpSocket::bind((from, 0)).expect("bound"));
    server.set_read_timeout(Some(SOON)).expect("a time limit");
    setsockopt(&client, sockopt::UdpGsoSegment, &1000).expect("UDP_SEGMENT");
    client.connect(at).expect("connected");
    let block: Vec<u8> = (0..10_000_u32).map(|octet| (octet / 1000) as u8).collect();
    let mut got = vec![0; 65536];
    let mut arrived = 0;
    for _ in 0..20 {
        client.send(&block).expect("sent");
        for segment in 0..10 {
            match server.recv(&mut got) {
                Ok(1000) if got[..1000] == [segment; 1000] => arrived += 1,
                other => panic!("segment {segment}: {other:?}"),
            }
        }
    }
    arrived
}
