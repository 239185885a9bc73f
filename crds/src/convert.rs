//! From the API's objects, whose texts may be anything, to the plan's terms, and back.

use crate::routing_node::{AppliedPolicy, RoutingNodeSpec, UnderlayLink};
use crate::{BypassMode, Datapath, MasqueradeSpec, PeerEntry, PortRange, RoutingPolicy, TunnelSpec};
use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, Time};
use kube::ResourceExt;
use podlane_plan::datapath::DatapathOptions;
use podlane_plan::desired::{Assignment, Peer};
use podlane_plan::lane::{Lane, Tunnel, TunnelProtocol};
use podlane_plan::masquerade::{MasqueradeOptions, Ports};
use podlane_plan::pair::NodeAddress;
use podlane_plan::policy::{Applied, Operator, Policy, Rank, Requirement, Routing, Selector};
use std::collections::BTreeSet;
use std::fmt::Display;
use std::str::FromStr;

/// A value that makes no sense where it stands.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {value:?}: {why}")]
pub struct Invalid {
    /// The field.
    pub field: &'static str,
    /// Its value.
    pub value: String,
    /// What is wrong with it.
    pub why: String,
}

fn parse<T: FromStr<Err: Display>>(field: &'static str, text: &str) -> Result<T, Invalid> {
    text.parse().map_err(|why: T::Err| Invalid {
        field,
        value: text.to_owned(),
        why: why.to_string(),
    })
}

/// A list of texts, each of which has to make sense.
fn parse_all<T: FromStr<Err: Display>, C: FromIterator<T>>(
    field: &'static str,
    texts: &[String],
) -> Result<C, Invalid> {
    texts.iter().map(|text| parse(field, text)).collect()
}

fn parse_cidrs(field: &'static str, texts: &[String]) -> Result<Vec<IpNet>, Invalid> {
    let cidrs: Vec<IpNet> = parse_all(field, texts)?;
    Ok(cidrs.iter().map(IpNet::trunc).collect())
}

impl From<&TunnelSpec> for Tunnel {
    fn from(spec: &TunnelSpec) -> Self {
        let protocol = TunnelProtocol::from(spec.protocol);
        Self {
            protocol,
            port: spec.port.unwrap_or_else(|| protocol.default_port()),
            vni: spec.vni,
        }
    }
}

impl From<&Tunnel> for TunnelSpec {
    fn from(tunnel: &Tunnel) -> Self {
        Self {
            protocol: tunnel.protocol.into(),
            port: Some(tunnel.port),
            vni: tunnel.vni,
        }
    }
}

impl From<Datapath> for DatapathOptions {
    fn from(spec: Datapath) -> Self {
        Self {
            bypass: spec.bypass == BypassMode::Auto,
            dscp: spec.dscp,
        }
    }
}

impl From<DatapathOptions> for Datapath {
    fn from(options: DatapathOptions) -> Self {
        Self {
            bypass: if options.bypass {
                BypassMode::Auto
            } else {
                BypassMode::Off
            },
            dscp: options.dscp,
        }
    }
}

impl From<MasqueradeOptions> for MasqueradeSpec {
    fn from(options: MasqueradeOptions) -> Self {
        Self {
            mode: options.mode.into(),
            ports: options
                .ports
                .map(|Ports { first, last }| PortRange { first, last }),
        }
    }
}

/// What is said of masquerading, which may be nothing.
fn masquerade(spec: Option<MasqueradeSpec>) -> Result<MasqueradeOptions, Invalid> {
    let spec = spec.unwrap_or_default();
    let ports = spec.ports.map(|PortRange { first, last }| Ports { first, last });
    if let Some(ports) = ports.filter(|ports| ports.first == 0 || ports.first > ports.last) {
        return Err(Invalid {
            field: "spec.masquerade.ports",
            value: ports.to_string(),
            why: "the ports must be 1 to 65535, and the first not be greater than the last".to_owned(),
        });
    }
    Ok(MasqueradeOptions {
        mode: spec.mode.into(),
        ports,
    })
}

