//! IP packets of any protocol and from whomever they say.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, sendto, socket,
};

use crate::lab::Lab;

/// The protocol number of IPv6's fragment header (RFC 8200, section 4.5).
pub const FRAGMENT: u8 = 44;
/// That header's octets.
pub const FRAGMENT_HEADER: usize = 8;
/// What every lane carries of a packet behind its IP header, in octets, also one of an MTU of 1400; more may come in fragments.
pub const WHOLE: usize = 1344;

/// Sends an IP packet of any protocol. One of IPv4 is parted by whoever has to; one of IPv6 is sent in fragments where it is longer than
/// [`WHOLE`]. The namespace's routes say where to; the source may be anybody's.
pub fn send_ip(
    lab: &Lab,
    from: &str,
    source: IpAddr,
    to: IpAddr,
    protocol: u8,
    payload: &[u8],
) -> Result<()> {
    lab.namespace(from).within(|| match (source, to) {
        (IpAddr::V4(source), IpAddr::V4(to)) => send_four(source, to, protocol, payload),
        (IpAddr::V6(source), IpAddr::V6(to)) => send_six(source, to, protocol, payload),
        _ => bail!("{source} and {to} are of two families"),
    })
}

fn raw(family: AddressFamily) -> Result<OwnedFd> {
    socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw).context("a raw socket")
}

/// The kernel fills in length and checksum.
fn send_four(source: Ipv4Addr, to: Ipv4Addr, protocol: u8, payload: &[u8]) -> Result<()> {
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0];
    packet.extend(source.octets());
    packet.extend(to.octets());
    packet.extend(payload);
    let to = SockaddrIn::from(SocketAddrV4::new(to, 0));
    let sent = sendto(
        raw(AddressFamily::Inet)?.as_raw_fd(),
        &packet,
        &to,
        MsgFlags::empty(),
    )?;
    ensure!(sent == packet.len(), "{sent} of {} octets", packet.len());
    Ok(())
}

/// The kernel fills in nothing, and parts nothing.
fn send_six(source: Ipv6Addr, to: Ipv6Addr, protocol: u8, payload: &[u8]) -> Result<()> {
    let socket = raw(AddressFamily::Inet6)?;
    let is_parted = payload.len() > WHOLE;
    let parts: Vec<&[u8]> = payload.chunks(WHOLE).collect();
    for (number, part) in parts.iter().enumerate() {
        let mut behind = Vec::new();
        if is_parted {
            // An offset counts eight octets a piece, which is where it stands in its field; below it the flag that more come.
            let offset = u16::try_from(number * WHOLE)? | u16::from(number + 1 < parts.len());
            behind.extend([protocol, 0]);
            behind.extend(offset.to_be_bytes());
            behind.extend([protocol; 4]);
        }
        behind.extend(*part);
        let mut packet = vec![0x60, 0, 0, 0];
        packet.extend(u16::try_from(behind.len())?.to_be_bytes());
        packet.extend([if is_parted { FRAGMENT } else { protocol }, 64]);
        packet.extend(source.octets());
        packet.extend(to.octets());
        packet.extend(behind);
        let to = SockaddrIn6::from(SocketAddrV6::new(to, 0, 0, 0));
        let sent = sendto(socket.as_raw_fd(), &packet, &to, MsgFlags::empty())?;
        ensure!(sent == packet.len(), "{sent} of {} octets", packet.len());
    }
    Ok(())
}
