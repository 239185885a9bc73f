//! Long TCP connections between pods: every octet is checked at the far end, and the sender's kernel says what it sent again.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use nix::sys::socket::{setsockopt, sockopt};

use super::retransmissions::retransmitted;
use crate::lab::Lab;
use crate::netns::Namespace;

/// What a block is: its number, in eight octets, repeated.
const BLOCK: usize = 8192;

/// The largest segment of [`Segments::Small`].
const SEGMENT: u32 = 1200;

/// How large a connection's segments are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segments {
    /// They fit every lane, so that no change of MTU by itself makes the sender repeat anything.
    Small,
    /// As large as the pods' own interfaces take: the node has to say what its lane carries.
    Full,
}

/// A connection that is written to until it is finished.
#[derive(Debug)]
pub struct Connection {
    name: String,
    namespace: Namespace,
    local: SocketAddr,
    stop: Arc<AtomicBool>,
    sender: JoinHandle<Result<u64>>,
    receiver: JoinHandle<Result<u64>>,
}

/// What became of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionReport {
    /// Octets written, all of which arrived in order.
    pub octets: u64,
    /// Lost segments that the sender's kernel sent again, up to the end.
    pub retransmitted: u64,
}

impl Connection {
    /// Connects from one pod to another and writes `blocks` blocks of 8 KiB a second.
    pub fn start(lab: &Lab, from: &str, to: &str, blocks: u32) -> Result<Self> {
        Self::start_to(lab, from, to, lab.pod_address(to)?, blocks, Segments::Small)
    }

    /// The same to an address of pod `to`.
    pub fn start_to(
        lab: &Lab,
        from: &str,
        to: &str,
        address: IpAddr,
        blocks: u32,
        segments: Segments,
    ) -> Result<Self> {
        let listener = lab.namespace(to).within(move || listen(&address, segments))?;
        let target = SocketAddr::new(address, listener.local_addr()?.port());
        let receiver = thread::spawn(move || receive(&listener));
        let namespace = lab.namespace(from);
        let stop = Arc::new(AtomicBool::new(false));
        let (tell, told) = channel();
        let inside = namespace.clone();
        let stopping = Arc::clone(&stop);
        let sender = thread::spawn(move || {
            inside.within(move || {
                let stream = TcpStream::connect_timeout(&target, Duration::from_secs(10))
                    .with_context(|| format!("cannot connect to {target}"))?;
                tell.send(stream.local_addr()?)?;
                send(stream, blocks, &stopping)
            })
        });
        let local = told
            .recv_timeout(Duration::from_secs(12))
            .with_context(|| format!("{from} to {to}: no connection"))?;
        Ok(Self {
            name: format!("{from} to {to} ({address})"),
            namespace,
            local,
            stop,
            sender,
            receiver,
        })
    }

    /// Lost segments that the sender's kernel has sent again so far ([`retransmitted`]).
    pub fn retransmitted(&self) -> Result<u64> {
        retransmitted(&self.namespace, self.local.port()).with_context(|| self.name.clone())
    }

    /// Stops writing, and waits until the far end has read all.
    pub fn finish(self) -> Result<ConnectionReport> {
        let retransmitted = self.retransmitted()?;
        self.stop.store(true, Ordering::Relaxed);
        let join = |handle: JoinHandle<Result<u64>>| {
            handle
                .join()
                .map_err(|_| anyhow!("{}: an end panicked", self.name))?
                .with_context(|| self.name.clone())
        };
        let (written, read) = (join(self.sender)?, join(self.receiver)?);
        ensure!(
            written == read,
            "{}: {written} octets written, {read} read",
            self.name
        );
        Ok(ConnectionReport {
            octets: written,
            retransmitted,
        })
    }
}

fn listen(like: &IpAddr, segments: Segments) -> Result<TcpListener> {
    let listener = TcpListener::bind((any(like), 0)).context("cannot listen")?;
    if segments == Segments::Small {
        // What the listener announces in its SYN-ACK binds the sender.
        setsockopt(&listener, sockopt::TcpMaxSeg, &SEGMENT).context("the largest segment")?;
    }
    Ok(listener)
}

fn any(like: &IpAddr) -> IpAddr {
    if like.is_ipv4() {
        IpAddr::from([0; 4])
    } else {
        IpAddr::from([0_u16; 8])
    }
}

fn send(mut stream: TcpStream, blocks: u32, stop: &AtomicBool) -> Result<u64> {
    // A lane that is cut shows here, not as a test that never ends.
    stream.set_write_timeout(Some(Duration::from_secs(20)))?;
    let step = Duration::from_secs(1) / blocks;
    let mut due = Instant::now();
    let mut number = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        due += step;
        stream.write_all(&number.to_be_bytes().repeat(BLOCK / 8))?;
        number += 1;
    }
    Ok(number * BLOCK as u64)
}

fn receive(listener: &TcpListener) -> Result<u64> {
    let (mut stream, _) = listener.accept()?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let mut block = vec![0; BLOCK];
    let mut number = 0_u64;
    loop {
        match stream.read_exact(&mut block) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(number * BLOCK as u64),
            Err(error) => return Err(error.into()),
        }
        ensure!(
            block == number.to_be_bytes().repeat(BLOCK / 8),
            "block {number} came damaged"
        );
        number += 1;
    }
}
