//! Tunnel drivers that are not in the kernel yet.

use super::modules::Modules;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a failed attempt stands: it reads tables of a megabyte.
const RETRY: Duration = Duration::from_secs(30);

/// Loads drivers, where that is asked for.
#[derive(Debug, Default)]
pub(super) struct Drivers {
    modules: Option<Modules>,
    tried: BTreeMap<&'static str, (Instant, Load)>,
}

/// How an attempt to load a driver went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Load {
    Loaded,
    /// This kernel cannot load modules.
    NoModules,
    /// Nobody has asked for modules to be loaded.
    NotAsked,
    /// Why not.
    Failed(String),
}

impl Drivers {
    /// From now on drivers are loaded from there.
    pub(super) fn load_from(&mut self, modules: Modules) {
        self.modules = Some(modules);
    }

    /// Loads a driver. (The kernel itself runs modprobe when such a device is made, `rtnl_newlink` in net/core/rtnetlink.c, in
    /// its own mount namespace, but not where `kernel.modprobe` is empty. So this one is for where that did not do.)
    pub(super) fn load(&mut self, driver: &'static str) -> Load {
        if let Some((_, load)) = self.tried.get(driver).filter(|(when, _)| when.elapsed() < RETRY) {
            return load.clone();
        }
        let load = if !Path::new("/proc/modules").exists() {
            Load::NoModules
        } else if let Some(modules) = &self.modules {
            modules.load(driver).map_or_else(Load::Failed, |()| Load::Loaded)
        } else {
            Load::NotAsked
        };
        self.tried.insert(driver, (Instant::now(), load.clone()));
        load
    }
}

/// What a missing driver means for the one who runs the node.
pub(super) fn no_driver(driver: &str, load: &Load) -> String {
    let elsewhere =
        "where it is not found, on Ubuntu and Debian, `apt-get install linux-modules-extra-$(uname -r)`";
    match load {
        Load::NoModules => format!(
            "this kernel has no {driver} driver and cannot load modules (there is no /proc/modules): boot one that has \
             CONFIG_{}, or choose another spec.tunnel.protocol",
            driver.to_uppercase()
        ),
        Load::Loaded => format!(
            "this kernel has no {driver} driver, although its module is loaded: boot the kernel whose modules are installed"
        ),
        Load::NotAsked => format!(
            "this kernel has no {driver} driver: run `modprobe {driver}` on the node, or have agents load modules \
             (agents.loadModules=true); {elsewhere}"
        ),
        Load::Failed(words) => format!(
            "this kernel has no {driver} driver, and loading it failed ({words}): run `modprobe {driver}` on the node; {elsewhere}"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_driver_is_said_with_what_to_do() {
        for load in [
            Load::NotAsked,
            Load::Failed("there is no module vxlan".to_owned()),
        ] {
            let said = no_driver("vxlan", &load);
            assert!(
                said.contains("`modprobe vxlan`") && said.contains("linux-modules-extra-$(uname -r)"),
                "{said}"
            );
        }
        assert!(no_driver("vxlan", &Load::NotAsked).contains("agents.loadModules=true"));
        assert!(no_driver("geneve", &Load::NoModules).contains("CONFIG_GENEVE"));
    }

    #[test]
    fn a_failure_stands_for_a_while() {
        let mut drivers = Drivers::default();
        drivers
            .tried
            .insert("vxlan", (Instant::now(), Load::Failed("seen".to_owned())));
        assert_eq!(drivers.load("vxlan"), Load::Failed("seen".to_owned()));
    }
}
