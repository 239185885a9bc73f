//! Numbered UDP packets, in batches: every one is accounted for.

use std::io::{IoSlice, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, sendmmsg, setsockopt, sockopt};
use podlane_e2e::traffic::Numbers;

use super::processors::{RECEIVING, SENDING, stay_on};
use crate::site::{Family, Node, Site};

/// Bytes of payload.
pub(super) const SIZE: usize = 64;
/// Packets a system call.
const BATCH: usize = 64;
/// In front of the number, so that nothing else that arrives is counted.
const MARK: [u8; 8] = *b"podbench";
/// Room for what the receiver has not yet read.
const RECEIVE_BUFFER: usize = 64 << 20;
/// How long the receiver sleeps when it has read everything. It never waits in the kernel: waking it would cost the sender's
/// processor more than some of the ways that are compared.
const NAP: Duration = Duration::from_millis(1);
/// When nothing has come for so long after the end of a flood, nothing will.
const FLOOD_PATIENCE: Duration = Duration::from_millis(50);
/// The same for packets that are counted one by one: on a busy machine the kernel's own threads may wait for a processor.
const CARRY_PATIENCE: Duration = Duration::from_secs(1);
/// In place of the number of packets sent, while there are more to come.
const UNENDED: u64 = u64::MAX;

/// What became of the packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count {
    /// Numbers used.
    pub sent: u64,
    /// Different numbers that came.
    pub received: u64,
    /// Numbers that came again.
    pub duplicated: u64,
    /// How long the sender took.
    pub elapsed: Duration,
}

/// When to stop sending.
#[derive(Clone, Copy)]
enum Until {
    Elapsed(Duration),
    /// So many packets, in batches with a pause after each.
    Sent(u64),
}

/// Sends as fast as it goes from the first pod to the second.
pub(super) fn flood(site: &Site, family: Family, length: Duration) -> Result<Count> {
    let [from, to] = &site.nodes;
    exchange(from, to, family, Until::Elapsed(length))
}

/// Sends `count` packets at an easy pace from one of the site's pods (0 or 1) to the other.
///
/// # Errors
/// Sockets' errors; a packet that the kernel refuses counts as sent.
pub fn carry(site: &Site, from: usize, family: Family, count: u64) -> Result<Count> {
    exchange(
        &site.nodes[from],
        &site.nodes[1 - from],
        family,
        Until::Sent(count),
    )
}

fn exchange(from: &Node, to: &Node, family: Family, until: Until) -> Result<Count> {
    let receiver = socket(to, family)?;
    // Before the first packet: the thread that reads may have to wait for its processor.
    setsockopt(&receiver, sockopt::RcvBufForce, &RECEIVE_BUFFER)
        .context("cannot enlarge the receive buffer")?;
    let sender = socket(from, family)?;
    let port = receiver.local_addr().context("the receiver's address")?.port();
    let destination = SocketAddr::new(to.identity.pod_address(family), port);
    sender
        .connect(destination)
        .with_context(|| destination.to_string())?;
    let total = AtomicU64::new(UNENDED);
    let patience = match until {
        Until::Elapsed(_) => FLOOD_PATIENCE,
        Until::Sent(_) => CARRY_PATIENCE,
    };
    thread::scope(|scope| {
        let receiving = scope.spawn(|| {
            stay_on(RECEIVING)?;
            receive(&receiver, &total, patience)
        });
        let sending = scope.spawn(|| {
            let sent = stay_on(SENDING).and_then(|()| send(&sender, until));
            // A sender that failed has no number; its receiver is not to wait for more.
            total.store(sent.as_ref().map_or(0, |(sent, _)| *sent), Ordering::Release);
            sent
        });
        let (sent, elapsed) = sending.join().map_err(|_| anyhow!("the sender panicked"))??;
        let numbers = receiving.join().map_err(|_| anyhow!("the receiver panicked"))??;
        ensure!(
            numbers.seen() <= sent,
            "{} packets came of {sent} that were sent",
            numbers.seen()
        );
        Ok(Count {
            sent,
            received: numbers.seen(),
            duplicated: numbers.duplicated(),
            elapsed,
        })
    })
}

