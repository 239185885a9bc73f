//! Tunnel drivers that are not in the kernel yet.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// How long a failed modprobe stands. A pass must not start a process each time.
const RETRY: Duration = Duration::from_secs(30);

/// Loads drivers.
#[derive(Debug, Default)]
pub(super) struct Drivers {
    tried: BTreeMap<&'static str, (Instant, Load)>,
}

/// How an attempt to load a driver went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Load {
    Loaded,
    /// This kernel cannot load modules.
    NoModules,
    /// modprobe's own words.
    Failed(String),
}

impl Drivers {
    /// Loads a driver. (The kernel itself runs modprobe when such a device is made, `rtnl_newlink` in net/core/rtnetlink.c, but in
    /// its own mount namespace, and not where `kernel.modprobe` is empty.)
    pub(super) fn load(&mut self, driver: &'static str) -> Load {
        if let Some((_, load)) = self.tried.get(driver).filter(|(when, _)| when.elapsed() < RETRY) {
            return load.clone();
        }
        let load = if Path::new("/proc/modules").exists() {
            modprobe(driver)
        } else {
            Load::NoModules
        };
        self.tried.insert(driver, (Instant::now(), load.clone()));
        load
    }
}

fn modprobe(driver: &str) -> Load {
    match Command::new("modprobe").arg(driver).output() {
        Ok(output) if output.status.success() => Load::Loaded,
        Ok(output) => Load::Failed(String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ")),
        Err(error) => Load::Failed(format!("modprobe: {error}")),
    }
}

/// What a missing driver means for the one who runs the node.
pub(super) fn no_driver(driver: &str, load: &Load) -> String {
    match load {
        Load::NoModules => format!(
            "this kernel has no {driver} driver and cannot load modules (there is no /proc/modules): boot one that has \
             CONFIG_{}, or choose another spec.tunnel.protocol",
            driver.to_uppercase()
        ),
        Load::Loaded => format!(
            "this kernel has no {driver} driver, although `modprobe {driver}` succeeded: boot the kernel whose modules are \
             installed"
        ),
        Load::Failed(words) => format!(
            "this kernel has no {driver} driver, and loading it failed ({words}): run `modprobe {driver}` on the node; where it \
             is not found, on Ubuntu and Debian, `apt-get install linux-modules-extra-$(uname -r)`"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_driver_is_said_with_what_to_do() {
        let failed = no_driver(
            "vxlan",
            &Load::Failed("modprobe: FATAL: Module vxlan not found".to_owned()),
        );
        assert!(
            failed.contains("`modprobe vxlan`") && failed.contains("linux-modules-extra-$(uname -r)"),
            "{failed}"
        );
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
