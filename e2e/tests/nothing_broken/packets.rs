//! Packets as they are: a socket that sees a device's frames, one that sends IP packets of any protocol, datagrams with a traffic class.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::libc::{sock_extended_err, sockaddr_in};
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, bind, recv,
    recvmsg, send, sendto, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use podlane_e2e::lab::Lab;

/// How long to wait for a packet that should come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);

/// How long a packet that must not come is waited for.
pub(crate) const SILENCE: Duration = Duration::from_millis(200);

/// The bits of a traffic class that are ECN's (RFC 3168, section 5).
pub(crate) const ECN: u8 = 0b11;

/// Frames of a device, in and out.
pub(crate) struct Tap(OwnedFd);

impl Tap {
    /// Of a device in a namespace of the lab's.
    pub(crate) fn on(lab: &Lab, namespace: &str, device: &str) -> Result<Self> {
        lab.namespace(namespace).within(|| {
            let socket = socket(
                AddressFamily::Packet,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC,
                SockProtocol::EthAll,
            )
            .context("a packet socket")?;
            let link = nix::ifaddrs::getifaddrs()?
                .filter(|found| found.interface_name == device)
                .find_map(|found| found.address.and_then(|address| address.as_link_addr().copied()))
                .with_context(|| format!("no device {device}"))?;
            bind(socket.as_raw_fd(), &link).context("bound to the device")?;
            setsockopt(&socket, sockopt::RcvBuf, &(4 << 20)).context("a large buffer")?;
            setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(0, 20_000)).context("a time limit")?;
            Ok(Self(socket))
        })
    }

    /// Sends a frame.
    pub(crate) fn send(&self, frame: &[u8]) -> Result<()> {
        let sent = send(self.0.as_raw_fd(), frame, MsgFlags::empty())?;
        ensure!(sent == frame.len(), "{sent} of {} octets", frame.len());
        Ok(())
    }

    /// The first `count` frames of which `wanted` makes something; fewer where they do not come.
    pub(crate) fn take<T>(&self, count: usize, mut wanted: impl FnMut(&[u8]) -> Option<T>) -> Vec<T> {
        let end = Instant::now() + PATIENCE;
        let mut frame = vec![0; 65536];
        let mut taken = Vec::new();
        while taken.len() < count && Instant::now() < end {
            if let Ok(length) = recv(self.0.as_raw_fd(), &mut frame, MsgFlags::empty()) {
                taken.extend(wanted(&frame[..length]));
            }
        }
        taken
    }
}

/// An IPv4 packet without options behind an Ethernet header.
#[derive(Clone, Copy)]
pub(crate) struct Ipv4<'a>(&'a [u8]);

impl<'a> Ipv4<'a> {
    /// In a frame.
    pub(crate) fn of_frame(frame: &'a [u8]) -> Option<Self> {
        let (header, packet) = frame.split_at_checked(14)?;
        let is_one = header[12..] == [0x08, 0x00] && packet.len() >= 20 && packet[0] == 0x45;
        is_one.then_some(Self(packet))
    }

    /// What a tunnel to this port carries.
    pub(crate) fn inside(self, port: u16) -> Option<Self> {
        const UDP_AND_TUNNEL: usize = 16;
        let is_one = self.destination_port() == Some(port);
        Self::of_frame(self.payload().get(UDP_AND_TUNNEL..)?).filter(|_| is_one)
    }

    /// Of a UDP datagram.
    pub(crate) fn destination_port(self) -> Option<u16> {
        let payload = self.payload();
        (self.protocol() == 17 && payload.len() >= 8).then(|| u16::from_be_bytes([payload[2], payload[3]]))
    }

    /// DSCP and ECN.
    pub(crate) fn class(self) -> u8 {
        self.0[1]
    }

    /// The protocol's number.
    pub(crate) fn protocol(self) -> u8 {
        self.0[9]
    }

    /// From whom.
    pub(crate) fn source(self) -> Ipv4Addr {
        Ipv4Addr::new(self.0[12], self.0[13], self.0[14], self.0[15])
    }

    /// What is behind the header, and what pads the frame.
    pub(crate) fn payload(self) -> &'a [u8] {
        &self.0[20..]
    }
}

/// Sends an IPv4 packet of any protocol; the kernel fills in length and checksum.
pub(crate) fn send_ip(
    lab: &Lab,
    from: &str,
    source: Ipv4Addr,
    to: Ipv4Addr,
    protocol: u8,
    payload: &[u8],
) -> Result<()> {
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0];
    packet.extend(source.octets());
    packet.extend(to.octets());
    packet.extend(payload);
    lab.namespace(from).within(|| {
        let socket = socket(
            AddressFamily::Inet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::Raw,
        )
        .context("a raw socket")?;
        let to = SockaddrIn::from(SocketAddrV4::new(to, 0));
        let sent = sendto(socket.as_raw_fd(), &packet, &to, MsgFlags::empty())?;
        ensure!(sent == packet.len(), "{sent} of {} octets", packet.len());
        Ok(())
    })
}

