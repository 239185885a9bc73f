use super::*;
use podlane_plan::lane::Tunnel;

fn probe(over: Over) -> ProbeToSend {
    ProbeToSend {
        number: 0x0102_0304_0506_0708,
        over,
        source: "172.20.0.1".parse().expect("an address"),
        destination: "172.20.2.1".parse().expect("an address"),
        device: "eth1".to_owned(),
        next_hop: "192.168.10.200".parse().expect("an address"),
        length: 1450,
        short_reply: true,
        key: [1, 2],
    }
}

#[test]
fn a_plain_probe_is_an_ip_packet_that_says_its_whole_length() {
    let frame = frame(&probe(Over::Native));
    assert_eq!(frame.octets.len(), ETHERNET + IPV4 + LENGTH);
    assert_eq!(frame.length, 14 + 1450);
    assert_eq!(frame.octets[12..16], [0x08, 0x00, 0x45, 0]);
    assert_eq!(frame.octets[16..18], 1450_u16.to_be_bytes());
    let words =
        std::array::from_fn(|at| u16::from_ne_bytes([frame.octets[14 + 2 * at], frame.octets[15 + 2 * at]]));
    assert_eq!(checksum(&words), 0, "the header's checksum is right");
    assert_eq!(
        frame.octets[34..50],
        *b"Pdl1\x01\x01\x05\xaa\x01\x02\x03\x04\x05\x06\x07\x08"
    );
}

#[test]
fn an_encapsulated_probe_has_outer_headers_of_the_whole_packet() {
    for (source, destination, overhead) in [
        ("192.168.10.100", "192.168.20.100", 50),
        ("fd10::100", "fd20::100", 70),
    ] {
        let over = Over::Tunnel {
            tunnel: Tunnel {
                protocol: TunnelProtocol::Geneve,
                port: 6081,
                vni: 7,
            },
            source: source.parse().expect("an address"),
            destination: destination.parse().expect("an address"),
            dscp: 46,
        };
        let frame = frame(&probe(over));
        assert_eq!(frame.octets.len(), ETHERNET + overhead + IPV4 + LENGTH);
        assert_eq!(frame.length, 14 + overhead as u32 + 1450);
        let udp = ETHERNET + overhead - UDP - TUNNEL - ETHERNET;
        assert_eq!(frame.octets[udp + 2..udp + 4], 6081_u16.to_be_bytes());
        assert_eq!(frame.octets[udp + 4..udp + 6], (1450_u16 + 30).to_be_bytes());
        assert_eq!(frame.octets[udp + 8..udp + 16], [0, 0, 0x65, 0x58, 0, 0, 7, 0]);
        let class = if overhead == 50 {
            frame.octets[15]
        } else {
            frame.octets[14] << 4 | frame.octets[15] >> 4
        };
        assert_eq!(class, 46 << 2);
    }
}
