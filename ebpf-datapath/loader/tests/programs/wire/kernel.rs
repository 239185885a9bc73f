//! The kernel's own VXLAN device as the other end, and what tshark makes of the frames.

use super::{Tap, Wire};
use crate::cases::tell;
use crate::packet::udp;
use crate::story::FROM_POD;
use nix::sys::socket::{setsockopt, sockopt};
use podlane_datapath_common::{REASONS, Reason};
use podlane_test_namespaces::{Elsewhere, Test, ip};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::time::Duration;

pub(crate) const TESTS: &[Test] = &[
    (
        "the_kernels_vxlan_device_is_the_other_end",
        the_kernels_vxlan_device_is_the_other_end,
    ),
    ("tshark_reads_what_is_sent", tshark_reads_what_is_sent),
];

/// Over which the nodes speak: the peer's outer address, this node's, the options of a device that needs them.
const UNDERLAYS: [(&str, &str, &str); 2] = [
    ("192.168.20.100", "192.168.10.100", ""),
    ("fd00:20::100", "fd00:10::100", "udp6zerocsumrx udp6zerocsumtx"),
];

/// Makes the far end a node with a VXLAN device, its own pod's addresses on it, and the pod a real one.
fn other_node(wire: &Wire, outer: usize) -> [(&'static str, &'static str); 2] {
    let (there, here, options) = UNDERLAYS[outer];
    let pods = if outer == 0 {
        [("172.20.2.10", "172.20.0.10"), ("fd20:0:0:2::a", "fd20::a")]
    } else {
        [("172.20.3.10", "172.20.0.10"), ("fd20:0:0:3::a", "fd20::a")]
    };
    for line in [
        "addr add 192.168.10.1/24 dev eth0-end",
        "addr add fd00:10::1/64 dev eth0-end nodad",
        "addr add 192.168.20.100/32 dev lo",
        "addr add fd00:20::100/128 dev lo nodad",
        "neigh add 192.168.10.100 lladdr 02:00:00:00:00:01 dev eth0-end nud permanent",
        "neigh add fd00:10::100 lladdr 02:00:00:00:00:01 dev eth0-end nud permanent",
        &format!(
            "link add vxlan1 address 02:50:c0:a8:14:64 type vxlan id 1 dstport 8472 local {there} remote {here} {options}"
        ),
        "link set vxlan1 mtu 1430 addrgenmode none up",
    ] {
        wire.far.ip(line);
    }
    for (remote, local) in pods {
        let six = if remote.contains(':') { "-6 " } else { "" };
        let (length, nodad) = if six.is_empty() {
            ("32", "")
        } else {
            ("128", "nodad")
        };
        wire.far
            .ip(&format!("addr add {remote}/{length} dev vxlan1 {nodad}"));
        wire.far
            .ip(&format!("{six}route add {local} dev vxlan1 src {remote}"));
        wire.far.ip(&format!(
            "neigh add {local} lladdr 02:50:c0:a8:0a:64 dev vxlan1 nud permanent"
        ));
        let router = if six.is_empty() { "172.20.0.1" } else { "fd20::1" };
        wire.pod
            .ip(&format!("addr add {local}/{length} dev pod1-end {nodad}"));
        wire.pod.ip(&format!(
            "neigh add {router} lladdr 02:00:00:00:02:01 dev pod1-end nud permanent"
        ));
        wire.pod.ip(&format!(
            "{six}route add default via {router} dev pod1-end onlink"
        ));
    }
    wire.pod.ip("link set pod1-end mtu 1430");
    ip("link set pod1 mtu 1430");
    pods
}

/// Octets of a stream, each way.
const STREAM: usize = 16 << 20;
const PATIENCE: Duration = Duration::from_secs(20);

