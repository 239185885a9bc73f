//! What it was measured on.

use std::fs;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// The machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// The processor's name as the kernel has it.
    pub processor: String,
    /// How many processors are online.
    pub processors: usize,
    /// Whether a hypervisor is below.
    pub virtual_machine: bool,
    /// Memory, in MiB.
    pub memory_mib: u64,
    /// The kernel's release.
    pub kernel: String,
    /// Whether the benchmark itself was built with optimisation. Its figures are worth little otherwise.
    pub optimised: bool,
}

impl Machine {
    /// This one.
    ///
    /// # Errors
    /// Where /proc is not as proc(5) says.
    pub fn here() -> Result<Self> {
        let read = |path: &str| fs::read_to_string(path).with_context(|| path.to_owned());
        let cpus = read("/proc/cpuinfo")?;
        let value = |name: &str| {
            let line = cpus.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let memory = read("/proc/meminfo")?;
        let kib = memory
            .lines()
            .find_map(|line| {
                line.strip_prefix("MemTotal:")?
                    .trim()
                    .strip_suffix(" kB")?
                    .parse::<u64>()
                    .ok()
            })
            .context("/proc/meminfo has no MemTotal")?;
        Ok(Self {
            processor: value("model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            processors: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            virtual_machine: value("flags")
                .is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor")),
            memory_mib: kib / 1024,
            kernel: read("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            optimised: !cfg!(debug_assertions),
        })
    }
}
