//! What is needed of nf_tables' answers.

use super::attributes;
use super::intervals::Element;
use super::kinds::{chain, elements, rule, table};
use super::message::{CHAIN_TYPE, HOOK, MARK, POLICY, PRIORITY};
use crate::kernel::wire::{self, Attributes};

/// The table as the kernel tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) is_ours: bool,
    /// Whether it is in force (`NFT_TABLE_F_DORMANT`).
    pub(super) is_active: bool,
    /// How many chains, sets and other objects it has.
    pub(super) uses: u32,
}

impl Table {
    pub(super) fn decode(payload: &[u8]) -> Option<Self> {
        let mut table = Self {
            is_ours: false,
            is_active: true,
            uses: 0,
        };
        for (kind, value) in attributes(payload) {
            match kind {
                table::FLAGS => table.is_active = read(value)? == 0,
                table::USES => table.uses = read(value)?,
                table::USER_DATA => table.is_ours = commented(value) == Some(MARK),
                _ => {}
            }
        }
        Some(table)
    }
}

/// The chain as the kernel tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Chain {
    hook: Option<u32>,
    priority: Option<u32>,
    policy: Option<u32>,
    kind: Option<String>,
}

impl Chain {
    pub(super) fn decode(payload: &[u8]) -> Option<Self> {
        let mut chain = Self::default();
        for (kind, value) in attributes(payload) {
            match kind {
                chain::HOOK => {
                    for (kind, value) in Attributes(value) {
                        match kind {
                            chain::HOOK_NUMBER => chain.hook = read(value),
                            chain::HOOK_PRIORITY => chain.priority = read(value),
                            _ => {}
                        }
                    }
                }
                chain::POLICY => chain.policy = read(value),
                chain::TYPE => chain.kind = wire::text(value).map(str::to_owned),
                _ => {}
            }
        }
        Some(chain)
    }

    /// Whether it is as [`super::message::Objects::add_chain`] makes it.
    pub(super) fn is_as_made(&self) -> bool {
        (self.hook, self.priority, self.policy) == (Some(HOOK), Some(PRIORITY), Some(POLICY))
            && self.kind.as_deref() == Some(CHAIN_TYPE)
    }
}

/// A rule's comment; empty: it has none, and is not ours.
pub(super) fn rule_comment(payload: &[u8]) -> Option<String> {
    let user_data = attributes(payload).find(|(kind, _)| *kind == rule::USER_DATA);
    Some(
        user_data
            .and_then(|(_, value)| commented(value))
            .unwrap_or_default()
            .to_owned(),
    )
}

/// The elements in one message of a dump.
pub(super) fn elements(payload: &[u8]) -> Vec<Element> {
    let lists = attributes(payload).filter(|(kind, _)| *kind == elements::ELEMENTS);
    lists
        .flat_map(|(_, list)| Attributes(list))
        .filter_map(|(_, element)| read_element(element))
        .collect()
}

fn read_element(bytes: &[u8]) -> Option<Element> {
    let (mut key, mut flags) = (None, 0);
    for (kind, value) in Attributes(bytes) {
        match kind {
            elements::KEY => {
                let (_, value) = Attributes(value).find(|(kind, _)| *kind == elements::VALUE)?;
                key = wire::address(value);
            }
            elements::FLAGS => flags = read(value)?,
            _ => {}
        }
    }
    Some(Element {
        key: key?,
        is_end: flags & elements::INTERVAL_END != 0,
    })
}

fn read(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_be_bytes)
}

/// The comment in user data, as `super::message::comment` writes it.
fn commented(user_data: &[u8]) -> Option<&str> {
    match user_data {
        [0, length, value @ ..] => wire::text(value.get(..usize::from(*length))?),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::{INET, comment, number, text};
    use super::*;
    use podlane_plan::kernel::NFTABLES_TABLE;

    #[test]
    fn a_table_is_ours_by_its_mark_alone() {
        let table = |mark: Option<&str>| {
            let mut payload = vec![INET, 0, 0, 0];
            text(&mut payload, table::NAME, NFTABLES_TABLE);
            number(&mut payload, table::USES, 3);
            if let Some(mark) = mark {
                comment(&mut payload, table::USER_DATA, mark);
            }
            Table::decode(&payload).expect("a table")
        };
        assert!(table(Some(MARK)).is_ours && table(Some(MARK)).is_active);
        assert_eq!(table(Some(MARK)).uses, 3);
        assert!(!table(Some("Podlane's")).is_ours && !table(None).is_ours);
    }
}
