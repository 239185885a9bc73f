//! One packet at a time, to the other pod and back.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use super::numbered::SIZE;
use super::processors::{SENDING, stay_on};
use crate::site::{Family, Site};

/// A packet that has not come back by then is lost, and no time of it is kept.
const PATIENCE: Duration = Duration::from_millis(100);
/// The first packets find neighbours and fill caches.
const WARM_UP: Duration = Duration::from_millis(20);

/// The times, in nanoseconds, in the order in which they were measured.
pub(super) fn measure(site: &Site, family: Family, length: Duration) -> Result<Vec<u64>> {
    let [near, far] = &site.nodes;
    let open = |node: &crate::site::Node| -> Result<UdpSocket> {
        let address = SocketAddr::new(node.identity.pod_address(family), 0);
        let socket = node.pod.within(|| {
            UdpSocket::bind(address).with_context(|| format!("cannot make a socket on {address}"))
        })?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(socket)
    };
    let (near, far) = (open(near)?, open(far)?);
    near.connect(far.local_addr()?)?;
    far.connect(near.local_addr()?)?;
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        let echo = scope.spawn(|| {
            stay_on(SENDING)?;
            return_packets(&far, &ended)
        });
        let asking = scope.spawn(|| {
            let times = stay_on(SENDING).and_then(|()| ask(&near, length));
            ended.store(true, Ordering::Release);
            times
        });
        let times = asking.join().map_err(|_| anyhow!("the asking end panicked"))?;
        echo.join().map_err(|_| anyhow!("the answering end panicked"))??;
        times
    })
}

fn ask(socket: &UdpSocket, length: Duration) -> Result<Vec<u64>> {
    let mut packet = [0_u8; SIZE];
    let mut times = Vec::with_capacity(1 << 18);
    let begin = Instant::now();
    let mut number = 0_u64;
    while begin.elapsed() < WARM_UP + length {
        number += 1;
        packet[..8].copy_from_slice(&number.to_be_bytes());
        let sent = Instant::now();
        socket.send(&packet).context("cannot send")?;
        // An answer that comes too late is not taken for the next one.
        while receive(socket, &mut packet)? {
            if packet[..8] == number.to_be_bytes() {
                if begin.elapsed() > WARM_UP {
                    times.push(u64::try_from(sent.elapsed().as_nanos()).context("a time")?);
                }
                break;
            }
        }
    }
    Ok(times)
}

fn return_packets(socket: &UdpSocket, ended: &AtomicBool) -> Result<()> {
    let mut packet = [0_u8; SIZE];
    while !ended.load(Ordering::Acquire) {
        if receive(socket, &mut packet)? {
            socket.send(&packet).context("cannot answer")?;
        }
    }
    Ok(())
}

/// Whether a packet came in time.
fn receive(socket: &UdpSocket, packet: &mut [u8]) -> Result<bool> {
    match socket.recv(packet) {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(false),
        Err(error) => Err(error).context("cannot receive"),
    }
}
