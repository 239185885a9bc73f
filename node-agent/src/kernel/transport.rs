//! One netlink socket, of routes or of netfilter, on which one thing happens at a time: a dump, a question, or a batch of requests.
//!
//! It is blocking. Every receive has a time limit, and after anything that leaves answers outstanding (a lost acknowledgement,
//! an overrun, a datagram that did not fit) the socket is thrown away, so that no answer is ever taken for another's.

use super::replies::{AckReader, DumpReader};
use super::wire::{self, Messages};
use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{
    Socket, SocketAddr,
    protocols::{NETLINK_NETFILTER, NETLINK_ROUTE},
};
use nix::errno::Errno;
use nix::libc::MSG_TRUNC;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;
use std::fmt;
use std::io;
use std::time::Duration;

/// How long the kernel may take for one answer. It answers at once; but it takes `rtnl_lock`, on which others may sit.
const PATIENCE: Duration = Duration::from_secs(5);

/// A dump's datagrams are as large as the buffer that the last receive offered, up to 32 KiB (`netlink_dump` in
/// net/netlink/af_netlink.c). Twice that leaves room for a single message that is larger (a device with many virtual functions).
const RECEIVE_BUFFER: usize = 64 * 1024;

/// What a buffer may grow to for a message that does not fit.
const LARGEST_DATAGRAM: usize = 4 * 1024 * 1024;

/// Requests in flight. Each acknowledgement takes about 1 KiB of the receive queue (`sk_rmem_alloc` counts whole allocations),
/// which holds 208 KiB by default (/proc/sys/net/core/rmem_default).
const IN_FLIGHT: usize = 96;

/// Bytes a send may have, far below the default send buffer.
const LARGEST_SEND: usize = 64 * 1024;

/// How often a dump is repeated that others' changes interrupted.
const DUMP_ATTEMPTS: u32 = 10;

/// A "no" of the kernel, with its own words where it has some (extended acknowledgement).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The error.
    pub errno: Errno,
    /// `NLMSGERR_ATTR_MSG`.
    pub words: Option<String>,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.words {
            Some(words) => write!(f, "{words} ({:?})", self.errno),
            None => write!(f, "{} ({:?})", self.errno.desc(), self.errno),
        }
    }
}

impl std::error::Error for Refused {}

/// Why the kernel was not heard, or not obeyed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransportError {
    /// The kernel says no.
    #[error("{0}")]
    Refused(Refused),
    /// A system call on the socket failed.
    #[error("netlink socket, {call}: {errno}")]
    Socket {
        /// The call.
        call: &'static str,
        /// Its error. ENOBUFS: the receive queue was full and answers are lost.
        errno: Errno,
    },
    /// No answer within the time limit.
    #[error("the kernel did not answer a netlink request within {} s", PATIENCE.as_secs())]
    Silent,
    /// A datagram larger than any that is expected.
    #[error("the kernel's netlink answer of {0} bytes is too large")]
    TooLarge(usize),
    /// Bytes that are no netlink message.
    #[error("the kernel's netlink answer is malformed: {0}")]
    Malformed(&'static str),
    /// Every repetition of a dump was interrupted by changes.
    #[error("the kernel's state changed during each of {DUMP_ATTEMPTS} dumps in a row")]
    Interrupted,
}

impl TransportError {
    fn socket(call: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::Socket {
            call,
            errno: Errno::from_raw(error.raw_os_error().unwrap_or_default()),
        }
    }
}

/// A request that changes something, without the flags that every request has.
#[derive(Clone, Debug)]
pub struct Request {
    /// What to do.
    pub message: RouteNetlinkMessage,
    /// `NLM_F_CREATE`, `NLM_F_EXCL`, `NLM_F_REPLACE`.
    pub flags: u16,
}

