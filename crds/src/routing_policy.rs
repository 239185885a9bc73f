//! RoutingPolicy: the only object that a user writes.
#![allow(unreachable_pub, reason = "KubeSchema repeats each type inside of a function")]

use crate::terms::{OffLinkPeers, RoutingMode, TunnelProtocol};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

/// How the pods of the selected nodes reach the pods of other nodes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "podlane.io",
    version = "v1alpha1",
    kind = "RoutingPolicy",
    plural = "routingpolicies",
    shortname = "rp",
    category = "podlane",
    doc = "How the pods of the nodes that it selects reach the pods of other nodes: natively or through a tunnel.",
    status = "RoutingPolicyStatus",
    printcolumn = r#"{"name":"Mode","type":"string","jsonPath":".spec.routingMode","description":"native or tunnel"}"#,
    printcolumn = r#"{"name":"Protocol","type":"string","jsonPath":".status.protocol","description":"the encapsulation, where one is used"}"#,
    printcolumn = r#"{"name":"Nodes","type":"string","jsonPath":".status.nodesReady","description":"nodes that are ready, of those that the policy governs"}"#,
    printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].status"}"#,
    printcolumn = r#"{"name":"Reason","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].reason"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#,
    printcolumn = r#"{"name":"Summary","type":"string","jsonPath":".status.summary","description":"what is not as declared, in a line"}"#
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.mtu) || self.mtu == 0 || self.mtu >= ((has(self.nativeRoutingCIDRs) && self.nativeRoutingCIDRs.exists(c, c.contains(':'))) ? 1280 : 576)")
    .message("mtu must be 0 (from the underlay), or at least 576, or at least 1280 where a nativeRoutingCIDR is IPv6 (RFC 791, RFC 8200)")
    .field_path(".mtu")
    .reason(Reason::FieldValueInvalid))]
pub struct RoutingPolicySpec {
    /// The nodes that this policy governs, by their labels; absent or empty: all. Where several policies select a node, the
    /// one of higher priority governs it, then the older one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("!has(self.matchExpressions) || self.matchExpressions.all(e, e.operator in ['In', 'NotIn'] ? has(e.values) && size(e.values) > 0 : e.operator in ['Exists', 'DoesNotExist'] && (!has(e.values) || size(e.values) == 0))")
        .message("an operator must be In or NotIn, with values, or Exists or DoesNotExist, without")
        .reason(Reason::FieldValueInvalid))]
    pub node_selector: Option<LabelSelector>,

    /// Decides between policies that select the same node: the higher goes first.
    #[serde(default)]
    pub priority: i32,

    /// native: packets travel between nodes as they are. tunnel: they travel encapsulated between node addresses, across
    /// any router that lies between.
    pub routing_mode: RoutingMode,

    /// native: keep routes to the pod CIDRs of the peers that are on the same link. Without, all peers are treated as
    /// offLinkPeers says.
    #[serde(default = "yes")]
    pub auto_direct_node_routes: bool,

    /// native: what becomes of a peer behind a gateway. refuse: its packets are answered with ICMP unreachable. tunnel: they
    /// are encapsulated. underlay: they go to the gateway as they are, because the network routes pod CIDRs.
    #[serde(default = "refuse")]
    pub off_link_peers: OffLinkPeers,

    /// Destinations that pods reach with their own address rather than the node's; default: the cluster's pod CIDRs.
    #[serde(default, rename = "nativeRoutingCIDRs", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 49)))]
    #[x_kube(validation = Rule::new("self.all(c, isCIDR(c) && cidr(c) == cidr(c).masked())")
        .message("must be CIDRs without host bits, such as 172.20.0.0/16 or fd00:20::/48")
        .reason(Reason::FieldValueInvalid))]
    pub native_routing_cidrs: Vec<String>,

    /// Whether packets of pods to other destinations take the node's address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub masquerade: Option<MasqueradeSpec>,

    /// The tunnel, for routingMode: tunnel and for offLinkPeers: tunnel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<TunnelSpec>,

    /// How packets are handled on the way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub datapath: Option<Datapath>,

    /// The largest packet on a lane, in bytes; 0: what the underlay's MTU leaves after encapsulation (50 bytes less on an IPv4
    /// underlay, 70 on IPv6).
    #[serde(default)]
    #[schemars(range(min = 0, max = 65535))]
    pub mtu: u32,
}

