//! A default route out of a router's advertisement (RFC 4861, section 4.2), as nodes have it where addresses configure themselves.

use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::AsRawFd as _;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6, sendto, setsockopt, socket,
    sockopt,
};
use podlane_e2e::lab::Lab;
use podlane_e2e::scenario::Context;
use podlane_e2e::story::{ensure_none_lost, vxlan};
use podlane_e2e::topology::ROUTER;
use podlane_e2e::wait::wait_until;

use crate::{pods_of_four_over_six, ready, streams};

/// How long a kernel may take to have the route.
const HEARD_WITHIN: Duration = Duration::from_secs(20);

/// A kernel that forwards ignores advertisements, and forgets what it has from them, unless it is told otherwise.
pub(crate) fn keeps_its_default_route(context: &mut Context) -> Result<()> {
    let lab = pods_of_four_over_six(context)?;
    let node = lab.namespace("k8s-w0");
    let defaults = || node.ip(&["-6", "route", "show", "default"]);
    node.set_parameters(&[("ipv6/conf/eth0/accept_ra", "1")])?;
    node.ip(&["-6", "route", "delete", "default"])?;
    advertise(lab, "eth2")?;
    wait_until("k8s-w0 to take the advertisement", HEARD_WITHIN, || {
        let is = defaults()?;
        ensure!(is.contains("proto ra"), "its default routes: {is}");
        Ok(())
    })?;

    ready(lab, &vxlan())?;
    let is = defaults()?;
    ensure!(is.contains("proto ra"), "its default routes: {is}");
    let streams = streams(lab, &[("k8s-ctr", "k8s-w0")])?;
    sleep(Duration::from_millis(500));
    ensure_none_lost(streams)?;

    node.ip(&["-6", "route", "delete", "default", "proto", "ra"])?;
    node.ip(&["-6", "route", "add", "default", "via", "fd00:192:20::200"])
        .map(drop)
}

/// The router says on a link that it is a default router, for half an hour.
fn advertise(lab: &Lab, interface: &str) -> Result<()> {
    const ADVERTISEMENT: [u8; 16] = {
        let mut octets = [0; 16];
        octets[0] = 134;
        // Hop limit, and the lifetime in seconds.
        octets[4] = 64;
        [octets[6], octets[7]] = 1800_u16.to_be_bytes();
        octets
    };
    const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    lab.namespace(ROUTER)
        .within(|| {
            let socket = socket(
                AddressFamily::Inet6,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC,
                SockProtocol::IcmpV6,
            )?;
            // From beyond the link it would count for nothing.
            setsockopt(&socket, sockopt::Ipv6MulticastHops, &255)?;
            let to = SocketAddrV6::new(ALL_NODES, 0, 0, if_nametoindex(interface)?);
            sendto(
                socket.as_raw_fd(),
                &ADVERTISEMENT,
                &SockaddrIn6::from(to),
                MsgFlags::empty(),
            )?;
            Ok(())
        })
        .context("cannot advertise the router")
}