/// The socket. Opened when it is first needed, and again after a failure, in the network namespace of the calling thread.
#[derive(Debug)]
pub struct Transport {
    protocol: isize,
    socket: Option<Socket>,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Default for Transport {
    fn default() -> Self {
        Self::of(NETLINK_ROUTE)
    }
}

impl Transport {
    /// To the subsystems of netfilter.
    pub(super) fn netfilter() -> Self {
        Self::of(NETLINK_NETFILTER)
    }

    fn of(protocol: isize) -> Self {
        Self {
            protocol,
            socket: None,
            sequence: 0,
            buffer: vec![0; RECEIVE_BUFFER],
        }
    }

    /// The socket's port, which the kernel writes into the notifications that its requests cause.
    pub fn port(&self) -> Option<u32> {
        let mut address = SocketAddr::new(0, 0);
        self.socket.as_ref()?.get_address(&mut address).ok()?;
        Some(address.port_number())
    }

    /// Reads a table. `collect` gets each message's type and what follows its netlink header. When others' changes interrupt the
    /// dump (`NLM_F_DUMP_INTR`), what was collected is dropped and the dump begins anew.
    ///
    /// # Errors
    /// When the kernel refuses, or cannot be heard, or is interrupted over and over.
    pub fn dump<T: Default>(
        &mut self,
        message: &RouteNetlinkMessage,
        collect: impl FnMut(&mut T, u16, &[u8]),
    ) -> Result<T, TransportError> {
        let write = |bytes: &mut Vec<u8>, flags, sequence| serialize(bytes, message.clone(), flags, sequence);
        self.dump_written(&write, collect)
    }

    /// [`Transport::dump`] of a request that `write` writes, given its flags and its sequence number.
    ///
    /// # Errors
    /// As there.
    pub(super) fn dump_written<T: Default>(
        &mut self,
        write: &dyn Fn(&mut Vec<u8>, u16, u32),
        mut collect: impl FnMut(&mut T, u16, &[u8]),
    ) -> Result<T, TransportError> {
        for attempt in 0..DUMP_ATTEMPTS {
            let mut found = T::default();
            match self.dump_once(write, &mut |kind, payload| collect(&mut found, kind, payload))? {
                Dumped::Whole => return Ok(found),
                Dumped::Interrupted => std::thread::sleep(Duration::from_micros(100 << attempt)),
                Dumped::DidNotFit => {}
            }
        }
        Err(TransportError::Interrupted)
    }

    fn dump_once(
        &mut self,
        write: &dyn Fn(&mut Vec<u8>, u16, u32),
        collect: &mut dyn FnMut(u16, &[u8]),
    ) -> Result<Dumped, TransportError> {
        let sequence = self.next_sequence();
        let mut bytes = Vec::new();
        write(&mut bytes, NLM_F_REQUEST | NLM_F_DUMP, sequence);
        self.send(&bytes)?;
        let mut reader = DumpReader {
            sequence,
            interrupted: false,
        };
        loop {
            let length = match self.receive() {
                Ok(length) => length,
                Err(TransportError::TooLarge(length)) if length <= LARGEST_DATAGRAM => {
                    self.buffer.resize(length, 0);
                    return Ok(Dumped::DidNotFit);
                }
                Err(error) => return Err(error),
            };
            match reader.datagram(&self.buffer[..length], collect) {
                Ok(true) => {}
                Ok(false) if reader.interrupted => return Ok(Dumped::Interrupted),
                Ok(false) => return Ok(Dumped::Whole),
                Err(error) => return self.give_up(error),
            }
        }
    }

    /// Asks for one object. `found` gets what follows the answer's netlink header.
    ///
    /// # Errors
    /// When the kernel refuses or cannot be heard.
    pub fn get<T>(
        &mut self,
        message: RouteNetlinkMessage,
        found: impl FnOnce(&[u8]) -> Option<T>,
    ) -> Result<T, TransportError> {
        self.get_written(
            |bytes, flags, sequence| serialize(bytes, message, flags, sequence),
            found,
        )
    }

