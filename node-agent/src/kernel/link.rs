//! A device as an RTM_NEWLINK message describes it.

use super::wire::{Attributes, address, text, u16_be, u32_at};
use netlink_packet_route::link::{LinkFlags, LinkHeader};
use podlane_plan::kernel::{DEVICE_GROUP, DEVICE_PREFIX, Device, MacAddress};
use podlane_plan::lane::TunnelProtocol;

/// `struct ifinfomsg` (include/uapi/linux/rtnetlink.h).
const HEADER_LENGTH: usize = 16;

/// `IFLA_*` (include/uapi/linux/if_link.h).
mod ifla {
    pub(super) const ADDRESS: u16 = 1;
    pub(super) const IFNAME: u16 = 3;
    pub(super) const MTU: u16 = 4;
    pub(super) const LINKINFO: u16 = 18;
    pub(super) const GROUP: u16 = 27;
    pub(super) const INFO_KIND: u16 = 1;
    pub(super) const INFO_DATA: u16 = 2;
}

/// `IFLA_VXLAN_*` and `IFLA_GENEVE_*` (ibid.).
mod tunnel {
    pub(super) const VXLAN_ID: u16 = 1;
    pub(super) const VXLAN_LINK: u16 = 3;
    pub(super) const VXLAN_LEARNING: u16 = 7;
    pub(super) const VXLAN_PORT: u16 = 15;
    pub(super) const VXLAN_GBP: u16 = 23;
    pub(super) const VXLAN_UDP_ZERO_CSUM6_RX: u16 = 20;
    pub(super) const VXLAN_COLLECT_METADATA: u16 = 25;
    pub(super) const VXLAN_GPE: u16 = 27;
    pub(super) const VXLAN_VNIFILTER: u16 = 30;
    pub(super) const GENEVE_PORT: u16 = 5;
    pub(super) const GENEVE_COLLECT_METADATA: u16 = 6;
    pub(super) const GENEVE_UDP_ZERO_CSUM6_RX: u16 = 10;
}

/// A device, ours or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) mtu: u32,
    pub(crate) group: u32,
    pub(crate) up: bool,
    pub(crate) loopback: bool,
    /// The driver (`IFLA_INFO_KIND`); empty for physical devices.
    pub(crate) kind: String,
    /// The tunnel that its driver says it is.
    pub(crate) tunnel: Option<TunnelDevice>,
}

/// What the vxlan or geneve driver says of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TunnelDevice {
    pub(crate) vni: u32,
    pub(crate) device: Device,
}

