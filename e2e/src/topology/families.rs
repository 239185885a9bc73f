//! The same networks in other address families.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::{IpNet, Ipv6Net};

use super::{Attachment, Topology};

/// Which address families something has; IPv4 stands first where it has both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Families {
    /// IPv4.
    Four,
    /// IPv6.
    Six,
    /// Both.
    Both,
}

impl Families {
    fn of(self, networks: &mut Vec<IpNet>) {
        *networks = networks.drain(..).flat_map(|four| self.choose(four)).collect();
    }

    fn choose(self, four: IpNet) -> Vec<IpNet> {
        match self {
            Self::Four => vec![four],
            Self::Six => vec![six(four)],
            Self::Both => vec![four, six(four)],
        }
    }
}

impl Topology {
    /// A topology that was made in IPv4, in other families: those of nodes and routers (the underlay), and those of pods. Where 192.168.10.100/24
    /// was a node's address, fd00:192:10::100/64 is one, and fd00:172:2::10 is a pod's in the place of 172.20.2.10.
    #[must_use]
    pub fn in_families(mut self, underlay: Families, pods: Families) -> Self {
        underlay.of(&mut self.uplink.router);
        underlay.of(&mut self.uplink.internet);
        for link in &mut self.links {
            underlay.of(&mut link.router_addresses);
        }
        let further = self
            .further_routers
            .iter_mut()
            .flat_map(|router| &mut router.attachments);
        further.for_each(|attachment: &mut Attachment| underlay.of(&mut attachment.addresses));
        pods.of(&mut self.cluster_pod_cidrs);
        for node in &mut self.nodes {
            underlay.of(&mut node.addresses);
            for attachment in &mut node.further {
                underlay.of(&mut attachment.addresses);
            }
            pods.of(&mut node.pod_cidrs);
            for pod in &mut node.pods {
                let addresses = pod.addresses.drain(..).flat_map(|four| pods.choose(four.into()));
                pod.addresses = addresses.map(|address| address.addr()).collect();
            }
        }
        self
    }

    /// What of it is of one family alone (IPv6: `six`), as if there were no other.
    #[must_use]
    pub fn of_family(mut self, six: bool) -> Self {
        let of_family =
            |networks: &mut Vec<IpNet>| networks.retain(|network| network.addr().is_ipv6() == six);
        of_family(&mut self.uplink.router);
        of_family(&mut self.uplink.internet);
        for link in &mut self.links {
            of_family(&mut link.router_addresses);
        }
        let further = self
            .further_routers
            .iter_mut()
            .flat_map(|router| &mut router.attachments);
        further.for_each(|attachment| of_family(&mut attachment.addresses));
        of_family(&mut self.cluster_pod_cidrs);
        for node in &mut self.nodes {
            of_family(&mut node.addresses);
            for attachment in &mut node.further {
                of_family(&mut attachment.addresses);
            }
            of_family(&mut node.pod_cidrs);
            for pod in &mut node.pods {
                pod.addresses.retain(|address| address.is_ipv6() == six);
            }
        }
        self
    }
}

/// The IPv6 network that stands for an IPv4 one: its octets' decimal digits are read as hexadecimal ones, so that one knows it again. A network of
/// 16, 24 or 32 bits has 32, 64 or 128.
fn six(four: IpNet) -> IpNet {
    let IpNet::V4(network) = four else {
        return four;
    };
    let digits = |octet: u8| {
        let octet = u16::from(octet);
        octet / 100 * 0x100 + octet / 10 % 10 * 0x10 + octet % 10
    };
    let [a, _, c, d] = network.addr().octets().map(digits);
    let address = Ipv6Addr::new(0xfd00, a, c, 0, 0, 0, 0, d);
    let length = match network.prefix_len() {
        length @ 0..=16 => length * 2,
        length @ 17..=24 => 32 + (length - 16) * 4,
        length => 64 + (length - 24) * 8,
    };
    let host = IpNet::from(IpAddr::V6(address));
    Ipv6Net::new(address, length).map_or(host, IpNet::V6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seed_has_addresses_of_both_families_that_one_knows_again() {
        let topology = Topology::seed(1).in_families(Families::Both, Families::Both);
        let words = |networks: &[IpNet]| networks.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(
            words(&topology.cluster_pod_cidrs),
            ["172.20.0.0/16", "fd00:172::/32"]
        );
        let node = topology.node("k8s-w0").unwrap();
        assert_eq!(
            words(&node.addresses),
            ["192.168.20.100/24", "fd00:192:20::100/64"]
        );
        assert_eq!(words(&node.pod_cidrs), ["172.20.2.0/24", "fd00:172:2::/64"]);
        let gateways: Vec<_> = node.pod_gateways().map(|gateway| gateway.to_string()).collect();
        assert_eq!(gateways, ["172.20.2.1", "fd00:172:2::1"]);
        assert_eq!(
            node.pods[0].address_of(true).unwrap().to_string(),
            "fd00:172:2::10"
        );
        assert_eq!(
            words(&topology.links[1].router_addresses),
            ["192.168.20.200/24", "fd00:192:20::200/64"]
        );
        let six = Topology::seed(1).in_families(Families::Six, Families::Six);
        let addresses = six.nodes.iter().flat_map(|node| &node.addresses);
        assert!(
            addresses
                .chain(&six.cluster_pod_cidrs)
                .all(|net| net.addr().is_ipv6())
        );
        assert!(six.nodes[0].pods[0].address_of(false).is_none());
        let both = Topology::seed(1).in_families(Families::Both, Families::Both);
        assert_eq!(format!("{:?}", both.of_family(true)), format!("{six:?}"));
    }

    #[test]
    fn networks_of_all_sizes_have_a_counterpart() {
        for (four, wanted) in [
            ("192.168.30.100/32", "fd00:192:30::100/128"),
            ("172.20.0.0/16", "fd00:172::/32"),
            ("203.0.113.2/24", "fd00:203:113::2/64"),
        ] {
            assert_eq!(six(four.parse().unwrap()).to_string(), wanted);
        }
    }
}
