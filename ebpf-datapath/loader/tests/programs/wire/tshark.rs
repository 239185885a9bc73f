//! What tshark makes of the frames.

use super::{Tap, Wire};
use crate::cases::tell;
use crate::packet::udp;
use crate::story::FROM_POD;
use podlane_test_namespaces::Test;
use std::io::Write;
use std::process::{Command, Stdio};

pub(crate) const TESTS: &[Test] = &[("tshark_reads_what_is_sent", tshark_reads_what_is_sent)];

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