impl Link {
    /// Reads what follows the netlink header of an RTM_NEWLINK. None: no device's message (a bridge port's, a cut one).
    pub(crate) fn decode(payload: &[u8]) -> Option<Self> {
        /// `AF_BRIDGE`: messages about a device's part in a bridge.
        const BRIDGE: u8 = 7;
        let header = LinkHeader::parse(payload).ok()?;
        if u8::from(header.interface_family) == BRIDGE {
            return None;
        }
        let mut link = Self {
            index: header.index,
            name: String::new(),
            mtu: 0,
            group: 0,
            up: header.flags.contains(LinkFlags::Up),
            loopback: header.flags.contains(LinkFlags::Loopback),
            kind: String::new(),
            tunnel: None,
        };
        let mut mac = None;
        let mut data = None;
        for (kind, value) in Attributes(payload.get(HEADER_LENGTH..)?) {
            match kind {
                ifla::IFNAME => text(value)?.clone_into(&mut link.name),
                ifla::ADDRESS => mac = value.try_into().ok().map(MacAddress),
                ifla::MTU => link.mtu = u32_at(value, 0)?,
                ifla::GROUP => link.group = u32_at(value, 0)?,
                ifla::LINKINFO => {
                    for (kind, value) in Attributes(value) {
                        match kind {
                            ifla::INFO_KIND => text(value)?.clone_into(&mut link.kind),
                            ifla::INFO_DATA => data = Some(value),
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        if link.name.is_empty() {
            return None;
        }
        link.tunnel = link.tunnel_device(
            mac,
            data.unwrap_or_default(),
            !header.flags.contains(LinkFlags::Noarp),
        );
        Some(link)
    }

    fn tunnel_device(&self, mac: Option<MacAddress>, data: &[u8], arp: bool) -> Option<TunnelDevice> {
        let protocol = match self.kind.as_str() {
            "vxlan" => TunnelProtocol::Vxlan,
            "geneve" => TunnelProtocol::Geneve,
            _ => return None,
        };
        // A VXLAN device whose name speaks of GENEVE stands in for one.
        let named = TunnelProtocol::named_by(&self.name);
        let stand_in = protocol == TunnelProtocol::Vxlan && named == Some(TunnelProtocol::Geneve);
        let mut device = Device {
            protocol: if stand_in {
                TunnelProtocol::Geneve
            } else {
                protocol
            },
            stand_in,
            port: 0,
            mac: mac?,
            mtu: self.mtu,
            collect_metadata: false,
            arp,
            up: self.up,
        };
        let mut vni = 0;
        // What a hand may have set and we never do; the device is then made anew.
        let mut odd = false;
        for (kind, value) in Attributes(data) {
            let flag = || value.first().is_none_or(|byte| *byte != 0);
            match (protocol, kind) {
                (TunnelProtocol::Vxlan, tunnel::VXLAN_PORT)
                | (TunnelProtocol::Geneve, tunnel::GENEVE_PORT) => {
                    device.port = u16_be(value)?;
                }
                // GENEVE's is an attribute without a value, VXLAN's a byte.
                (TunnelProtocol::Vxlan, tunnel::VXLAN_COLLECT_METADATA)
                | (TunnelProtocol::Geneve, tunnel::GENEVE_COLLECT_METADATA) => {
                    device.collect_metadata = flag()
                }
                // What the programs send over IPv6 would be dropped. (A kernel without IPv6 need not speak of it.)
                (TunnelProtocol::Vxlan, tunnel::VXLAN_UDP_ZERO_CSUM6_RX)
                | (TunnelProtocol::Geneve, tunnel::GENEVE_UDP_ZERO_CSUM6_RX) => odd |= !flag(),
                (_, tunnel::VXLAN_ID) => vni = u32_at(value, 0)?,
                (TunnelProtocol::Vxlan, tunnel::VXLAN_LEARNING | tunnel::VXLAN_VNIFILTER) => odd |= flag(),
                (TunnelProtocol::Vxlan, tunnel::VXLAN_GBP | tunnel::VXLAN_GPE) => odd = true,
                (TunnelProtocol::Vxlan, tunnel::VXLAN_LINK) => odd |= u32_at(value, 0)? != 0,
                _ => {}
            }
        }
        device.collect_metadata &= !odd;
        Some(TunnelDevice { vni, device })
    }

    /// Whether it begins with our prefix.
    pub(crate) fn has_our_name(&self) -> bool {
        self.name.starts_with(DEVICE_PREFIX)
    }

    /// The device as ours: name, group and driver all say so.
    pub(crate) fn ours(&self) -> Option<&Device> {
        let tunnel = self.tunnel.as_ref()?;
        (self.has_our_name() && self.group == DEVICE_GROUP).then_some(&tunnel.device)
    }

    /// What somebody else's device is, in words.
    pub(crate) fn description(&self) -> String {
        let kind = if self.kind.is_empty() {
            "physical"
        } else {
            &self.kind
        };
        match &self.tunnel {
            Some(tunnel) => format!(
                "a {kind} device of group {}, port {}, VNI {}",
                self.group, tunnel.device.port, tunnel.vni
            ),
            None => format!("a {kind} device of group {}", self.group),
        }
    }
}

/// An address as an RTM_NEWADDR message describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) index: u32,
    pub(crate) address: ipnet::IpNet,
    /// Of global scope, and usable.
    pub(crate) global: bool,
    /// Made by hand or by us: neither the kernel's own link-local address nor one that a router advertised.
    pub(crate) permanent: bool,
}

impl Address {
    /// Reads what follows the netlink header of an RTM_NEWADDR.
    pub(crate) fn decode(payload: &[u8]) -> Option<Self> {
        /// `struct ifaddrmsg`, `IFA_*` (include/uapi/linux/if_addr.h).
        const HEADER_LENGTH: usize = 8;
        const ADDRESS: u16 = 1;
        const LOCAL: u16 = 2;
        const FLAGS: u16 = 8;
        const DAD_FAILED: u32 = 0x08;
        const OPTIMISTIC: u32 = 0x04;
        const TENTATIVE: u32 = 0x40;
        const PERMANENT: u32 = 0x80;
        /// `RT_SCOPE_UNIVERSE` (include/uapi/linux/rtnetlink.h).
        const GLOBAL: u8 = 0;

        let [_, prefix_length, flags, scope] = *payload.first_chunk::<4>()?;
        let index = u32_at(payload, 4)?;
        let mut flags = u32::from(flags);
        let mut own = None;
        let mut on_link = None;
        for (kind, value) in Attributes(payload.get(HEADER_LENGTH..)?) {
            match kind {
                // On a point-to-point device the peer's; the own one is then in IFA_LOCAL.
                ADDRESS => on_link = address(value),
                LOCAL => own = address(value),
                FLAGS => flags = u32_at(value, 0)?,
                _ => {}
            }
        }
        let usable = flags & DAD_FAILED == 0 && (flags & TENTATIVE == 0 || flags & OPTIMISTIC != 0);
        Some(Self {
            index,
            address: ipnet::IpNet::new(own.or(on_link)?, prefix_length).ok()?,
            global: scope == GLOBAL && usable,
            permanent: scope == GLOBAL && flags & PERMANENT != 0,
        })
    }
}

/// A permanent neighbour as an RTM_NEWNEIGH message describes it.
pub(crate) fn permanent_neighbour(payload: &[u8]) -> Option<(u32, std::net::IpAddr, MacAddress)> {
    /// `struct ndmsg`, `NDA_*`, `NUD_PERMANENT`, `NTF_PROXY` (include/uapi/linux/neighbour.h).
    const HEADER_LENGTH: usize = 12;
    const DESTINATION: u16 = 1;
    const LINK_LAYER_ADDRESS: u16 = 2;
    const PERMANENT: u16 = 0x80;
    const PROXY: u8 = 0x08;
    const INTERNET: [u8; 2] = [2, 10];

    let family = *payload.first()?;
    let index = u32_at(payload, 4)?;
    let state = super::wire::u16_at(payload, 8)?;
    let flags = *payload.get(10)?;
    if !INTERNET.contains(&family) || state & PERMANENT == 0 || flags & PROXY != 0 {
        return None;
    }
    let mut destination = None;
    let mut mac = None;
    for (kind, value) in Attributes(payload.get(HEADER_LENGTH..)?) {
        match kind {
            DESTINATION => destination = address(value),
            LINK_LAYER_ADDRESS => mac = value.try_into().ok().map(MacAddress),
            _ => {}
        }
    }
    Some((index, destination?, mac?))
}

#[cfg(test)]
mod tests {
    use super::super::wire::tests::attribute;
    use super::*;

    fn link(name: &[u8], group: u32, kind: &[u8], data: &[u8]) -> Option<Link> {
        let mut payload = vec![0; HEADER_LENGTH];
        payload[4] = 9;
        payload[8] = 0x81; // up, no ARP
        payload.extend(attribute(ifla::IFNAME, name));
        payload.extend(attribute(ifla::ADDRESS, &[2, 0x50, 192, 168, 10, 100]));
        payload.extend(attribute(ifla::MTU, &1450_u32.to_ne_bytes()));
        payload.extend(attribute(ifla::GROUP, &group.to_ne_bytes()));
        let info = [attribute(ifla::INFO_KIND, kind), attribute(ifla::INFO_DATA, data)].concat();
        payload.extend(attribute(ifla::LINKINFO, &info));
        Link::decode(&payload)
    }

    fn vxlan() -> Vec<u8> {
        [
            attribute(tunnel::VXLAN_PORT, &8472_u16.to_be_bytes()),
            attribute(tunnel::VXLAN_COLLECT_METADATA, &[1]),
            attribute(tunnel::VXLAN_LEARNING, &[0]),
        ]
        .concat()
    }

    #[test]
    fn ours_has_the_name_the_group_and_the_driver() {
        let ours = link(b"podlane_vxlan\0", 172, b"vxlan\0", &vxlan()).expect("a link");
        assert_eq!((ours.index, ours.mtu, ours.up), (9, 1450, true));
        let device = ours.ours().expect("ours");
        assert_eq!(
            (device.port, device.collect_metadata, device.arp, device.up),
            (8472, true, false, true)
        );

        let other_group = link(b"podlane_vxlan\0", 0, b"vxlan\0", &vxlan()).expect("a link");
        assert_eq!(other_group.ours(), None);
        assert_eq!(
            other_group.description(),
            "a vxlan device of group 0, port 8472, VNI 0"
        );
        let other_name = link(b"flannel.1\0", 172, b"vxlan\0", &vxlan()).expect("a link");
        assert!(other_name.ours().is_none() && !other_name.has_our_name());
        let other_driver = link(b"podlane_vxlan\0", 172, b"bridge\0", &vxlan()).expect("a link");
        assert_eq!(other_driver.ours(), None);
    }

    #[test]
    fn what_a_hand_changed_is_not_flow_based_as_ours() {
        for (kind, value) in [
            (tunnel::VXLAN_LEARNING, &[1][..]),
            (tunnel::VXLAN_GBP, &[]),
            (tunnel::VXLAN_LINK, &[3, 0, 0, 0]),
            (tunnel::VXLAN_UDP_ZERO_CSUM6_RX, &[0]),
        ] {
            let data = [vxlan(), attribute(kind, value)].concat();
            let link = link(b"podlane_vxlan\0", 172, b"vxlan\0", &data).expect("a link");
            assert!(!link.ours().expect("ours").collect_metadata, "{kind}");
        }
    }

    #[test]
    fn a_vxlan_device_with_a_geneve_name_stands_in() {
        for (name, stand_in) in [
            (&b"podlane_geneve\0"[..], true),
            (b"podlane_gn8472\0", true),
            (b"podlane_vxlan\0", false),
            (b"podlane_vx8472\0", false),
        ] {
            let link = link(name, 172, b"vxlan\0", &vxlan()).expect("a link");
            let device = link.ours().expect("ours");
            assert_eq!(device.stand_in, stand_in, "{}", link.name);
            assert_eq!(device.protocol == TunnelProtocol::Geneve, stand_in);
            assert!(device.collect_metadata && device.port == 8472);
            assert_eq!(device.driver(), "vxlan");
        }
    }

    #[test]
    fn geneve_says_flow_based_without_a_value() {
        let data = [
            attribute(tunnel::GENEVE_PORT, &6081_u16.to_be_bytes()),
            attribute(tunnel::GENEVE_COLLECT_METADATA, &[]),
        ]
        .concat();
        let link = link(b"podlane_geneve\0", 172, b"geneve\0", &data).expect("a link");
        assert!(
            link.ours()
                .is_some_and(|device| device.collect_metadata && device.port == 6081)
        );
    }
}