fn socket(node: &Node, family: Family) -> Result<UdpSocket> {
    let address = SocketAddr::new(node.identity.pod_address(family), 0);
    node.pod
        .within(|| UdpSocket::bind(address).with_context(|| format!("cannot make a socket on {address}")))
}

/// The numbers used, and the time it took.
fn send(socket: &UdpSocket, until: Until) -> Result<(u64, Duration)> {
    let mut packets = [[0_u8; SIZE]; BATCH];
    for packet in &mut packets {
        packet[..8].copy_from_slice(&MARK);
    }
    let mut number = 0_u64;
    let begin = Instant::now();
    loop {
        let wanted = match until {
            Until::Elapsed(length) if begin.elapsed() >= length => break,
            Until::Sent(count) if number >= count => break,
            Until::Elapsed(_) => BATCH,
            Until::Sent(count) => usize::try_from(count - number).map_or(BATCH, |rest| rest.min(BATCH)),
        };
        for (packet, number) in packets[..wanted].iter_mut().zip(number..) {
            packet[8..16].copy_from_slice(&number.to_be_bytes());
        }
        number += send_batch(socket, &packets[..wanted])? as u64;
        if matches!(until, Until::Sent(_)) {
            thread::sleep(Duration::from_millis(1));
        }
    }
    Ok((number, begin.elapsed()))
}

/// How many numbers were used up. A packet that the kernel refuses is one.
fn send_batch(socket: &UdpSocket, packets: &[[u8; SIZE]]) -> Result<usize> {
    let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(packets.len(), None);
    let slices: Vec<[IoSlice<'_>; 1]> = packets.iter().map(|packet| [IoSlice::new(packet)]).collect();
    let nowhere_else = vec![None; packets.len()];
    match sendmmsg(
        socket.as_raw_fd(),
        &mut headers,
        &slices,
        &nowhere_else,
        [],
        MsgFlags::empty(),
    ) {
        Ok(sent) => Ok(sent.count()),
        // An ICMP error for an earlier packet, or no room or no way for this one.
        Err(
            Errno::ECONNREFUSED
            | Errno::EHOSTUNREACH
            | Errno::ENETUNREACH
            | Errno::ENOBUFS
            | Errno::EPERM
            | Errno::EACCES,
        ) => Ok(1),
        Err(Errno::EINTR) => Ok(0),
        Err(errno) => Err(errno).context("sendmmsg"),
    }
}

/// Reads until all have come, or none for a while after the sender's end.
fn receive(socket: &UdpSocket, total: &AtomicU64, patience: Duration) -> Result<Numbers> {
    let mut numbers = Numbers::default();
    let mut packets = [[0_u8; SIZE]; BATCH];
    let mut last = Instant::now();
    loop {
        let total = total.load(Ordering::Acquire);
        let received = receive_batch(socket, &mut packets)?;
        if received == 0 {
            if total == UNENDED {
                last = Instant::now();
            } else if numbers.seen() >= total || last.elapsed() > patience {
                return Ok(numbers);
            }
            thread::sleep(NAP);
            continue;
        }
        last = Instant::now();
        for packet in &packets[..received] {
            if let (Some(mark), Some(number)) = (packet.first_chunk(), packet[8..].first_chunk())
                && *mark == MARK
            {
                numbers.note(u64::from_be_bytes(*number));
            }
        }
    }
}

/// How many packets were there.
fn receive_batch(socket: &UdpSocket, packets: &mut [[u8; SIZE]; BATCH]) -> Result<usize> {
    let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(BATCH, None);
    let mut slices: Vec<[IoSliceMut<'_>; 1]> = packets
        .iter_mut()
        .map(|packet| [IoSliceMut::new(packet)])
        .collect();
    match recvmmsg(
        socket.as_raw_fd(),
        &mut headers,
        &mut slices,
        MsgFlags::MSG_DONTWAIT,
        None,
    ) {
        Ok(received) => Ok(received.count()),
        Err(Errno::EAGAIN | Errno::EINTR | Errno::ECONNREFUSED) => Ok(0),
        Err(errno) => Err(errno).context("recvmmsg"),
    }
}
