//! What the model and a program say, held against each other.

use crate::machine::Hook;
use crate::model::{Outcome, Tuple, Verdict, tuple_of, tuples_of};
use podlane_datapath_common::{Address, FlowKind, FlowState, NATIVE_SLOT, headers};
use std::fmt::Write;
use std::net::{Ipv4Addr, Ipv6Addr};

/// What a program has done.
#[derive(Clone, Debug)]
pub(crate) struct Ran {
    /// TCX_NEXT is -1, TC_ACT_SHOT 2, TC_ACT_REDIRECT 7 (include/uapi/linux/bpf.h and pkt_cls.h).
    pub(crate) code: i32,
    pub(crate) frame: Vec<u8>,
}

const NEXT: i32 = -1;
const SHOT: i32 = 2;
const REDIRECT: i32 = 7;

/// Where they differ in verdict and octets.
pub(crate) fn differences(expected: &Outcome, ran: &Ran) -> Vec<String> {
    let code = match expected.verdict {
        Verdict::Pass => NEXT,
        Verdict::Drop(_) | Verdict::Taken => SHOT,
        Verdict::ToUnderlay | Verdict::ToTunnelDevice | Verdict::ToPod => REDIRECT,
    };
    if ran.code != code {
        return vec![format!(
            "verdict {} is not {code} ({:?})",
            ran.code, expected.verdict
        )];
    }
    let (model, program) = match expected.verdict {
        // What is thrown away may look as it likes.
        Verdict::Drop(_) | Verdict::Taken => return Vec::new(),
        Verdict::Pass | Verdict::ToTunnelDevice | Verdict::ToPod => {
            (expected.frame.clone(), ran.frame.clone())
        }
        // The neighbour table writes Ethernet.
        Verdict::ToUnderlay => (
            without_secrets(&expected.frame, &expected.frame),
            without_secrets(&ran.frame, &expected.frame),
        ),
    };
    let mut found = Vec::new();
    if model.len() != program.len() {
        found.push(format!("{} octets out are not {}", program.len(), model.len()));
    }
    if let Some(at) = (0..model.len().min(program.len())).find(|at| model[*at] != program[*at]) {
        found.push(format!(
            "octet {at} out is {:02x}, not {:02x} ({})",
            program[at],
            model[at],
            place(&expected.frame, at)
        ));
    }
    found
}

/// A packet sent without its Ethernet header and, once it is sure to be in its range, without the outer source port: the kernel's hash is its own
/// secret. (A model's packet has 0 there.)
fn without_secrets(frame: &[u8], like: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[..14].fill(0);
    // The kernel goes by the packet's protocol, not by the ethertype in it.
    let udp = match like[12..14] {
        [0x08, 0x00] if like.get(34..36) == Some(&[0, 0]) => 34,
        [0x86, 0xdd] if like.get(54..56) == Some(&[0, 0]) => 54,
        _ => return frame,
    };
    if let Some(port) = frame.get_mut(udp..udp + 2) {
        let number = u16::from_be_bytes([port[0], port[1]]);
        if number >= headers::FIRST_SOURCE_PORT {
            port.fill(0);
        }
    }
    frame
}

/// An encapsulated packet without the outer source port, once that is in its range or 0, as the model has it.
pub(crate) fn without_port(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    let udp = if frame[12..14] == [0x08, 0x00] { 34 } else { 54 };
    let port = u16::from_be_bytes([frame[udp], frame[udp + 1]]);
    if port >= headers::FIRST_SOURCE_PORT {
        frame[udp..udp + 2].fill(0);
    }
    frame
}

/// Names an octet by the header in which it stands.
fn place(frame: &[u8], at: usize) -> String {
    let mut name = String::from("Ethernet");
    for (start, layer) in layers(frame) {
        if start <= at {
            name = format!("{layer} + {}", at - start);
        }
    }
    name
}

/// Where each header of a frame starts, and what it says.
fn layers(frame: &[u8]) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut ethernet = 0;
    while let Some(ethertype) = frame.get(ethernet + 12..ethernet + 14) {
        found.push((
            ethernet,
            format!(
                "Ethernet {:02x?} > {:02x?}",
                &frame[ethernet + 6..ethernet + 12],
                &frame[ethernet..ethernet + 6]
            ),
        ));
        let at = ethernet + 14;
        let rest = &frame[at..];
        let (protocol, transport) = match ethertype {
            [0x08, 0x00] if rest.len() >= 20 => {
                let word =
                    |from: usize| Ipv4Addr::from(<[u8; 4]>::try_from(&rest[from..from + 4]).expect("four"));
                let (source, destination) = (word(12), word(16));
                let (first, tos, ttl, protocol) = (rest[0], rest[1], rest[8], rest[9]);
                let (length, fragment) = (&rest[2..4], &rest[6..8]);
                found.push((at, format!("IPv4 {source} > {destination} first {first:02x} tos {tos:02x} length {length:02x?} fragment {fragment:02x?} ttl {ttl} protocol {protocol}")));
                (protocol, at + usize::from(first & 15) * 4)
            }
            [0x86, 0xdd] if rest.len() >= 40 => {
                let address = |from: usize| {
                    Ipv6Addr::from(<[u8; 16]>::try_from(&rest[from..from + 16]).expect("sixteen"))
                };
                let (source, destination) = (address(8), address(24));
                let (first, length, next, hops) = (&rest[..4], &rest[4..6], rest[6], rest[7]);
                found.push((at, format!("IPv6 {source} > {destination} first {first:02x?} length {length:02x?} next {next} hops {hops}")));
                (next, at + 40)
            }
            other => {
                found.push((
                    at,
                    format!(
                        "ethertype {other:02x?}, {} octets: {:02x?}",
                        rest.len(),
                        &rest[..rest.len().min(40)]
                    ),
                ));
                break;
            }
        };
        let Some(header) = frame.get(transport..transport + 8) else {
            break;
        };
        let ports = [0, 2].map(|at| u16::from_be_bytes([header[at], header[at + 1]]));
        found.push((
            transport,
            format!(
                "transport {protocol}, ports {ports:?}, {header:02x?}, {} octets",
                frame.len() - transport
            ),
        ));
        let Some(tunnel) = frame
            .get(transport + 8..transport + 16)
            .filter(|_| protocol == 17)
        else {
            break;
        };
        found.push((transport + 8, format!("tunnel? {tunnel:02x?}")));
        ethernet = transport + 16;
    }
    found
}

