//! What differs between IPv4 and IPv6 beside the addresses.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;
use podlane_e2e::lab::Lab;
use podlane_e2e::scenario::Context;
use podlane_e2e::topology::{Families, Topology};

/// The address family of a cluster: that of its pods, and of the packets that its tunnels wrap them in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    /// IPv4.
    Four,
    /// IPv6.
    Six,
}

/// An ICMP error's type and code.
pub(crate) type Error = (u8, u8);

impl Family {
    /// Of an address.
    pub(crate) fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::Four } else { Self::Six }
    }

    /// The lab of this family.
    pub(crate) fn lab(self, context: &mut Context) -> Result<&mut Lab> {
        match self {
            Self::Four => context.lab(),
            Self::Six => {
                let topology = Topology::seed(2).in_families(Families::Six, Families::Six);
                context.lab_on("IPv6 alone", topology)
            }
        }
    }

    /// An address of the IPv4 network, or the one that stands for it.
    pub(crate) fn choose(self, four: [u8; 4], six: &str) -> Result<IpAddr> {
        Ok(match self {
            Self::Four => Ipv4Addr::from(four).into(),
            Self::Six => six.parse::<Ipv6Addr>()?.into(),
        })
    }

    /// What a socket of this family is bound to that takes whatever comes.
    pub(crate) fn any(self) -> IpAddr {
        match self {
            Self::Four => Ipv4Addr::UNSPECIFIED.into(),
            Self::Six => Ipv6Addr::UNSPECIFIED.into(),
        }
    }

    /// Octets of the header, without options and extensions.
    pub(crate) fn header(self) -> u32 {
        match self {
            Self::Four => 20,
            Self::Six => 40,
        }
    }

    /// Octets that a tunnel adds to a pod's packet: its own eight, UDP's eight, Ethernet's fourteen, and the header.
    pub(crate) fn overhead(self) -> u32 {
        self.header() + 30
    }

    /// nft(8)'s word for it, for tables and matches.
    pub(crate) fn nft(self) -> &'static str {
        match self {
            Self::Four => "ip",
            Self::Six => "ip6",
        }
    }

    /// What `ip address add` says of an address that is not to wait for duplicates to be found (RFC 4862).
    pub(crate) fn at_once(self) -> &'static str {
        match self {
            Self::Four => "",
            Self::Six => " nodad",
        }
    }

    /// The kernel's parameter by which a namespace routes.
    pub(crate) fn forwarding(self) -> &'static str {
        match self {
            Self::Four => "ipv4/ip_forward",
            Self::Six => "ipv6/conf/all/forwarding",
        }
    }

    /// The kernel's parameter that limits the errors it sends.
    pub(crate) fn limit_of_errors(self) -> &'static str {
        match self {
            Self::Four => "ipv4/icmp_ratelimit",
            Self::Six => "ipv6/icmp/ratelimit",
        }
    }

    /// Time exceeded on the way (RFC 792; RFC 4443, section 3.3).
    pub(crate) fn time_exceeded(self) -> Error {
        match self {
            Self::Four => (11, 0),
            Self::Six => (3, 0),
        }
    }

    /// Port unreachable (RFC 792; RFC 4443, section 3.1).
    pub(crate) fn port_unreachable(self) -> Error {
        match self {
            Self::Four => (3, 3),
            Self::Six => (1, 4),
        }
    }

    /// Fragmentation needed (RFC 792), packet too big (RFC 4443, section 3.2).
    pub(crate) fn too_big(self) -> Error {
        match self {
            Self::Four => (3, 4),
            Self::Six => (2, 0),
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Four => "IPv4",
            Self::Six => "IPv6",
        })
    }
}
