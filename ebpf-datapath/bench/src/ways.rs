//! The ways of carrying a pod's packets to a pod on another node.

mod cilium;
mod flannel;
mod kernel_lane;
mod native;
mod podlane;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::condition::Condition;
use crate::figure::Figure;
use crate::site::{PodNetwork, Site};

/// The name of plain routing, with which the others are compared.
pub const NATIVE: &str = "native";

/// How the packets look between the nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// As the pods send them.
    Plain,
    /// Inside UDP packets to this port, between the nodes' own IPv4 addresses.
    Udp(u16),
}

/// What a way is meant to reach.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Goal {
    /// Of which figure.
    pub figure: Figure,
    /// In which condition, among few peers and in both families.
    pub condition: Condition,
    /// The ratio to what it is compared with: at least that where more of the figure is better, at most that where less is.
    pub ratio: f64,
}

/// One way.
pub trait Way: Send + Sync {
    /// A short word for it, unlike any other's.
    fn name(&self) -> &'static str;

    /// A few words for a table's row.
    fn title(&self) -> &'static str;

    /// How it is set up, in one line.
    fn description(&self) -> &'static str;

    /// How pods hang on their nodes.
    fn pods(&self) -> PodNetwork {
        PodNetwork::PointToPoint
    }

    /// How the packets look between the nodes.
    fn wire(&self) -> Wire;

    /// The name of the way that it is compared with.
    fn compared_with(&self) -> &'static str {
        NATIVE
    }

    /// What it is meant to reach. The document says whether it does; nothing fails where it does not.
    fn goals(&self) -> &'static [Goal] {
        &[]
    }

    /// Why this machine cannot run it; none where it can.
    fn impossible(&self) -> Option<String> {
        None
    }

    /// Makes it carry the packets of both families between the site's pods, in both directions, and gives each node all of its
    /// [`Node::peers`](crate::site::Node::peers).
    ///
    /// # Errors
    /// Whatever could not be set up. The site is of no use then.
    fn set_up(&self, site: &Site) -> Result<Box<dyn Installed>>;
}

/// A way that has been set up on a site. What is dropped without [`Installed::tear_down`] goes with the site.
pub trait Installed {
    /// Fails unless what it has counted itself shows that it, and nothing below it, carried packets since it was set up. Asked after
    /// the first packets, and again after all measurements. A way with no other way below it has nothing to show: its packets cannot
    /// come otherwise.
    ///
    /// # Errors
    /// Words that say what was expected and what was found.
    fn evidence(&self) -> Result<()> {
        Ok(())
    }

    /// Takes it away again, so that no packet passes any more.
    ///
    /// # Errors
    /// Whatever could not be removed.
    fn tear_down(self: Box<Self>, site: &Site) -> Result<()>;
}

/// All ways, in the order in which they are measured.
pub fn all() -> Vec<Box<dyn Way>> {
    vec![
        Box::new(native::Native),
        Box::new(flannel::Flannel::on(PodNetwork::PointToPoint)),
        Box::new(flannel::Flannel::on(PodNetwork::Bridge)),
        Box::new(cilium::Cilium),
        Box::new(kernel_lane::KernelLane),
        Box::new(podlane::Podlane::AROUND_VXLAN),
        Box::new(podlane::Podlane::AROUND_GENEVE),
        Box::new(podlane::Podlane::BYPASS_VXLAN),
        Box::new(podlane::Podlane::BYPASS_GENEVE),
        Box::new(podlane::Podlane::BYPASS_NATIVE),
    ]
}
