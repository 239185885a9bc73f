//! The lane between two nodes: a pure function of what both publish, the same seen from both ends.

use crate::lane::{Lane, Tunnel};
use crate::policy::{Applied, OffLinkPeers, RoutingMode};
use crate::probes::Doubt;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::IpAddr;

/// A node's own address with what it knows of its link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeAddress {
    /// The address (Node status, type InternalIP).
    pub address: IpAddr,
    /// The length of its on-link prefix, 0 to 32 or 128, as its agent found it on a device; none: not found yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix_length: Option<u8>,
}

impl NodeAddress {
    /// Whether `other` lies in this address's on-link prefix.
    fn has_on_link(&self, other: &IpAddr) -> bool {
        self.prefix_length
            .and_then(|length| IpNet::new(self.address, length).ok())
            .is_some_and(|network| network.contains(other))
    }
}

/// One end of a lane.
#[derive(Clone, Copy, Debug)]
pub struct End<'a> {
    /// The node's addresses, the one it prefers first.
    pub addresses: &'a [NodeAddress],
    /// Its pod CIDRs.
    pub pod_cidrs: &'a [IpNet],
    /// The policy that governs it.
    pub policy: Option<&'a Applied>,
}

/// Why two nodes have no lane, or cannot use it now.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refusal {
    /// Native routing, and a gateway lies in between (or direct routes are switched off).
    OffLink,
    /// No policy governs this node or the peer.
    NoPolicy,
    /// The peer's agent has not said yet on which links it is.
    NotReported,
    /// The nodes have no address family in common.
    NoCommonFamily,
    /// The peer does not receive on the lane yet.
    NotReceiving(Lane),
    /// The lane is open at both ends, and is not known to carry packets.
    NotProved {
        /// The lane.
        lane: Lane,
        /// What speaks against it.
        why: Doubt,
    },
    /// This node cannot open the lane's device.
    NoDevice {
        /// The lane.
        lane: Lane,
        /// The kernel's words, and what to do.
        why: String,
    },
    /// `offLinkPeers: underlay`, and the kernel has no route toward the peer.
    NoWay(IpAddr),
    /// Somebody else's route has the place of ours.
    ForeignRoute(String),
    /// The peer's pod CIDR covers an address of this node's underlay.
    CoversUnderlay(String),
}

impl Refusal {
    /// A reason as metav1.Condition wants one.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::OffLink => "OffLink",
            Self::NoPolicy => "NoPolicy",
            Self::NotReported => "PeerNotReported",
            Self::NoCommonFamily => "NoCommonFamily",
            Self::NotReceiving(_) => "PeerNotReceiving",
            Self::NotProved { why, .. } => why.reason(),
            Self::NoDevice { .. } => "NoDevice",
            Self::NoWay(_) => "NoUnderlayRoute",
            Self::ForeignRoute(_) => "ForeignRoute",
            Self::CoversUnderlay(_) => "PodCIDRCoversUnderlay",
        }
    }

    /// Whether it ends by itself, once the other agents have done their part.
    pub const fn passes(&self) -> bool {
        match self {
            Self::NotReported | Self::NotReceiving(_) => true,
            Self::NotProved { why, .. } => why.passes(),
            _ => false,
        }
    }
}

impl fmt::Display for Refusal {
    /// What is the matter, and what to do.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OffLink => f.write_str(
                "is off-link: native routing reaches it only through a gateway, which knows no pod CIDR. Set offLinkPeers to \
                 tunnel (encapsulate across the gateway) or, where the network routes pod CIDRs (BGP, cloud routes), to \
                 underlay; or routingMode to tunnel",
            ),
            Self::NoPolicy => f.write_str(
                "has no lane, because no RoutingPolicy governs it or this node: apply one whose nodeSelector selects both",
            ),
            Self::NotReported => {
                f.write_str("has not reported its links yet: look at its podlane-agent if that does not end")
            }
            Self::NoCommonFamily => f.write_str("has no address family in common with this node: give both an InternalIP of one"),
            Self::NotReceiving(lane) => write!(
                f,
                "does not receive on {lane} yet: look at the conditions of its RoutingNode if that does not end"
            ),
            Self::NotProved { lane, why } => why.tell(*lane, f),
            Self::NoDevice { lane, why } => write!(f, "needs {lane}, which this node cannot open: {why}"),
            Self::NoWay(address) => {
                write!(f, "cannot be reached: the kernel has no route to {address}, which offLinkPeers: underlay goes by")
            }
            Self::ForeignRoute(route) => write!(
                f,
                "is reached by a route that is not Podlane's ({route}): remove it, or let its owner give it another destination"
            ),
            Self::CoversUnderlay(what) => {
                write!(f, "has a pod CIDR that covers an address of this node's underlay ({what}): give it another one")
            }
        }
    }
}

/// What one end wants of a lane. Where the ends differ, the greater wins, so that neither asks of the other what it does not do:
/// a tunnel works whatever the link; who refuses cannot be reached plainly; who relies on gateways has no direct route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Wish {
    Native,
    Underlay,
    Refuse,
    Tunnel,
}

/// How much of two nodes' pods a common link carries as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    /// There is none.
    None,
    /// Packets of some families that both nodes' pods have, and not of others.
    InPart,
    /// All.
    Whole,
}

