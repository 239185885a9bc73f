//! The table that masquerades, by netlink: `inet podlane`, changed in one transaction whenever it has to differ.
//!
//! No library speaks nf_tables under a licence that can be linked here, and nft(8) is no part of the agent's image. It takes four kinds
//! of object and eight kinds of expression, which are written down in `message` and `expression` as
//! include/uapi/linux/netfilter/nf_tables.h has them.
//!
//! ```text
//! table inet podlane {
//!     set pods4 { type ipv4_addr; flags interval; elements = { 172.20.0.0/24 } }
//!     set plain4 { type ipv4_addr; flags interval; elements = { 172.20.0.0/16, 224.0.0.0/4 } }
//!     set others4 { type ipv4_addr; flags interval; elements = { 172.20.0.0/16 } }
//!     set own4 { type ipv4_addr; flags interval; elements = { 192.168.10.100 } }
//!     chain postrouting {
//!         type nat hook postrouting priority srcnat - 1; policy accept;
//!         meta nfproto ipv4 ip daddr @others4 ip daddr != @pods4 meta mark & 0x00004000 == 0x00004000
//!             meta mark set meta mark & 0xffffbfff snat ip to 172.20.0.1 fully-random
//!         meta nfproto ipv4 ip daddr @others4 ip daddr != @pods4 ip saddr @own4 snat ip to 172.20.0.1
//!         meta nfproto ipv4 ip saddr @pods4 ip daddr != @plain4 masquerade fully-random
//!     }
//! }
//! ```
//!
//! A chain of the type nat sees the first packet of a flow alone, and a flow that this chain has translated is left as it is by those behind
//! it: kube-proxy's, at srcnat. What that would masquerade to other nodes' pods is translated here, because the kernel ends a masqueraded flow
//! that leaves by another device than before (`nf_nat_oif_changed`, net/netfilter/nf_nat_core.c), which is what a change of lane is.
//!
//! What is there and sound is changed within: the chain's rules change with the kernel's generation, which a packet reads once for all rules
//! of a chain (`nft_do_chain`, net/netfilter/nf_tables_core.c). Two other ways let new flows leave with the pod's own address now and then:
//!
//! - A chain in the place of another: a packet could pass the new one before that moment, when it has no rules yet, and the old one after
//!   it, when it has none any more (`nf_nat_inet_fn`, net/netfilter/nf_nat_core.c).
//! - Other elements in a set that is in use: a tree of intervals that is changed while it is searched finds what is not there, or
//!   does not find what is (`nft_rbtree_lookup`, net/netfilter/nft_set_rbtree.c; seen on 6.12). So a set that has to differ is
//!   another one, under the other of its two names.

mod answer;
mod expression;
mod intervals;
mod kinds;
mod message;
mod rules;

use super::failure::{self, Failure};
use super::transport::{Transport, TransportError};
use super::wire;
use ipnet::IpNet;
use message::{Message, Objects};
use podlane_plan::kernel::NFTABLES_TABLE;
use podlane_plan::masquerade::Masquerade;
use rules::{FAMILIES, Family, Names, ports_of, router_of, rules};
use std::collections::{BTreeMap, BTreeSet};

/// What has the name of our table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Table {
    /// Nothing.
    None,
    /// Our table.
    Ours(Masquerade),
    /// Somebody else's.
    Foreign,
}

/// What is in our table.
struct Content {
    masquerade: Masquerade,
    /// Its sets.
    sets: BTreeMap<Names, Set>,
    /// Whether its chain and its objects are those that we make.
    is_sound: bool,
}

/// A set of our table's.
struct Set {
    name: &'static str,
    networks: BTreeSet<IpNet>,
}

/// The kernel's nf_tables.
#[derive(Debug)]
pub(super) struct Nftables {
    transport: Transport,
}

impl Default for Nftables {
    fn default() -> Self {
        Self {
            transport: Transport::netfilter(),
        }
    }
}

impl Nftables {
    /// The socket's port.
    pub(super) fn port(&self) -> Option<u32> {
        self.transport.port()
    }

    /// Reads what is there. Where nothing can be asked (no nf_tables in this kernel, no permission), nothing of ours is there either.
    pub(super) fn read(&mut self) -> Result<Table, TransportError> {
        Ok(match self.table()? {
            None => Table::None,
            Some(table) if !table.is_ours => Table::Foreign,
            Some(table) => Table::Ours(self.content(table)?.masquerade),
        })
    }

    /// Makes our table, or what is in it, as declared.
    pub(super) fn set(&mut self, masquerade: &Masquerade) -> Result<(), Failure> {
        let held = match self.table()? {
            None => None,
            Some(table) if !table.is_ours => return Err(failure::foreign_table()),
            Some(table) => Some(self.content(table)?).filter(|content| content.is_sound),
        };
        let mut objects = Objects::default();
        if held.is_none() {
            // So that there is one to delete.
            objects.add_table();
            objects.delete_table();
            objects.add_table();
            objects.add_chain();
        }
        let (mut names, mut superfluous) = (BTreeMap::new(), Vec::new());
        for family in FAMILIES {
            let has_pods = !of_family(&masquerade.pods, &family).is_empty();
            let has_router = has_pods && family.router(masquerade).is_some();
            for (set, networks, is_wanted) in [
                (family.pods, &masquerade.pods, has_pods),
                (family.plain, &masquerade.plain, has_pods),
                (family.others, &masquerade.others, has_router),
                (family.own, &masquerade.own, has_router),
            ] {
                let held = held.as_ref().and_then(|content| content.sets.get(&set));
                let networks = of_family(networks, &family);
                let name = match held {
                    Some(held) if is_wanted && held.networks == networks => held.name,
                    Some(held) => {
                        superfluous.push(held.name);
                        set[usize::from(held.name == set[0])]
                    }
                    None => set[0],
                };
                names.insert(set, name);
                if is_wanted && held.is_none_or(|held| held.name != name) {
                    objects.add_set(name, family.is_six);
                    let networks: Vec<IpNet> = networks.into_iter().collect();
                    objects.add_elements(name, &intervals::elements(&networks));
                }
            }
        }
        if held.is_some() {
            objects.empty_chain();
        }
        for rule in rules(masquerade, |set| names.get(&set).copied().unwrap_or(set[0])) {
            objects.add_rule(&rule);
        }
        // Rules do without them by then.
        for name in superfluous {
            objects.delete_set(name);
        }
        self.commit(objects)
    }

