//! The kernel's side of a pass: read what it holds, carry out operations, be woken by its changes.

mod apply;
mod drivers;
mod dump;
pub mod events;
mod failure;
mod link;
mod modules;
mod nftables;
mod replies;
mod request;
mod route;
mod sysctl;
mod transport;
mod udp_ports;
mod wire;

pub use dump::{Observation, Stray};
pub use failure::Failure;
pub use modules::Modules;
pub use sysctl::{NoSysctl, Sysctls};
pub use transport::{Refused, Request, Transport, TransportError};

use drivers::Drivers;
use nftables::{Nftables, Table};
use podlane_plan::diff::Operation;
use podlane_plan::kernel::{Capabilities, Observed};
use podlane_plan::lane::TunnelProtocol;
use std::collections::BTreeSet;

/// The kernel of the network namespace in which it is used.
#[derive(Debug, Default)]
pub struct Kernel {
    transport: Transport,
    sysctls: Sysctls,
    drivers: Drivers,
    nftables: Nftables,
    capabilities: Capabilities,
}

impl Kernel {
    /// With kernel parameters in a place of their own.
    pub fn with_sysctls(sysctls: Sysctls) -> Self {
        Self {
            sysctls,
            ..Self::default()
        }
    }

    /// Has drivers that are missing loaded from there.
    pub fn load_modules(&mut self, modules: Modules) {
        self.drivers.load_from(modules);
    }

    /// Reads everything that a pass needs. `sysctls_to_read` names kernel parameters, given the rest.
    ///
    /// # Errors
    /// When something could not be read: nothing must be concluded from a part.
    pub fn observe(
        &mut self,
        sysctls_to_read: impl FnOnce(&Observed) -> BTreeSet<String>,
    ) -> Result<Observation, TransportError> {
        let mut observation = dump::observe(
            &mut self.transport,
            &self.sysctls,
            self.capabilities,
            sysctls_to_read,
        )?;
        let observed = &mut observation.observed;
        match self.nftables.read()? {
            Table::None => {}
            Table::Foreign => observed.foreign_table = true,
            Table::Ours(masquerade) => observed.ours.masquerade = Some(masquerade),
        }
        Ok(observation)
    }

    /// What has been found out about what this node can do.
    pub const fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    /// To be told whether the eBPF programs are loaded: only then is a GENEVE tunnel's device made with VXLAN's driver.
    pub const fn learn_programs(&mut self, are_loaded: bool) {
        self.capabilities.programs = are_loaded;
    }

    /// To be told whether the agent keeps the CNI configuration that connects this node's pods.
    pub const fn learn_connects_pods(&mut self, connects: bool) {
        self.capabilities.connects_pods = connects;
    }

    fn learn_driver(&mut self, driver: &str, is_there: bool) {
        if driver == TunnelProtocol::Geneve.driver() {
            self.capabilities.geneve_driver = Some(is_there);
        }
    }

    /// Carries out operations in their order, and says of each how it went. `seen` is what they were planned from.
    pub fn apply(&mut self, operations: &[Operation], seen: &Observed) -> Vec<Result<(), Failure>> {
        apply::Applier::new(self, seen).apply(operations)
    }

    /// Removes what of ours cannot be declared, and says of each what it was and how it went.
    pub fn remove_strays(&mut self, strays: Vec<Stray>) -> Vec<(String, Result<(), Failure>)> {
        let (what, removals): (Vec<_>, Vec<_>) = strays
            .into_iter()
            .map(|stray| (stray.what, stray.removal))
            .unzip();
        let results = self.transport.batch(removals);
        what.into_iter()
            .zip(results.into_iter().map(failure::unless_gone))
            .collect()
    }

    /// The port of the socket whose requests change the kernel: notifications that bear it tell us nothing new.
    pub fn port(&self) -> Option<u32> {
        self.transport.port()
    }

    /// The same of the socket whose requests change nftables.
    pub fn netfilter_port(&self) -> Option<u32> {
        self.nftables.port()
    }
}
