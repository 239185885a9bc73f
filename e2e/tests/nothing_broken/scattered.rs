//! Packets that do not lie in one piece in the kernel's memory (non-linear ones): programs read their headers wherever they are, and what they
//! carry arrives as it was. Those of several packets (fragments put together again, segments that were merged) are in `sizes.rs` and `segments.rs`.

use std::fs::File;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::thread;

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::libc::MSG_MORE;
use nix::sys::sendfile::sendfile64;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, sendto, socket,
};
use podlane_e2e::lab::Lab;
use podlane_e2e::scenario::Context;

use crate::family::Family;
use crate::packets::{Flow, PATIENCE, Packet, Tap};
use crate::segments::{octet_at, read};
use crate::{Counted, HERE, Lane, Over, address};

/// A UDP header's octets.
const UDP: usize = 8;
/// The port that raw datagrams say they are from.
const FROM_PORT: u16 = 40_000;
/// How many octets of a datagram, from its UDP header on, lie beside the IP header; the others are in a page of their own.
const BESIDE: [usize; 5] = [1, 2, 4, 7, 9];
/// Octets of a datagram's content.
const CONTENT: usize = 1200;

pub(crate) fn arrive(context: &mut Context, over: Over) -> Result<()> {
    let lab = over.lab(context)?;
    let there = over.pods()[0];
    let (near, far) = ("k8s-ctr", over.node());
    for (from, to, sender, receiver) in [(HERE, there, near, far), (there, HERE, far, near)] {
        let before = (Counted::on(lab, sender)?, Counted::on(lab, receiver)?);
        let mut sent = headers(lab, from, to)?;
        sent += pages(lab, from, to)?;
        let out = Counted::on(lab, sender)?.bypassed_outward(over) - before.0.bypassed_outward(over);
        let back = Counted::on(lab, receiver)?.bypassed_inward(over) - before.1.bypassed_inward(over);
        let least = f64::from(sent) * 0.8;
        ensure!(
            out > least && back > least,
            "{from} to {to}: of {sent} datagrams {out} bypassed outward and {back} inward"
        );
        stream(lab, from, to)?;
    }
    if over.lane != Lane::Native {
        outer_headers(lab, over)?;
    }
    Ok(())
}

/// Datagrams of which not even the UDP header lies in one piece; how many.
fn headers(lab: &Lab, from: &str, to: &str) -> Result<u32> {
    let flow = Flow::between(lab, from, to)?;
    let source = address(lab, from)?;
    let socket = Pieces::from(lab, from, flow.to.ip())?;
    let mut sent = 0;
    for round in 0..10 {
        for beside in BESIDE {
            let content = content(round * BESIDE.len() + beside);
            let datagram = datagram(source, FROM_PORT, flow.to, &content)?;
            socket.send(&datagram, beside)?;
            sent += 1;
            arrives(&flow, &content)
                .with_context(|| format!("{from} to {to}, {beside} octets beside the IP header"))?;
        }
    }
    Ok(sent)
}

/// Datagrams out of a file's pages, which are the file's still: nothing may be written there. How many.
fn pages(lab: &Lab, from: &str, to: &str) -> Result<u32> {
    const DATAGRAMS: u32 = 50;
    let flow = Flow::between(lab, from, to)?;
    let source = Source::write(lab, CONTENT * DATAGRAMS as usize)?;
    for _ in 0..DATAGRAMS {
        let at = source.send(&flow.client, CONTENT)?;
        arrives(&flow, &source.octets[at..at + CONTENT])
            .with_context(|| format!("{from} to {to}, out of a file, from octet {at} on"))?;
    }
    source.ensure_unharmed()?;
    Ok(DATAGRAMS)
}

/// The same over TCP.
fn stream(lab: &Lab, from: &str, to: &str) -> Result<()> {
    const OCTETS: usize = 2 << 20;
    let at = address(lab, to)?;
    let listener = lab
        .namespace(to)
        .within(|| TcpListener::bind((Family::of(at).any(), 0)).context("cannot listen"))?;
    let at = SocketAddr::new(at, listener.local_addr()?.port());
    let reader = thread::spawn(move || read(&listener, OCTETS));
    let source = Source::write(lab, OCTETS)?;
    let stream = lab
        .namespace(from)
        .within(|| TcpStream::connect_timeout(&at, PATIENCE).context("cannot connect"))?;
    let mut left = OCTETS;
    while left > 0 {
        let before = source.place()?;
        source.send(&stream, left)?;
        left -= source.place()? - before;
    }
    reader.join().map_err(|_| anyhow!("the reader panicked"))??;
    source.ensure_unharmed()
}

