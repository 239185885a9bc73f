//! Pods that serve: each answers over TCP and UDP with its own name and the address that it was asked from.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;
use podlane_e2e::lab::Lab;
use podlane_e2e::story::SETTLED_WITHIN;
use podlane_e2e::wait::wait_until;

/// The port that every server listens on, of TCP and of UDP.
pub(crate) const PORT: u16 = 8080;

/// How many octets go each way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    /// Over TCP.
    stream: usize,
    /// Over UDP.
    datagram: usize,
}

impl Sizes {
    /// No packet is as large as it may be.
    pub(crate) const SMALL: Self = Self {
        stream: 1_000,
        datagram: 1_000,
    };
    /// Full-size segments, and a datagram in fragments.
    pub(crate) const LARGE: Self = Self {
        stream: 20_000,
        datagram: 4_000,
    };
}

/// How often a server looks whether it is to end.
const LOOKS_EVERY: i64 = 200_000;

/// Who answered, and the address that the question came from as the server saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) pod: String,
    pub(crate) source: IpAddr,
}

impl Answer {
    fn line(&self) -> String {
        format!("{} {}", self.pod, self.source)
    }

    fn read(line: &[u8]) -> Result<Self> {
        let line = std::str::from_utf8(line).context("no text")?;
        let (pod, source) = line.split_once(' ').with_context(|| line.to_owned())?;
        Ok(Self {
            pod: pod.to_owned(),
            source: source.parse().with_context(|| line.to_owned())?,
        })
    }
}

/// A server in a pod, up to its end.
#[derive(Debug)]
pub(crate) struct Server {
    ends: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    /// Listens in a pod's namespace, on its address.
    pub(crate) fn start(lab: &Lab, pod: &str, address: IpAddr) -> Result<Self> {
        let listen = || {
            Ok((
                TcpListener::bind((address, PORT))?,
                UdpSocket::bind((address, PORT))?,
            ))
        };
        // A new IPv6 address is nobody's until the kernel has asked whether it is another's (RFC 4862, section 5.4).
        let what = format!("{pod} to listen on {address}");
        let (tcp, udp) = wait_until(&what, SETTLED_WITHIN, || lab.namespace(pod).within(listen))?;
        // accept(2) returns after it, too (socket(7)).
        let timeout = TimeVal::new(0, LOOKS_EVERY);
        setsockopt(&tcp.as_fd(), sockopt::ReceiveTimeout, &timeout)?;
        setsockopt(&udp.as_fd(), sockopt::ReceiveTimeout, &timeout)?;
        let ends = Arc::new(AtomicBool::new(false));
        let (name, ended) = (pod.to_owned(), Arc::clone(&ends));
        let connections = thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                if let Ok((stream, source)) = tcp.accept() {
                    let (name, ended) = (name.clone(), Arc::clone(&ended));
                    // A client that goes away in the middle is the client's matter.
                    thread::spawn(move || drop(serve(stream, source.ip(), &name, &ended)));
                }
            }
        });
        let (name, ended) = (pod.to_owned(), Arc::clone(&ends));
        let datagrams = thread::spawn(move || {
            let mut question = [0; 2 * Sizes::LARGE.datagram];
            while !ended.load(Ordering::Relaxed) {
                if let Ok((length, source)) = udp.recv_from(&mut question) {
                    let answer = Answer {
                        pod: name.clone(),
                        source: source.ip(),
                    };
                    let whole = [answer.line().as_bytes(), b"\n", &question[..length]].concat();
                    // Whoever waits for it says that it did not come.
                    let _ = udp.send_to(&whole, source);
                }
            }
        });
        Ok(Self {
            ends,
            threads: vec![connections, datagrams],
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A panic of it has been printed.
            let _ = thread.join();
        }
    }
}

/// Answers questions on one connection until the client closes it: a length and as many octets, which the answer has again behind its line.
fn serve(mut stream: TcpStream, source: IpAddr, pod: &str, ends: &AtomicBool) -> Result<()> {
    stream.set_nodelay(true)?;
    let answer = Answer {
        pod: pod.to_owned(),
        source,
    };
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    loop {
        let mut length = [0; 4];
        let mut first = 0;
        while first == 0 {
            match stream.read(&mut length) {
                Ok(0) => return Ok(()),
                Ok(read) => first = read,
                Err(error) if waited(&error) && !ends.load(Ordering::Relaxed) => {}
                Err(error) => return Err(error.into()),
            }
        }
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        stream.read_exact(&mut length[first..])?;
        let mut question = vec![0; usize::try_from(u32::from_be_bytes(length))?];
        stream.read_exact(&mut question)?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        let line = answer.line();
        let mut whole = u32::try_from(line.len())?.to_be_bytes().to_vec();
        whole.extend_from_slice(line.as_bytes());
        whole.extend_from_slice(&question);
        stream.write_all(&whole)?;
    }
}

fn waited(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// No address, of the same family.
fn any(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// Connects from the namespace that the thread is in.
pub(crate) fn connect(target: SocketAddr, limit: Duration) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&target, limit).context("no connection")?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    Ok(stream)
}

/// Asks on a connection, with so many octets each way.
pub(crate) fn ask_on(stream: &mut TcpStream, payload: usize) -> Result<Answer> {
    let question: Vec<u8> = (0..payload).map(|place| (place % 251) as u8).collect();
    let mut whole = u32::try_from(payload)?.to_be_bytes().to_vec();
    whole.extend_from_slice(&question);
    stream.write_all(&whole).context("the question does not go out")?;
    let mut length = [0; 4];
    stream.read_exact(&mut length).context("no answer")?;
    let mut line = vec![0; usize::try_from(u32::from_be_bytes(length))?];
    stream.read_exact(&mut line).context("no whole answer")?;
    let mut again = vec![0; payload];
    stream.read_exact(&mut again).context("no whole answer")?;
    ensure!(again == question, "another payload came back");
    Answer::read(&line)
}

/// Asks over TCP from the namespace that the thread is in.
pub(crate) fn ask_tcp(target: SocketAddr, sizes: Sizes, limit: Duration) -> Result<Answer> {
    ask_on(&mut connect(target, limit)?, sizes.stream)
}

/// The same over UDP. IPv4's routers take a datagram apart that is too large for the next link; IPv6's drop it and say so (RFC 8200, section 5),
/// and who has asked learns the path's MTU by that (RFC 8201) and has to ask again. Over IPv4 once.
pub(crate) fn ask_udp(target: SocketAddr, sizes: Sizes, limit: Duration) -> Result<Answer> {
    let socket = UdpSocket::bind((any(target.ip()), 0))?;
    socket.connect(target)?;
    let question = vec![7; sizes.datagram];
    let mut answer = [0; 2 * Sizes::LARGE.datagram];
    let asks_again_after = if target.is_ipv4() {
        limit
    } else {
        limit.min(Duration::from_secs(1))
    };
    socket.set_read_timeout(Some(asks_again_after))?;
    let begun = Instant::now();
    let length = loop {
        socket.send(&question).context("the question does not go out")?;
        match socket.recv(&mut answer) {
            Err(error)
                if target.is_ipv6()
                    && begun.elapsed() < limit
                    && (waited(&error) || error.raw_os_error() == Some(Errno::EMSGSIZE as i32)) => {}
            received => break received.context("no answer")?,
        }
    };
    let end = answer
        .iter()
        .position(|octet| *octet == b'\n')
        .context("no whole line")?;
    ensure!(answer[end + 1..length] == question, "another payload came back");
    Answer::read(&answer[..end])
}