/// The options of a datapath that may be absent.
fn datapath(field: &'static str, spec: Option<Datapath>) -> Result<DatapathOptions, Invalid> {
    let spec = spec.unwrap_or_default();
    if spec.dscp > 63 {
        return Err(Invalid {
            field,
            value: spec.dscp.to_string(),
            why: "the DSCP must be 0 to 63".to_owned(),
        });
    }
    Ok(spec.into())
}

impl From<&AppliedPolicy> for Applied {
    fn from(policy: &AppliedPolicy) -> Self {
        Self {
            rank: Rank {
                priority: policy.priority,
                created: policy.created_at.0.as_second(),
                name: policy.name.clone(),
            },
            routing: Routing {
                routing_mode: policy.routing_mode.into(),
                auto_direct_node_routes: policy.auto_direct_node_routes,
                off_link_peers: policy.off_link_peers.into(),
                tunnel: Tunnel::from(&policy.tunnel),
            },
        }
    }
}

impl From<&Applied> for AppliedPolicy {
    fn from(applied: &Applied) -> Self {
        Self {
            name: applied.rank.name.clone(),
            priority: applied.rank.priority,
            created_at: Time(
                k8s_openapi::jiff::Timestamp::from_second(applied.rank.created).unwrap_or_default(),
            ),
            routing_mode: applied.routing.routing_mode.into(),
            auto_direct_node_routes: applied.routing.auto_direct_node_routes,
            off_link_peers: applied.routing.off_link_peers.into(),
            tunnel: TunnelSpec::from(&applied.routing.tunnel),
        }
    }
}

fn selector(selector: Option<&LabelSelector>) -> Result<Selector, Invalid> {
    let Some(selector) = selector else {
        return Ok(Selector::default());
    };
    let requirement =
        |requirement: &k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelectorRequirement| {
            let operator = match requirement.operator.as_str() {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => {
                    return Err(Invalid {
                        field: "spec.nodeSelector.matchExpressions.operator",
                        value: other.to_owned(),
                        why: "must be In, NotIn, Exists or DoesNotExist".to_owned(),
                    });
                }
            };
            Ok(Requirement {
                key: requirement.key.clone(),
                operator,
                values: requirement.values.clone().unwrap_or_default(),
            })
        };
    Ok(Selector {
        match_labels: selector.match_labels.clone().unwrap_or_default(),
        match_expressions: selector
            .match_expressions
            .iter()
            .flatten()
            .map(requirement)
            .collect::<Result<_, _>>()?,
    })
}

/// A RoutingPolicy in the plan's terms.
///
/// # Errors
/// Names the field that makes no sense: one that the API server's checks let through, or that was stored before them.
pub fn policy_from_api(policy: &RoutingPolicy) -> Result<Policy, Invalid> {
    let spec = &policy.spec;
    let tunnel = spec.tunnel.clone().unwrap_or_default();
    if tunnel.port == Some(0) || tunnel.vni >= 1 << 24 {
        return Err(Invalid {
            field: "spec.tunnel",
            value: format!("port {:?}, vni {}", tunnel.port, tunnel.vni),
            why: "the port must be 1 to 65535, the VNI 0 to 16777215".to_owned(),
        });
    }
    Ok(Policy {
        applied: Applied {
            rank: Rank {
                priority: spec.priority,
                created: policy.creation_timestamp().map_or(0, |time| time.0.as_second()),
                name: policy.name_any(),
            },
            routing: Routing {
                routing_mode: spec.routing_mode.into(),
                auto_direct_node_routes: spec.auto_direct_node_routes,
                off_link_peers: spec.off_link_peers.into(),
                tunnel: Tunnel::from(&tunnel),
            },
        },
        generation: policy.metadata.generation.unwrap_or_default(),
        node_selector: selector(spec.node_selector.as_ref())?,
        mtu: spec.mtu,
        datapath: datapath("spec.datapath.dscp", spec.datapath)?,
        native_routing_cidrs: parse_cidrs("spec.nativeRoutingCIDRs", &spec.native_routing_cidrs)?,
        masquerade: masquerade(spec.masquerade)?,
    })
}

