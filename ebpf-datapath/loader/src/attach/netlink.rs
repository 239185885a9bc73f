//! Requests about queueing disciplines and filters, one at a time on a socket of its own.

use netlink_packet_core::{
    Emitable, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, Parseable,
};
use netlink_packet_route::tc::{TcHandle, TcHeader, TcMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;
use std::io;

/// Message types, include/uapi/linux/rtnetlink.h.
pub(super) const NEW_QDISC: u16 = 36;
pub(super) const DELETE_QDISC: u16 = 37;
pub(super) const GET_QDISC: u16 = 38;
pub(super) const NEW_FILTER: u16 = 44;
pub(super) const DELETE_FILTER: u16 = 45;
pub(super) const GET_FILTER: u16 = 46;

/// `struct nlmsghdr`.
const HEADER: usize = 16;

/// The kernel dumps at most 32 KiB at a time (`netlink_dump`, net/netlink/af_netlink.c).
const BUFFER: usize = 64 * 1024;

/// How often a dump is repeated that others' changes interrupted.
const ATTEMPTS: usize = 10;

/// One thing in a dump.
pub(super) enum Found {
    Read(TcMessage),
    /// Some other kind of filter, of which only the header could be read.
    Unread(TcHeader),
}

/// A socket of the calling thread's network namespace.
pub(super) struct Netlink {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Netlink {
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(5, 0))?;
        Ok(Self {
            socket,
            sequence: 0,
            buffer: vec![0; BUFFER],
        })
    }

    /// Makes a change.
    pub(super) fn change(&mut self, kind: u16, flags: u16, message: &TcMessage) -> io::Result<()> {
        self.send(kind, NLM_F_REQUEST | NLM_F_ACK | flags, message)?;
        loop {
            let length = self.socket.recv(&mut self.buffer.as_mut_slice(), 0)?;
            for (header, payload) in messages(&self.buffer[..length]) {
                if header.sequence == self.sequence && header.kind == NLMSG_ERROR {
                    return verdict(payload);
                }
            }
        }
    }

    /// Reads all of a kind.
    pub(super) fn dump(&mut self, kind: u16, message: &TcMessage) -> io::Result<Vec<Found>> {
        for _ in 0..ATTEMPTS {
            if let Some(found) = self.dump_once(kind, message)? {
                return Ok(found);
            }
        }
        Err(io::Error::other("others change it all the time"))
    }

    fn dump_once(&mut self, kind: u16, message: &TcMessage) -> io::Result<Option<Vec<Found>>> {
        self.send(kind, NLM_F_REQUEST | NLM_F_DUMP, message)?;
        let (mut found, mut interrupted) = (Vec::new(), false);
        loop {
            let length = self.socket.recv(&mut self.buffer.as_mut_slice(), 0)?;
            for (header, payload) in messages(&self.buffer[..length]) {
                if header.sequence != self.sequence {
                    continue;
                }
                interrupted |= header.flags & NLM_F_DUMP_INTR != 0;
                match header.kind {
                    NLMSG_DONE => return Ok((!interrupted).then_some(found)),
                    NLMSG_ERROR => {
                        verdict(payload)?;
                        return Ok(Some(found));
                    }
                    _ => match (TcMessage::parse(payload), TcHeader::parse(payload)) {
                        (Ok(message), _) => found.push(Found::Read(message)),
                        (Err(_), Ok(header)) => found.push(Found::Unread(header)),
                        (Err(_), Err(_)) => {}
                    },
                }
            }
        }
    }

    fn send(&mut self, kind: u16, flags: u16, message: &TcMessage) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let length = HEADER + message.buffer_len();
        let mut bytes = Vec::with_capacity(length);
        bytes.extend(u32::try_from(length).map_err(io::Error::other)?.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(self.sequence.to_ne_bytes());
        bytes.extend(0_u32.to_ne_bytes());
        bytes.resize(length, 0);
        message.emit(&mut bytes[HEADER..]);
        self.socket.send(&bytes, 0).map(drop)
    }
}

struct Header {
    kind: u16,
    flags: u16,
    sequence: u32,
}

/// The messages of a datagram, as far as they are whole.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (Header, &[u8])> {
    std::iter::from_fn(move || {
        let (header, _) = bytes.split_first_chunk::<HEADER>()?;
        let [a, b, c, d, kind0, kind1, flags0, flags1, s, e, q, n, ..] = *header;
        let length = u32::from_ne_bytes([a, b, c, d]) as usize;
        let payload = bytes.get(HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        let header = Header {
            kind: u16::from_ne_bytes([kind0, kind1]),
            flags: u16::from_ne_bytes([flags0, flags1]),
            sequence: u32::from_ne_bytes([s, e, q, n]),
        };
        Some((header, payload))
    })
}

/// `struct nlmsgerr`: a negative error, or zero.
fn verdict(payload: &[u8]) -> io::Result<()> {
    let error = payload
        .first_chunk()
        .map_or(0, |error| i32::from_ne_bytes(*error));
    match error {
        0 => Ok(()),
        error => Err(Errno::from_raw(-error).into()),
    }
}

/// Where ingress and egress filters of a clsact queueing discipline are (`TC_H_CLSACT`, include/uapi/linux/pkt_sched.h).
pub(super) const fn parent(minor: u16) -> TcHandle {
    TcHandle {
        major: u16::MAX,
        minor,
    }
}
