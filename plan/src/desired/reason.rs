//! Why something is declared, and what else is worth saying.

use crate::kernel::NFTABLES_TABLE;
use ipnet::IpNet;
use std::fmt;
use std::net::IpAddr;

/// Why an item is declared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A lane leads to this peer.
    Lane {
        /// The peer.
        peer: String,
    },
    /// This peer is refused.
    Refused {
        /// The peer.
        peer: String,
        /// [`crate::pair::Refusal::reason`].
        reason: &'static str,
    },
    /// Under the lanes: what no lane takes of the cluster's pod CIDRs is refused rather than sent along the default route.
    Cover,
    /// The node is told to receive on this device's lane.
    Receives,
    /// Packets still leave by it.
    InUse,
    /// This node's router address, the source of what it sends itself.
    RouterAddress,
    /// A node forwards its pods' packets.
    Forwarding,
    /// The programs ask the kernel for the way to a peer's address, and of a family that it does not forward it tells none.
    WaysOfPrograms,
    /// A device that forwards takes routers' advertisements only when it is told to.
    RouterAdvertisements,
    /// While lanes change, packets come in over one and go out over another.
    ReversePath,
    /// Connection tracking sees only a part of the flows that bypass the stack.
    Bypass,
    /// Beyond the networks that know pods' addresses only the node's own is known.
    Masquerade,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lane { peer } => write!(f, "the lane to {peer}"),
            Self::Refused { peer, reason } => write!(f, "{peer} is refused ({reason})"),
            Self::Cover => f.write_str("pod addresses that no lane reaches are refused"),
            Self::Receives => f.write_str("peers may send on this lane"),
            Self::InUse => f.write_str("packets still leave by it"),
            Self::RouterAddress => f.write_str("the node's router address"),
            Self::Forwarding => f.write_str("the node forwards its pods' packets"),
            Self::WaysOfPrograms => f.write_str(
                "the kernel tells the programs the way to a peer only in a family that it forwards",
            ),
            Self::RouterAdvertisements => {
                f.write_str("the device goes on taking routers' advertisements when the node forwards")
            }
            Self::ReversePath => {
                f.write_str("a peer's packets may come in over another lane than they go out")
            }
            Self::Masquerade => f.write_str("pods' addresses are known within the cluster alone"),
            Self::Bypass => {
                f.write_str("connection tracking sees only a part of the packets that bypass the stack")
            }
        }
    }
}

/// Something about the node as a whole that status should say.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Note {
    /// The Node object lists an address that no device here has.
    AddressNotFound(IpAddr),
    /// The policy asks for a larger MTU than the underlay can carry wrapped.
    MtuBeyondUnderlay {
        /// What the policy says, in bytes.
        policy: u32,
        /// What is used instead.
        used: u32,
    },
    /// A lane to a peer is too narrow for the family (RFC 791: 576, RFC 8200: 1280).
    MtuTooSmall {
        /// The peer.
        peer: String,
        /// The lane's MTU in bytes.
        mtu: u32,
    },
    /// A device that is not ours has the name of one of ours.
    ForeignDevice {
        /// The name.
        name: String,
        /// What it is.
        what: String,
    },
    /// A tunnel device could not be opened.
    NoDevice {
        /// The device.
        name: String,
        /// The kernel's words, and what to do.
        why: String,
    },
    /// A pod CIDR of the whole cluster covers a node's address, so that it cannot be refused as a whole.
    CoverSkipped {
        /// The cluster's pod CIDR.
        cidr: IpNet,
        /// The address.
        address: IpAddr,
    },
    /// Somebody else's route takes a part of a peer's pod CIDR.
    ForeignRouteWithin {
        /// The peer.
        peer: String,
        /// The route's destination.
        destination: IpNet,
    },
    /// A tunnel device whose packets go by the kernel's driver alone.
    WithoutPrograms {
        /// The device.
        device: String,
        /// Why.
        why: String,
    },
    /// No flow bypasses the stack, though the policy allows it.
    NoBypass {
        /// The kernel parameter that would have to be 1.
        parameter: String,
        /// What it is.
        value: String,
    },
    /// Two peers have one address, so that what comes from it counts as the other's.
    SameAddress {
        /// The peer.
        peer: String,
        /// The one that counts.
        other: String,
        /// Their address.
        address: IpAddr,
    },
    /// An nftables table that is not ours has the name of ours.
    ForeignTable,
    /// Pods of this node's are reached by the underlay device itself.
    PodsOnUnderlay(String),
}

impl Note {
    /// A reason as metav1.Condition wants one.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::AddressNotFound(_) => "AddressNotFound",
            Self::MtuBeyondUnderlay { .. } => "MTUBeyondUnderlay",
            Self::MtuTooSmall { .. } => "MTUTooSmall",
            Self::ForeignDevice { .. } => "ForeignDevice",
            Self::NoDevice { .. } => "NoDevice",
            Self::CoverSkipped { .. } => "ClusterPodCIDRCoversNode",
            Self::ForeignRouteWithin { .. } => "ForeignRoute",
            Self::WithoutPrograms { .. } => "WithoutPrograms",
            Self::NoBypass { .. } => "BypassOff",
            Self::SameAddress { .. } => "DuplicateAddress",
            Self::ForeignTable => "ForeignTable",
            Self::PodsOnUnderlay(_) => "PodsOnUnderlay",
        }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddressNotFound(address) => write!(
                f,
                "no device that is up has the node's address {address}: correct the kubelet's --node-ip, or the device"
            ),
            Self::MtuBeyondUnderlay { policy, used } => {
                write!(
                    f,
                    "the policy's MTU {policy} does not fit the underlay once encapsulated: {used} is used"
                )
            }
            Self::MtuTooSmall { peer, mtu } => {
                write!(
                    f,
                    "the lane to {peer} carries packets of only {mtu} bytes: raise the underlay's MTU"
                )
            }
            Self::ForeignDevice { name, what } => {
                write!(
                    f,
                    "a device that is not Podlane's has the name {name} ({what}): rename or remove it"
                )
            }
            Self::NoDevice { name, why } => write!(f, "{name} cannot be opened: {why}"),
            Self::CoverSkipped { cidr, address } => write!(
                f,
                "the cluster's pod CIDR {cidr} covers the node address {address}, so only the nodes' own pod CIDRs are kept from \
                 the default route: correct the operator's --cluster-pod-cidr"
            ),
            Self::ForeignRouteWithin { peer, destination } => write!(
                f,
                "a route to {destination} that is not Podlane's takes packets for pods on {peer}: remove it, or let its owner \
                 give it another destination"
            ),
            Self::WithoutPrograms { device, why } => write!(
                f,
                "packets of {device} go by the kernel's driver alone, slower and unchecked, because {why}: let fewer policies name \
                 tunnels of their own"
            ),
            Self::NoBypass { parameter, value } => write!(
                f,
                "no flow bypasses the stack, because the kernel parameter {parameter} is {value} and could not be made 1: set it on the \
                 node, or spec.datapath.bypass to Off"
            ),
            Self::SameAddress { peer, other, address } => write!(
                f,
                "{peer} has the address {address} of {other}, and what it sends wrapped is dropped: give it an InternalIP of its own"
            ),
            Self::ForeignTable => write!(
                f,
                "an nftables table that is not Podlane's has the name {NFTABLES_TABLE} (inet), so pods' packets are not masqueraded: rename \
                 or remove it"
            ),
            Self::PodsOnUnderlay(device) => write!(
                f,
                "pods of this node are reached by the underlay device {device}, so that plain packets which claim a pod's source are not \
                 checked: give the pods a bridge or devices of their own"
            ),
        }
    }
}
