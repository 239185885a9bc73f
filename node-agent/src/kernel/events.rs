//! The kernel's notifications. They carry no state into a pass: they only wake it.

use super::nftables::is_about_ours;
use super::wire::{Message, Messages};
use netlink_packet_core::{NetlinkDeserializable, NetlinkHeader};
use netlink_packet_route::neighbour::NeighbourMessage;
use netlink_packet_route::route::{RouteAttribute, RouteFlags, RouteHeader, RouteMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{
    Socket, SocketAddr,
    protocols::{NETLINK_NETFILTER, NETLINK_ROUTE},
};
use nix::errno::Errno;
use nix::libc::{MSG_DONTWAIT, MSG_TRUNC};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt};
use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::JoinHandle;
use tokio::sync::Notify;

/// `RTNLGRP_LINK`, `_NEIGH`, `_IPV4_IFADDR`, `_IPV4_ROUTE`, `_IPV6_IFADDR`, `_IPV6_ROUTE` (include/uapi/linux/rtnetlink.h).
const GROUPS: [u32; 6] = [1, 3, 5, 7, 9, 11];

/// `NFNLGRP_NFTABLES` (include/uapi/linux/netfilter/nfnetlink.h).
const NETFILTER_GROUPS: [u32; 1] = [7];

/// How often the thread looks whether it is to end, in milliseconds.
const LOOK: u16 = 200;

/// Room for a burst of notifications: a whole table's routes going with a device. Beyond it the kernel says ENOBUFS, and that
/// wakes a pass too.
const RECEIVE_QUEUE: usize = 4 * 1024 * 1024;

/// What tells the notifications that matter from the others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interest {
    /// The indices of our devices.
    pub devices: BTreeSet<u32>,
    /// The port of the socket by which this agent changes the kernel.
    pub own_port: Option<u32>,
    /// The port of the socket by which it changes nftables.
    pub own_netfilter_port: Option<u32>,
}

/// Whether a notification may be about something that a pass reads. Neighbours come and go with every pod's ARP; only those on
/// our own devices count.
pub fn is_relevant(message: &RouteNetlinkMessage, interest: &Interest) -> bool {
    let neighbour = |message: &NeighbourMessage| {
        let family = message.header.family;
        interest.devices.contains(&message.header.ifindex)
            && [AddressFamily::Inet, AddressFamily::Inet6].contains(&family)
    };
    match message {
        RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link) => {
            link.header.interface_family != AddressFamily::Bridge
        }
        RouteNetlinkMessage::NewAddress(_) | RouteNetlinkMessage::DelAddress(_) => true,
        RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) => in_main_table(route),
        RouteNetlinkMessage::NewNeighbour(message) | RouteNetlinkMessage::DelNeighbour(message) => {
            neighbour(message)
        }
        _ => false,
    }
}

fn in_main_table(route: &RouteMessage) -> bool {
    let table = route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Table(table) => Some(*table),
            _ => None,
        })
        .unwrap_or(u32::from(route.header.table));
    table == u32::from(RouteHeader::RT_TABLE_MAIN) && !route.header.flags.contains(RouteFlags::Cloned)
}

/// Whether a datagram of notifications wakes a pass. What cannot be read might matter.
fn wakes(datagram: &[u8], interest: &Interest) -> bool {
    let relevant = |message: &Message<'_>| {
        let mut header = NetlinkHeader::default();
        header.message_type = message.kind;
        RouteNetlinkMessage::deserialize(&header, message.payload)
            .map_or(true, |message| is_relevant(&message, interest))
    };
    Messages(datagram).any(|message| match message {
        Ok(message) if interest.own_port == Some(message.port) => false,
        Ok(message) => relevant(&message),
        Err(()) => true,
    })
}

/// The same of a datagram about nftables, of which only our own table counts.
fn nftables_wake(datagram: &[u8], interest: &Interest) -> bool {
    Messages(datagram).any(|message| match message {
        Ok(message) if interest.own_netfilter_port == Some(message.port) => false,
        Ok(message) => is_about_ours(&message),
        Err(()) => true,
    })
}