/// A pod's datagrams to another's, on sockets of their own.
pub(crate) struct Flow {
    pub(crate) client: UdpSocket,
    pub(crate) server: UdpSocket,
    pub(crate) to: SocketAddr,
}

impl Flow {
    /// From a pod to another's first address.
    pub(crate) fn between(lab: &Lab, from: &str, to: &str) -> Result<Self> {
        Self::to_address(lab, from, to, super::address(lab, to)?)
    }

    /// From a pod to an address that leads to another.
    pub(crate) fn to_address(lab: &Lab, from: &str, to: &str, address: Ipv4Addr) -> Result<Self> {
        let bound = || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("cannot bind");
        let server = lab.namespace(to).within(bound)?;
        setsockopt(&server, sockopt::IpRecvTos, &true).context("to be told the traffic class")?;
        let to = SocketAddr::new(address.into(), server.local_addr()?.port());
        // A socket is routed as soon as it is connected: in its own namespace, wherever that is done.
        let client = lab.namespace(from).within(bound)?;
        client.connect(to)?;
        setsockopt(&client, sockopt::Ipv4RecvErr, &true).context("to be told of errors")?;
        Ok(Self { client, server, to })
    }

    /// Sends `count` datagrams, each of which must arrive before the next is sent.
    pub(crate) fn warm(&self, count: u32) -> Result<()> {
        for number in 0..count {
            self.client.send(&number.to_be_bytes())?;
            let got = self.receive(PATIENCE)?;
            ensure!(
                got.as_ref()
                    .is_some_and(|got| got.payload == number.to_be_bytes()),
                "datagram {number} of {count} to {}: {got:?}",
                self.to
            );
        }
        Ok(())
    }

    /// The next datagram that arrives within a time.
    pub(crate) fn receive(&self, within: Duration) -> Result<Option<Received>> {
        self.server.set_read_timeout(Some(within))?;
        let mut payload = vec![0; 65536];
        let mut space = nix::cmsg_space!(u8);
        let mut parts = [std::io::IoSliceMut::new(&mut payload)];
        let message = match recvmsg::<()>(
            self.server.as_raw_fd(),
            &mut parts,
            Some(&mut space),
            MsgFlags::empty(),
        ) {
            Ok(message) => message,
            Err(Errno::EAGAIN) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let length = message.bytes;
        let class = message.cmsgs()?.find_map(|one| match one {
            ControlMessageOwned::Ipv4Tos(class) => Some(class),
            _ => None,
        });
        payload.truncate(length);
        Ok(Some(Received {
            class: class.context("the kernel tells no traffic class")?,
            payload,
        }))
    }

    /// Sends with a traffic class.
    pub(crate) fn send_in_class(&self, class: u8, payload: &[u8]) -> Result<()> {
        setsockopt(&self.client, sockopt::Ipv4Tos, &i32::from(class)).context("a traffic class")?;
        match self.client.send(payload) {
            Ok(_) => Ok(()),
            Err(error) => bail!("class {class}: {error}"),
        }
    }

    /// The ICMP error that came for what was sent, if there is one by now.
    pub(crate) fn error(&self) -> Result<Option<IcmpError>> {
        let mut payload = [0; 64];
        let mut space = nix::cmsg_space!(sock_extended_err, sockaddr_in);
        let mut parts = [std::io::IoSliceMut::new(&mut payload)];
        let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
        let message =
            match recvmsg::<SockaddrIn>(self.client.as_raw_fd(), &mut parts, Some(&mut space), flags) {
                Ok(message) => message,
                Err(Errno::EAGAIN) => return Ok(None),
                Err(error) => return Err(error.into()),
            };
        let found = message.cmsgs()?.find_map(|one| match one {
            ControlMessageOwned::Ipv4RecvErr(error, Some(from)) => Some(IcmpError {
                kind: error.ee_type,
                code: error.ee_code,
                mtu: error.ee_info,
                from: Ipv4Addr::from(u32::from_be(from.sin_addr.s_addr)),
            }),
            _ => None,
        });
        // The error also awaits the next call.
        let _ = self.client.take_error()?;
        Ok(found)
    }
}

/// A datagram that has arrived.
#[derive(Debug)]
pub(crate) struct Received {
    /// DSCP and ECN.
    pub(crate) class: u8,
    pub(crate) payload: Vec<u8>,
}

/// An ICMP error (RFC 792).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IcmpError {
    pub(crate) kind: u8,
    pub(crate) code: u8,
    /// Of "fragmentation needed" (RFC 1191).
    pub(crate) mtu: u32,
    /// Who sent it.
    pub(crate) from: Ipv4Addr,
}
