//! The CNI configuration by which a node's container runtime connects its pods: what it says, and when it may be written.
//!
//! A runtime takes a node for ready as soon as there is one. So there is none before the node's lanes are proved, and from then on it
//! stays: pods that run need it to be taken down again.

mod config;

pub use config::{Config, NETWORK, config};

use crate::desired::{Assignment, Desired, Note};
use crate::lane::Lane;
use crate::pair::Refusal;
use ipnet::IpNet;
use std::collections::BTreeSet;
use std::fmt;

/// What a runtime's directory of configurations holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// What our file says; none: there is none.
    pub ours: Option<String>,
    /// Whether somebody else's has the name of ours.
    pub is_taken: bool,
    /// Others' that sort before ours, so that a runtime goes by them.
    pub before: BTreeSet<String>,
    /// Others' that sort after.
    pub after: BTreeSet<String>,
}

impl Found {
    /// Whether pods are connected by our file, or may come to be.
    pub fn connects(&self) -> bool {
        let others =
            self.is_taken || !self.before.is_empty() || (self.ours.is_none() && !self.after.is_empty());
        !others
    }

    /// Whether pods get addresses by our file, and not out of the pod CIDRs that the node has: it has others by now, or none.
    pub fn numbers_otherwise(&self, pod_cidrs: &[IpNet]) -> bool {
        self.ours.as_deref().is_some_and(|ours| {
            let said: BTreeSet<&str> = config::subnets(ours).collect();
            let are: BTreeSet<String> = pod_cidrs.iter().map(IpNet::to_string).collect();
            !said.is_empty() && !said.into_iter().eq(are.iter().map(String::as_str))
        })
    }

    fn others(&self) -> BTreeSet<String> {
        self.before.union(&self.after).cloned().collect()
    }
}

/// [`Hindrance::reason`] where another network plugin connects the node's pods.
pub const FOREIGN: &str = "ForeignCNIConfiguration";

/// Why pods are not connected by Podlane, or not yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hindrance {
    /// No policy governs the node.
    NoPolicy,
    /// The node has no pod CIDR.
    NoPodCidr,
    /// None of the node's addresses is on one of its devices.
    NoUnderlay,
    /// The kernel does not hold what is declared.
    NotInSync,
    /// The node does not receive on a lane yet.
    NotOpen(Lane),
    /// The first probe over these peers' lanes has yet to be answered.
    Untried(BTreeSet<String>),
    /// None of these peers answers, and there is no other.
    Silent(BTreeSet<String>),
    /// Other network plugins' configurations.
    Foreign(BTreeSet<String>),
    /// The file that ours would be is somebody else's.
    Taken,
    /// The file could not be read or written: why.
    NotWritten(String),
}

impl Hindrance {
    /// A reason as metav1.Condition wants one.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::NoPolicy => "NoPolicy",
            Self::NoPodCidr => "NoPodCIDR",
            Self::NoUnderlay => "AddressNotFound",
            Self::NotInSync => "NotInSync",
            Self::NotOpen(_) => "Opening",
            Self::Untried(_) => "LaneNotProved",
            Self::Silent(_) => "LaneSilent",
            Self::Foreign(_) | Self::Taken => FOREIGN,
            Self::NotWritten(_) => "CNIConfigurationNotWritten",
        }
    }
}

impl fmt::Display for Hindrance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPolicy => f.write_str("no RoutingPolicy governs this node: apply one whose nodeSelector selects it"),
            Self::NoPodCidr => f.write_str("the node has no pod CIDR: see the condition Accepted of its RoutingNode"),
            Self::NoUnderlay => f.write_str("no device that is up has one of the node's addresses"),
            Self::NotInSync => f.write_str("the kernel does not hold what is declared yet: see the condition Ready"),
            Self::NotOpen(lane) => write!(f, "{lane} is not open for receiving: see the condition Ready if that does not end"),
            Self::Untried(peers) => write!(f, "the first probes to {} have yet to be answered", listed(peers)),
            Self::Silent(peers) => write!(
                f,
                "no peer answers on its lane ({}): see status.peers for what is likely wrong",
                listed(peers)
            ),
            Self::Foreign(files) => write!(
                f,
                "another network plugin's CNI configuration is there ({}), and stays: remove it to have pods connected by Podlane, or \
                 install Podlane without CNI configuration (cni.install=false)",
                listed(files)
            ),
            Self::Taken => f.write_str(
                "a CNI configuration that is not Podlane's has the name of its own, and stays: remove or rename it, or give Podlane's \
                 another name (--cni-conf-name)",
            ),
            Self::NotWritten(why) => write!(f, "the CNI configuration cannot be kept: {why}"),
        }
    }
}

