//! The rules of the table, each with a comment that says in words what it does: a rule cannot be changed in place, so one that bears our
//! comment does what the comment says.

use super::expression::{self, Expressions};
use podlane_plan::masquerade::{KUBE_PROXY_MARK, Masquerade, Ports};
use std::net::IpAddr;

/// What a family's part of the table is called.
pub(super) struct Family {
    pub(super) is_six: bool,
    name: &'static str,
    /// The set of pods' networks, by either name.
    pub(super) pods: Names,
    /// The set of destinations at which pods keep their own address, by either name.
    pub(super) plain: Names,
    /// The set of networks of other nodes' pods, by either name.
    pub(super) others: Names,
    /// The set of the node's own addresses, by either name.
    pub(super) own: Names,
}

impl Family {
    /// All its sets.
    pub(super) const fn sets(&self) -> [Names; 4] {
        [self.pods, self.plain, self.others, self.own]
    }

    /// The node's router address.
    pub(super) fn router(&self, masquerade: &Masquerade) -> Option<IpAddr> {
        let mut routers = masquerade.routers.iter().copied();
        routers.find(|router| router.is_ipv6() == self.is_six)
    }
}

/// A set's two names: one that has to differ is made under the other name.
pub(super) type Names = [&'static str; 2];

pub(super) const FAMILIES: [Family; 2] = [
    Family {
        is_six: false,
        name: "IPv4",
        pods: ["pods4", "pods4_2"],
        plain: ["plain4", "plain4_2"],
        others: ["others4", "others4_2"],
        own: ["own4", "own4_2"],
    },
    Family {
        is_six: true,
        name: "IPv6",
        pods: ["pods6", "pods6_2"],
        plain: ["plain6", "plain6_2"],
        others: ["others6", "others6_2"],
        own: ["own6", "own6_2"],
    },
];

/// The protocols that have ports, by their numbers (IANA).
const WITH_PORTS: [(&str, u8); 3] = [("TCP", 6), ("UDP", 17), ("SCTP", 132)];

/// A rule of the chain.
pub(super) struct Rule {
    pub(super) comment: String,
    pub(super) expressions: Expressions,
}

/// The rules in their order. `named` says under which of its names a set stands.
pub(super) fn rules(masquerade: &Masquerade, named: impl Fn(Names) -> &'static str) -> Vec<Rule> {
    let mut rules = Vec::new();
    for family in FAMILIES {
        if !masquerade
            .pods
            .iter()
            .any(|network| network.addr().is_ipv6() == family.is_six)
        {
            continue;
        }
        if let Some(router) = family.router(masquerade) {
            let [pods, others, own] = [family.pods, family.others, family.own].map(&named);
            // By whom it was masqueraded comes first: it may be the node's own, too, and the mark must go.
            rules.push(marked(&family, [others, pods], router));
            rules.push(from_node(&family, [others, pods, own], router));
        }
        let protocols = WITH_PORTS.iter().map(Some);
        let protocols = protocols.filter(|_| masquerade.ports.is_some()).chain([None]);
        rules.extend(protocols.map(|protocol| {
            let sets = [named(family.pods), named(family.plain)];
            rule(&family, sets, protocol, masquerade.ports)
        }));
    }
    rules
}

/// What kube-proxy would masquerade.
fn marked(family: &Family, sets: [&str; 2], router: IpAddr) -> Rule {
    let mut expressions = to_others(family, sets);
    expressions.unmark(KUBE_PROXY_MARK);
    expressions.source(router, true);
    let name = family.name;
    Rule {
        comment: format!("what kube-proxy masquerades to other nodes' {name} pods{TAKES}{router}"),
        expressions,
    }
}

/// What the node sends by its own address.
fn from_node(family: &Family, [others, pods, own]: [&str; 3], router: IpAddr) -> Rule {
    let mut expressions = to_others(family, [others, pods]);
    expressions.address(family.is_six, expression::Side::Source);
    expressions.is_in(own);
    expressions.source(router, false);
    let name = family.name;
    Rule {
        comment: format!("the node's own to other nodes' {name} pods{TAKES}{router}"),
        expressions,
    }
}

fn to_others(family: &Family, [others, pods]: [&str; 2]) -> Expressions {
    let mut expressions = Expressions::default();
    expressions.of_family(family.is_six);
    expressions.address(family.is_six, expression::Side::Destination);
    expressions.is_in(others);
    expressions.is_not_in(pods);
    expressions
}

/// In a comment, before an address.
const TAKES: &str = " takes ";

/// The address that a rule with this comment gives.
pub(super) fn router_of(comment: &str) -> Option<IpAddr> {
    comment.rsplit_once(TAKES)?.1.parse().ok()
}

fn rule(family: &Family, sets: [&str; 2], protocol: Option<&(&str, u8)>, ports: Option<Ports>) -> Rule {
    let mut expressions = Expressions::default();
    expressions.of_family(family.is_six);
    expressions.address(family.is_six, expression::Side::Source);
    let [pods, plain] = sets;
    expressions.is_in(pods);
    expressions.address(family.is_six, expression::Side::Destination);
    expressions.is_not_in(plain);
    let name = family.name;
    let mut comment = format!("pods' {name} to elsewhere takes the node's address");
    match (protocol, ports) {
        (Some((protocol, number)), Some(ports)) => {
            expressions.of_protocol(*number);
            expressions.masquerade(Some(ports));
            comment.push_str(&format!(", {protocol} ports {ports}"));
        }
        _ => expressions.masquerade(None),
    }
    Rule { comment, expressions }
}

/// The ports of a rule with this comment.
pub(super) fn ports_of(comment: &str) -> Option<Ports> {
    let (_, ports) = comment.rsplit_once(" ports ")?;
    let (first, last) = ports.split_once('-')?;
    Some(Ports {
        first: first.parse().ok()?,
        last: last.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rules_comment_says_what_it_does() {
        let net = |text: &str| text.parse().expect("a CIDR");
        let mut masquerade = Masquerade {
            pods: [net("172.20.0.0/24"), net("fd20::/64")].into(),
            plain: [].into(),
            ports: None,
            others: [net("172.20.0.0/16")].into(),
            own: [].into(),
            routers: [].into(),
            intact: true,
        };
        let comments = |masquerade: &Masquerade| -> Vec<String> {
            rules(masquerade, |names| names[0])
                .into_iter()
                .map(|rule| rule.comment)
                .collect()
        };
        assert_eq!(
            comments(&masquerade),
            [
                "pods' IPv4 to elsewhere takes the node's address",
                "pods' IPv6 to elsewhere takes the node's address"
            ]
        );
        masquerade.ports = Some(Ports {
            first: 1,
            last: 65535,
        });
        masquerade.pods.remove(&net("fd20::/64"));
        let with_ports = comments(&masquerade);
        assert_eq!(
            with_ports[2],
            "pods' IPv4 to elsewhere takes the node's address, SCTP ports 1-65535"
        );
        assert_eq!(with_ports.len(), 4);
        let read: Vec<_> = with_ports.iter().map(|comment| ports_of(comment)).collect();
        assert_eq!(read, [masquerade.ports, masquerade.ports, masquerade.ports, None]);
        // User data has a byte for its length, and the kernel 256 bytes for all of it.
        assert!(with_ports.iter().all(|comment| comment.len() < 128));

        masquerade.routers = [IpAddr::from([172, 20, 0, 1])].into();
        let with_router = comments(&masquerade);
        assert_eq!(
            with_router[..2],
            [
                "what kube-proxy masquerades to other nodes' IPv4 pods takes 172.20.0.1",
                "the node's own to other nodes' IPv4 pods takes 172.20.0.1"
            ]
        );
        assert_eq!(with_router[2..], with_ports);
        let read: Vec<_> = with_router
            .iter()
            .filter_map(|comment| router_of(comment))
            .collect();
        assert_eq!(read, [IpAddr::from([172, 20, 0, 1]); 2]);
    }
}
