//! RoutingNode: one a node, named after it. The operator writes the spec, the node's agent the status.
#![allow(unreachable_pub, reason = "KubeSchema repeats each type inside of a function")]

use crate::routing_policy::{Datapath, MasqueradeSpec, TunnelSpec};
use crate::terms::{OffLinkPeers, RoutingMode};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

/// Peers that a RoutingNode's status lists by name, at most: those that are not as declared come first.
pub const MAX_PEERS_IN_STATUS: usize = 64;

/// Kinds of dropped packets that a RoutingNode's status counts, at most: the most frequent ones.
pub const MAX_DROPPED_IN_STATUS: usize = 64;

/// How many of them are peers', at most.
pub const MAX_PEERS_DROPPED_IN_STATUS: usize = 16;

/// What a node is told: written by the operator alone.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "podlane.io",
    version = "v1alpha1",
    kind = "RoutingNode",
    plural = "routingnodes",
    shortname = "rn",
    category = "podlane",
    doc = "What one node is told of its own part in pod routing, and what its agent answers. Made by the operator, named after the node.",
    status = "RoutingNodeStatus",
    printcolumn = r#"{"name":"Policy","type":"string","jsonPath":".spec.policy.name"}"#,
    printcolumn = r#"{"name":"Address","type":"string","jsonPath":".spec.addresses[0]"}"#,
    printcolumn = r#"{"name":"Pod-CIDR","type":"string","jsonPath":".spec.podCIDRs[0]"}"#,
    printcolumn = r#"{"name":"Lanes","type":"string","jsonPath":".status.lanes","description":"peers by the lane that reaches them"}"#,
    printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].status"}"#,
    printcolumn = r#"{"name":"Reason","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].reason"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct RoutingNodeSpec {
    /// The node's addresses of type InternalIP.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub addresses: Vec<String>,

    /// The node's pod CIDRs that are routed.
    #[serde(default, rename = "podCIDRs")]
    #[schemars(length(max = 64))]
    pub pod_cidrs: Vec<String>,

    /// What the whole cluster's pods are numbered from, where the operator was told: no packet for it follows the default route.
    #[serde(default, rename = "clusterPodCIDRs", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub cluster_pod_cidrs: Vec<String>,

    /// The policy that governs the node; absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<AppliedPolicy>,

    /// The generation of that policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_generation: Option<i64>,

    /// That policy's MTU in bytes; 0: what the underlay leaves.
    #[serde(default)]
    pub mtu: u32,

    /// Destinations that pods reach with their own address.
    #[serde(default, rename = "nativeRoutingCIDRs", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub native_routing_cidrs: Vec<String>,

    /// That policy's word on packets to other destinations; absent: its default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub masquerade: Option<MasqueradeSpec>,

    /// The lanes on which the node is to receive: native, vxlan:PORT:VNI, geneve:PORT:VNI.
    #[serde(default)]
    #[schemars(length(max = 256))]
    pub receive_on: Vec<String>,

    /// That policy's options of the datapath; absent: its defaults.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub datapath: Option<Datapath>,

    /// Whether everything of Podlane's is to be taken off the node, whatever else is said here: Podlane is being uninstalled.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub clean: bool,
}

/// A policy, as far as the lane between two nodes follows from it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct AppliedPolicy {
    /// The policy's name.
    pub name: String,
    /// Its priority.
    #[serde(default)]
    pub priority: i32,
    /// When it was made.
    pub created_at: Time,
    /// native or tunnel.
    pub routing_mode: RoutingMode,
    /// native: direct routes to peers on the same link.
    pub auto_direct_node_routes: bool,
    /// native: what becomes of a peer behind a gateway.
    pub off_link_peers: OffLinkPeers,
    /// The tunnel, with its port.
    pub tunnel: TunnelSpec,
}