    /// [`Transport::get`] with a request that `write` writes, given its flags and its sequence number.
    ///
    /// # Errors
    /// As there.
    pub(super) fn get_written<T>(
        &mut self,
        write: impl FnOnce(&mut Vec<u8>, u16, u32),
        found: impl FnOnce(&[u8]) -> Option<T>,
    ) -> Result<T, TransportError> {
        let sequence = self.next_sequence();
        let mut bytes = Vec::new();
        write(&mut bytes, NLM_F_REQUEST, sequence);
        self.send(&bytes)?;
        loop {
            let length = self.receive()?;
            for message in Messages(&self.buffer[..length]) {
                let Ok(message) = message else {
                    return self.give_up(TransportError::Malformed("it ends within a message"));
                };
                match (message.sequence == sequence, message.kind) {
                    (false, _) | (_, wire::NOOP) => {}
                    (_, wire::ERROR) => {
                        let (errno, words) = wire::verdict(&message).unwrap_or((Errno::ENOENT, None));
                        return Err(TransportError::Refused(Refused { errno, words }));
                    }
                    _ => {
                        return found(message.payload)
                            .ok_or(TransportError::Malformed("an attribute is missing"));
                    }
                }
            }
        }
    }

    /// Sends requests, many at a time, and collects what the kernel says to each, in their order.
    pub fn batch(&mut self, requests: Vec<Request>) -> Vec<Result<(), TransportError>> {
        let mut results = Vec::with_capacity(requests.len());
        let mut requests = requests.into_iter().peekable();
        while requests.peek().is_some() {
            let first = self.sequence.wrapping_add(1);
            let mut bytes = Vec::new();
            let mut count = 0;
            while let Some(request) = requests.next_if(|_| count < IN_FLIGHT && bytes.len() < LARGEST_SEND) {
                let sequence = self.next_sequence();
                serialize(
                    &mut bytes,
                    request.message,
                    NLM_F_REQUEST | NLM_F_ACK | request.flags,
                    sequence,
                );
                count += 1;
            }
            results.extend(self.exchange(&bytes, first, count));
        }
        results
    }

    /// Sends requests that are carried out all or none, and waits for all their acknowledgements. `write` writes them, given the first
    /// one's sequence number, and says how many they are; what is before the first and after the last asks for no acknowledgement and
    /// has the number of the first.
    ///
    /// # Errors
    /// What was first refused; then nothing was done.
    pub(super) fn transaction(
        &mut self,
        write: impl FnOnce(&mut Vec<u8>, u32) -> usize,
    ) -> Result<(), TransportError> {
        let first = self.sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        let count = write(&mut bytes, first);
        self.sequence = self
            .sequence
            .wrapping_add(u32::try_from(count).unwrap_or(u32::MAX));
        self.make_room(bytes.len())?;
        self.send(&bytes)?;
        let mut reader = AckReader {
            first,
            results: vec![None; count],
            missing: count,
        };
        while reader.missing > 0 {
            let length = self.receive()?;
            reader.datagram(&self.buffer[..length])?;
            let refused = reader
                .results
                .iter()
                .flatten()
                .find_map(|result| result.clone().err());
            if let Some(error) = refused {
                // The others' answers may be on their way, and may not.
                self.socket = None;
                return Err(error);
            }
        }
        Ok(())
    }

    /// Has the socket take a send of this many bytes at once: the kernel counts its own overhead in
    /// (`netlink_sendmsg`, net/netlink/af_netlink.c), and lets CAP_NET_ADMIN pass by the system's limit.
    fn make_room(&mut self, length: usize) -> Result<(), TransportError> {
        /// A half of the default limit (/proc/sys/net/core/wmem_default, 208 KiB).
        const USUAL: usize = 104 * 1024;
        if length > USUAL {
            let wanted = length.saturating_mul(2);
            setsockopt(self.socket()?, sockopt::SndBufForce, &wanted).map_err(|errno| {
                TransportError::Socket {
                    call: "SO_SNDBUFFORCE",
                    errno,
                }
            })?;
        }
        Ok(())
    }