/// Sends a stream from a listener to who connects, and back.
fn stream(listens: &Elsewhere, at: SocketAddr, connects: &Elsewhere) -> [usize; 2] {
    let listener = listens.run(move || TcpListener::bind(at).expect("bound"));
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

/// Datagrams there and back again, of this length.
fn datagrams(listens: &Elsewhere, at: SocketAddr, asks: &Elsewhere, from: IpAddr, length: usize) -> usize {
    let server = listens.run(move || UdpSocket::bind(at).expect("bound"));
    let client = asks.run(move || UdpSocket::bind((from, 0)).expect("bound"));
    for socket in [&server, &client] {
        socket
            .set_read_timeout(Some(Duration::from_millis(500)))
            .expect("a time limit");
    }
    client.connect(at).expect("connected");
    let question = vec![0x5a; length];
    let mut answer = vec![0; 65536];
    (0..50)
        .filter(|_| {
            client.send(&question).expect("sent");
            server.recv_from(&mut answer).is_ok_and(|(got, asker)| {
                server.send_to(&question, asker).expect("sent");
                got == length && client.recv(&mut answer).is_ok_and(|got| got == length)
            })
        })
        .count()
}

/// Datagrams of a sender that hands the kernel ten at once (UDP_SEGMENT, as QUIC does), of a hundred such: those that arrive.
fn segmented(listens: &Elsewhere, at: SocketAddr, sends: &Elsewhere, from: IpAddr) -> usize {
    let server = listens.run(move || UdpSocket::bind(at).expect("bound"));
    let client = sends.run(move || UdpSocket::bind((from, 0)).expect("bound"));
    server
        .set_read_timeout(Some(Duration::from_millis(500)))
        .expect("a time limit");
    setsockopt(&client, sockopt::UdpGsoSegment, &1000).expect("UDP_SEGMENT");
    client.connect(at).expect("connected");
    let block: Vec<u8> = (0..10_000_u32).map(|octet| (octet / 1000) as u8).collect();
    let mut got = vec![0; 65536];
    let mut arrived = 0;
    for _ in 0..100 {
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

fn the_kernels_vxlan_device_is_the_other_end() {
    for (outer, (name, _, _)) in UNDERLAYS.iter().enumerate() {
        podlane_test_namespaces::in_fresh(move || {
            let mut wire = Wire::new();
            let pods = other_node(&wire, outer);
            for (there, here) in pods {
                let (there, here): (IpAddr, IpAddr) =
                    (there.parse().expect("one"), here.parse().expect("one"));
                let words = format!("{there} over {name}");
                // Small ones, whole ones, and ones in fragments.
                for length in [1, 9, 1300, 4000] {
                    let back = datagrams(&wire.far, (there, 9001).into(), &wire.pod, here, length);
                    assert_eq!(back, 50, "{words}: datagrams of {length} octets asked by the pod");
                    let back = datagrams(&wire.pod, (here, 9001).into(), &wire.far, there, length);
                    assert_eq!(back, 50, "{words}: datagrams of {length} octets asked of the pod");
                }
                for (server, at, client, from) in [
                    (&wire.pod, here, &wire.far, there),
                    (&wire.far, there, &wire.pod, here),
                ] {
                    let arrived = segmented(server, (at, 9003).into(), client, from);
                    assert_eq!(arrived, 1000, "{words}: segments to {at}");
                }
                assert_eq!(
                    stream(&wire.pod, (here, 9002).into(), &wire.far),
                    [STREAM; 2],
                    "{words}"
                );
                assert_eq!(
                    stream(&wire.far, (there, 9002).into(), &wire.pod),
                    [STREAM; 2],
                    "{words}"
                );
            }
            let lanes = wire.machine.lanes();
            let lane = lanes[0];
            assert!(
                lane.received_packets > lane.received_bypassing && lane.received_bypassing > 0,
                "{lane:?}"
            );
            assert!(
                lane.sent_packets > lane.sent_bypassing && lane.sent_bypassing > 0,
                "{lane:?}"
            );
            for (slot, lane) in lanes.iter().enumerate() {
                let mut dropped = lane.dropped;
                // The far device's own listener reports (RFC 3810) come from no pod.
                dropped[Reason::ForgedInner as usize] = 0;
                assert_eq!(dropped, [0; REASONS], "slot {slot}");
            }
            tell(&format!("over {name}: {lane:?}"));
        })
        .unwrap_or_else(|reason| panic!("{reason}"));
    }
}

/// pcap (draft-ietf-opsawg-pcap), Ethernet, one frame after the other.
fn pcap(frames: &[Vec<u8>]) -> Vec<u8> {
    let mut file = Vec::new();
    file.extend(0xa1b2_c3d4_u32.to_le_bytes());
    file.extend(2_u16.to_le_bytes());
    file.extend(4_u16.to_le_bytes());
    file.extend([0; 8]);
    file.extend(65_535_u32.to_le_bytes());
    file.extend(1_u32.to_le_bytes());
    for frame in frames {
        file.extend([0; 8]);
        file.extend((frame.len() as u32).to_le_bytes());
        file.extend((frame.len() as u32).to_le_bytes());
        file.extend(frame);
    }
    file
}

fn tshark_reads_what_is_sent() {
    let wire = Wire::new();
    let (pod, far) = (
        wire.pod.run(|| Tap::on("pod1-end")),
        wire.far.run(|| Tap::on("eth0-end")),
    );
    let mut frames = Vec::new();
    let ways = [
        ("172.20.0.10", "172.20.2.10", "ip,udp,vxlan,ip,udp", "1"),
        ("fd20::a", "fd20:0:0:2::a", "ip,udp,vxlan,ipv6,udp", "1"),
        ("172.20.0.10", "172.20.3.10", "ipv6,udp,vxlan,ip,udp", "1"),
        ("fd20::a", "fd20:0:0:3::a", "ipv6,udp,vxlan,ipv6,udp", "1"),
        ("172.20.0.10", "172.20.7.10", "ip,udp,geneve,ip,udp", "7"),
        ("fd20::a", "fd20:0:0:4::a", "ip,udp,geneve,ipv6,udp", "7"),
        ("172.20.0.10", "172.20.3.210", "ipv6,udp,geneve,ip,udp", "7"),
        ("fd20::a", "fd20:0:0:3:8000::a", "ipv6,udp,geneve,ipv6,udp", "7"),
    ];
    for (here, there, _, _) in ways {
        pod.send(&udp(here, there).frame(FROM_POD));
        let frame = far.next(|frame| frame[6..12] == crate::story::NODE_MAC);
        frames.push(frame.unwrap_or_else(|| panic!("to {there}: lost")));
    }
    let mut tshark = Command::new("tshark")
        .args([
            "-r",
            "-",
            "-o",
            "ip.check_checksum:TRUE",
            "-o",
            "udp.check_checksum:TRUE",
        ])
        .args(["-d", "udp.port==8472,vxlan", "-d", "udp.port==6082,geneve"])
        .args(["-T", "fields", "-E", "separator=;"])
        .args([
            "-e",
            "frame.protocols",
            "-e",
            "vxlan.vni",
            "-e",
            "geneve.vni",
            "-e",
            "_ws.malformed",
        ])
        .args(["-e", "_ws.expert.message"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("tshark is installed (.ci/install-dependencies)");
    let mut input = tshark.stdin.take().expect("a pipe");
    input.write_all(&pcap(&frames)).expect("tshark reads");
    drop(input);
    let output = tshark.wait_with_output().expect("tshark ends");
    let text = String::from_utf8(output.stdout).expect("text");
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), ways.len(), "{text}");
    for (line, (_, there, layers, vni)) in lines.iter().zip(ways) {
        let fields: Vec<_> = line.split(';').collect();
        let protocols = fields[0]
            .replace("ethertype:", "")
            .replace("eth:", "")
            .replace(':', ",");
        assert!(protocols.starts_with(layers), "{there}: {line}");
        let number = fields[1].to_owned() + fields[2];
        let number = u32::from_str_radix(
            number.trim_start_matches("0x"),
            if number.starts_with("0x") { 16 } else { 10 },
        );
        assert_eq!(
            number.map(|number| number.to_string()).ok().as_deref(),
            Some(vni),
            "{there}: {line}"
        );
        assert_eq!(fields[3], "", "{there}: {line}");
        // No checksum over IPv6 is right for tunnels (RFC 6935, section 5), which tshark does not know of these two.
        let expected = if layers.starts_with("ipv6") {
            "illegal checksum value (0)"
        } else {
            ""
        };
        let complaints = fields[4].to_lowercase().replace(expected, "");
        assert!(
            !complaints.contains("checksum") && !complaints.contains("bad"),
            "{there}: {line}"
        );
    }
    tell(&format!("{} frames", lines.len()));
}
