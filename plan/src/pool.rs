//! Pod CIDRs out of the cluster's own pools, for nodes to which nobody else gives any.
//!
//! Nothing is remembered here: what a node holds is read back from what it was told. So a block is given to one node at a time
//! whoever decides, and however often.

mod allocate;

pub use allocate::{Allocation, allocate};

use ipnet::IpNet;
use std::fmt;

/// CIDRs in a pool, at most: together with `--cluster-pod-cidr` they have to fit into a RoutingNode.
const MOST: usize = 16;

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// A network's.
    pub const fn of(cidr: &IpNet) -> Self {
        match cidr {
            IpNet::V4(_) => Self::V4,
            IpNet::V6(_) => Self::V6,
        }
    }

    /// The length of an address in bits.
    const fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }

    /// Networks that no pod can be numbered from (RFC 6890, sections 2.2.2 and 2.2.3; RFC 4291, section 2.7).
    const fn special(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::V4 => &[
                ("0.0.0.0/8", "this network's"),
                ("127.0.0.0/8", "loopback"),
                ("169.254.0.0/16", "link-local"),
                ("224.0.0.0/3", "multicast or reserved"),
            ],
            Self::V6 => &[
                ("::/8", "loopback, mapped or reserved"),
                ("fe80::/10", "link-local"),
                ("ff00::/8", "multicast"),
            ],
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// The pool of a family: networks that are cut into blocks of one size, a block a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    family: Family,
    cidrs: Vec<IpNet>,
    mask_size: u8,
}

/// Why there cannot be such a pool. Each says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoPool {
    /// A network of the other family.
    #[error("clusterPool{family}PodCIDRList: {cidr} is no {family} network: put it into the other list")]
    OtherFamily {
        /// The pool's.
        family: Family,
        /// The network.
        cidr: IpNet,
    },
    /// A network whose address has bits beyond its prefix.
    #[error("clusterPool{family}PodCIDRList: {cidr} has host bits: is {} meant?", cidr.trunc())]
    HostBits {
        /// The pool's.
        family: Family,
        /// The network.
        cidr: IpNet,
    },
    /// A network that no pod can be numbered from.
    #[error("clusterPool{family}PodCIDRList: {cidr} has {what} addresses within: pods cannot have them")]
    Special {
        /// The pool's.
        family: Family,
        /// The network.
        cidr: IpNet,
        /// Whose they are.
        what: &'static str,
    },
    /// Two networks with addresses in common.
    #[error("clusterPool{family}PodCIDRList: {first} and {second} overlap: leave one of them out")]
    Overlap {
        /// The pool's.
        family: Family,
        /// The one.
        first: IpNet,
        /// The other.
        second: IpNet,
    },
    /// A block would be larger than a network, or too small for a pod.
    #[error(
        "clusterPool{family}MaskSize: blocks of /{mask_size} cannot be cut out of {cidr}: it must be {} to {}",
        cidr.prefix_len(), family.bits() - 2
    )]
    MaskSize {
        /// The pool's.
        family: Family,
        /// The size.
        mask_size: u8,
        /// The network.
        cidr: IpNet,
    },
    /// More networks than can be told to nodes.
    #[error("clusterPool{0}PodCIDRList: more than {MOST} networks: join them into fewer")]
    TooMany(Family),
}

impl Pool {
    /// The pool of these networks, in their order, cut into blocks with a prefix of `mask_size` bits.
    ///
    /// # Errors
    /// When it makes no sense.
    pub fn new(family: Family, cidrs: Vec<IpNet>, mask_size: u8) -> Result<Self, NoPool> {
        if cidrs.len() > MOST {
            return Err(NoPool::TooMany(family));
        }
        for (place, cidr) in cidrs.iter().enumerate() {
            let cidr = *cidr;
            if Family::of(&cidr) != family {
                return Err(NoPool::OtherFamily { family, cidr });
            }
            if cidr != cidr.trunc() {
                return Err(NoPool::HostBits { family, cidr });
            }
            let overlaps = |other: &IpNet| other.contains(&cidr) || cidr.contains(other);
            for (special, what) in family.special() {
                if special.parse().is_ok_and(|special| overlaps(&special)) {
                    return Err(NoPool::Special { family, cidr, what });
                }
            }
            if let Some(first) = cidrs[..place].iter().copied().find(overlaps) {
                return Err(NoPool::Overlap {
                    family,
                    first,
                    second: cidr,
                });
            }
            // A block of fewer than four addresses has none for a pod (host-local, Range.Canonicalize).
            if !(cidr.prefix_len()..=family.bits() - 2).contains(&mask_size) {
                return Err(NoPool::MaskSize {
                    family,
                    mask_size,
                    cidr,
                });
            }
        }
        Ok(Self {
            family,
            cidrs,
            mask_size,
        })
    }

