//! Nodes as they stand in each other's tables.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Family;

/// A node as other nodes see it: where it is, and which pods are behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    underlay: (Ipv4Addr, Ipv6Addr),
    cidr: (Ipv4Addr, Ipv6Addr),
}

impl Peer {
    /// The first node (`0`) or the second (`1`) of every site.
    pub(super) fn of_node(index: u8) -> Self {
        let subnet = [10, 20][usize::from(index)];
        let third = [0, 2][usize::from(index)];
        Self {
            underlay: (
                Ipv4Addr::new(192, 168, subnet, 100),
                Ipv6Addr::new(0xfd00, 0, 0, subnet.into(), 0, 0, 0, 0x100),
            ),
            cidr: (
                Ipv4Addr::new(172, 20, third, 0),
                Ipv6Addr::new(0xfd20, 0, 0, third.into(), 0, 0, 0, 0),
            ),
        }
    }

    /// A node that only stands in tables: number 0 to 32,767.
    pub(super) fn further(number: u16) -> Self {
        let [high, low] = number.to_be_bytes();
        Self {
            underlay: (
                Ipv4Addr::from(u32::from(Ipv4Addr::new(100, 64, 0, 0)) + u32::from(number)),
                Ipv6Addr::new(0xfd00, 0, 1, number, 0, 0, 0, 0x100),
            ),
            cidr: (
                Ipv4Addr::new(10, 128 | high, low, 0),
                Ipv6Addr::new(0xfd20, 0, 1, number, 0, 0, 0, 0),
            ),
        }
    }

    /// The node's own IPv4 address.
    pub fn address(&self) -> Ipv4Addr {
        self.underlay.0
    }

    /// The node's own IPv6 address.
    pub fn address_v6(&self) -> Ipv6Addr {
        self.underlay.1
    }

    /// The address that a route of plain routing has to lead to, of the same family as the pods.
    pub fn underlay(&self, family: Family) -> IpAddr {
        match family {
            Family::Ipv4 => self.underlay.0.into(),
            Family::Ipv6 => self.underlay.1.into(),
        }
    }

    /// The first address of the pod CIDR.
    pub fn network(&self, family: Family) -> IpAddr {
        match family {
            Family::Ipv4 => self.cidr.0.into(),
            Family::Ipv6 => self.cidr.1.into(),
        }
    }

    /// The pod CIDR as a word.
    pub fn pod_cidr(&self, family: Family) -> String {
        format!("{}/{}", self.network(family), family.pod_cidr_bits())
    }

    /// The node's router address: the gateway of its pods.
    pub fn router_address(&self, family: Family) -> IpAddr {
        self.within(family, 1)
    }

    /// The address of the node's pod.
    pub fn pod_address(&self, family: Family) -> IpAddr {
        self.within(family, 10)
    }

    fn within(&self, family: Family, number: u8) -> IpAddr {
        match family {
            Family::Ipv4 => Ipv4Addr::from(u32::from(self.cidr.0) | u32::from(number)).into(),
            Family::Ipv6 => Ipv6Addr::from(u128::from(self.cidr.1) | u128::from(number)).into(),
        }
    }

    /// A MAC address for the node's tunnel device, of its own as VXLAN wants it: `02:50` and the IPv4 address.
    pub fn tunnel_mac(&self) -> String {
        let [a, b, c, d] = self.underlay.0.octets();
        format!("02:50:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn further_peers_share_nothing() {
        let peers: Vec<Peer> = (0..32_767).map(Peer::further).collect();
        for family in Family::ALL {
            let underlays: BTreeSet<_> = peers.iter().map(|peer| peer.underlay(family)).collect();
            let cidrs: BTreeSet<_> = peers.iter().map(|peer| peer.pod_cidr(family)).collect();
            assert_eq!((underlays.len(), cidrs.len()), (peers.len(), peers.len()));
        }
    }

    #[test]
    fn addresses_of_a_node_are_within_its_pod_cidr() {
        let peer = Peer::of_node(1);
        assert_eq!(peer.pod_cidr(Family::Ipv4), "172.20.2.0/24");
        assert_eq!(peer.router_address(Family::Ipv4).to_string(), "172.20.2.1");
        assert_eq!(peer.pod_address(Family::Ipv6).to_string(), "fd20:0:0:2::a");
        assert_eq!(peer.tunnel_mac(), "02:50:c0:a8:14:64");
    }
}
