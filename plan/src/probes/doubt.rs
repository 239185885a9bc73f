//! What speaks against a lane, in words that say what is likely wrong.

use crate::lane::{IPV4_LEAST_MTU, IPV6_LEAST_MTU, Lane};
use std::fmt;

/// Which way full-size packets do not come through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// From this node to the peer. The other way cannot be told then.
    There,
    /// From the peer to this node.
    Back,
}

/// What speaks against a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Doubt {
    /// Its first probes have yet to be answered.
    Untried,
    /// No probe is answered.
    Silent {
        /// Another lane on which the peer answers, so that it is not down.
        answers_on: Option<Lane>,
    },
    /// Probes cannot be sent: the kernel knows no link-layer address of the next hop.
    NoNeighbour,
    /// Probes cannot be sent: the kernel's own routes, or its parameters, are against it.
    NotSent {
        /// What it said: [`crate::probes::Unsent::Refused`].
        code: u32,
    },
    /// Small probes are answered, and full-size ones are not.
    TooSmall {
        /// The lane's MTU in bytes.
        inner: u32,
        /// The packet that it becomes on the underlay, in bytes.
        outer: u32,
        /// Which way.
        direction: Direction,
        /// The longest packet that comes there and back, in bytes without outer headers, once that is known.
        fits: Option<u32>,
    },
}

