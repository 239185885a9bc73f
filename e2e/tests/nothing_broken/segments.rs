//! Segments: what a sender hands its kernel at once, and what kernels merge on the way, arrives whole, in order and unharmed.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use podlane_e2e::lab::Lab;
use podlane_e2e::scenario::Context;
use podlane_e2e::traffic::{once_told, retransmitted};

use crate::family::Family;
use crate::packets::{Flow, PATIENCE};
use crate::{HERE, Over, address, command};

/// How long a transfer may stand still.
const STILL: Duration = Duration::from_secs(30);
/// Octets that a writer hands over at once.
const BLOCK: usize = 1 << 20;
const SEGMENTS: u8 = 10;
/// Octets that a reader has room for, so that what is under way at once is some 150 segments of Ethernet's length: the kernel drops what comes
/// to a processor that a thousand packets wait for already (net.core.netdev_max_backlog), and segments that are not merged are as many packets.
const ROOM: usize = 200 << 10;

/// What became of a transfer over TCP. All octets arrived, in order.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Transfer {
    /// From the first octet written to the last one read.
    pub(crate) took: Duration,
    /// Octets of the longest segment.
    pub(crate) longest: u32,
    /// Segments that were lost: sent again, and not because an answer was late.
    pub(crate) lost: u64,
    pub(crate) octets: usize,
}

impl Transfer {
    /// Fails where more than one segment of fifty was lost: a queue may overflow at times, but what is damaged or cannot be parted is lost every
    /// time, and then all its segments (some forty-five) come again one by one.
    pub(crate) fn ensure_hardly_any_lost(&self, what: &str) -> Result<()> {
        let segments = self.octets as u64 / u64::from(self.longest);
        ensure!(
            self.lost <= segments / 50,
            "{what}: of {segments} segments {} were lost, in {:.1} s",
            self.lost,
            self.took.as_secs_f64()
        );
        Ok(())
    }
}

pub(crate) fn arrive(context: &mut Context, over: Over) -> Result<()> {
    let lab = over.lab(context)?;
    let there = over.pods()[0];
    for (from, to) in [(HERE, there), (there, HERE)] {
        datagrams_in_segments(lab, from, to, address(lab, to)?)?;
    }
    // What the sender's device and the receiver's node leave to hardware, and so to the kernel at the latest possible moment, or do not.
    let states = [
        (HERE, "eth0", &["tx", "on"]),
        (HERE, "eth0", &["tso", "off"]),
        (HERE, "eth0", &["tx", "off"]),
        ("k8s-ctr", "eth0", &["tx", "off"]),
        (over.node(), "eth0", &["gro", "on"]),
        (over.node(), "eth0", &["rx", "off"]),
        (there, "eth0", &["rx", "off"]),
    ];
    for (namespace, device, state) in states {
        let _set = Offload::set(lab, namespace, device, state)?;
        let what = format!("{device} of {namespace} with {}", state.join(" "));
        let there_and_back = transfer(lab, HERE, there, address(lab, there)?, 4 << 20)
            .and_then(|one| Ok([one, transfer(lab, there, HERE, address(lab, HERE)?, 4 << 20)?]))
            .with_context(|| what.clone())?;
        for (one, way) in there_and_back.into_iter().zip(["there", "back"]) {
            one.ensure_hardly_any_lost(&format!("{way}, {what}"))?;
        }
    }
    Ok(())
}

/// A sender that hands its kernel ten datagrams at once (UDP_SEGMENT, as QUIC's do): each arrives once and unharmed, by itself. How many of a
/// hundred blocks came out of order: where the wire has single frames, those behind the one that takes the stack's way bypass, and overtake it,
/// once a lease.
pub(crate) fn datagrams_in_segments(lab: &Lab, from: &str, to: &str, at: IpAddr) -> Result<u64> {
    const OCTETS: usize = 1200;
    let flow = Flow::to_address(lab, from, to, at)?;
    setsockopt(&flow.client, sockopt::UdpGsoSegment, &(OCTETS as i32)).context("UDP_SEGMENT")?;
    let block: Vec<u8> = (0..SEGMENTS).flat_map(|number| [number; OCTETS]).collect();
    let begun = Instant::now();
    let mut overtaken = 0;
    for time in 0..100 {
        flow.client.send(&block)?;
        let mut order = Vec::new();
        for _ in 0..SEGMENTS {
            let got = flow
                .receive(PATIENCE)?
                .with_context(|| format!("{from} to {to}: of block {time} only {order:?} came"))?;
            let number = got.payload.first().copied().context("an empty datagram")?;
            ensure!(
                got.payload == [number; OCTETS],
                "{from} to {to}: block {time}: a damaged datagram of {} octets",
                got.payload.len()
            );
            order.push(number);
        }
        let mut each = order.clone();
        each.sort_unstable();
        ensure!(
            each.iter().copied().eq(0..SEGMENTS),
            "{from} to {to}: block {time} came as {order:?}"
        );
        if each != order {
            // The one that has gone through the stack for those behind it, and no other.
            let falls = order.windows(2).filter(|pair| pair[0] > pair[1]).count();
            ensure!(falls == 1, "{from} to {to}: block {time} came as {order:?}");
            overtaken += 1;
        }
    }
    let leases = begun.elapsed().as_secs() + 2;
    ensure!(
        overtaken <= leases,
        "{from} to {to}: of 100 blocks {overtaken} came out of order, within {leases} leases"
    );
    Ok(overtaken)
}