/// What the node's programs made of a pod's datagram, sent once more by the node itself, in pieces: the outer headers are read as well.
fn outer_headers(lab: &Lab, over: Over) -> Result<()> {
    let flow = Flow::between(lab, HERE, over.pods()[0])?;
    let port = over.port()?;
    let tap = Tap::on(lab, "k8s-ctr", "eth0")?;
    let content = content(0);
    // With a checksum that is whole: a socket's own would be left to a device.
    let datagram = datagram(address(lab, HERE)?, FROM_PORT, flow.to, &content)?;
    Pieces::from(lab, HERE, flow.to.ip())?.send(&datagram, UDP)?;
    arrives(&flow, &content)?;
    let wrapped = tap
        .take(1, |frame| {
            let packet = Packet::of_frame(frame)?;
            let is_ours = packet.inside(port)?.destination_port() == Some(flow.to.port());
            is_ours.then(|| packet.payload().to_vec())
        })
        .pop()
        .context("the datagram was not seen on the wire")?;
    let node = lab.topology().node(over.node()).context("no such node")?;
    let socket = Pieces::from(lab, "k8s-ctr", node.internal_ip().context("no address")?)?;
    // Within the outer UDP header, behind it, within the tunnel's, within the inner Ethernet, IP and UDP headers.
    let inner = UDP + 8 + 14 + over.family.header() as usize;
    for beside in [1, 7, 9, 17, 31, inner + 3] {
        for _ in 0..5 {
            socket.send(&wrapped, beside)?;
            arrives(&flow, &content)
                .with_context(|| format!("wrapped, {beside} octets beside the outer IP header"))?;
        }
    }
    Ok(())
}

fn arrives(flow: &Flow, content: &[u8]) -> Result<()> {
    let got = flow.receive(PATIENCE)?.context("it is lost")?;
    ensure!(
        got.payload == content,
        "of {} octets {} came, or others",
        content.len(),
        got.payload.len()
    );
    Ok(())
}

fn content(number: usize) -> Vec<u8> {
    (number..number + CONTENT).map(octet_at).collect()
}

/// A raw socket for UDP. What follows a part with MSG_MORE on a device that can gather is put into pages of its own (__ip_append_data in
/// net/ipv4/ip_output.c, __ip6_append_data in net/ipv6/ip6_output.c).
struct Pieces {
    socket: OwnedFd,
    to: SockaddrStorage,
}

impl Pieces {
    fn from(lab: &Lab, namespace: &str, to: IpAddr) -> Result<Self> {
        let family = match Family::of(to) {
            Family::Four => AddressFamily::Inet,
            Family::Six => AddressFamily::Inet6,
        };
        let socket = lab.namespace(namespace).within(|| {
            socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Udp).context("a raw socket")
        })?;
        Ok(Self {
            socket,
            to: SocketAddr::new(to, 0).into(),
        })
    }

    /// Sends a datagram of which so many octets lie beside the IP header.
    fn send(&self, datagram: &[u8], beside: usize) -> Result<()> {
        let (first, rest) = datagram.split_at(beside);
        let descriptor = self.socket.as_raw_fd();
        sendto(descriptor, first, &self.to, MsgFlags::from_bits_retain(MSG_MORE))
            .context("the first octets")?;
        sendto(descriptor, rest, &self.to, MsgFlags::empty()).context("the others")?;
        Ok(())
    }
}

/// A UDP datagram (RFC 768; RFC 8200, section 8.1).
fn datagram(source: IpAddr, from_port: u16, to: SocketAddr, content: &[u8]) -> Result<Vec<u8>> {
    let length = u16::try_from(UDP + content.len())?;
    let mut datagram = [from_port, to.port(), length, 0].map(u16::to_be_bytes).concat();
    datagram.extend(content);
    let mut sum = u32::from(length) + 17;
    for address in [source, to.ip()] {
        sum += match address {
            IpAddr::V4(address) => words(&address.octets()),
            IpAddr::V6(address) => words(&address.octets()),
        };
    }
    sum += words(&datagram);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let checksum = match !(sum as u16) {
        0 => 0xffff,
        other => other,
    };
    datagram[6..UDP].copy_from_slice(&checksum.to_be_bytes());
    Ok(datagram)
}

/// The sum of the 16-bit words.
fn words(octets: &[u8]) -> u32 {
    let pair = |pair: &[u8]| u32::from(pair[0]) << 8 | pair.get(1).copied().map_or(0, u32::from);
    octets.chunks(2).map(pair).sum()
}

/// A file that is sent from, and what it has to hold.
struct Source {
    file: File,
    octets: Vec<u8>,
    path: std::path::PathBuf,
}

impl Source {
    fn write(lab: &Lab, length: usize) -> Result<Self> {
        let octets: Vec<u8> = (0..length).map(octet_at).collect();
        let path = lab.directory().join("scattered");
        std::fs::write(&path, &octets).with_context(|| path.display().to_string())?;
        Ok(Self {
            file: File::open(&path)?,
            octets,
            path,
        })
    }

    /// How far it has been sent.
    fn place(&self) -> Result<usize> {
        use std::io::Seek as _;
        Ok(usize::try_from((&self.file).stream_position()?)?)
    }

    /// Sends the next octets, as far as the socket takes them; where they began.
    fn send(&self, socket: &impl std::os::fd::AsFd, octets: usize) -> Result<usize> {
        let at = self.place()?;
        sendfile64(socket, &self.file, None, octets).context("sendfile")?;
        Ok(at)
    }

    fn ensure_unharmed(&self) -> Result<()> {
        ensure!(
            std::fs::read(&self.path)? == self.octets,
            "the file was written to"
        );
        Ok(())
    }
}