    /// Removes our table.
    pub(super) fn remove(&mut self) -> Result<(), Failure> {
        if self.refuse_foreign()? {
            let mut objects = Objects::default();
            objects.delete_table();
            self.commit(objects)?;
        }
        Ok(())
    }

    fn commit(&mut self, objects: Objects) -> Result<(), Failure> {
        self.transport
            .transaction(|bytes, first| objects.write(bytes, first))
            .map_err(failure::nftables)
    }

    /// Whether there is a table of ours.
    fn refuse_foreign(&mut self) -> Result<bool, Failure> {
        match self.table()? {
            None => Ok(false),
            Some(table) if table.is_ours => Ok(true),
            Some(_) => Err(failure::foreign_table()),
        }
    }

    /// What is in our table.
    fn content(&mut self, table: answer::Table) -> Result<Content, TransportError> {
        let chain = self.object(&message::get_chain(), answer::Chain::decode)?;
        let found: Vec<String> = self.list(&message::get_rules(), answer::rule_comment)?;
        let mut sets: BTreeMap<Names, Set> = BTreeMap::new();
        let mut count = 0;
        for set in FAMILIES.iter().flat_map(Family::sets) {
            for name in set {
                match self.elements(&message::get_elements(name)) {
                    Ok(elements) => {
                        count += 1;
                        let networks = intervals::networks(&elements).into_iter().collect();
                        sets.entry(set).or_insert(Set { name, networks });
                    }
                    // There is no such set.
                    Err(TransportError::Refused(_)) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        let all = |which: fn(&Family) -> Names| -> BTreeSet<IpNet> {
            let of_families = FAMILIES.iter().filter_map(|family| sets.get(&which(family)));
            of_families.flat_map(|set| &set.networks).copied().collect()
        };
        let mut masquerade = Masquerade {
            pods: all(|family| family.pods),
            plain: all(|family| family.plain),
            ports: found.iter().find_map(|comment| ports_of(comment)),
            others: all(|family| family.others),
            own: all(|family| family.own),
            routers: found.iter().filter_map(|comment| router_of(comment)).collect(),
            intact: true,
        };
        let declared: Vec<String> = rules(&masquerade, |set| set[0])
            .into_iter()
            .map(|rule| rule.comment)
            .collect();
        let is_sound = table.is_active
            && chain.is_some_and(|chain| chain.is_as_made())
            // The chain and the sets, and nothing that somebody else has put there.
            && count == sets.len()
            && usize::try_from(table.uses) == Ok(count + 1);
        masquerade.intact = is_sound && found == declared;
        Ok(Content {
            masquerade,
            sets,
            is_sound,
        })
    }

    fn table(&mut self) -> Result<Option<answer::Table>, TransportError> {
        self.object(&message::get_table(), answer::Table::decode)
    }

    /// An object; none: there is none, or nothing can be asked.
    fn object<T>(
        &mut self,
        message: &Message,
        found: impl FnOnce(&[u8]) -> Option<T>,
    ) -> Result<Option<T>, TransportError> {
        let write = |bytes: &mut Vec<u8>, flags, sequence| message.write(bytes, flags, sequence);
        match self.transport.get_written(write, found) {
            Ok(object) => Ok(Some(object)),
            Err(TransportError::Refused(_) | TransportError::Socket { call: "socket", .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn list<T>(
        &mut self,
        message: &Message,
        found: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>, TransportError> {
        let write = |bytes: &mut Vec<u8>, flags, sequence| message.write(bytes, flags, sequence);
        self.transport
            .dump_written(&write, |all: &mut Vec<T>, _, payload| all.extend(found(payload)))
    }

    fn elements(&mut self, message: &Message) -> Result<Vec<intervals::Element>, TransportError> {
        let lists = self.list(message, |payload| Some(answer::elements(payload)))?;
        Ok(lists.into_iter().flatten().collect())
    }
}

/// Those of a family.
fn of_family(networks: &BTreeSet<IpNet>, family: &Family) -> BTreeSet<IpNet> {
    let of_family = networks
        .iter()
        .filter(|network| network.addr().is_ipv6() == family.is_six);
    of_family.copied().collect()
}

/// Whether a notification is about our table, or about something in it: its first attribute is the table's name in all of them.
pub(super) fn is_about_ours(notification: &wire::Message<'_>) -> bool {
    notification.payload.first() == Some(&message::INET)
        && attributes(notification.payload)
            .any(|(kind, value)| kind == message::TABLE_NAME && wire::text(value) == Some(NFTABLES_TABLE))
}

/// What of a message's payload follows `struct nfgenmsg` (include/uapi/linux/netfilter/nfnetlink.h).
fn attributes(payload: &[u8]) -> wire::Attributes<'_> {
    wire::Attributes(payload.get(4..).unwrap_or_default())
}
