//! What a node has been told of the others, in one number: who told it sees by that whether it has heard.

use fnv::FnvHasher;
use ipnet::IpNet;
use std::fmt;
use std::hash::Hasher as _;
use std::net::IpAddr;
use std::num::ParseIntError;
use std::str::FromStr;

/// A set of nodes with their addresses and pod CIDRs, as the sum of their FNV-1a hashes (64 bits), so that a node can be added and
/// taken away. Equal for equal sets; that different ones differ is likely and no proof.
///
/// ```
/// use podlane_plan::membership::Membership;
///
/// let a = Membership::of("a", ["192.0.2.1".parse().unwrap()], ["172.20.0.0/24".parse().unwrap()]);
/// let b = Membership::of("b", ["192.0.2.2".parse().unwrap()], []);
/// assert_eq!(a.with(b), b.with(a));
/// assert_eq!(a.with(b).without(a), b);
/// assert_eq!(a.to_string().parse(), Ok(a));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Membership(u64);

impl Membership {
    /// One node; the order of its addresses and pod CIDRs counts.
    pub fn of(
        name: &str,
        addresses: impl IntoIterator<Item = IpAddr>,
        pod_cidrs: impl IntoIterator<Item = IpNet>,
    ) -> Self {
        let mut hash = FnvHasher::default();
        hash.write(name.as_bytes());
        // No name has such an octet; and an address stands after a 4 or a 6, a CIDR after another number.
        hash.write_u8(0);
        for address in addresses {
            write_address(&mut hash, address);
        }
        for cidr in pod_cidrs {
            hash.write_u8(1);
            write_address(&mut hash, cidr.addr());
            hash.write_u8(cidr.prefix_len());
        }
        Self(hash.finish())
    }

    /// Both, which have no node in common.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self(self.0.wrapping_add(other.0))
    }

    /// What is left without the other, which is a part of it.
    #[must_use]
    pub fn without(self, other: Self) -> Self {
        Self(self.0.wrapping_sub(other.0))
    }
}

fn write_address(hash: &mut FnvHasher, address: IpAddr) {
    match address {
        IpAddr::V4(address) => {
            hash.write_u8(4);
            hash.write(&address.octets());
        }
        IpAddr::V6(address) => {
            hash.write_u8(6);
            hash.write(&address.octets());
        }
    }
}

impl FromIterator<Self> for Membership {
    fn from_iter<T: IntoIterator<Item = Self>>(all: T) -> Self {
        all.into_iter().fold(Self::default(), Self::with)
    }
}

/// 16 hexadecimal digits.
impl fmt::Display for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for Membership {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u64::from_str_radix(text, 16).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_address_or_pod_cidr_is_another_number() {
        let addresses: [IpAddr; 2] = ["192.0.2.1", "2001:db8::1"].map(|text| text.parse().unwrap());
        let cidrs: [IpNet; 2] = ["172.20.2.0/24", "172.20.9.0/24"].map(|text| text.parse().unwrap());
        let of = |name, addresses: &[IpAddr], cidrs: &[IpNet]| {
            Membership::of(name, addresses.iter().copied(), cidrs.iter().copied())
        };
        let all = [
            of("a", &addresses, &cidrs[..1]),
            of("a", &addresses, &cidrs[1..]),
            of("a", &addresses, &cidrs),
            of("a", &addresses, &[]),
            of("a", &addresses[..1], &cidrs[..1]),
            of("a", &addresses[1..], &cidrs[..1]),
            of("b", &addresses, &cidrs[..1]),
            Membership::default(),
        ];
        for (index, one) in all.iter().enumerate() {
            assert!(!all[..index].contains(one), "{index}");
        }
    }

    /// Agents and operators of other machines and versions reckon the same.
    #[test]
    fn the_number_is_the_same_everywhere() {
        let one = Membership::of(
            "k8s-w0",
            ["192.168.20.100".parse().unwrap()],
            ["172.20.2.0/24".parse().unwrap()],
        );
        assert_eq!(one.to_string(), "1022ac8d53c2690e");
    }
}
