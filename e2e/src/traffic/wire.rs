//! The two ends of a stream on plain sockets.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, ErrorKind};
use std::net::{SocketAddr, UdpSocket};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::socket::{setsockopt, sockopt};

use super::numbers::Numbers;
use super::{ReceiveReport, SendReport};

/// In front of the number, so that nothing else that arrives is counted.
const MARK: &[u8; 8] = b"podlane#";
const HEADER: usize = 16;
const MAX_RATE: u32 = 10_000;
/// A sender that was not scheduled for a while sends at most so many packets at once when it is again; the rest of the
/// delay it does not make up for, because a burst would overrun the queue of a veth.
const MAX_BURST: u32 = 32;
const RECEIVE_BUFFER: usize = 64 << 20;
/// When nothing has come for so long after the sender's end, nothing will.
const QUIET: Duration = Duration::from_secs(2);

/// Sends packets of `size` bytes, `rate` a second, until `count` are sent or `orders` say to stop (a line, or its end). `begun` is
/// called when the first one is sent.
pub fn send(
    to: SocketAddr,
    rate: u32,
    size: u16,
    count: Option<u64>,
    orders: impl BufRead + Send + 'static,
    begun: impl FnOnce() -> Result<()>,
) -> Result<SendReport> {
    if rate == 0 || rate > MAX_RATE {
        bail!("a rate is from 1 to {MAX_RATE} packets a second");
    }
    if usize::from(size) < HEADER {
        bail!("a packet has at least {HEADER} bytes");
    }
    let any: SocketAddr = if to.is_ipv4() {
        ([0; 4], 0).into()
    } else {
        ([0_u16; 8], 0).into()
    };
    // Not connected: an ICMP error for an earlier packet would come in place of sending the next one.
    let socket = UdpSocket::bind(any).context("cannot make the sender's socket")?;
    let orders = lines(orders);
    let mut packet = vec![0; usize::from(size)];
    packet[..8].copy_from_slice(MARK);

    let step = Duration::from_secs(1) / rate;
    let begin = Instant::now();
    let mut due = begin;
    let mut refused = BTreeMap::new();
    let mut number = 0;
    let mut begun = Some(begun);
    while count.is_none_or(|count| number < count) {
        match orders.try_recv() {
            Err(TryRecvError::Empty) => {}
            Ok(_) | Err(TryRecvError::Disconnected) => break,
        }
        let now = Instant::now();
        if due > now {
            thread::sleep(due - now);
        } else if now - due > step * MAX_BURST {
            due = now - step * MAX_BURST;
        }
        packet[8..HEADER].copy_from_slice(&number.to_be_bytes());
        loop {
            match socket.send_to(&packet, to) {
                Ok(_) => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // No route, no neighbour, a firewall's no: the packet is lost, and its number is used up.
                Err(error) => {
                    *refused.entry(error.kind().to_string()).or_insert(0) += 1;
                    break;
                }
            }
        }
        number += 1;
        due += step;
        if let Some(begun) = begun.take() {
            begun()?;
        }
    }
    let elapsed_ms = u64::try_from(begin.elapsed().as_millis()).context("a stream's duration")?;
    Ok(SendReport {
        sent: number,
        refused,
        elapsed_ms,
    })
}

