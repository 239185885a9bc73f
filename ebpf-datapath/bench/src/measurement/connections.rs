//! Short TCP connections: opened, one packet each way, closed.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use super::numbered::SIZE;
use super::processors::{RECEIVING, SENDING, stay_on};
use crate::site::{Family, Site};

/// Connections a second that are offered, by all clients together.
const OFFERED: u32 = 10_000;
const CLIENTS: u32 = 4;
const SERVERS: usize = 4;
/// A connection that takes longer is given up.
const PATIENCE: Duration = Duration::from_secs(1);

/// What was carried.
pub(super) struct Carried {
    /// Whole connections.
    pub(super) count: u64,
    /// In which time.
    pub(super) elapsed: Duration,
}

/// Connects from the first pod to the second.
pub(super) fn measure(site: &Site, family: Family, length: Duration) -> Result<Carried> {
    let [from, to] = &site.nodes;
    let listener = to
        .pod
        .within(|| TcpListener::bind((to.identity.pod_address(family), 0)).context("cannot listen"))?;
    let destination = listener.local_addr()?;
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        let servers: Vec<_> = (0..SERVERS)
            .map(|_| {
                scope.spawn(|| {
                    stay_on(RECEIVING)?;
                    serve(&listener, &ended)
                })
            })
            .collect();
        let begin = Instant::now();
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                scope.spawn(|| {
                    from.pod.within(|| {
                        stay_on(SENDING)?;
                        Ok(ask(destination, length))
                    })
                })
            })
            .collect();
        let mut count = 0;
        let mut failure = None;
        for client in clients {
            match client.join().map_err(|_| anyhow!("a client panicked")).flatten() {
                Ok(asked) => count += asked,
                Err(error) => failure = Some(error),
            }
        }
        let elapsed = begin.elapsed();
        ended.store(true, Ordering::Release);
        for _ in 0..SERVERS {
            // Wakes one that waits; where it fails, none does.
            let _ = from
                .pod
                .within(|| Ok(TcpStream::connect_timeout(&destination, PATIENCE)?));
        }
        for server in servers {
            server.join().map_err(|_| anyhow!("a server panicked"))??;
        }
        failure.map_or(Ok(Carried { count, elapsed }), Err)
    })
}

/// One after the other at this client's share of the rate; one that cannot keep up makes no more of them later.
fn ask(destination: SocketAddr, length: Duration) -> u64 {
    let step = Duration::from_secs(1) * CLIENTS / OFFERED;
    let begin = Instant::now();
    let mut due = begin;
    let mut count = 0;
    while begin.elapsed() < length {
        let now = Instant::now();
        if due > now {
            thread::sleep(due - now);
        }
        if ask_once(destination).is_ok() {
            count += 1;
        }
        due = (due + step).max(now);
    }
    count
}

fn ask_once(destination: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&destination, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(&[1; SIZE])?;
    // The server closes first, so that the client's port is free again at once.
    let mut answer = Vec::with_capacity(SIZE);
    stream.read_to_end(&mut answer)?;
    if answer.len() != SIZE {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}

fn serve(listener: &TcpListener, ended: &AtomicBool) -> Result<()> {
    while !ended.load(Ordering::Acquire) {
        let (mut stream, _) = listener.accept().context("cannot accept")?;
        let mut question = [0; SIZE];
        // A client that gave up has counted that already.
        let answered = stream
            .set_read_timeout(Some(PATIENCE))
            .and_then(|()| stream.read_exact(&mut question))
            .and_then(|()| stream.write_all(&question));
        drop(answered);
    }
    Ok(())
}