/// All that is needed to see why they differ.
pub(crate) fn report(
    hook: Hook,
    interface: u32,
    frame: &[u8],
    gso_size: u32,
    expected: &Outcome,
    ran: &Ran,
    found: &[String],
) -> String {
    let mut text = format!(
        "{} on device {interface}, {} octets, gso_size {gso_size}\n",
        hook.program(),
        frame.len()
    );
    for difference in found {
        let _ = writeln!(text, "  differs: {difference}");
    }
    let mut list = |title: &str, frame: &[u8]| {
        let _ = writeln!(text, "  {title}:");
        for (at, layer) in layers(frame) {
            let _ = writeln!(text, "    {at:>4} {layer}");
        }
    };
    list("in", frame);
    list(&format!("the model: {:?}", expected.verdict), &expected.frame);
    list(&format!("the program: {}", ran.code), &ran.frame);
    let _ = writeln!(
        text,
        "  octets: {}",
        frame
            .iter()
            .fold(String::new(), |text, octet| text + &format!("{octet:02x}"))
    );
    text
}

/// The tuples that a program can find in a frame: the outer packet's and the inner one's.
pub(crate) fn tuples(frame: &[u8]) -> Vec<Tuple> {
    let mut found: Vec<Tuple> = tuple_of(frame, 0).into_iter().collect();
    found.extend(tuples_of(frame));
    found
}

/// Where two states of a flow differ in what docs/datapath.md and the fields' own words say of them. Their times may lie `lag`
/// jiffies apart: the model is told the time now and then only.
pub(crate) fn flow_differences(
    tuple: &Tuple,
    model: Option<&FlowState>,
    program: Option<&FlowState>,
    lag: u32,
) -> Option<String> {
    let (Some(model), Some(program)) = (model, program) else {
        return (model.is_some() != program.is_some())
            .then(|| format!("flow {tuple:?}: the model has {model:?}, the program {program:?}"));
    };
    let near = |a: u32, b: u32| a.wrapping_sub(b).min(b.wrapping_sub(a)) <= lag;
    let same = said(model) == said(program)
        && near(model.noted, program.noted)
        && (model.kind == FlowKind::Noted as u32 || near(model.stamped, program.stamped));
    (!same).then(|| format!("flow {tuple:?}:\n    model   {model:?}\n    program {program:?}"))
}

/// The fields that mean something in a flow of this kind.
fn said(flow: &FlowState) -> Vec<(&'static str, Vec<u8>)> {
    let number = |number: u32| number.to_be_bytes().to_vec();
    let address = |address: Address| address.octets().to_vec();
    let mut fields = vec![
        ("kind", number(flow.kind)),
        ("generation", number(flow.generation)),
    ];
    let noted = flow.kind == FlowKind::Noted as u32;
    let sent = flow.kind == FlowKind::SentEncapsulated as u32 || flow.kind == FlowKind::SentPlain as u32;
    fields.push(("pod_interface", number(flow.pod_interface)));
    let encapsulated = match flow.kind {
        kind if kind == FlowKind::SentEncapsulated as u32
            || kind == FlowKind::ReceivedEncapsulated as u32 =>
        {
            true
        }
        _ => noted && flow.pod_interface == 0 && flow.slot != NATIVE_SLOT,
    };
    if !noted || flow.pod_interface == 0 {
        fields.push(("slot", number(flow.slot)));
        fields.push(("peer", number(flow.peer)));
    }
    if encapsulated {
        fields.push(("outer source", address(flow.outer_source)));
        fields.push(("outer destination", address(flow.outer_destination)));
        fields.push(("vni", number(flow.vni)));
        fields.push(("port", number(flow.port.into())));
    } else if !sent && flow.pod_interface == 0 {
        fields.push(("came_from", flow.came_from.to_vec()));
    }
    if sent {
        fields.push(("underlay", number(flow.underlay)));
        fields.push(("next_hop_family", number(flow.next_hop_family)));
        fields.push(("next_hop", address(flow.next_hop)));
        fields.push(("mtu", number(flow.mtu)));
    }
    if sent && encapsulated {
        fields.push(("tunnel_flags", number(flow.tunnel_flags.into())));
        fields.push(("ttl", number(flow.ttl)));
    }
    if !noted && (encapsulated || !sent) {
        fields.push(("link", flow.link.to_vec()));
    }
    fields
}
