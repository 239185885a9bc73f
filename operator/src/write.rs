//! What is to be written to the API server, as values.

use crate::seen::NetworkUnavailable;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use podlane_crds::{PeerEntry, RoutingNodeSpec, RoutingPolicyStatus};

/// One write.
#[derive(Clone, Debug, PartialEq)]
pub struct Write {
    /// The object's name.
    pub name: String,
    /// What to do to it.
    pub what: What,
    /// What to say of it once that is done.
    pub events: Vec<Event>,
}

impl Write {
    /// A write of which nothing is said.
    pub fn silent(name: &str, what: What) -> Self {
        Self {
            name: name.to_owned(),
            what,
            events: Vec::new(),
        }
    }
}

/// What to do to an object.
#[derive(Clone, Debug, PartialEq)]
pub enum What {
    /// Make a PeerSlice.
    CreateSlice(Vec<PeerEntry>),
    /// Write a PeerSlice anew.
    UpdateSlice {
        /// Only if it is still this one.
        expected: Expected,
        /// All its peers.
        peers: Vec<PeerEntry>,
    },
    /// Delete a PeerSlice.
    DeleteSlice(Expected),
    /// Write the status of a RoutingPolicy.
    PolicyStatus {
        /// The object's `metadata.uid`.
        uid: String,
        /// All of it.
        status: Box<RoutingPolicyStatus>,
    },
    /// Make a RoutingNode.
    CreateNode {
        /// The `metadata.uid` of the Node that owns it.
        owner: String,
        /// What the node is told.
        spec: Box<RoutingNodeSpec>,
    },
    /// Tell a node something else.
    UpdateNode {
        /// Only if it is still this one.
        expected: Expected,
        /// The `metadata.uid` of the Node that owns it.
        owner: String,
        /// What the node is told.
        spec: Box<RoutingNodeSpec>,
    },
    /// Delete a RoutingNode.
    DeleteNode(Expected),
    /// Write the condition NetworkUnavailable into the status of a Node.
    NodeNetwork {
        /// The object's `metadata.uid`.
        uid: String,
        /// What it says.
        said: NetworkUnavailable,
        /// Since when its status has been what it is.
        since: Time,
    },
    /// Take the condition NetworkUnavailable out of the status of a Node.
    ClearNodeNetwork {
        /// The object's `metadata.uid`.
        uid: String,
    },
    /// Write the operator's own condition into the status of a RoutingNode.
    NodeAccepted {
        /// The object's `metadata.uid`.
        uid: String,
        /// The condition.
        condition: Box<Condition>,
    },
}

/// The version of an object that a decision was made from. The generation and not the resourceVersion: what agents write into
/// status in the meantime must not stand in the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.generation`.
    pub generation: i64,
}

/// Something to tell whoever looks at an object with `kubectl describe`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Whether somebody should act.
    pub is_warning: bool,
    /// In a word.
    pub reason: String,
    /// In a sentence.
    pub note: String,
}

impl What {
    /// The kind of object that it is done to.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::CreateSlice(_) | Self::UpdateSlice { .. } | Self::DeleteSlice(_) => "PeerSlice",
            Self::PolicyStatus { .. } => "RoutingPolicy",
            Self::NodeNetwork { .. } | Self::ClearNodeNetwork { .. } => "Node",
            Self::CreateNode { .. }
            | Self::UpdateNode { .. }
            | Self::DeleteNode(_)
            | Self::NodeAccepted { .. } => "RoutingNode",
        }
    }

    /// In a word.
    pub const fn verb(&self) -> &'static str {
        match self {
            Self::CreateSlice(_) | Self::CreateNode { .. } => "create",
            Self::UpdateSlice { .. } | Self::UpdateNode { .. } => "update",
            Self::DeleteSlice(_) | Self::DeleteNode(_) => "delete",
            Self::PolicyStatus { .. }
            | Self::NodeNetwork { .. }
            | Self::ClearNodeNetwork { .. }
            | Self::NodeAccepted { .. } => "write the status of",
        }
    }

    /// Its turn: slices are few and every node waits for them, policies' status is little and a user waits for it. After a change
    /// of policy in a large cluster neither waits for the thousands of RoutingNodes.
    pub const fn turn(&self) -> u8 {
        match self {
            Self::CreateSlice(_) | Self::UpdateSlice { .. } | Self::DeleteSlice(_) => 0,
            Self::PolicyStatus { .. } => 1,
            Self::CreateNode { .. } | Self::UpdateNode { .. } | Self::DeleteNode(_) => 2,
            Self::NodeNetwork { .. } | Self::ClearNodeNetwork { .. } => 3,
            Self::NodeAccepted { .. } => 4,
        }
    }
}
