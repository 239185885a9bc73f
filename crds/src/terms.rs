//! The words of the API, and what they are in the plan.

use crate::routing_policy::MasqueradeMode;
use podlane_plan::{lane, masquerade, policy};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How pods on different nodes reach each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RoutingMode {
    /// Packets travel as they are.
    Native,
    /// Packets travel encapsulated, between node addresses.
    Tunnel,
}

/// What becomes of a peer that native routing cannot reach directly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OffLinkPeers {
    /// Refused with ICMP unreachable.
    Refuse,
    /// Encapsulated.
    Tunnel,
    /// Sent to the network's own gateways, which must know the pod CIDRs.
    Underlay,
}

/// The encapsulation of a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TunnelProtocol {
    /// RFC 7348.
    Vxlan,
    /// RFC 8926.
    Geneve,
}

macro_rules! same_words {
    ($api:ty, $plan:ty, $($word:ident),+) => {
        impl From<$api> for $plan {
            fn from(word: $api) -> Self {
                match word { $(<$api>::$word => Self::$word),+ }
            }
        }
        impl From<$plan> for $api {
            fn from(word: $plan) -> Self {
                match word { $(<$plan>::$word => Self::$word),+ }
            }
        }
    };
}

same_words!(RoutingMode, policy::RoutingMode, Native, Tunnel);
same_words!(OffLinkPeers, policy::OffLinkPeers, Refuse, Tunnel, Underlay);
same_words!(MasqueradeMode, masquerade::Mode, Auto, Always, Never);
same_words!(TunnelProtocol, lane::TunnelProtocol, Vxlan, Geneve);