/// Sends octets over TCP from a pod to an address that leads to another.
pub(crate) fn transfer(lab: &Lab, from: &str, to: &str, at: IpAddr, octets: usize) -> Result<Transfer> {
    let listener = lab
        .namespace(to)
        .within(|| TcpListener::bind((Family::of(at).any(), 0)).context("cannot listen"))?;
    let port = listener.local_addr()?.port();
    transfer_to(lab, from, (at, port).into(), listener, octets).with_context(|| format!("{from} to {to}"))
}

/// The same to where somebody listens already.
pub(crate) fn transfer_to(
    lab: &Lab,
    from: &str,
    at: SocketAddr,
    listener: TcpListener,
    octets: usize,
) -> Result<Transfer> {
    // Before anybody connects: who is accepted has it from here.
    setsockopt(&listener, sockopt::RcvBuf, &ROOM).context("SO_RCVBUF")?;
    let reader = thread::spawn(move || read(&listener, octets));
    let sender = lab.namespace(from);
    let mut stream = sender.within(|| {
        TcpStream::connect_timeout(&at, STILL).with_context(|| format!("cannot connect to {at}"))
    })?;
    stream.set_write_timeout(Some(STILL))?;
    let begun = Instant::now();
    let block: Vec<u8> = (0..BLOCK).map(octet_at).collect();
    let mut written = 0;
    while written < octets {
        let length = BLOCK.min(octets - written);
        stream
            .write_all(&block[..length])
            .with_context(|| format!("nothing moves after {written} octets"))?;
        written += length;
    }
    let port = stream.local_addr()?.port();
    // Open as long as is counted: who has closed does not say any more what came twice.
    let (ended, _reader) = reader.join().map_err(|_| anyhow!("the reader panicked"))??;
    Ok(Transfer {
        took: ended - begun,
        longest: getsockopt(&stream, sockopt::TcpMaxSeg).context("the largest segment")?,
        lost: once_told(0, || retransmitted(&sender, port))?,
        octets,
    })
}

/// What stands at a place: with a period that is no power of two, so that what is exchanged shows.
pub(crate) fn octet_at(place: usize) -> u8 {
    (place % BLOCK % 251) as u8
}

/// When the last octet had come, and the connection.
pub(crate) fn read(listener: &TcpListener, octets: usize) -> Result<(Instant, TcpStream)> {
    let (mut stream, _) = listener.accept()?;
    stream.set_read_timeout(Some(STILL))?;
    let mut buffer = vec![0; 1 << 18];
    let mut place = 0;
    while place < octets {
        let length = stream
            .read(&mut buffer)
            .with_context(|| format!("nothing comes after {place} octets"))?;
        ensure!(length > 0, "the end came after {place} octets");
        let damaged = buffer[..length]
            .iter()
            .enumerate()
            .find(|(at, octet)| **octet != octet_at(place + at));
        ensure!(damaged.is_none(), "from octet {place} on, damaged: {damaged:?}");
        place += length;
    }
    Ok((Instant::now(), stream))
}

/// A device's offload, set as long as this is there, and on (GRO: off, as on every veth) afterwards.
pub(crate) struct Offload<'a> {
    lab: &'a Lab,
    namespace: String,
    device: String,
    feature: String,
}

impl<'a> Offload<'a> {
    pub(crate) fn set(lab: &'a Lab, namespace: &str, device: &str, state: &[&str; 2]) -> Result<Self> {
        let [feature, value] = state;
        command(lab, namespace, &["ethtool", "-K", device, feature, value])?;
        Ok(Self {
            lab,
            namespace: namespace.to_owned(),
            device: device.to_owned(),
            feature: (*feature).to_owned(),
        })
    }
}

impl Drop for Offload<'_> {
    fn drop(&mut self) {
        let usual = if self.feature == "gro" { "off" } else { "on" };
        let words = ["ethtool", "-K", &self.device, &self.feature, usual];
        // Nothing to do about a failure: the lab goes with the scenario that fails.
        let _ = command(self.lab, &self.namespace, &words);
        if self.feature == "tx" {
            // Without checksums there is no segmentation either, and it does not come back by itself.
            let _ = command(
                self.lab,
                &self.namespace,
                &["ethtool", "-K", &self.device, "tso", "on"],
            );
        }
    }
}
