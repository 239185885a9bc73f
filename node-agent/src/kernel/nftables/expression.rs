//! The expressions of a rule (`enum nft_*_attributes` in include/uapi/linux/netfilter/nf_tables.h).
//!
//! Each works on registers of 16 bytes: one loads, the next compares or ends the rule.

use super::message::{attribute, nested, text};
use podlane_plan::masquerade::Ports;
use std::net::IpAddr;

/// `NFT_REG_1`, `NFT_REG_2`.
const FIRST: u32 = 1;
const SECOND: u32 = 2;

/// `NFTA_DATA_VALUE`.
const VALUE: u16 = 1;

/// `NFT_META_MARK`, `NFT_META_NFPROTO`, `NFT_META_L4PROTO`.
const MARK: u32 = 3;
const FAMILY: u32 = 15;
const PROTOCOL: u32 = 16;

/// `NF_NAT_RANGE_PROTO_SPECIFIED`, `NF_NAT_RANGE_PROTO_RANDOM_FULLY` (include/uapi/linux/netfilter/nf_nat.h).
const SPECIFIED: u32 = 1 << 1;
const FULLY_RANDOM: u32 = 1 << 4;

/// Which address of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Source,
    Destination,
}

/// The expressions of a rule in their order, as `NFTA_RULE_EXPRESSIONS` holds them.
#[derive(Default)]
pub(super) struct Expressions(Vec<u8>);

impl Expressions {
    /// As bytes.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Goes on with packets of the family (`NFPROTO_IPV4`, `NFPROTO_IPV6`).
    pub(super) fn of_family(&mut self, is_six: bool) {
        self.load(FAMILY);
        self.equals(&[if is_six { 10 } else { 2 }]);
    }

    /// Goes on with packets of the transport protocol.
    pub(super) fn of_protocol(&mut self, number: u8) {
        self.load(PROTOCOL);
        self.equals(&[number]);
    }

    /// Loads an address of the packet's (RFC 791, section 3.1; RFC 8200, section 3).
    pub(super) fn address(&mut self, is_six: bool, side: Side) {
        /// `NFT_PAYLOAD_NETWORK_HEADER`.
        const NETWORK_HEADER: u32 = 1;
        let (offset, length) = match (is_six, side) {
            (false, Side::Source) => (12, 4),
            (false, Side::Destination) => (16, 4),
            (true, Side::Source) => (8, 16),
            (true, Side::Destination) => (24, 16),
        };
        self.add("payload", |data| {
            numbers(data, &[(1, FIRST), (2, NETWORK_HEADER), (3, offset), (4, length)]);
        });
    }

    /// Goes on where what was loaded is in a set.
    pub(super) fn is_in(&mut self, set: &str) {
        self.look_up(set, 0);
    }

    /// Goes on where it is not.
    pub(super) fn is_not_in(&mut self, set: &str) {
        /// `NFT_LOOKUP_F_INV`.
        const INVERTED: u32 = 1;
        self.look_up(set, INVERTED);
    }

    /// Gives the flow the address of the device that it leaves by, and one of these ports, chosen at random.
    pub(super) fn masquerade(&mut self, ports: Option<Ports>) {
        let Some(Ports { first, last }) = ports else {
            return self.add("masq", |data| numbers(data, &[(1, FULLY_RANDOM)]));
        };
        for (register, port) in [(FIRST, first), (SECOND, last)] {
            self.immediate(register, &port.to_be_bytes());
        }
        self.add("masq", |data| {
            numbers(data, &[(1, FULLY_RANDOM | SPECIFIED), (2, FIRST), (3, SECOND)]);
        });
    }

    /// Goes on with packets whose mark has this bit, and takes it away.
    pub(super) fn unmark(&mut self, bit: u32) {
        self.load(MARK);
        self.masked(bit);
        self.equals(&bit.to_ne_bytes());
        self.load(MARK);
        self.masked(!bit);
        self.add("meta", |data| numbers(data, &[(2, MARK), (3, FIRST)]));
    }

    /// Gives the flow this source, and a random port where `with_port`; else its own, where that is free.
    pub(super) fn source(&mut self, address: IpAddr, with_port: bool) {
        /// `NFT_NAT_SNAT`.
        const SOURCE: u32 = 0;
        let family = match address {
            IpAddr::V4(address) => {
                self.immediate(FIRST, &address.octets());
                2
            }
            IpAddr::V6(address) => {
                self.immediate(FIRST, &address.octets());
                10
            }
        };
        self.add("nat", |data| {
            numbers(data, &[(1, SOURCE), (2, family), (3, FIRST)]);
            if with_port {
                numbers(data, &[(7, FULLY_RANDOM)]);
            }
        });
    }

    fn immediate(&mut self, register: u32, value: &[u8]) {
        self.add("immediate", |data| {
            numbers(data, &[(1, register)]);
            nested(data, 2, |data| attribute(data, VALUE, value));
        });
    }

    /// Of the number that was loaded, which is in the machine's byte order, these bits.
    fn masked(&mut self, bits: u32) {
        self.add("bitwise", |data| {
            numbers(data, &[(1, FIRST), (2, FIRST), (3, 4)]);
            nested(data, 4, |data| attribute(data, VALUE, &bits.to_ne_bytes()));
            nested(data, 5, |data| attribute(data, VALUE, &[0; 4]));
        });
    }

    fn load(&mut self, key: u32) {
        self.add("meta", |data| numbers(data, &[(1, FIRST), (2, key)]));
    }

    fn equals(&mut self, value: &[u8]) {
        self.add("cmp", |data| {
            // `NFT_CMP_EQ`.
            numbers(data, &[(1, FIRST), (2, 0)]);
            nested(data, 3, |data| attribute(data, VALUE, value));
        });
    }

    fn look_up(&mut self, set: &str, flags: u32) {
        self.add("lookup", |data| {
            text(data, 1, set);
            numbers(data, &[(2, FIRST), (5, flags)]);
        });
    }

    /// `NFTA_LIST_ELEM` with `NFTA_EXPR_NAME` and `NFTA_EXPR_DATA`.
    fn add(&mut self, name: &str, data: impl FnOnce(&mut Vec<u8>)) {
        nested(&mut self.0, 1, |expression| {
            text(expression, 1, name);
            nested(expression, 2, data);
        });
    }
}

/// Attributes whose values are numbers in network byte order.
fn numbers(bytes: &mut Vec<u8>, all: &[(u16, u32)]) {
    for (kind, number) in all {
        attribute(bytes, *kind, &number.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::NESTED;
    use super::*;
    use crate::kernel::wire::Attributes;

    #[test]
    fn an_expression_is_a_name_and_data() {
        let mut expressions = Expressions::default();
        expressions.is_not_in("plain4");
        let whole = [
            // 48 bytes, NFTA_LIST_ELEM nested.
            &48_u16.to_ne_bytes()[..],
            &(1 | NESTED).to_ne_bytes(),
            // NFTA_EXPR_NAME.
            &11_u16.to_ne_bytes(),
            &1_u16.to_ne_bytes(),
            b"lookup\0\0",
        ]
        .concat();
        assert_eq!(expressions.bytes()[..whole.len()], whole);
        let mut all = Expressions::default();
        all.of_family(true);
        all.masquerade(Some(Ports { first: 1, last: 2 }));
        let names: Vec<_> = Attributes(all.bytes())
            .map(|(_, expression)| {
                let (_, name) = Attributes(expression).next().expect("a name");
                crate::kernel::wire::text(name).expect("text").to_owned()
            })
            .collect();
        assert_eq!(names, ["meta", "cmp", "immediate", "immediate", "masq"]);
    }
}
