//! Plain routing by the kernel, with the underlay's router knowing every pod CIDR.

use anyhow::Result;

use super::{Installed, Way, Wire};
use crate::site::{Family, Site};

/// Plain routing.
pub(super) struct Native;

impl Way for Native {
    fn name(&self) -> &'static str {
        super::NATIVE
    }

    fn title(&self) -> &'static str {
        "native routing"
    }

    fn description(&self) -> &'static str {
        "the kernel routes; nodes reach each pod CIDR by way of the router, which has a route to each node"
    }

    fn wire(&self) -> Wire {
        Wire::Plain
    }

    fn set_up(&self, site: &Site) -> Result<Box<dyn Installed>> {
        change(site, "add")?;
        Ok(Box::new(Installation))
    }
}

struct Installation;

impl Installed for Installation {
    fn tear_down(self: Box<Self>, site: &Site) -> Result<()> {
        change(site, "delete")
    }
}

/// Adds or deletes the routes of both nodes and of the router.
pub(super) fn change(site: &Site, action: &str) -> Result<()> {
    for node in &site.nodes {
        let mut lines = Vec::new();
        let mut router_lines = Vec::new();
        for family in Family::ALL {
            let gateway = node.gateway(family);
            let routes = node.peers.iter().map(|peer| peer.pod_cidr(family));
            lines.extend(routes.map(|cidr| format!("route {action} {cidr} via {gateway}")));
            let own = &node.identity;
            router_lines.push(format!(
                "route {action} {} via {}",
                own.pod_cidr(family),
                own.underlay(family)
            ));
        }
        node.namespace.ip_batch(&lines)?;
        site.router.ip_batch(&router_lines)?;
    }
    Ok(())
}
