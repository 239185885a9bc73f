//! Why something is declared, and what else is worth saying.

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
    /// While lanes change, packets come in over one and go out over another.
    ReversePath,
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
            Self::ReversePath => {
                f.write_str("a peer's packets may come in over another lane than they go out")
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
        }
    }
}
