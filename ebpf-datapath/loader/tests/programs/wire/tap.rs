//! Frames by a packet socket, in and out.

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// How long a frame may take that has to come: much, for a machine that is emulated by one with other things to do.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Frames of a device, in and out.
pub(crate) struct Tap(OwnedFd);

impl Tap {
    /// Of a device in the calling thread's namespace.
    pub(crate) fn on(device: &str) -> Self {
        let socket = socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::EthAll,
        )
        .expect("a packet socket");
        let link = nix::ifaddrs::getifaddrs()
            .expect("devices")
            .filter(|found| found.interface_name == device)
            .find_map(|found| found.address.and_then(|address| address.as_link_addr().copied()))
            .unwrap_or_else(|| panic!("no device {device}"));
        bind(socket.as_raw_fd(), &link).expect("bound to the device");
        let wait = TimeVal::new(0, 100_000);
        setsockopt(&socket, sockopt::ReceiveTimeout, &wait).expect("a time limit");
        Self(socket)
    }

    pub(crate) fn send(&self, frame: &[u8]) {
        let sent = send(self.0.as_raw_fd(), frame, MsgFlags::empty());
        assert_eq!(sent, Ok(frame.len()), "{} octets", frame.len());
    }

    /// Whether such a frame has come already.
    pub(crate) fn any(&self, wanted: impl Fn(&[u8]) -> bool) -> bool {
        self.at_once(wanted).is_some()
    }

    /// The first frame that is wanted of those that have come already.
    pub(crate) fn at_once(&self, wanted: impl Fn(&[u8]) -> bool) -> Option<Vec<u8>> {
        let mut frame = vec![0; 65536];
        while let Ok(length) = recv(self.0.as_raw_fd(), &mut frame, MsgFlags::MSG_DONTWAIT) {
            if wanted(&frame[..length]) {
                return Some(frame[..length].to_vec());
            }
        }
        None
    }

    /// The next frame that is wanted; none while there is [`PATIENCE`].
    pub(crate) fn next(&self, wanted: impl Fn(&[u8]) -> bool) -> Option<Vec<u8>> {
        let mut frame = vec![0; 65536];
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            if let Ok(length) = recv(self.0.as_raw_fd(), &mut frame, MsgFlags::empty())
                && wanted(&frame[..length])
            {
                return Some(frame[..length].to_vec());
            }
        }
        None
    }
}