    fn exchange(&mut self, bytes: &[u8], first: u32, count: usize) -> Vec<Result<(), TransportError>> {
        let mut reader = AckReader {
            first,
            results: vec![None; count],
            missing: count,
        };
        let mut failure = self.send(bytes).err();
        while failure.is_none() && reader.missing > 0 {
            failure = match self.receive() {
                Ok(length) => reader.datagram(&self.buffer[..length]).err(),
                Err(error) => Some(error),
            };
        }
        if failure.is_some() {
            self.socket = None;
        }
        // What was sent and not answered may or may not have been done: the next dump will tell.
        let lost = failure.unwrap_or(TransportError::Silent);
        reader
            .results
            .into_iter()
            .map(|result| result.unwrap_or_else(|| Err(lost.clone())))
            .collect()
    }

    fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    fn give_up<T>(&mut self, error: TransportError) -> Result<T, TransportError> {
        if !matches!(error, TransportError::Refused(_)) {
            self.socket = None;
        }
        Err(error)
    }

    fn socket(&mut self) -> Result<&Socket, TransportError> {
        let socket = match self.socket.take() {
            Some(socket) => socket,
            None => open(self.protocol)?,
        };
        Ok(self.socket.insert(socket))
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), TransportError> {
        match self.socket()?.send(bytes, 0) {
            Ok(_) => Ok(()),
            Err(error) => self.give_up(TransportError::socket("send")(error)),
        }
    }

    /// Receives one datagram into the buffer.
    fn receive(&mut self) -> Result<usize, TransportError> {
        let Some(socket) = &self.socket else {
            return Err(TransportError::Socket {
                call: "recv",
                errno: Errno::EBADF,
            });
        };
        loop {
            match socket.recv(&mut self.buffer.as_mut_slice(), MSG_TRUNC) {
                Ok(length) if length > self.buffer.len() => {
                    return self.give_up(TransportError::TooLarge(length));
                }
                Ok(length) => return Ok(length),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return self.give_up(TransportError::Silent);
                }
                Err(error) => return self.give_up(TransportError::socket("recv")(error)),
            }
        }
    }
}

fn open(protocol: isize) -> Result<Socket, TransportError> {
    let mut socket = Socket::new(protocol).map_err(TransportError::socket("socket"))?;
    socket.bind_auto().map_err(TransportError::socket("bind"))?;
    // A connected socket takes datagrams from the kernel alone (`netlink_getsockbyportid`, net/netlink/af_netlink.c).
    socket
        .connect(&SocketAddr::new(0, 0))
        .map_err(TransportError::socket("connect"))?;
    let patience = TimeVal::new(PATIENCE.as_secs().cast_signed(), 0);
    setsockopt(&socket, sockopt::ReceiveTimeout, &patience).map_err(|errno| TransportError::Socket {
        call: "SO_RCVTIMEO",
        errno,
    })?;
    // Kernels before 4.20 lack strict checking, and dump more than was asked for: dumps are filtered here too.
    let _ = socket.set_netlink_get_strict_chk(true);
    // Without these, errors have no words and acknowledgements repeat the request.
    let _ = socket.set_ext_ack(true);
    let _ = socket.set_cap_ack(true);
    Ok(socket)
}

fn serialize(bytes: &mut Vec<u8>, message: RouteNetlinkMessage, flags: u16, sequence: u32) {
    let mut message = NetlinkMessage::from(message);
    message.header.flags = flags;
    message.header.sequence_number = sequence;
    message.finalize();
    let start = bytes.len();
    bytes.resize(start + wire::aligned(message.buffer_len()), 0);
    message.serialize(&mut bytes[start..]);
}

enum Dumped {
    Whole,
    Interrupted,
    DidNotFit,
}
