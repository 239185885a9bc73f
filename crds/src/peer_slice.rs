//! PeerSlice: what every node is told of some of the others. Written by the operator alone.
#![allow(unreachable_pub, reason = "KubeSchema repeats each type inside of a function")]

use crate::routing_node::{AppliedPolicy, UnderlayLink};
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

/// Up to some hundred nodes. A node stays in its slice, so that a change at one node rewrites one slice.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "podlane.io",
    version = "v1alpha1",
    kind = "PeerSlice",
    plural = "peerslices",
    shortname = "ps",
    category = "podlane",
    doc = "What every node is told of up to some hundred other nodes. Made by the operator.",
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct PeerSliceSpec {
    /// The nodes.
    #[serde(default)]
    #[schemars(length(max = 500))]
    pub peers: Vec<PeerEntry>,
}

/// One node, as its peers need to know it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PeerEntry {
    /// The node's name.
    pub name: String,
    /// Its addresses with their on-link prefixes and MTU, in the order of its Node object.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub addresses: Vec<UnderlayLink>,
    /// Its pod CIDRs that are routed.
    #[serde(default, rename = "podCIDRs")]
    #[schemars(length(max = 64))]
    pub pod_cidrs: Vec<String>,
    /// The lanes on which it receives.
    #[serde(default)]
    #[schemars(length(max = 256))]
    pub receives_on: Vec<String>,
    /// The policy that governs it; absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<AppliedPolicy>,
    /// What is needed to probe it, 32 hexadecimal digits; absent: its programs answer no probes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), regex(pattern = r"^[0-9a-f]{32}$"))]
    pub probe_key: Option<String>,
}
