//! What the configuration says.

use super::Hindrance;
use crate::desired::{Assignment, Peer, local_links};
use crate::kernel::UnderlayAddress;
use crate::lane::tunnel_overhead;
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::fmt;

/// The network's name, which is also what marks a file as ours.
pub const NETWORK: &str = "podlane";

/// The version of the CNI specification that the file is of: containerd 1.6, CRI-O 1.24 and the plugins 1.0 are the first that know it.
const VERSION: &str = "1.0.0";

/// What stands before a network that pods are numbered from.
const SUBNET: &str = r#""subnet": ""#;

/// A node's configuration. Displayed as the file that a runtime reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// What pods are numbered from, at least one network, in the order of the Node object: the first one's family is the pods' first.
    pub pod_cidrs: Vec<IpNet>,
    /// The largest packet of a pod, in bytes.
    pub mtu: u32,
    /// An empty file that is there once the node has had its routes since its boot: no pod is connected before. None: pods are connected
    /// whenever the file of this configuration is there.
    pub routed: Option<String>,
}

/// What a node's configuration is to say.
///
/// # Errors
/// Why there can be none.
pub fn config(
    assignment: &Assignment,
    peers: &BTreeMap<String, Peer>,
    underlay: &[UnderlayAddress],
) -> Result<Config, Hindrance> {
    let Some(policy) = &assignment.policy else {
        return Err(Hindrance::NoPolicy);
    };
    if assignment.pod_cidrs.is_empty() {
        return Err(Hindrance::NoPodCidr);
    }
    let has_tunnel = policy.routing.tunnel_in_use().is_some()
        || assignment.receive_on.iter().any(|lane| lane.tunnel().is_some());
    // What every lane carries, so that a change of lane changes no packet's size.
    let narrowest = peers.values().filter_map(|peer| peer.mtu).min();
    let mtu = local_links(&assignment.addresses, underlay)
        .iter()
        .map(|link| {
            let overhead = if has_tunnel {
                tunnel_overhead(&link.address)
            } else {
                0
            };
            narrowest
                .map_or(link.mtu, |narrowest| narrowest.min(link.mtu))
                .saturating_sub(overhead)
        })
        .min()
        .ok_or(Hindrance::NoUnderlay)?;
    Ok(Config {
        pod_cidrs: assignment.pod_cidrs.clone(),
        mtu: match assignment.mtu {
            0 => mtu,
            declared => mtu.min(declared),
        },
        routed: None,
    })
}

impl Config {
    /// In words.
    pub(super) fn words(&self) -> String {
        let cidrs: Vec<_> = self.pod_cidrs.iter().map(IpNet::to_string).collect();
        format!(
            "connected with addresses of {}, MTU {}",
            cidrs.join(" and "),
            self.mtu
        )
    }

    /// What has host-local ask for the file: it reads the resolver's configuration that it is told of when it gives an address out, and fails
    /// where there is none (`parseResolvConf`). An empty one says nothing of resolvers.
    fn gate(&self) -> String {
        let quoted = |path: &String| path.replace('\\', r"\\").replace('"', "\\\"");
        self.routed.as_ref().map_or_else(String::new, |path| {
            format!("\n        \"resolvConf\": \"{}\",", quoted(path))
        })
    }

    /// The pod CIDRs by family, the first one's family first: a pod has an address of each.
    fn families(&self) -> Vec<Vec<&IpNet>> {
        let mut families: Vec<Vec<&IpNet>> = Vec::new();
        for cidr in &self.pod_cidrs {
            let is_six = cidr.addr().is_ipv6();
            match families
                .iter_mut()
                .find(|family| family[0].addr().is_ipv6() == is_six)
            {
                Some(family) => family.push(cidr),
                None => families.push(vec![cidr]),
            }
        }
        families
    }
}

/// The networks that a file of ours numbers pods from.
pub(super) fn subnets(file: &str) -> impl Iterator<Item = &str> {
    file.split(SUBNET)
        .skip(1)
        .filter_map(|rest| rest.split('"').next())
}

/// As the CNI specification 1.0.0 (section 1) and the documents of the plugins ptp, host-local and portmap have it. host-local keeps its
/// leases where it does by itself, on a disk: pods that outlive an emptied /run keep their addresses.
impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let families = self.families();
        let ranges: Vec<String> = families
            .iter()
            .map(|family| {
                let subnets: Vec<_> = family
                    .iter()
                    .map(|cidr| format!(r#"{{{SUBNET}{cidr}"}}"#))
                    .collect();
                format!("[{}]", subnets.join(", "))
            })
            .collect();
        let routes: Vec<&str> = families
            .iter()
            .map(|family| match family[0] {
                IpNet::V4(_) => r#"{"dst": "0.0.0.0/0"}"#,
                IpNet::V6(_) => r#"{"dst": "::/0"}"#,
            })
            .collect();
        writeln!(
            f,
            r#"{{
  "cniVersion": "{VERSION}",
  "name": "{NETWORK}",
  "plugins": [
    {{
      "type": "ptp",
      "mtu": {},
      "ipam": {{
        "type": "host-local",{}
        "ranges": [{}],
        "routes": [{}]
      }}
    }},
    {{
      "type": "portmap",
      "capabilities": {{"portMappings": true}}
    }}
  ]
}}"#,
            self.mtu,
            self.gate(),
            ranges.join(", "),
            routes.join(", ")
        )
    }
}
