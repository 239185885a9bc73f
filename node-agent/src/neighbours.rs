//! The peers on the link, kept known to the kernel by their link-layer addresses.
//!
//! The programs take a plain packet with a pod's source only from its node's own link-layer address, and ask the kernel for that
//! (docs/datapath.md, "underlay_ingress, plain packets"). The kernel itself finds it out when it sends something there. A node that only receives
//! does not, nor does one whose probes go by the other of two families; and with IPv6 it does not learn it from who asks for its own: that is a
//! link-local address (RFC 4861, section 7.2.2).

use nix::net::if_::if_nametoindex;
use podlane_plan::datapath::{Datapath as Planned, Owner};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, SocketAddrV6, UdpSocket};
use std::time::{Duration, Instant};

/// The discard port (RFC 863), for packets that only make the kernel resolve a neighbour.
const DISCARD: u16 = 9;

/// How often each is asked for. The kernel forgets none within 60 s (`gc_stale_time`, Documentation/networking/ip-sysctl.rst); one that was
/// down is known again after this.
const AGAIN: Duration = Duration::from_secs(10);

/// How many are asked for at once: each that does not answer has a place in the kernel's table for some seconds.
const AT_ONCE: usize = 256;

/// How long after those the next ones are.
const REST: Duration = Duration::from_millis(200);

/// The neighbours that the programs want to know, and when each is to be asked for.
#[derive(Debug, Default)]
pub(crate) struct Neighbours {
    due: BTreeMap<IpAddr, Instant>,
    not_before: Option<Instant>,
}

impl Neighbours {
    /// Takes in which they are. New ones are due at once.
    pub(crate) fn aim(&mut self, planned: &Planned, now: Instant) {
        let wanted = |owner: &Owner| match owner {
            Owner::Peer {
                native: Some(lane), ..
            } if lane.on_link => Some(lane.next_hop),
            _ => None,
        };
        let wanted = planned.networks.values().filter_map(wanted);
        self.due = wanted
            .map(|next_hop| (next_hop, self.due.get(&next_hop).copied().unwrap_or(now)))
            .collect();
    }

    /// When some are to be asked for next.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        let first = *self.due.values().min()?;
        Some(self.not_before.map_or(first, |not_before| first.max(not_before)))
    }

    /// Has the kernel look for those that are to be asked for now.
    pub(crate) fn resolve_due(&mut self, now: Instant) {
        for next_hop in self.take_due(now) {
            resolve(&next_hop, None);
        }
    }

    /// Those that are to be asked for now.
    fn take_due(&mut self, now: Instant) -> Vec<IpAddr> {
        if self.next_due().is_none_or(|due| due > now) {
            return Vec::new();
        }
        let due = self.due.iter_mut().filter(|(_, due)| **due <= now);
        let taken = due.take(AT_ONCE).map(|(next_hop, due)| {
            *due = now + AGAIN;
            *next_hop
        });
        let taken: Vec<IpAddr> = taken.collect();
        self.not_before = Some(now + REST);
        taken
    }
}

/// Has the kernel look for a neighbour's link-layer address: any packet to it does. An address of a link, as IPv6 routers have on it, is one only together
/// with its device.
pub(crate) fn resolve(next_hop: &IpAddr, device: Option<&str>) {
    let any: IpAddr = if next_hop.is_ipv4() {
        [0; 4].into()
    } else {
        [0_u16; 8].into()
    };
    let to: SocketAddr = match (next_hop, device) {
        (IpAddr::V6(address), Some(device)) if address.is_unicast_link_local() => {
            // A device that is gone has no neighbours.
            let Ok(index) = if_nametoindex(device) else { return };
            SocketAddrV6::new(*address, DISCARD, 0, index).into()
        }
        _ => (*next_hop, DISCARD).into(),
    };
    // Whether it was sent makes no difference: it is sent again.
    let _ = UdpSocket::bind((any, 0)).and_then(|socket| socket.send_to(&[], to));
}

#[cfg(test)]
mod tests {
    use super::*;
    use podlane_plan::datapath::NativeLane;

    fn planned(peers: &[(&str, &str, bool)]) -> Planned {
        let network = |(pods, next_hop, on_link): &(&str, &str, bool)| {
            let native = Some(NativeLane {
                device: "eth0".to_owned(),
                next_hop: next_hop.parse().expect("an address"),
                on_link: *on_link,
                mtu: 1500,
            });
            let owner = Owner::Peer { outer: None, native };
            (pods.parse().expect("a CIDR"), owner)
        };
        Planned {
            networks: peers.iter().map(network).collect(),
            ..Planned::default()
        }
    }

    fn words(taken: &[IpAddr]) -> Vec<String> {
        taken.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn those_on_the_link_are_asked_for_in_every_family_and_again() {
        let now = Instant::now();
        let mut neighbours = Neighbours::default();
        let both = [
            ("172.20.1.0/24", "192.168.10.101", true),
            ("fd00:20:1::/64", "fd10::101", true),
            ("172.20.2.0/24", "192.168.10.200", false),
        ];
        neighbours.aim(&planned(&both), now);
        assert_eq!(neighbours.next_due(), Some(now));
        let taken = words(&neighbours.take_due(now));
        assert_eq!(taken, ["192.168.10.101", "fd10::101"]);
        assert_eq!(neighbours.next_due(), Some(now + AGAIN));
        // A plan that says the same asks for nothing; a new peer is asked for after a rest.
        neighbours.aim(&planned(&both), now);
        assert!(neighbours.take_due(now).is_empty());
        let more = [both[0], both[1], ("172.20.3.0/24", "192.168.10.103", true)];
        neighbours.aim(&planned(&more), now);
        assert_eq!(neighbours.next_due(), Some(now + REST));
        assert_eq!(words(&neighbours.take_due(now + REST)), ["192.168.10.103"]);
        assert_eq!(neighbours.take_due(now + AGAIN).len(), 2);
        neighbours.aim(&Planned::default(), now);
        assert_eq!(neighbours.next_due(), None);
    }

    #[test]
    fn thousands_are_asked_for_in_parts() {
        let mut now = Instant::now();
        let mut neighbours = Neighbours::default();
        let peers: Vec<_> = (0..1000)
            .map(|n| {
                (
                    format!("172.{}.{}.0/24", n / 256, n % 256),
                    format!("10.0.{}.{}", n / 256, n % 256),
                )
            })
            .collect();
        let peers: Vec<_> = peers
            .iter()
            .map(|(pods, at)| (pods.as_str(), at.as_str(), true))
            .collect();
        neighbours.aim(&planned(&peers), now);
        let mut parts = Vec::new();
        while parts.iter().sum::<usize>() < peers.len() {
            parts.push(neighbours.take_due(now).len());
            now = neighbours.next_due().expect("some");
        }
        assert_eq!(parts, [256, 256, 256, 232]);
    }
}
