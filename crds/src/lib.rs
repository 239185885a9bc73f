//! The API podlane.io/v1alpha1: its types, the YAML that is generated from them, and the way from an object that the API
//! server holds to the terms of [`podlane_plan`].
//!
//! Users write [`RoutingPolicy`]. The operator publishes [`RoutingNode`] (what one node is told and what its agent answers)
//! and [`PeerSlice`] (what every node is told of the others).

mod conditions;
mod convert;
mod decode;
mod generate;
pub mod peer_slice;
pub mod routing_node;
pub mod routing_policy;
mod terms;

pub use conditions::{ConditionType, condition, reason, set_condition};
pub use convert::{Invalid, policy_from_api};
pub use decode::{Undecodable, decode};
pub use generate::{CRD_FOLDERS, CannotWrite, crd_files, crd_yaml};
pub use peer_slice::{PeerEntry, PeerSlice, PeerSliceSpec};
pub use routing_node::{
    AppliedPolicy, Bypass, DatapathStatus, Dropped, Encapsulation, LaneCounts, MAX_DROPPED_IN_STATUS,
    MAX_PEERS_DROPPED_IN_STATUS, MAX_PEERS_IN_STATUS, PeerStatus, ProbeCounts, RoutingNode, RoutingNodeSpec,
    RoutingNodeStatus, UnderlayLink,
};
pub use routing_policy::{
    BypassMode, Datapath, MasqueradeMode, MasqueradeSpec, NodeCounts, PortRange, RoutingPolicy,
    RoutingPolicySpec, RoutingPolicyStatus, TunnelSpec,
};
pub use terms::{OffLinkPeers, RoutingMode, TunnelProtocol};

/// The API group of all of Podlane's objects.
pub const GROUP: &str = "podlane.io";
/// Its version.
pub const VERSION: &str = "v1alpha1";
