//! TCP streams in writes of 1 MB.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::socket::{setsockopt, sockopt};

use super::Lengths;
use super::processors::{RECEIVING, SENDING, stay_on};
use crate::noise::{Before, During};
use crate::site::{Family, Site};

/// Bytes a write. Much smaller ones fall badly into segments at some MTUs.
const WRITE: usize = 1 << 20;
/// Named, since the machine's default may be one that paces by a model of the path, which has nothing to learn here.
const CONGESTION_CONTROL: &str = "cubic";

/// What the streams carried together.
pub(super) struct Carried {
    /// Bytes that the receivers read.
    pub(super) bytes: u64,
    /// In which time.
    pub(super) elapsed: Duration,
    /// What the machine did meanwhile.
    pub(super) during: During,
}

/// Sends from the first pod to the second.
pub(super) fn measure(site: &Site, family: Family, lengths: Lengths, streams: usize) -> Result<Carried> {
    let [from, to] = &site.nodes;
    let listener = to
        .pod
        .within(|| TcpListener::bind((to.identity.pod_address(family), 0)).context("cannot listen"))?;
    let destination = listener.local_addr()?;
    let mut pairs = Vec::new();
    for _ in 0..streams {
        let sender = from.pod.within(|| connect(destination))?;
        let (receiver, _) = listener.accept().context("cannot accept")?;
        pairs.push((sender, receiver));
    }
    let received = AtomicU64::new(0);
    thread::scope(|scope| {
        for (sender, receiver) in &pairs {
            // Both end by an error of their socket when it is shut down.
            scope.spawn(move || {
                let _ = stay_on(SENDING);
                write_on(sender);
            });
            let received = &received;
            scope.spawn(move || {
                let _ = stay_on(RECEIVING);
                read_on(receiver, received);
            });
        }
        thread::sleep(lengths.warm_up);
        let carried = observe(&received, lengths.long);
        for (sender, receiver) in &pairs {
            // One that has ended by itself has carried nothing more, and the figure shows it.
            let _ = sender.shutdown(Shutdown::Both);
            let _ = receiver.shutdown(Shutdown::Both);
        }
        carried
    })
}

fn observe(received: &AtomicU64, length: Duration) -> Result<Carried> {
    let before = Before::now()?;
    let (begin, first) = (Instant::now(), received.load(Ordering::Relaxed));
    thread::sleep(length);
    let (elapsed, last) = (begin.elapsed(), received.load(Ordering::Relaxed));
    Ok(Carried {
        bytes: last - first,
        elapsed,
        during: before.until_now()?,
    })
}

fn connect(destination: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&destination, Duration::from_secs(3))
        .with_context(|| format!("cannot connect to {destination}"))?;
    setsockopt(
        &stream,
        sockopt::TcpCongestion,
        &OsString::from(CONGESTION_CONTROL),
    )
    .with_context(|| format!("no congestion control {CONGESTION_CONTROL}"))?;
    Ok(stream)
}

fn write_on(mut stream: &TcpStream) {
    let data = vec![0_u8; WRITE];
    while stream.write_all(&data).is_ok() {}
}

fn read_on(mut stream: &TcpStream, received: &AtomicU64) {
    let mut data = vec![0_u8; WRITE];
    while let Ok(count @ 1..) = stream.read(&mut data) {
        received.fetch_add(count as u64, Ordering::Relaxed);
    }
}