/// A thread that listens to the kernel. It ends when this is dropped.
#[derive(Debug)]
pub struct Events {
    interest: Arc<RwLock<Interest>>,
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Events {
    /// Listens in the calling thread's network namespace, and notifies `wake`.
    ///
    /// # Errors
    /// When there can be no such socket, or no thread.
    pub fn listen(wake: Arc<Notify>) -> io::Result<Self> {
        let mut ears = vec![Ear {
            socket: open(NETLINK_ROUTE, &GROUPS)?,
            wakes,
        }];
        // A kernel without netfilter has no such socket, and nothing to say by it.
        ears.extend(open(NETLINK_NETFILTER, &NETFILTER_GROUPS).ok().map(|socket| Ear {
            socket,
            wakes: nftables_wake,
        }));
        let interest = Arc::new(RwLock::new(Interest::default()));
        let end = Arc::new(AtomicBool::new(false));
        let thread = {
            let (interest, end) = (Arc::clone(&interest), Arc::clone(&end));
            std::thread::Builder::new()
                .name("kernel-events".to_owned())
                .spawn(move || {
                    let mut buffer = vec![0; 64 * 1024];
                    while !end.load(Ordering::Relaxed) {
                        if hear(&ears, &mut buffer, &interest) {
                            wake.notify_one();
                        }
                    }
                })?
        };
        Ok(Self {
            interest,
            end,
            thread: Some(thread),
        })
    }

    /// Says what counts from now on.
    pub fn set_interest(&self, interest: Interest) {
        *self.interest.write().unwrap_or_else(PoisonError::into_inner) = interest;
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It looks at `end` every 200 ms. A panic in it has been printed already.
            let _ = thread.join();
        }
    }
}

/// A socket that hears notifications, and which of them wake a pass.
struct Ear {
    socket: Socket,
    wakes: fn(&[u8], &Interest) -> bool,
}

/// Waits for notifications, and says whether they wake a pass.
fn hear(ears: &[Ear], buffer: &mut Vec<u8>, interest: &RwLock<Interest>) -> bool {
    let mut waiting: Vec<PollFd<'_>> = ears
        .iter()
        .map(|ear| PollFd::new(ear.socket.as_fd(), PollFlags::POLLIN))
        .collect();
    // Errors of the sockets are told by receiving; an interruption is nothing.
    if poll(&mut waiting, PollTimeout::from(LOOK)).unwrap_or(0) == 0 {
        return false;
    }
    let ready: Vec<bool> = waiting
        .iter()
        .map(|waiting| waiting.any().unwrap_or(true))
        .collect();
    let heard = ears.iter().zip(ready).filter(|(_, is_ready)| *is_ready);
    heard.fold(false, |wakes, (ear, _)| receive(ear, buffer, interest) || wakes)
}

fn receive(ear: &Ear, buffer: &mut Vec<u8>, interest: &RwLock<Interest>) -> bool {
    match ear
        .socket
        .recv(&mut buffer.as_mut_slice(), MSG_TRUNC | MSG_DONTWAIT)
    {
        Ok(length) if length > buffer.len() => {
            buffer.resize(length, 0);
            true
        }
        Ok(length) => (ear.wakes)(
            &buffer[..length],
            &interest.read().unwrap_or_else(PoisonError::into_inner),
        ),
        Err(error) => match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => false,
            // ENOBUFS: notifications are lost (`netlink_overrun` in net/netlink/af_netlink.c). A pass reads everything anyway.
            _ if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => true,
            _ => {
                tracing::warn!(%error, "kernel notifications cannot be received; the slow timer remains");
                std::thread::sleep(std::time::Duration::from_secs(1));
                false
            }
        },
    }
}