/// What a node's agent answers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct RoutingNodeStatus {
    /// The generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// Accepted (written by the operator: the Node's addresses and pod CIDRs can be routed), Progressing (a lane is being opened or
    /// moved to), Ready (the kernel is as declared, and every peer is reached), PodNetwork (the CNI configuration that connects the node's
    /// pods is there; absent where another network plugin's does), Cleaned (nothing of Podlane's is on the node; absent unless that is
    /// asked for).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[schemars(length(max = 16))]
    pub conditions: Vec<Condition>,

    /// Where the node's addresses stand.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub underlay: Vec<UnderlayLink>,

    /// The lanes on which the node receives.
    #[serde(default)]
    #[schemars(length(max = 256))]
    pub receives_on: Vec<String>,

    /// The lanes on which the node sends.
    #[serde(default)]
    #[schemars(length(max = 256))]
    pub sends_on: Vec<String>,

    /// Peers by the lane that reaches them, in a line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lanes: Option<String>,

    /// Peers by the lane that reaches them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counts: Option<LaneCounts>,

    /// All peers that the agent has been told of, their addresses and pod CIDRs in one number of 16 hexadecimal digits: by it the operator
    /// knows that the agent has heard of a change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), regex(pattern = r"^[0-9a-f]{16}$"))]
    pub membership: Option<String>,

    /// Up to 64 peers by name: those that are not as declared first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub peers: Vec<PeerStatus>,

    /// What peers need to probe this node, 32 hexadecimal digits; absent: this node's programs answer no probes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), regex(pattern = r"^[0-9a-f]{32}$"))]
    pub probe_key: Option<String>,

    /// How packets are handled on the way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub datapath: Option<DatapathStatus>,

    /// What probes of the lanes in use show; absent: no lane is probed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probes: Option<ProbeCounts>,

    /// Packets that the programs dropped: by lane and reason, the most frequent first; then by peer and reason, of the packets that could be
    /// laid to one, up to 16. The numbers follow the counters in steps: their growth by an eighth is shown. The agent's metrics have them
    /// as they are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub dropped: Vec<Dropped>,

    /// The agent's version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_version: Option<String>,

    /// The very agent that writes this status: its pod's metadata.uid. Absent: it is in no pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub agent_instance: Option<String>,
}

/// One of the node's own addresses, on its device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct UnderlayLink {
    /// The address.
    pub address: String,
    /// The length of its on-link prefix; absent: not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 128))]
    pub prefix_length: Option<u8>,
    /// The device that has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// The device's MTU in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
}

/// Counts of peers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct LaneCounts {
    /// All peers that the agent has been told of.
    pub total: u32,
    /// Reached as they are, on the same link.
    #[serde(default)]
    pub native: u32,
    /// Reached as they are, through the network's gateways.
    #[serde(default)]
    pub underlay: u32,
    /// Reached by VXLAN.
    #[serde(default)]
    pub vxlan: u32,
    /// Reached by GENEVE.
    #[serde(default)]
    pub geneve: u32,
    /// Refused.
    #[serde(default)]
    pub refused: u32,
}

/// How a peer is reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PeerStatus {
    /// The peer's node.
    pub name: String,
    /// The lane that packets take: native, underlay, vxlan:PORT:VNI, geneve:PORT:VNI or refused.
    pub lane: String,
    /// The lane that they are to take, where it is another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wanted: Option<String>,
    /// Why the peer is not reached as declared, in a word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The same in a sentence, with what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// Who encapsulates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum Encapsulation {
    /// Podlane's eBPF programs.
    #[serde(rename = "eBPF")]
    Ebpf,
    /// The kernel's tunnel drivers, because the programs cannot be loaded.
    Kernel,
}

/// Whether flows bypass the host's stack on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum Bypass {
    /// Those that its firewall has just accepted.
    On,
    /// None.
    Off,
}

/// How a node handles packets on the way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct DatapathStatus {
    /// Who encapsulates: eBPF or Kernel.
    pub encapsulation: Encapsulation,
    /// Whether accepted flows bypass the host's stack.
    pub bypass: Bypass,
    /// Why encapsulation is Kernel or bypass is Off, or InPart: bypass is On, and some flows bypass the stack nowhere. In a word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub reason: Option<String>,
    /// The same in a sentence, with what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32_768))]
    pub message: Option<String>,
    /// A hash of the programs that are loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub programs: Option<String>,
}

/// What probes show, over the lanes in use. Measured figures change here only when they differ by much.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProbeCounts {
    /// Lanes of which something is known.
    #[serde(default)]
    pub probed: u32,
    /// Lanes that carry full-size packets both ways.
    #[serde(default)]
    pub answering: u32,
    /// Lanes on which no probe is answered.
    #[serde(default)]
    pub silent: u32,
    /// Lanes on which only small ones are.
    #[serde(default)]
    pub too_small: u32,
    /// The longest round trip, in microseconds.
    #[serde(default)]
    pub worst_round_trip_microseconds: u32,
    /// The most rounds of probes lost, in per cent of a lane's last 32.
    #[serde(default)]
    #[schemars(range(min = 0, max = 100))]
    pub worst_loss_percent: u32,
}

/// Packets that the programs dropped for one reason: on a lane, or of a peer's on whichever lane (then they are counted by lane, too).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Dropped {
    /// The lane: native, vxlan:PORT:VNI or geneve:PORT:VNI; absent: none in particular.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub lane: Option<String>,
    /// The peer's node, by outer address, by the pod that the packet claimed to come from, or by the one that it was for; absent: whosever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub peer: Option<String>,
    /// Why, in a word.
    #[schemars(length(max = 128))]
    pub reason: String,
    /// How many, since the programs were first loaded.
    pub packets: u64,
}