/// Receives packets until `orders` say `finish N`, N being the number of packets sent, and nothing more comes. `begun` is
/// called with the address that it listens on.
pub fn receive(
    bind: SocketAddr,
    orders: impl BufRead + Send + 'static,
    begun: impl FnOnce(SocketAddr) -> Result<()>,
) -> Result<ReceiveReport> {
    let socket = UdpSocket::bind(bind).with_context(|| format!("cannot listen on {bind}"))?;
    // The receiver must not lose what the network did not. Without the privilege the buffer is as large as allowed.
    if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
        setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BUFFER)
            .context("cannot enlarge the receiver's buffer")?;
    }
    socket
        .set_read_timeout(Some(Duration::from_millis(20)))
        .context("the receiver's socket")?;
    let address = socket.local_addr().context("the receiver's socket")?;
    let overruns_before = overruns()?;
    begun(address)?;

    let orders = lines(orders);
    let mut numbers = Numbers::default();
    let mut sent = None;
    let mut last_came = Instant::now();
    let mut packet = [0; 1 << 16];
    loop {
        match socket.recv(&mut packet) {
            Ok(length) => {
                if let Some(number) = number_of(&packet[..length]) {
                    numbers.note(number);
                    last_came = Instant::now();
                }
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                if sent.is_some() && last_came.elapsed() >= QUIET {
                    break;
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context("cannot receive"),
        }
        if sent.is_some_and(|sent| numbers.seen() >= sent) && last_came.elapsed() >= Duration::from_millis(40)
        {
            break;
        }
        if sent.is_none() {
            match orders.try_recv() {
                Ok(order) => {
                    sent = Some(parse_finish(&order)?);
                    last_came = Instant::now();
                }
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => bail!("nobody said how many packets were sent"),
            }
        }
    }
    let sent = sent.unwrap_or_default();
    Ok(ReceiveReport {
        received: numbers.seen(),
        duplicated: numbers.duplicated(),
        reordered: numbers.reordered(),
        overrun: overruns()? - overruns_before,
        lost_ranges: numbers.missing(sent),
    })
}

fn number_of(packet: &[u8]) -> Option<u64> {
    let rest = packet.strip_prefix(MARK)?;
    Some(u64::from_be_bytes(*rest.first_chunk()?))
}

fn parse_finish(order: &str) -> Result<u64> {
    let number = order
        .strip_prefix("finish ")
        .and_then(|number| number.trim().parse().ok());
    number.with_context(|| format!("the receiver is told `finish N`, not {order:?}"))
}

/// The lines of a reader, as they come.
fn lines(reader: impl BufRead + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        for line in reader.lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    receiver
}

/// How many packets this network namespace's sockets had no room for.
fn overruns() -> Result<u64> {
    let mut total = 0;
    let v4 = fs::read_to_string("/proc/thread-self/net/snmp").context("/proc/thread-self/net/snmp")?;
    let mut rows = v4.lines().filter_map(|line| line.strip_prefix("Udp: "));
    if let (Some(names), Some(values)) = (rows.next(), rows.next()) {
        let pairs = names.split(' ').zip(values.split(' '));
        total += pairs
            .filter(|(name, _)| *name == "RcvbufErrors")
            .filter_map(|(_, value)| value.parse::<u64>().ok())
            .sum::<u64>();
    }
    // A kernel without IPv6 has no such file.
    let v6 = fs::read_to_string("/proc/thread-self/net/snmp6").unwrap_or_default();
    total += v6
        .lines()
        .filter_map(|line| line.strip_prefix("Udp6RcvbufErrors")?.trim().parse::<u64>().ok())
        .sum::<u64>();
    Ok(total)
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;

    use super::*;

    /// Orders that never come and never end within a test.
    fn silence() -> BufReader<std::io::PipeReader> {
        let (reader, writer) = std::io::pipe().unwrap();
        std::mem::forget(writer);
        BufReader::new(reader)
    }

    #[test]
    fn every_packet_over_the_loopback_is_counted() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let (tell, told) = channel();
        let receiver = thread::spawn(move || {
            receive(
                ([127, 0, 0, 1], 0).into(),
                BufReader::new(reader),
                move |address| Ok(tell.send(address)?),
            )
        });
        let to = told.recv().unwrap();
        let mut begun = 0;
        let sent = send(to, 10_000, 64, Some(500), silence(), || {
            begun += 1;
            Ok(())
        })
        .unwrap();
        assert_eq!(begun, 1);
        assert_eq!((sent.sent, sent.refused.len()), (500, 0));
        std::io::Write::write_all(&mut writer, b"finish 500\n").unwrap();
        let report = receiver.join().unwrap().unwrap();
        assert_eq!(
            (report.received, report.duplicated, report.lost_ranges.len()),
            (500, 0, 0)
        );
    }

    #[test]
    fn rates_and_sizes_beyond_the_limits_are_refused() {
        let to = ([127, 0, 0, 1], 9).into();
        assert!(send(to, 0, 64, Some(1), silence(), || Ok(())).is_err());
        assert!(send(to, 10_001, 64, Some(1), silence(), || Ok(())).is_err());
        assert!(send(to, 1, 15, Some(1), silence(), || Ok(())).is_err());
    }
}
