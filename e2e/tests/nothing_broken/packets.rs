//! Packets as they are: a socket that sees a device's frames, datagrams with a traffic class.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::libc::{sock_extended_err, sockaddr_in6};
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, bind,
    recv, recvmsg, send, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use podlane_e2e::lab::Lab;
use podlane_e2e::traffic::raw::{FRAGMENT, FRAGMENT_HEADER};

use crate::family::{self, Family};

/// How long to wait for a packet that should come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(15);

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

/// An IP packet behind an Ethernet header: IPv4 without options, or IPv6 without extensions other than a fragment's.
#[derive(Clone, Copy)]
pub(crate) struct Packet<'a>(Family, &'a [u8]);

impl<'a> Packet<'a> {
    /// In a frame.
    pub(crate) fn of_frame(frame: &'a [u8]) -> Option<Self> {
        let (header, packet) = frame.split_at_checked(14)?;
        let family = match header[12..] {
            [0x08, 0x00] if packet.len() >= 20 && packet[0] == 0x45 => Family::Four,
            [0x86, 0xdd] if packet.len() >= 40 && packet[0] >> 4 == 6 => {
                if packet[6] == FRAGMENT && packet.len() < 40 + FRAGMENT_HEADER {
                    return None;
                }
                Family::Six
            }
            _ => return None,
        };
        Some(Self(family, packet))
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
        match self.0 {
            Family::Four => self.1[1],
            Family::Six => self.1[0] << 4 | self.1[1] >> 4,
        }
    }

    /// The protocol's number.
    pub(crate) fn protocol(self) -> u8 {
        match self.0 {
            Family::Four => self.1[9],
            Family::Six if self.1[6] == FRAGMENT => self.1[40],
            Family::Six => self.1[6],
        }
    }

    /// From whom.
    pub(crate) fn source(self) -> IpAddr {
        match self.0 {
            Family::Four => Ipv4Addr::from(std::array::from_fn(|place| self.1[12 + place])).into(),
            Family::Six => {
                let octets: [u8; 16] = std::array::from_fn(|place| self.1[8 + place]);
                Ipv6Addr::from(octets).into()
            }
        }
    }

    /// What is behind the header, and what pads the frame.
    pub(crate) fn payload(self) -> &'a [u8] {
        match self.0 {
            Family::Four => &self.1[20..],
            Family::Six if self.1[6] == FRAGMENT => &self.1[40 + FRAGMENT_HEADER..],
            Family::Six => &self.1[40..],
        }
    }
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
    pub(crate) fn to_address(lab: &Lab, from: &str, to: &str, address: IpAddr) -> Result<Self> {
        let family = Family::of(address);
        let bound = || UdpSocket::bind((family.any(), 0)).context("cannot bind");
        let server = lab.namespace(to).within(bound)?;
        match family {
            Family::Four => setsockopt(&server, sockopt::IpRecvTos, &true),
            Family::Six => setsockopt(&server, sockopt::Ipv6RecvTClass, &true),
        }
        .context("to be told the traffic class")?;
        let to = SocketAddr::new(address, server.local_addr()?.port());
        // A socket is routed as soon as it is connected: in its own namespace, wherever that is done.
        let client = lab.namespace(from).within(bound)?;
        client.connect(to)?;
        match family {
            Family::Four => setsockopt(&client, sockopt::Ipv4RecvErr, &true),
            Family::Six => setsockopt(&client, sockopt::Ipv6RecvErr, &true),
        }
        .context("to be told of errors")?;
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
        let mut space = nix::cmsg_space!(i32);
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
            ControlMessageOwned::Ipv6TClass(class) => u8::try_from(class).ok(),
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
        match Family::of(self.to.ip()) {
            Family::Four => setsockopt(&self.client, sockopt::Ipv4Tos, &i32::from(class)),
            Family::Six => setsockopt(&self.client, sockopt::Ipv6TClass, &i32::from(class)),
        }
        .context("a traffic class")?;
        match self.client.send(payload) {
            Ok(_) => Ok(()),
            Err(error) => bail!("class {class}: {error}"),
        }
    }

    /// Lets what is sent from now on pass so many hops.
    pub(crate) fn set_hops(&self, hops: u32) -> Result<()> {
        match Family::of(self.to.ip()) {
            Family::Four => self.client.set_ttl(hops)?,
            Family::Six => setsockopt(&self.client, sockopt::Ipv6Ttl, &i32::try_from(hops)?)?,
        }
        Ok(())
    }

    /// The ICMP error that came for what was sent, if there is one by now.
    pub(crate) fn error(&self) -> Result<Option<IcmpError>> {
        let mut payload = [0; 64];
        let mut space = nix::cmsg_space!(sock_extended_err, sockaddr_in6);
        let mut parts = [std::io::IoSliceMut::new(&mut payload)];
        let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
        let message =
            match recvmsg::<SockaddrStorage>(self.client.as_raw_fd(), &mut parts, Some(&mut space), flags) {
                Ok(message) => message,
                Err(Errno::EAGAIN) => return Ok(None),
                Err(error) => return Err(error.into()),
            };
        let found = message.cmsgs()?.find_map(|one| match one {
            ControlMessageOwned::Ipv4RecvErr(error, Some(from)) => Some(IcmpError {
                what: (error.ee_type, error.ee_code),
                mtu: error.ee_info,
                from: Ipv4Addr::from(u32::from_be(from.sin_addr.s_addr)).into(),
            }),
            ControlMessageOwned::Ipv6RecvErr(error, Some(from)) => Some(IcmpError {
                what: (error.ee_type, error.ee_code),
                mtu: error.ee_info,
                from: Ipv6Addr::from(from.sin6_addr.s6_addr).into(),
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

/// An ICMP error (RFC 792, RFC 4443).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IcmpError {
    pub(crate) what: family::Error,
    /// Of "fragmentation needed" (RFC 1191) and "packet too big" (RFC 4443).
    pub(crate) mtu: u32,
    /// Who sent it.
    pub(crate) from: IpAddr,
}
