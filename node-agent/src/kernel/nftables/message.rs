//! nf_tables' messages (include/uapi/linux/netfilter/nf_tables.h, nfnetlink.h): those that make our table, change it, remove it and ask
//! for it. Numbers in attributes are in network byte order.

use super::intervals::Element;
use super::kinds::{chain, elements, rule, set, table};
use super::rules::Rule;
use crate::kernel::wire;
use netlink_packet_core::{NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_REQUEST};
use podlane_plan::kernel::NFTABLES_TABLE;
use std::net::IpAddr;

/// `NLA_F_NESTED` (include/uapi/linux/netlink.h).
pub(super) const NESTED: u16 = 0x8000;

/// `NFNL_SUBSYS_NFTABLES`, in a message's type.
const SUBSYSTEM: u16 = 10 << 8;
/// `NFPROTO_INET`.
pub(super) const INET: u8 = 1;
/// In all notifications: `NFTA_TABLE_NAME`, `NFTA_CHAIN_TABLE` and so on.
pub(super) const TABLE_NAME: u16 = 1;

/// `enum nf_tables_msg_types`.
const NEW_TABLE: u16 = 0;
const GET_TABLE: u16 = 1;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const GET_CHAIN: u16 = 4;
const NEW_RULE: u16 = 6;
const GET_RULE: u16 = 7;
const DELETE_RULE: u16 = 8;
const NEW_SET: u16 = 9;
const DELETE_SET: u16 = 11;
const NEW_ELEMENTS: u16 = 12;
const GET_ELEMENTS: u16 = 13;

/// The one chain.
const CHAIN: &str = "postrouting";
pub(super) const CHAIN_TYPE: &str = "nat";
/// `NF_INET_POST_ROUTING`, `NF_IP_PRI_NAT_SRC` less one (kube-proxy comes after it), `NF_ACCEPT`.
pub(super) const HOOK: u32 = 4;
pub(super) const PRIORITY: u32 = 99;
pub(super) const POLICY: u32 = 1;

/// What makes the table ours, as its comment. `nft list table inet podlane` shows it.
pub(super) const MARK: &str = "Podlane's own: made anew whenever it differs";

/// Elements in one message, at most: an attribute has less than 64 KiB, and an element takes up to 44 bytes.
const ELEMENTS: usize = 1000;

/// A message without its netlink header.
pub(super) struct Message {
    kind: u16,
    flags: u16,
    body: Vec<u8>,
}

impl Message {
    fn new(kind: u16, flags: u16, fill: impl FnOnce(&mut Vec<u8>)) -> Self {
        let mut body = Vec::new();
        fill(&mut body);
        Self { kind, flags, body }
    }

    /// Writes it, with these flags besides its own.
    pub(super) fn write(&self, bytes: &mut Vec<u8>, flags: u16, sequence: u32) {
        header(
            bytes,
            SUBSYSTEM | self.kind,
            self.flags | flags,
            sequence,
            self.body.len(),
        );
        // `struct nfgenmsg`: family, version, resource.
        bytes.extend([INET, 0, 0, 0]);
        bytes.extend(&self.body);
    }
}

/// `struct nlmsghdr`, before `struct nfgenmsg` and `length` bytes more, which are a multiple of four.
fn header(bytes: &mut Vec<u8>, kind: u16, flags: u16, sequence: u32, length: usize) {
    let length = u32::try_from(wire::HEADER_LENGTH + 4 + length).unwrap_or(u32::MAX);
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    // The kernel knows by whom it is.
    bytes.extend([0; 4]);
}

/// An attribute (`struct nlattr`), filled up to four bytes.
pub(super) fn attribute(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    nested_as(bytes, kind, |bytes| bytes.extend(value));
}

/// An attribute that is a text.
pub(super) fn text(bytes: &mut Vec<u8>, kind: u16, text: &str) {
    nested_as(bytes, kind, |bytes| {
        bytes.extend(text.as_bytes());
        bytes.push(0);
    });
}

/// An attribute that is made of attributes.
pub(super) fn nested(bytes: &mut Vec<u8>, kind: u16, fill: impl FnOnce(&mut Vec<u8>)) {
    nested_as(bytes, kind | NESTED, fill);
}