fn listed(names: &BTreeSet<String>) -> String {
    const FEW: usize = 3;
    let named: Vec<&str> = names.iter().take(FEW).map(String::as_str).collect();
    match names.len().saturating_sub(FEW) {
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}

/// What is to be done about the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What to write; none: what is there stays.
    pub write: Option<String>,
    /// What of it stands: Ok once pods are connected as declared (after the write, where there is one), with what else is to be said.
    pub standing: Result<String, Hindrance>,
}

/// Decides about the file. `wanted` is [`config`]'s; `unproved` is [`unproved`]'s.
pub fn verdict(wanted: Result<Config, Hindrance>, unproved: Option<Hindrance>, found: &Found) -> Verdict {
    let stays = |standing| Verdict {
        write: None,
        standing,
    };
    if found.is_taken {
        return stays(Err(Hindrance::Taken));
    }
    let is_new = found.ours.is_none();
    if is_new && !found.connects() {
        return stays(Err(Hindrance::Foreign(found.others())));
    }
    let wanted = match wanted {
        Ok(wanted) => wanted,
        Err(hindrance) => return stays(Err(hindrance)),
    };
    let text = wanted.to_string();
    let (write, words) = match (&found.ours, unproved) {
        (Some(ours), _) if *ours == text => (None, wanted.words()),
        // What is there would number pods from networks that are others' by now: none is connected by it.
        (Some(_), Some(hindrance)) if found.numbers_otherwise(&wanted.pod_cidrs) => {
            return stays(Err(hindrance));
        }
        (Some(_), Some(hindrance)) => (
            None,
            format!(
                "pods are connected as before, and will be {} once that ends: {hindrance}",
                wanted.words()
            ),
        ),
        (None, Some(hindrance)) => return stays(Err(hindrance)),
        (_, None) => (Some(text), wanted.words()),
    };
    // Ours is there and kept, but a runtime goes by another.
    if !found.before.is_empty() {
        return Verdict {
            write,
            standing: Err(Hindrance::Foreign(found.before.clone())),
        };
    }
    Verdict {
        write,
        standing: Ok(words),
    }
}

/// What of the node's lanes has yet to be proved before its first pods may be connected. Peers that cannot be reached by declaration, whose
/// agents have not come up yet or that are down do not count: a node must be able to join a cluster that others are missing from.
pub fn unproved(assignment: &Assignment, desired: &Desired, is_settled: bool) -> Option<Hindrance> {
    let is_closed = |lane: &&Lane| !desired.receives_on.contains(lane);
    if let Some(lane) = assignment.receive_on.iter().find(is_closed) {
        return Some(Hindrance::NotOpen(*lane));
    }
    let lacks_device = |note: &Note| {
        matches!(
            note,
            Note::ForeignDevice { .. } | Note::NoDevice { .. } | Note::ForeignTable
        )
    };
    if !is_settled || desired.notes.iter().any(lacks_device) {
        return Some(Hindrance::NotInSync);
    }
    let (mut untried, mut silent, mut answers) = (BTreeSet::new(), BTreeSet::new(), false);
    for (name, peer) in &desired.peers {
        match (&peer.used, peer.doubt) {
            (Err(Refusal::NotProved { why, .. }), _) if why.passes() => untried.insert(name.clone()),
            (Err(Refusal::NotProved { .. }), _) => silent.insert(name.clone()),
            (Err(_), _) => false,
            (Ok(_), Some(_)) => silent.insert(name.clone()),
            (Ok(_), None) => {
                answers = true;
                false
            }
        };
    }
    if !untried.is_empty() {
        return Some(Hindrance::Untried(untried));
    }
    (!answers && !silent.is_empty()).then_some(Hindrance::Silent(silent))
}

#[cfg(test)]
mod tests;