impl RoutingNodeSpec {
    /// In the plan's terms, for the node with this name.
    ///
    /// # Errors
    /// Names the field that makes no sense.
    pub fn assignment(&self, name: &str) -> Result<Assignment, Invalid> {
        Ok(Assignment {
            name: name.to_owned(),
            addresses: parse_all("spec.addresses", &self.addresses)?,
            pod_cidrs: parse_cidrs("spec.podCIDRs", &self.pod_cidrs)?,
            cluster_pod_cidrs: parse_cidrs("spec.clusterPodCIDRs", &self.cluster_pod_cidrs)?,
            native_routing_cidrs: parse_cidrs("spec.nativeRoutingCIDRs", &self.native_routing_cidrs)?,
            masquerade: masquerade(self.masquerade)?,
            policy: self.policy.as_ref().map(Applied::from),
            mtu: self.mtu,
            receive_on: lanes("spec.receiveOn", &self.receive_on)?,
            datapath: datapath("spec.datapath.dscp", self.datapath)?,
        })
    }
}

impl PeerEntry {
    /// In the plan's terms.
    ///
    /// # Errors
    /// Names the field that makes no sense.
    pub fn peer(&self) -> Result<Peer, Invalid> {
        let address = |link: &UnderlayLink| {
            Ok(NodeAddress {
                address: parse("addresses", &link.address)?,
                prefix_length: link.prefix_length,
            })
        };
        Ok(Peer {
            addresses: self
                .addresses
                .iter()
                .map(address)
                .collect::<Result<_, Invalid>>()?,
            pod_cidrs: parse_cidrs("podCIDRs", &self.pod_cidrs)?,
            mtu: self.addresses.iter().filter_map(|link| link.mtu).min(),
            receives_on: lanes("receivesOn", &self.receives_on)?,
            policy: self.policy.as_ref().map(Applied::from),
            // One of another form is a newer version's: this one cannot probe by it.
            probe_key: self.probe_key.as_deref().and_then(|key| key.parse().ok()),
        })
    }
}

