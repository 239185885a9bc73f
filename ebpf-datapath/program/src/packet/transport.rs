//! What is behind an IP header: the flow's ports, and whether it is at its beginning or end.

use core::mem::size_of;

use podlane_datapath_common::ip_protocol;

use super::{Ip, Udp};
use crate::kernel::Packet;
use crate::wire::{Wire, Word32};

/// The twelve octets of a TCP header that matter here.
#[repr(C)]
#[derive(Clone, Copy)]
struct Tcp {
    ports: Word32,
    sequence: [u8; 8],
    /// The header's length in words of 32 bits, in the upper half.
    offset: u8,
    flags: u8,
    rest: [u8; 6],
}
// SAFETY: of what is so itself, each of alignment one, so nothing lies between.
unsafe impl Wire for Tcp {}

/// What is behind an IP header, of a packet that can belong to a flow.
#[derive(Clone, Copy)]
pub(crate) struct Transport {
    /// Source and destination port, as they stand there.
    pub(crate) ports: u32,
    /// Octets of its header.
    pub(crate) length: u32,
    /// Neither SYN nor FIN nor RST.
    pub(crate) is_steady: bool,
    /// Whether it is TCP.
    pub(crate) is_tcp: bool,
}

/// Looks behind the IP header that stands at an offset.
#[inline(always)]
pub(crate) fn transport<I: Ip>(packet: &Packet, at: usize) -> Option<Transport> {
    const FIN_SYN_RST: u8 = 0b111;
    let ip: &I = packet.at(at)?;
    if !ip.is_simple() {
        return None;
    }
    match ip.protocol() {
        ip_protocol::TCP => {
            let tcp: &Tcp = packet.at(at + size_of::<I>())?;
            Some(Transport {
                ports: tcp.ports.get(),
                length: u32::from(tcp.offset >> 4) * 4,
                is_steady: tcp.flags & FIN_SYN_RST == 0,
                is_tcp: true,
            })
        }
        ip_protocol::UDP => {
            let udp: &Udp = packet.at(at + size_of::<I>())?;
            let ([a, b], [c, d]) = (
                udp.source.get().to_ne_bytes(),
                udp.destination.get().to_ne_bytes(),
            );
            Some(Transport {
                ports: u32::from_ne_bytes([a, b, c, d]),
                length: size_of::<Udp>() as u32,
                is_steady: true,
                is_tcp: false,
            })
        }
        _ => None,
    }
}
