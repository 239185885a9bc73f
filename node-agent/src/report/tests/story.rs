//! The story's k8s-ctr, and what its status says.

use crate::pass::{Outcome, Unfinished};
use crate::report::{Programs, Subject, status};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use podlane_crds::RoutingNodeStatus;
use podlane_plan::desired::{Assignment, Peer, desired};
use podlane_plan::kernel::{Device, KernelState, MacAddress, Observed, UnderlayAddress};
use podlane_plan::lane::{Lane, Tunnel, TunnelProtocol};
use podlane_plan::pair::NodeAddress;
use podlane_plan::policy::{Applied, OffLinkPeers, Rank, Routing, RoutingMode};
use podlane_plan::probes::{ProbeKey, Proofs, Tally};
use std::collections::BTreeMap;

pub(super) const VXLAN: Tunnel = Tunnel {
    protocol: TunnelProtocol::Vxlan,
    port: 8472,
    vni: 1,
};

pub(super) fn policy(routing_mode: RoutingMode) -> Applied {
    Applied {
        rank: Rank {
            priority: 0,
            created: 1,
            name: "default".to_owned(),
        },
        routing: Routing {
            routing_mode,
            auto_direct_node_routes: true,
            off_link_peers: OffLinkPeers::Refuse,
            tunnel: VXLAN,
        },
    }
}

/// The story's k8s-ctr, its peers k8s-w1 on the link and k8s-w0 behind the router.
pub(super) struct Story {
    pub(super) assignment: Assignment,
    pub(super) peers: BTreeMap<String, Peer>,
    pub(super) observed: Observed,
    pub(super) unavailable: BTreeMap<String, String>,
    pub(super) unfinished: Vec<Unfinished>,
    pub(super) unreadable: BTreeMap<String, String>,
    pub(super) proofs: Proofs,
    pub(super) programs: Option<Programs<'static>>,
}

impl Story {
    pub(super) fn new(mode: RoutingMode, receive_on: &[Lane], receives_on: &[Lane]) -> Self {
        let peer = |address: &str, cidr: &str| Peer {
            addresses: vec![NodeAddress {
                address: address.parse().expect("an address"),
                prefix_length: Some(24),
            }],
            pod_cidrs: vec![cidr.parse().expect("a CIDR")],
            mtu: Some(1500),
            receives_on: receives_on.iter().copied().collect(),
            policy: Some(policy(mode)),
            ..Peer::default()
        };
        Self {
            assignment: Assignment {
                name: "k8s-ctr".to_owned(),
                addresses: vec!["192.168.10.100".parse().expect("an address")],
                pod_cidrs: vec!["172.20.0.0/24".parse().expect("a CIDR")],
                policy: Some(policy(mode)),
                receive_on: receive_on.iter().copied().collect(),
                ..Assignment::default()
            },
            peers: BTreeMap::from([
                ("k8s-w0".to_owned(), peer("192.168.20.100", "172.20.2.0/24")),
                ("k8s-w1".to_owned(), peer("192.168.10.101", "172.20.1.0/24")),
            ]),
            observed: Observed {
                underlay: vec![UnderlayAddress {
                    device: "eth1".to_owned(),
                    address: "192.168.10.100/24".parse().expect("a CIDR"),
                    mtu: 1500,
                }],
                ..Observed::default()
            },
            unavailable: BTreeMap::new(),
            unfinished: Vec::new(),
            unreadable: BTreeMap::new(),
            proofs: Proofs::default(),
            programs: None,
        }
    }

    /// With programs loaded, and peers that answer probes.
    pub(super) fn with_programs(mut self) -> Self {
        self.observed.capabilities.programs = true;
        self.proofs = Proofs::none_yet();
        for peer in self.peers.values_mut() {
            peer.probe_key = Some(ProbeKey([1; 16]));
        }
        self.programs = Some(Programs {
            loaded: Ok("0123"),
            probe_key: Some(ProbeKey([2; 16])),
            tally: Some(Tally::default()),
            counted: &[],
            drops: None,
        });
        self
    }

    pub(super) fn with_device(mut self) -> Self {
        let device = Device::declared(&VXLAN, MacAddress::of_node(&self.assignment.addresses[0]), 1450);
        let devices = [(VXLAN.device(), device)].into();
        self.observed.ours = KernelState {
            devices,
            ..KernelState::default()
        };
        self
    }

    pub(super) fn outcome(&self) -> Outcome {
        let desired = desired(
            &self.assignment,
            &self.peers,
            &self.observed,
            &self.unavailable,
            &self.proofs,
        );
        Outcome {
            sends_on: desired.sends_on(),
            desired,
            underlay: self.observed.underlay.clone(),
            unfinished: self.unfinished.clone(),
            settled: self.unfinished.is_empty(),
            ..Outcome::default()
        }
    }

    pub(super) fn status(&self, before: &RoutingNodeStatus, second: i64) -> RoutingNodeStatus {
        let subject = Subject {
            instance: None,
            assignment: Some(&self.assignment),
            generation: Some(7),
            unreadable: &self.unreadable,
            connected: None,
            programs: self.programs,
        };
        status(subject, Some(Ok(&self.outcome())), before, &at(second))
    }
}

pub(super) fn at(second: i64) -> Time {
    Time(k8s_openapi::jiff::Timestamp::from_second(second).expect("a time"))
}

pub(super) fn said<'a>(status: &'a RoutingNodeStatus, kind: &str) -> (&'a str, &'a str, &'a str) {
    let condition = status
        .conditions
        .iter()
        .find(|condition| condition.type_ == kind)
        .expect("it is set");
    (&condition.status, &condition.reason, &condition.message)
}