fn wish(policy: &Applied, link: Link) -> Wish {
    let routing = &policy.routing;
    let direct = link != Link::None && routing.auto_direct_node_routes;
    match (routing.routing_mode, direct, routing.off_link_peers) {
        (RoutingMode::Tunnel, _, _) => Wish::Tunnel,
        // A tunnel carries what the link does not; where there is to be none, some of the pods are better than nobody.
        (RoutingMode::Native, true, OffLinkPeers::Tunnel) if link == Link::InPart => Wish::Tunnel,
        (RoutingMode::Native, true, _) => Wish::Native,
        (RoutingMode::Native, false, OffLinkPeers::Refuse) => Wish::Refuse,
        (RoutingMode::Native, false, OffLinkPeers::Tunnel) => Wish::Tunnel,
        (RoutingMode::Native, false, OffLinkPeers::Underlay) => Wish::Underlay,
    }
}

/// A pair of addresses, mine and the peer's, each in the other's on-link prefix: the peer's first that fits.
pub fn on_link(mine: &[NodeAddress], peers: &[NodeAddress]) -> Option<(IpAddr, IpAddr)> {
    peers.iter().find_map(|theirs| {
        let here = mine
            .iter()
            .find(|here| here.has_on_link(&theirs.address) && theirs.has_on_link(&here.address))?;
        Some((here.address, theirs.address))
    })
}

/// The pair of addresses, mine and the peer's, by which a common link carries pods' packets of a family as they are: of that family, or
/// else, for IPv4, of IPv6 (RFC 8950; Linux has such routes, and has none of IPv6 with an IPv4 next hop).
pub(crate) fn on_link_for(
    mine: &[NodeAddress],
    peers: &[NodeAddress],
    six: bool,
) -> Option<(IpAddr, IpAddr)> {
    on_link_of_family(mine, peers, six).or_else(|| on_link_of_family(mine, peers, true).filter(|_| !six))
}

/// [`on_link`] among the addresses of one family alone.
fn on_link_of_family(mine: &[NodeAddress], peers: &[NodeAddress], six: bool) -> Option<(IpAddr, IpAddr)> {
    let of_family = |on: &&NodeAddress| on.address.is_ipv6() == six;
    peers.iter().filter(of_family).find_map(|theirs| {
        let mut mine = mine.iter().filter(of_family);
        let here =
            mine.find(|here| here.has_on_link(&theirs.address) && theirs.has_on_link(&here.address))?;
        Some((here.address, theirs.address))
    })
}

/// The two outer addresses of a tunnel, mine and the peer's: of the family that both ends have, IPv4 where there are both.
pub fn tunnel_ends(mine: &[NodeAddress], peers: &[NodeAddress]) -> Option<(IpAddr, IpAddr)> {
    [false, true].iter().find_map(|six| {
        let of_family = |addresses: &[NodeAddress]| {
            addresses
                .iter()
                .map(|address| address.address)
                .find(|address| address.is_ipv6() == *six)
        };
        Some((of_family(mine)?, of_family(peers)?))
    })
}

/// The lane between two nodes. `lane(a, b)` and `lane(b, a)` are always the same.
///
/// # Errors
/// Why there is none.
pub fn lane(a: &End<'_>, b: &End<'_>) -> Result<Lane, Refusal> {
    let on_link = on_link(a.addresses, b.addresses).is_some();
    lane_given(a, b, on_link)
}

/// [`lane`], told whether the two are on one link: this node's own kernel may know better than what is published.
///
/// # Errors
/// Why there is none.
pub fn lane_given(a: &End<'_>, b: &End<'_>, on_link: bool) -> Result<Lane, Refusal> {
    let (Some(first), Some(second)) = (a.policy, b.policy) else {
        return Err(Refusal::NoPolicy);
    };
    let link = if on_link { link(a, b) } else { Link::None };
    let (first_wish, second_wish) = (wish(first, link), wish(second, link));
    match first_wish.max(second_wish) {
        Wish::Tunnel => {
            if tunnel_ends(a.addresses, b.addresses).is_none() {
                return Err(Refusal::NoCommonFamily);
            }
            let tunnel = match (first_wish, second_wish) {
                (Wish::Tunnel, Wish::Tunnel) => better(first, second),
                (Wish::Tunnel, _) => first.routing.tunnel,
                _ => second.routing.tunnel,
            };
            Ok(Lane::Tunnel(tunnel))
        }
        Wish::Native => Ok(Lane::Native),
        Wish::Underlay => Ok(Lane::Underlay),
        // Whether a gateway lies in between is unknown before both have said where they are.
        Wish::Refuse if !reported(a) || !reported(b) => Err(Refusal::NotReported),
        Wish::Refuse => Err(Refusal::OffLink),
    }
}

/// What the link of two nodes that have one carries.
fn link(a: &End<'_>, b: &End<'_>) -> Link {
    let has = |end: &End<'_>, six: bool| end.pod_cidrs.iter().any(|cidr| cidr.addr().is_ipv6() == six);
    let is_carried = |six: &bool| on_link_for(a.addresses, b.addresses, *six).is_some();
    let is_whole = [false, true]
        .iter()
        .filter(|six| has(a, **six) && has(b, **six))
        .all(is_carried);
    if is_whole { Link::Whole } else { Link::InPart }
}

fn reported(end: &End<'_>) -> bool {
    end.addresses
        .iter()
        .any(|address| address.prefix_length.is_some())
}

/// The tunnel of the better policy. While a policy changes, the two ends may hold two versions of it: the tunnels themselves
/// settle that, so that both ends still agree.
fn better(a: &Applied, b: &Applied) -> Tunnel {
    if (&a.rank, a.routing.tunnel) <= (&b.rank, b.routing.tunnel) {
        a.routing.tunnel
    } else {
        b.routing.tunnel
    }
}