/// Lanes out of a list. A lane that this version does not know is left out: a newer one's is no reason to ignore the rest.
fn lanes(field: &'static str, texts: &[String]) -> Result<BTreeSet<Lane>, Invalid> {
    let known = |text: &&String| {
        ["native", "underlay", "vxlan", "geneve"]
            .iter()
            .any(|word| text.split(':').next() == Some(word))
    };
    texts
        .iter()
        .filter(known)
        .map(|text| parse(field, text))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use podlane_plan::masquerade::Mode;
    use serde_json::json;

    #[test]
    fn a_policy_gets_its_defaults_and_its_port() {
        let object = json!({
            "apiVersion": "podlane.io/v1alpha1", "kind": "RoutingPolicy",
            "metadata": {"name": "default", "generation": 3, "creationTimestamp": "1970-01-01T00:01:40Z"},
            "spec": {"routingMode": "tunnel", "tunnel": {"protocol": "geneve"}},
        });
        let policy = policy_from_api(&crate::decode(&object).expect("readable")).expect("valid");
        assert_eq!(
            policy.applied.rank,
            Rank {
                priority: 0,
                created: 100,
                name: "default".to_owned()
            }
        );
        assert_eq!(
            policy.applied.routing.tunnel,
            Tunnel {
                protocol: TunnelProtocol::Geneve,
                port: 6081,
                vni: 1
            }
        );
        assert!(policy.applied.routing.auto_direct_node_routes);
        // And back, as a node is told.
        assert_eq!(
            Applied::from(&AppliedPolicy::from(&policy.applied)),
            policy.applied
        );
    }

    #[test]
    fn options_of_the_datapath_have_defaults_and_bounds() {
        let read = |datapath: serde_json::Value| {
            let object = json!({
                "apiVersion": "podlane.io/v1alpha1", "kind": "RoutingPolicy", "metadata": {"name": "default"},
                "spec": {"routingMode": "native", "datapath": datapath},
            });
            policy_from_api(&crate::decode(&object).expect("readable"))
        };
        let options = |bypass, dscp| DatapathOptions { bypass, dscp };
        for (datapath, expected) in [
            (json!(null), options(true, 0)),
            (json!({}), options(true, 0)),
            (json!({"bypass": "Off", "dscp": 63}), options(false, 63)),
        ] {
            let policy = read(datapath).expect("valid");
            assert_eq!(policy.datapath, expected);
            // And as a node is told.
            let spec = RoutingNodeSpec {
                datapath: Some(policy.datapath.into()),
                ..RoutingNodeSpec::default()
            };
            assert_eq!(spec.assignment("a").expect("valid").datapath, expected);
        }
        assert_eq!(
            read(json!({"dscp": 64})).expect_err("too large").field,
            "spec.datapath.dscp"
        );
        assert_eq!(
            RoutingNodeSpec::default()
                .assignment("a")
                .expect("valid")
                .datapath,
            options(true, 0)
        );
    }

    #[test]
    fn ports_of_masquerading_are_a_range() {
        let read = |masquerade: serde_json::Value| {
            let object = json!({
                "apiVersion": "podlane.io/v1alpha1", "kind": "RoutingPolicy", "metadata": {"name": "default"},
                "spec": {"routingMode": "native", "masquerade": masquerade},
            });
            policy_from_api(&crate::decode(&object).expect("readable"))
        };
        for (spec, mode, ports) in [
            (json!(null), Mode::Auto, None),
            (json!({}), Mode::Auto, None),
            (json!({"mode": "Never"}), Mode::Never, None),
            (
                json!({"mode": "Always", "ports": {"first": 7, "last": 7}}),
                Mode::Always,
                Some(Ports { first: 7, last: 7 }),
            ),
        ] {
            let policy = read(spec).expect("valid");
            assert_eq!(policy.masquerade, MasqueradeOptions { mode, ports });
            // And as a node is told.
            let spec = RoutingNodeSpec {
                masquerade: Some(policy.masquerade.into()),
                ..RoutingNodeSpec::default()
            };
            let told = spec.assignment("a").expect("valid");
            assert_eq!(told.masquerade, policy.masquerade);
        }
        for ports in [json!({"first": 0, "last": 1}), json!({"first": 2, "last": 1})] {
            let why = read(json!({"ports": ports})).expect_err("no range");
            assert_eq!(why.field, "spec.masquerade.ports");
        }
    }

    #[test]
    fn a_peer_that_makes_no_sense_names_its_field() {
        let mut entry = PeerEntry {
            name: "k8s-w0".to_owned(),
            addresses: Vec::new(),
            pod_cidrs: vec!["172.20.2.7/24".to_owned()],
            receives_on: vec!["native".to_owned(), "quic:1:1".to_owned()],
            policy: None,
            probe_key: Some("0".repeat(31)),
        };
        let peer = entry
            .peer()
            .expect("host bits are cut, an unknown lane is left out");
        assert_eq!(peer.pod_cidrs[0].to_string(), "172.20.2.0/24");
        assert_eq!(peer.receives_on, BTreeSet::from([Lane::Native]));
        assert_eq!(peer.probe_key, None, "another version's is left out");
        entry.probe_key = Some("0123456789abcdef0123456789abcdef".to_owned());
        let key = entry.peer().expect("it makes sense").probe_key.map(String::from);
        assert_eq!(key, entry.probe_key);
        entry.receives_on.push("vxlan:0:1".to_owned());
        assert_eq!(entry.peer().expect_err("port 0").field, "receivesOn");
        entry.pod_cidrs.push("172.20.2.0".to_owned());
        assert_eq!(entry.peer().expect_err("no CIDR").field, "podCIDRs");
    }
}