fn open(protocol: isize, groups: &[u32]) -> io::Result<Socket> {
    let mut socket = Socket::new(protocol)?;
    socket.bind(&SocketAddr::new(0, 0))?;
    for group in groups {
        socket.add_membership(*group)?;
    }
    // Beyond net.core.rmem_max where the agent may (NET_ADMIN), and up to it where not.
    if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_QUEUE).is_err() {
        let _ = setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_QUEUE);
    }
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::super::wire::tests::message;
    use super::*;
    use netlink_packet_route::address::AddressMessage;
    use netlink_packet_route::link::LinkMessage;
    use netlink_packet_route::route::RouteProtocol;

    fn interest() -> Interest {
        Interest {
            devices: BTreeSet::from([9]),
            own_port: Some(77),
            own_netfilter_port: Some(78),
        }
    }

    fn neighbour(index: u32, family: AddressFamily) -> RouteNetlinkMessage {
        let mut message = NeighbourMessage::default();
        message.header.ifindex = index;
        message.header.family = family;
        RouteNetlinkMessage::DelNeighbour(message)
    }

    fn route(table: u8, attributes: Vec<RouteAttribute>) -> RouteNetlinkMessage {
        let mut message = RouteMessage::default();
        message.header.table = table;
        message.header.protocol = RouteProtocol::Static;
        message.attributes = attributes;
        RouteNetlinkMessage::NewRoute(message)
    }

    #[test]
    fn a_pods_neighbours_do_not_wake_and_ours_do() {
        assert!(is_relevant(&neighbour(9, AddressFamily::Inet), &interest()));
        assert!(is_relevant(&neighbour(9, AddressFamily::Inet6), &interest()));
        assert!(!is_relevant(&neighbour(9, AddressFamily::Bridge), &interest()));
        assert!(!is_relevant(&neighbour(4, AddressFamily::Inet), &interest()));
    }

    #[test]
    fn links_addresses_and_the_main_table_wake() {
        assert!(is_relevant(
            &RouteNetlinkMessage::NewLink(LinkMessage::default()),
            &interest()
        ));
        assert!(is_relevant(
            &RouteNetlinkMessage::DelAddress(AddressMessage::default()),
            &interest()
        ));
        assert!(is_relevant(&route(254, vec![]), &interest()));
        assert!(is_relevant(
            &route(252, vec![RouteAttribute::Table(254)]),
            &interest()
        ));
        assert!(!is_relevant(&route(255, vec![]), &interest()));
        assert!(!is_relevant(
            &route(252, vec![RouteAttribute::Table(1000)]),
            &interest()
        ));
    }

    #[test]
    fn our_own_changes_do_not_wake_and_what_cannot_be_read_does() {
        const DELROUTE: u16 = 25;
        let main = [2, 24, 0, 0, 254, 4, 0, 1, 0, 0, 0, 0];
        let others = message(DELROUTE, 0, 0, &main);
        let mut own = others.clone();
        own[12..16].copy_from_slice(&77_u32.to_ne_bytes());
        assert!(wakes(&others, &interest()));
        assert!(!wakes(&own, &interest()));
        assert!(wakes(&[own, others].concat(), &interest()));
        assert!(wakes(&message(DELROUTE, 0, 0, &[1]), &interest()));
        assert!(wakes(&[1, 2, 3], &interest()));
    }

    #[test]
    fn of_nftables_our_own_table_alone_wakes() {
        /// `NFT_MSG_DELTABLE` of the subsystem 10.
        const DELTABLE: u16 = 10 << 8 | 2;
        let about = |family: u8, table: &str, port: u32| {
            let mut payload = vec![family, 0, 0, 0];
            payload.extend(super::super::wire::tests::attribute(1, table.as_bytes()));
            let mut message = message(DELTABLE, 0, 0, &payload);
            message[12..16].copy_from_slice(&port.to_ne_bytes());
            nftables_wake(&message, &interest())
        };
        assert!(about(1, "podlane\0", 5));
        assert!(!about(1, "podlane\0", 78), "our own change");
        assert!(!about(2, "podlane\0", 5), "another family's");
        assert!(!about(1, "filter\0", 5));
    }
}
