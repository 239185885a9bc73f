//! One node's programs.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use podlane_datapath::{LaneName, Options, Programs, clean};
use podlane_e2e::netns::Namespace;
use podlane_plan::datapath::Datapath;
use podlane_plan::lane::Tunnel;

use super::bpffs::BpfFs;
use super::evidence::{Driver, Seen};
use crate::site::Node;

/// Below it everything is pinned.
const DIRECTORY: &str = "podlane";

/// A key for probes, as the agent gives one; nobody sends any here.
const PROBE_KEY: [u64; 2] = [0x706f_646c_616e_6500, 0x6265_6e63_6800_0000];

/// One node's programs, loaded and attached. They go with the node's devices, and with the file system on which they are pinned.
pub(super) struct NodePrograms {
    namespace: Namespace,
    bpffs: BpfFs,
    programs: Programs,
}

impl NodePrograms {
    /// Loads and attaches them, and makes their maps as declared.
    pub(super) fn install(node: &Node, datapath: &Datapath) -> Result<Self> {
        let bpffs = BpfFs::new()?;
        let directory = bpffs.path().join(DIRECTORY);
        let name = node.namespace.name();
        let programs = node.namespace.within(|| {
            let mut programs = Programs::open(&directory, &Options::default())?;
            let synced = programs.sync(datapath, Some(PROBE_KEY));
            let failures: Vec<_> = synced
                .failures
                .iter()
                .map(|it| format!("{}: {}", it.what, it.why))
                .collect();
            ensure!(failures.is_empty(), "not in effect: {}", failures.join("; "));
            Ok(programs)
        });
        Ok(Self {
            programs: programs.with_context(|| format!("the programs of {name}"))?,
            namespace: node.namespace.clone(),
            bpffs,
        })
    }

    /// What they, and the kernel's own driver below them, have counted.
    pub(super) fn seen(&mut self, tunnel: Option<Tunnel>) -> Result<Seen> {
        let counters = self.programs.counters()?;
        let lane = tunnel.map_or(LaneName::Native, LaneName::Tunnel);
        let driver = tunnel.map(|tunnel| driver(&self.namespace, &tunnel.device()));
        Ok(Seen {
            node: self.namespace.name().to_owned(),
            lane: counters.lanes.get(&lane).cloned().unwrap_or_default(),
            dropped: counters
                .lanes
                .values()
                .flat_map(|lane| lane.dropped.iter().map(|(reason, count)| (*reason, *count)))
                .collect(),
            driver: driver.transpose()?.unwrap_or_default(),
        })
    }

    /// Detaches and unpins them.
    pub(super) fn remove(self) -> Result<()> {
        let directory: PathBuf = self.bpffs.path().join(DIRECTORY);
        let removed = self.namespace.within(|| Ok(clean(&directory)?))?;
        ensure!(!removed.is_empty(), "nothing was pinned");
        for (what, result) in removed {
            result.with_context(|| what)?;
        }
        Ok(())
    }
}

/// What the kernel's driver has carried: a packet that a program redirects or decapsulates does not reach it.
fn driver(namespace: &Namespace, device: &str) -> Result<Driver> {
    let shown = namespace.ip(&["-json", "-statistics", "link", "show", "dev", device])?;
    let links: Vec<serde_json::Value> = serde_json::from_str(&shown).context("ip's JSON")?;
    let of = |direction: &str| {
        links
            .first()
            .and_then(|link| link["stats64"][direction]["packets"].as_u64())
            .with_context(|| format!("ip tells no statistics of {device}"))
    };
    Ok(Driver {
        sent: of("tx")?,
        received: of("rx")?,
    })
}