    /// Its networks.
    pub fn cidrs(&self) -> &[IpNet] {
        &self.cidrs
    }
}

impl fmt::Display for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, cidr) in self.cidrs.iter().enumerate() {
            write!(f, "{}{cidr}", if place == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

/// All pools, at most one a family. With none, nobody is given anything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pools(Vec<Pool>);

impl Pools {
    /// The pools of both families; one without networks is none.
    pub fn new(pools: impl IntoIterator<Item = Pool>) -> Self {
        Self(pools.into_iter().filter(|pool| !pool.cidrs.is_empty()).collect())
    }

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All their networks.
    pub fn cidrs(&self) -> impl Iterator<Item = &IpNet> {
        self.0.iter().flat_map(|pool| &pool.cidrs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(family: Family, cidrs: &str, mask_size: u8) -> Result<Pool, String> {
        let cidrs = cidrs
            .split_whitespace()
            .map(|cidr| cidr.parse().expect("a CIDR"))
            .collect();
        Pool::new(family, cidrs, mask_size).map_err(|why| why.to_string())
    }

    #[test]
    fn pools_that_make_sense_are_taken() {
        for (family, cidrs, mask_size) in [
            (Family::V4, "10.0.0.0/8", 24),
            (Family::V4, "172.20.0.0/24 172.20.1.0/24", 24),
            (Family::V4, "172.20.0.0/24", 30),
            (Family::V6, "fd00::/104", 120),
            (Family::V6, "2001:db8::/48", 64),
        ] {
            assert!(pool(family, cidrs, mask_size).is_ok(), "{cidrs} /{mask_size}");
        }
        let none = pool(Family::V4, "", 0).expect("no pool is no fault");
        assert!(Pools::new([none]).is_empty());
    }

    #[test]
    fn pools_that_make_no_sense_are_refused_in_words() {
        let many: Vec<_> = (0..17).map(|number| format!("10.{number}.0.0/16")).collect();
        for (family, cidrs, mask_size, words) in [
            (Family::V4, "fd00::/104", 120, "fd00::/104 is no IPv4 network"),
            (Family::V6, "10.0.0.0/8", 120, "10.0.0.0/8 is no IPv6 network"),
            (Family::V4, "10.0.0.1/8", 24, "is 10.0.0.0/8 meant?"),
            (Family::V4, "10.0.0.0/25", 24, "it must be 25 to 30"),
            (Family::V4, "10.0.0.0/8", 31, "it must be 8 to 30"),
            (Family::V6, "fd00::/104", 127, "it must be 104 to 126"),
            (
                Family::V4,
                "10.0.0.0/8 10.3.0.0/16",
                24,
                "10.0.0.0/8 and 10.3.0.0/16 overlap",
            ),
            (
                Family::V4,
                "10.3.0.0/16 10.0.0.0/8",
                24,
                "10.3.0.0/16 and 10.0.0.0/8 overlap",
            ),
            (Family::V4, "10.0.0.0/8 10.0.0.0/8", 24, "overlap"),
            (Family::V4, "0.0.0.0/0", 24, "has this network's addresses within"),
            (
                Family::V4,
                "240.0.0.0/8",
                24,
                "has multicast or reserved addresses within",
            ),
            (Family::V6, "::/0", 64, "has loopback"),
            (Family::V6, "fe80::/64", 120, "has link-local addresses within"),
            (Family::V4, &many.join(" "), 24, "more than 16 networks"),
        ] {
            let why = pool(family, cidrs, mask_size).expect_err("it makes no sense");
            assert!(
                why.contains(words) && why.starts_with(&format!("clusterPool{family}")),
                "{cidrs}: {why}"
            );
        }
    }
}