fn nested_as(bytes: &mut Vec<u8>, kind: u16, fill: impl FnOnce(&mut Vec<u8>)) {
    let start = bytes.len();
    bytes.extend([0; 2]);
    bytes.extend(kind.to_ne_bytes());
    fill(bytes);
    let length = u16::try_from(bytes.len() - start).unwrap_or(u16::MAX);
    bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    bytes.resize(start + wire::aligned(bytes.len() - start), 0);
}

pub(super) fn number(bytes: &mut Vec<u8>, kind: u16, number: u32) {
    attribute(bytes, kind, &number.to_be_bytes());
}

/// A comment as nft(8) writes it into user data: type 0 (`NFTNL_UDATA_TABLE_COMMENT`, `NFTNL_UDATA_RULE_COMMENT` of libnftnl), length,
/// text.
pub(super) fn comment(bytes: &mut Vec<u8>, kind: u16, text: &str) {
    nested_as(bytes, kind, |bytes| {
        bytes.push(0);
        bytes.push(u8::try_from(text.len() + 1).unwrap_or(u8::MAX));
        bytes.extend(text.as_bytes());
        bytes.push(0);
    });
}

/// Objects to be made and removed together.
#[derive(Default)]
pub(super) struct Objects {
    messages: Vec<Message>,
    sets: u32,
}

impl Objects {
    pub(super) fn add_table(&mut self) {
        self.add(NEW_TABLE, NLM_F_CREATE, |body| {
            text(body, table::NAME, NFTABLES_TABLE);
            comment(body, table::USER_DATA, MARK);
        });
    }

    pub(super) fn delete_table(&mut self) {
        self.add(DELETE_TABLE, 0, |body| text(body, table::NAME, NFTABLES_TABLE));
    }

    pub(super) fn add_chain(&mut self) {
        self.add(NEW_CHAIN, NLM_F_CREATE, |body| {
            text(body, chain::TABLE, NFTABLES_TABLE);
            text(body, chain::NAME, CHAIN);
            nested(body, chain::HOOK, |hook| {
                number(hook, chain::HOOK_NUMBER, HOOK);
                number(hook, chain::HOOK_PRIORITY, PRIORITY);
            });
            number(body, chain::POLICY, POLICY);
            text(body, chain::TYPE, CHAIN_TYPE);
        });
    }

    /// Without a rule's handle all of the chain's rules are meant (`nf_tables_delrule`).
    pub(super) fn empty_chain(&mut self) {
        self.add(DELETE_RULE, 0, |body| {
            text(body, rule::TABLE, NFTABLES_TABLE);
            text(body, rule::CHAIN, CHAIN);
        });
    }

    pub(super) fn delete_set(&mut self, name: &str) {
        self.add(DELETE_SET, 0, |body| {
            text(body, set::TABLE, NFTABLES_TABLE);
            text(body, set::NAME, name);
        });
    }

    /// A set of intervals of addresses.
    pub(super) fn add_set(&mut self, name: &str, is_six: bool) {
        /// `NFT_SET_INTERVAL`.
        const INTERVAL: u32 = 4;
        // What nft(8) shows as ipv4_addr and ipv6_addr (`TYPE_IPADDR`, `TYPE_IP6ADDR` of its include/datatype.h).
        let (shown_as, length) = if is_six { (8, 16) } else { (7, 4) };
        self.sets += 1;
        let id = self.sets;
        self.add(NEW_SET, NLM_F_CREATE, |body| {
            text(body, set::TABLE, NFTABLES_TABLE);
            text(body, set::NAME, name);
            number(body, set::FLAGS, INTERVAL);
            number(body, set::KEY_TYPE, shown_as);
            number(body, set::KEY_LENGTH, length);
            number(body, set::ID, id);
        });
    }

    pub(super) fn add_elements(&mut self, name: &str, elements: &[Element]) {
        for some in elements.chunks(ELEMENTS) {
            self.add(NEW_ELEMENTS, NLM_F_CREATE, |body| {
                text(body, elements::TABLE, NFTABLES_TABLE);
                text(body, elements::SET, name);
                nested(body, elements::ELEMENTS, |list| {
                    for element in some {
                        write_element(list, element);
                    }
                });
            });
        }
    }