/// A tunnel: what both ends must agree upon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct TunnelSpec {
    /// vxlan (RFC 7348) or geneve (RFC 8926).
    #[serde(default = "vxlan")]
    pub protocol: TunnelProtocol,

    /// The UDP port; default: 8472 for vxlan, 6081 for geneve. Firewalls between the nodes must let it pass.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<u16>,

    /// The virtual network identifier, 24 bits.
    #[serde(default = "one")]
    #[schemars(range(min = 0, max = 16_777_215))]
    pub vni: u32,
}

impl Default for TunnelSpec {
    fn default() -> Self {
        Self {
            protocol: vxlan(),
            port: None,
            vni: one(),
        }
    }
}

/// Options of the datapath.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Datapath {
    /// Auto: flows that the node's firewall has just accepted skip the host's stack, wherever that is possible. Off: never.
    #[serde(default = "auto")]
    pub bypass: BypassMode,

    /// The DSCP of the outer headers of tunnels (RFC 2474, section 3): what the underlay's switches and routers go by when they
    /// queue. The inner packet's own is left as it is.
    #[serde(default)]
    #[schemars(range(min = 0, max = 63))]
    pub dscp: u8,
}

impl Default for Datapath {
    fn default() -> Self {
        Self {
            bypass: auto(),
            dscp: 0,
        }
    }
}

/// How pods' packets leave the networks that know pods' addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct MasqueradeSpec {
    /// Auto: on nodes whose pods are connected by Podlane's own CNI configuration. Always: on every node. Never: on none.
    #[serde(default = "auto_masquerade")]
    pub mode: MasqueradeMode,

    /// The source ports that translated TCP, UDP and SCTP packets have, chosen at random; absent: the kernel's choice from 1024 on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: Option<PortRange>,
}

impl Default for MasqueradeSpec {
    fn default() -> Self {
        Self {
            mode: auto_masquerade(),
            ports: None,
        }
    }
}

/// Ports, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.first <= self.last")
    .message("the first port must not be greater than the last")
    .reason(Reason::FieldValueInvalid))]
pub struct PortRange {
    /// The first.
    #[schemars(range(min = 1, max = 65535))]
    pub first: u16,
    /// The last.
    #[schemars(range(min = 1, max = 65535))]
    pub last: u16,
}

/// Whether packets that leave the cluster's networks take the node's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum MasqueradeMode {
    /// Where Podlane connects the pods.
    Auto,
    /// Everywhere.
    Always,
    /// Nowhere.
    Never,
}

/// Whether accepted flows skip the host's stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum BypassMode {
    /// Where possible.
    Auto,
    /// Never.
    Off,
}

const fn yes() -> bool {
    true
}
const fn refuse() -> OffLinkPeers {
    OffLinkPeers::Refuse
}
const fn vxlan() -> TunnelProtocol {
    TunnelProtocol::Vxlan
}
const fn one() -> u32 {
    1
}
const fn auto_masquerade() -> MasqueradeMode {
    MasqueradeMode::Auto
}
const fn auto() -> BypassMode {
    BypassMode::Auto
}

/// What has become of a policy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct RoutingPolicyStatus {
    /// The generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// Accepted (the policy makes sense, by itself and among others), Progressing (a change is being carried out), Ready (every
    /// governed node is as declared, and every lane open).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[schemars(length(max = 16))]
    pub conditions: Vec<Condition>,

    /// The encapsulation, where the policy uses one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,

    /// Nodes that are ready, of those that the policy governs, such as 2/3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes_ready: Option<String>,

    /// How many nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<NodeCounts>,

    /// What is not as declared, in a line; absent when everything is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<String>,
}

/// Counts of nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeCounts {
    /// Nodes that the selector matches.
    pub selected: u32,
    /// Of those, the nodes that no better policy governs.
    pub governed: u32,
    /// Of those, the nodes that are as declared.
    pub ready: u32,
}