impl Doubt {
    /// A reason as metav1.Condition wants one.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Untried => "LaneNotProved",
            Self::Silent { .. } | Self::NoNeighbour => "LaneSilent",
            Self::NotSent { .. } => "ProbesNotSent",
            Self::TooSmall { .. } => "LaneTooSmall",
        }
    }

    /// Whether it ends by itself.
    pub const fn passes(self) -> bool {
        matches!(self, Self::Untried)
    }

    /// What is the matter with a lane to a peer, whose name stands before, and what to do.
    pub(crate) fn tell(self, lane: Lane, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Untried => write!(f, "has yet to answer the first probe over {lane}"),
            Self::NoNeighbour => write!(
                f,
                "does not answer over {lane}: the kernel of this node finds no link-layer address of the next hop toward it. Is the peer \
                 (or the gateway) down, or on another link than its addresses say?"
            ),
            Self::NotSent { code } => {
                write!(
                    f,
                    "is not probed over {lane}, because this node's kernel sends no probe: "
                )?;
                f.write_str(match code {
                    1..=3 => "a route of its own refuses the next hop toward the peer. Remove it (ip route get, ip rule)",
                    4 => "it has no route to the next hop toward the peer. Add one (ip route get)",
                    5 => {
                        "it does not forward on the device toward the peer. Set net.ipv4.conf.DEVICE.forwarding (on IPv6 \
                         net.ipv6.conf.DEVICE.forwarding) to 1 again"
                    }
                    6 => "its route to the next hop has an encapsulation of its own. Remove that from the route",
                    _ => "the device toward the peer takes none. Is it up?",
                })?;
                write!(f, " (bpf_fib_lookup: {code})")
            }
            Self::Silent { answers_on } => {
                write!(f, "does not answer over {lane}")?;
                if let Some(other) = answers_on {
                    write!(f, ", though it does over {other}")?;
                }
                f.write_str(": ")?;
                match (lane, answers_on) {
                    (Lane::Tunnel(tunnel), None) => write!(
                        f,
                        "is UDP port {} filtered between the nodes, or is the peer down? Let the port pass both ways in the nodes' firewalls and \
                         in the network's",
                        tunnel.port
                    ),
                    (Lane::Tunnel(tunnel), Some(_)) => write!(
                        f,
                        "UDP port {} seems to be filtered between the nodes. Let it pass both ways in the nodes' firewalls and in the network's",
                        tunnel.port
                    ),
                    (Lane::Native, None) => f.write_str(
                        "is the peer down, or does the network drop packets with pods' addresses (a cloud's or hypervisor's check of sources, a strict \
                         rp_filter)? Allow them, or set routingMode to tunnel",
                    ),
                    (Lane::Native, Some(_)) => f.write_str(
                        "the network seems to drop packets with pods' addresses (a cloud's or hypervisor's check of sources, a strict rp_filter). Allow \
                         them, or set routingMode to tunnel",
                    ),
                    (Lane::Underlay, _) => f.write_str(
                        "do the network's gateways have routes to the pod CIDRs of both nodes, and is the peer up? Otherwise set offLinkPeers to \
                         tunnel",
                    ),
                }
            }
            Self::TooSmall {
                inner,
                outer,
                direction,
                fits,
            } => {
                let way = match direction {
                    Direction::There => "from this node to it",
                    Direction::Back => "from it to this node",
                };
                write!(
                    f,
                    "answers small probes over {lane} and no full-size ones: the underlay between the nodes carries no packets of {outer} bytes {way}"
                )?;
                let Some(fits) = fits else {
                    return write!(f, ". Lower spec.mtu (now {inner}), or raise the network's MTU");
                };
                write!(f, ", but some of {} bytes. ", outer - inner + fits)?;
                match fits {
                    ..IPV4_LEAST_MTU => write!(
                        f,
                        "Raise the network's MTU: {fits} bytes are left for pods' packets, which may have to be of {IPV4_LEAST_MTU}"
                    ),
                    IPV4_LEAST_MTU..IPV6_LEAST_MTU => write!(
                        f,
                        "Raise the network's MTU, or lower spec.mtu (now {inner}) to {fits}, where no pod has IPv6, which needs {IPV6_LEAST_MTU}"
                    ),
                    IPV6_LEAST_MTU.. => write!(
                        f,
                        "Lower spec.mtu (now {inner}) to {fits}, or raise the network's MTU"
                    ),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pair::Refusal;

    fn told(lane: &str, why: Doubt) -> String {
        let lane = lane.parse().expect("a lane");
        Refusal::NotProved { lane, why }.to_string()
    }

    #[test]
    fn every_doubt_says_what_is_likely_wrong() {
        let silent = Doubt::Silent { answers_on: None };
        assert!(
            told("vxlan:8472:1", silent)
                .contains("is UDP port 8472 filtered between the nodes, or is the peer down?")
        );
        assert!(told("native", silent).contains("pods' addresses"));
        assert!(told("underlay", silent).contains("gateways"));
        let but = Doubt::Silent {
            answers_on: Some(Lane::Native),
        };
        assert!(
            told("geneve:6081:1", but)
                .contains("though it does over native: UDP port 6081 seems to be filtered between the nodes")
        );
        let too_small = Doubt::TooSmall {
            inner: 1450,
            outer: 1500,
            direction: Direction::Back,
            fits: None,
        };
        let words = told("vxlan:8472:1", too_small);
        assert!(
            words.contains("carries no packets of 1500 bytes from it to this node"),
            "{words}"
        );
        assert!(words.contains("Lower spec.mtu (now 1450), or"), "{words}");
        for (fits, expected) in [
            (
                1350,
                "to this node, but some of 1400 bytes. Lower spec.mtu (now 1450) to 1350, or raise",
            ),
            (1279, "lower spec.mtu (now 1450) to 1279, where no pod has IPv6"),
            (500, "Raise the network's MTU: 500 bytes are left"),
        ] {
            let words = told(
                "vxlan:8472:1",
                Doubt::TooSmall {
                    inner: 1450,
                    outer: 1500,
                    direction: Direction::Back,
                    fits: Some(fits),
                },
            );
            assert!(words.contains(expected), "{words}");
        }
        assert_eq!(
            (too_small.reason(), silent.reason()),
            ("LaneTooSmall", "LaneSilent")
        );
        for (code, words) in [
            (2, "refuses the next hop"),
            (4, "has no route to the next hop"),
            (5, "net.ipv6.conf.DEVICE.forwarding"),
            (255, "Is it up?"),
        ] {
            let why = Doubt::NotSent { code };
            let told = told("vxlan:8472:1", why);
            assert!(told.contains(words) && !told.contains("filtered"), "{told}");
            assert_eq!((why.reason(), why.passes()), ("ProbesNotSent", false));
        }
    }
}