    pub(super) fn add_rule(&mut self, rule: &Rule) {
        self.add(NEW_RULE, NLM_F_CREATE | NLM_F_APPEND, |body| {
            text(body, rule::TABLE, NFTABLES_TABLE);
            text(body, rule::CHAIN, CHAIN);
            nested(body, rule::EXPRESSIONS, |list| {
                list.extend(rule.expressions.bytes());
            });
            comment(body, rule::USER_DATA, &rule.comment);
        });
    }

    fn add(&mut self, kind: u16, flags: u16, fill: impl FnOnce(&mut Vec<u8>)) {
        self.messages.push(Message::new(kind, flags, fill));
    }

    /// Writes them as one batch, whose first message has this number, and says how many they are.
    pub(super) fn write(&self, bytes: &mut Vec<u8>, first: u32) -> usize {
        /// `NFNL_MSG_BATCH_BEGIN`, `NFNL_MSG_BATCH_END`.
        const BEGIN: u16 = 0x10;
        const END: u16 = 0x11;
        let edge = |bytes: &mut Vec<u8>, kind| {
            header(bytes, kind, NLM_F_REQUEST, first, 0);
            // `AF_UNSPEC`, version 0, and the subsystem as the resource.
            bytes.extend([0, 0, 0, (SUBSYSTEM >> 8) as u8]);
        };
        edge(bytes, BEGIN);
        for (message, sequence) in self.messages.iter().zip((0..).map(|at| first.wrapping_add(at))) {
            message.write(bytes, NLM_F_REQUEST | NLM_F_ACK, sequence);
        }
        edge(bytes, END);
        self.messages.len()
    }
}

fn write_element(list: &mut Vec<u8>, element: &Element) {
    nested(list, elements::ELEMENT, |body| {
        nested(body, elements::KEY, |key| match element.key {
            IpAddr::V4(address) => attribute(key, elements::VALUE, &address.octets()),
            IpAddr::V6(address) => attribute(key, elements::VALUE, &address.octets()),
        });
        if element.is_end {
            number(body, elements::FLAGS, elements::INTERVAL_END);
        }
    });
}

pub(super) fn get_table() -> Message {
    Message::new(GET_TABLE, 0, |body| text(body, table::NAME, NFTABLES_TABLE))
}

pub(super) fn get_chain() -> Message {
    Message::new(GET_CHAIN, 0, |body| {
        text(body, chain::TABLE, NFTABLES_TABLE);
        text(body, chain::NAME, CHAIN);
    })
}

pub(super) fn get_rules() -> Message {
    Message::new(GET_RULE, 0, |body| {
        text(body, rule::TABLE, NFTABLES_TABLE);
        text(body, rule::CHAIN, CHAIN);
    })
}

pub(super) fn get_elements(set: &str) -> Message {
    Message::new(GET_ELEMENTS, 0, |body| {
        text(body, elements::TABLE, NFTABLES_TABLE);
        text(body, elements::SET, set);
    })
}

#[cfg(test)]
mod tests {
    use super::super::answer;
    use super::*;
    use crate::kernel::wire::Messages;

    #[test]
    fn a_batch_is_framed_and_each_of_its_messages_is_acknowledged() {
        let mut objects = Objects::default();
        objects.add_table();
        let many: Vec<Element> = (0..2_500_u32)
            .map(|number| Element {
                key: IpAddr::from(number.to_be_bytes()),
                is_end: number % 2 == 1,
            })
            .collect();
        objects.add_set("plain4", false);
        objects.add_elements("plain4", &many);
        let mut bytes = Vec::new();
        assert_eq!(objects.write(&mut bytes, 7), 5);
        let messages: Vec<_> = Messages(&bytes).map(|message| message.expect("whole")).collect();
        let kinds: Vec<_> = messages.iter().map(|message| message.kind).collect();
        assert_eq!(kinds, [0x10, 0xa00, 0xa09, 0xa0c, 0xa0c, 0xa0c, 0x11]);
        let sequences: Vec<_> = messages.iter().map(|message| message.sequence).collect();
        assert_eq!(sequences, [7, 7, 8, 9, 10, 11, 7]);
        assert!(
            messages[1..6]
                .iter()
                .all(|message| message.flags & NLM_F_ACK != 0)
        );
        assert_eq!(messages[0].payload, [0, 0, 0, 10]);
        let back: Vec<Element> = messages[3..6]
            .iter()
            .flat_map(|message| answer::elements(message.payload))
            .collect();
        assert_eq!(back, many);
    }
}
