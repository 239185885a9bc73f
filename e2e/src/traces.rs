//! What a lab could leave on the machine, looked for by its name rather than in its own records.

use std::fs;

use anyhow::{Result, ensure};

use crate::cluster::{self, cgroups};
use crate::ledger;

/// Whatever on the machine bears a lab's name: namespaces, mounts, files, processes, control groups, its ledger.
pub fn traces(name: &str) -> Result<Vec<String>> {
    let mut traces = Vec::new();
    let of_lab = |text: &str| text.contains(&format!("{name}-")) || text.contains(&format!("lab-{name}-"));
    for entry in fs::read_dir("/run/netns").into_iter().flatten() {
        traces.push(format!("namespace {}", entry?.file_name().to_string_lossy()));
    }
    traces.extend(
        fs::read_to_string("/proc/self/mountinfo")?
            .lines()
            .map(|line| format!("mount {line}")),
    );
    for entry in fs::read_dir(std::env::temp_dir())? {
        traces.push(format!("file {}", entry?.path().display()));
    }
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        if let Ok(line) = fs::read(path.join("cmdline")) {
            traces.push(format!(
                "process {} {}",
                path.display(),
                String::from_utf8_lossy(&line).replace('\0', " ")
            ));
        }
    }
    traces.retain(|trace| of_lab(trace));
    traces.extend(
        ledger::labs()?
            .into_iter()
            .filter(|lab| lab == name)
            .map(|lab| format!("ledger {lab}")),
    );
    let cgroups = cgroups::remains(&cluster::cgroup_of(name))?;
    traces.extend(
        cgroups
            .iter()
            .map(|place| format!("control group {}", place.display())),
    );
    traces.sort();
    Ok(traces)
}

/// Fails with what is left of a lab.
pub fn ensure_no_traces(name: &str) -> Result<()> {
    let traces = traces(name)?;
    ensure!(traces.is_empty(), "left over:\n{}", traces.join("\n"));
    Ok(())
}
