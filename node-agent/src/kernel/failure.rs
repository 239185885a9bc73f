//! Why an operation had no effect, in words that say what to do; and which errors mean that it is done already.

use super::link::Link;
use super::transport::{Refused, TransportError};
use nix::errno::Errno;
use podlane_plan::diff::Operation;
use podlane_plan::kernel::{ForeignRoute, NFTABLES_TABLE};

/// Why an operation had no effect, in words that say what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{words}")]
pub struct Failure {
    /// The kernel's error, where it was the kernel that said no.
    pub errno: Option<Errno>,
    /// The words.
    pub words: String,
}

impl Failure {
    pub(super) fn new(words: impl Into<String>) -> Self {
        Self {
            errno: None,
            words: words.into(),
        }
    }
}

impl From<TransportError> for Failure {
    fn from(error: TransportError) -> Self {
        match error {
            TransportError::Refused(Refused { errno: Errno::EPERM, words: None }) => Self {
                errno: Some(Errno::EPERM),
                words: "the agent may not change this node's network: give its container the capability NET_ADMIN (EPERM)"
                    .to_owned(),
            },
            TransportError::Refused(refused) => Self { errno: Some(refused.errno), words: refused.to_string() },
            TransportError::Socket { errno, .. } => Self { errno: Some(errno), words: error.to_string() },
            error => Self::new(error.to_string()),
        }
    }
}

/// The errors that mean that what was to be done is done already. EEXIST is none of them for a route: somebody else's has
/// the place (`fib_table_insert` in net/ipv4/fib_trie.c, `fib6_add_rt2node` in net/ipv6/ip6_fib.c).
pub(super) fn is_benign(operation: &Operation, errno: Errno) -> bool {
    match operation {
        Operation::AddAddress(_) => errno == Errno::EEXIST,
        Operation::RemoveAddress(_) => matches!(errno, Errno::EADDRNOTAVAIL | Errno::ENODEV),
        Operation::RemoveNeighbour(_) => matches!(errno, Errno::ENOENT | Errno::ENODEV),
        Operation::RemoveRoute(_) => matches!(errno, Errno::ESRCH | Errno::ENODEV),
        Operation::DeleteDevice { .. } => errno == Errno::ENODEV,
        Operation::SetSysctl { .. }
        | Operation::CreateDevice { .. }
        | Operation::ConfigureDevice { .. }
        | Operation::SetNeighbour(..)
        | Operation::AddRoute(..)
        | Operation::ReplaceRoute(..)
        | Operation::SetMasquerade(_)
        | Operation::RemoveMasquerade => false,
    }
}

pub(super) fn unless_benign(operation: &Operation, failure: Failure) -> Result<(), Failure> {
    if failure.errno.is_some_and(|errno| is_benign(operation, errno)) {
        Ok(())
    } else {
        Err(failure)
    }
}

/// The outcome of removing a stray: what is gone already (an address goes with the first one of its network) is as wanted.
pub(super) fn unless_gone(result: Result<(), TransportError>) -> Result<(), Failure> {
    match result {
        Err(TransportError::Refused(refused))
            if matches!(refused.errno, Errno::EADDRNOTAVAIL | Errno::ESRCH | Errno::ENODEV) =>
        {
            Ok(())
        }
        result => result.map_err(Failure::from),
    }
}

/// A kernel parameter that cannot be written.
pub(super) fn sysctl(path: &str, value: &str, errno: Errno) -> Failure {
    let words = match errno {
        Errno::EROFS | Errno::EACCES | Errno::EPERM => format!(
            "{path} cannot be set to {value}: /proc/sys is read-only here ({errno:?}). Mount the node's /proc/sys/net into the \
             container and name the place with --sysctls, or set it on the node: sysctl -w {}={value}",
            dotted(path)
        ),
        errno => format!("{path} cannot be set to {value}: {} ({errno:?})", errno.desc()),
    };
    Failure {
        errno: Some(errno),
        words,
    }
}

/// A parameter's path as sysctl(8) writes it: a dot in a device's name becomes a slash.
fn dotted(path: &str) -> String {
    path.chars()
        .map(|letter| match letter {
            '/' => '.',
            '.' => '/',
            letter => letter,
        })
        .collect()
}

pub(super) fn gone(name: &str) -> Failure {
    Failure {
        errno: Some(Errno::ENODEV),
        words: format!("there is no device {name}"),
    }
}

pub(super) fn not_ours(link: &Link) -> Failure {
    Failure::new(format!(
        "a device that is not Podlane's has the name {} ({}): rename or remove it",
        link.name,
        link.description()
    ))
}

/// The table that masquerades could not be made.
pub(super) fn nftables(error: TransportError) -> Failure {
    let refused = match &error {
        TransportError::Refused(refused) => refused,
        _ => return error.into(),
    };
    // A family, a chain's type or an expression that is no part of this kernel (`nf_tables_newchain`, `nf_tables_expr_parse` in
    // net/netfilter/nf_tables_api.c), or the whole of nftables (`nfnetlink_rcv_batch` in net/netfilter/nfnetlink.c).
    if matches!(
        refused.errno,
        Errno::ENOENT | Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT
    ) {
        return Failure {
            errno: Some(refused.errno),
            words: format!(
                "this kernel cannot masquerade by nftables ({refused}): load the modules nft_chain_nat, nft_nat and nft_masq on the \
                 node (modprobe -a nft_chain_nat nft_nat nft_masq), or set spec.masquerade.mode to Never"
            ),
        };
    }
    error.into()
}

pub(super) fn foreign_table() -> Failure {
    Failure::new(format!(
        "an nftables table that is not Podlane's has the name {NFTABLES_TABLE} (inet): rename or remove it"
    ))
}

pub(super) fn place_taken(foreign: &ForeignRoute) -> Failure {
    let way = match foreign.next_hops.first() {
        Some(hop) => match hop.gateway {
            Some(gateway) => format!("via {gateway} dev {}", hop.device),
            None => format!("dev {}", hop.device),
        },
        None => "unreachable".to_owned(),
    };
    Failure {
        errno: Some(Errno::EEXIST),
        words: format!(
            "a route that is not Podlane's has the place ({} {way} metric {} proto {}): remove it, or let its owner give it \
             another destination",
            foreign.destination, foreign.metric, foreign.protocol
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use podlane_plan::kernel::{Route, RouteKey};

    fn key() -> RouteKey {
        RouteKey {
            destination: "172.20.2.0/24".parse().expect("a CIDR"),
            metric: 0,
        }
    }

    #[test]
    fn a_route_in_the_way_is_never_benign() {
        let add = Operation::AddRoute(key(), Route::UNREACHABLE);
        assert!(!is_benign(&add, Errno::EEXIST));
        assert!(is_benign(&Operation::RemoveRoute(key()), Errno::ESRCH));
        assert!(!is_benign(&Operation::RemoveRoute(key()), Errno::EPERM));
    }

    #[test]
    fn a_missing_capability_is_said_and_the_kernels_own_words_go_first() {
        let refused = |words: Option<&str>| {
            TransportError::Refused(Refused {
                errno: Errno::EPERM,
                words: words.map(str::to_owned),
            })
        };
        assert!(Failure::from(refused(None)).words.contains("NET_ADMIN"));
        assert_eq!(Failure::from(refused(Some("only one"))).words, "only one (EPERM)");
    }

    #[test]
    fn parameters_are_written_as_sysctl_reads_them() {
        assert_eq!(
            dotted("net/ipv4/conf/eth0.100/rp_filter"),
            "net.ipv4.conf.eth0/100.rp_filter"
        );
    }
}
