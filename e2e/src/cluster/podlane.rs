//! Podlane in the cluster, as a user installs it: its images, and its chart by Helm.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{Cluster, images};
use crate::control_plane::SYSTEM_NAMESPACE;
use crate::helm::{Helm, HelmPrograms, chart};
use crate::programs;

/// A folder with `operator.tar` and `agent.tar`, as `images/build` makes them, to be taken instead of what `cargo build` has made.
pub const IMAGES: &str = "PODLANE_IMAGES";

/// The chart's own version of Podlane, which is the tag of its images.
const TAG: &str = env!("CARGO_PKG_VERSION");

/// The archives of Podlane's images: those in `PODLANE_IMAGES` where that is set, else made in a directory out of the programs that are
/// beside this one.
pub fn archives(directory: &Path) -> Result<Vec<PathBuf>> {
    let given = env::var_os(IMAGES).map(PathBuf::from);
    ["operator", "agent"]
        .into_iter()
        .map(|image| {
            if let Some(folder) = &given {
                let archive = folder.join(format!("{image}.tar"));
                // In full: nodes have a working directory of their own.
                return archive.canonicalize().with_context(|| {
                    format!("{} is not there: build it by images/build", archive.display())
                });
            }
            images::of_program(
                directory,
                &name_of(image),
                &programs::own(&format!("podlane-{image}"))?,
            )
        })
        .collect()
}

/// The name of Podlane's image on the nodes: `operator` or `agent`.
pub fn name_of(image: &str) -> String {
    format!("docker.io/podlane/{image}:{TAG}")
}

/// Where a node's container runtime looks for its CNI configuration.
pub const CNI_FOLDER: &str = "/etc/cni/net.d";

impl Cluster {
    /// Helm as the administrator, in Podlane's namespace; its standard output.
    pub fn helm(&self, arguments: &[&str]) -> Result<String> {
        let arguments: Vec<&str> = arguments
            .iter()
            .copied()
            .chain(["--namespace", SYSTEM_NAMESPACE])
            .collect();
        newest_helm()?.run_as(Some(&self.kubeconfig()), &arguments)
    }

    /// `helm install --wait` of the chart, with what the lab's network needs and further values (`key=value`).
    pub fn install_podlane(&self, more: &[&str]) -> Result<String> {
        self.release(&["install", "--create-namespace"], more)
    }

    /// `helm upgrade --wait`, with the same values as `install_podlane` and others.
    pub fn upgrade_podlane(&self, more: &[&str]) -> Result<String> {
        self.release(&["upgrade"], more)
    }

    /// What is Podlane's on a node: routes, devices, its nftables table, what is pinned, its CNI configuration.
    pub fn left_on(&self, node: &str) -> Result<Vec<String>> {
        let machine = self
            .machines
            .get(node)
            .with_context(|| format!("the cluster has no node {node}"))?;
        let mut left = Vec::new();
        for words in [
            ["-o", "-4", "route", "show", "table", "all", "proto", "172"].as_slice(),
            &["-o", "-6", "route", "show", "table", "all", "proto", "172"],
            &["-o", "link", "show", "group", "172"],
        ] {
            left.extend(machine.run("ip", words)?.lines().map(str::to_owned));
        }
        let found = machine.run("find", &["/sys/fs/bpf", CNI_FOLDER, "-mindepth", "1"])?;
        let tables = machine.run("nft", &["list", "tables"])?;
        left.extend(
            tables
                .lines()
                .chain(found.lines())
                .filter(|line| line.contains("podlane"))
                .map(str::to_owned),
        );
        Ok(left)
    }

    fn release(&self, verb: &[&str], more: &[&str]) -> Result<String> {
        let arguments = self.release_arguments(more);
        let arguments: Vec<&str> = verb
            .iter()
            .copied()
            .chain(arguments.iter().map(String::as_str))
            .collect();
        self.helm(&arguments)
    }

    /// What stands behind `helm install` or `helm upgrade`: release, chart, `--wait`, values.
    pub fn release_arguments(&self, more: &[&str]) -> Vec<String> {
        let mut arguments = vec![
            "podlane".to_owned(),
            chart().display().to_string(),
            "--wait".to_owned(),
            "--timeout=6m".to_owned(),
        ];
        let own = values(&self.server());
        for value in own.iter().map(String::as_str).chain(more.iter().copied()) {
            arguments.extend(["--set".to_owned(), value.to_owned()]);
        }
        arguments
    }
}

/// What the lab's network needs of the chart, and that images are never pulled.
fn values(server: &str) -> [String; 4] {
    [
        "clusterPodCIDRs={172.20.0.0/16}".to_owned(),
        format!("k8sServiceHost={server}"),
        "operator.image.pullPolicy=Never".to_owned(),
        "agents.image.pullPolicy=Never".to_owned(),
    ]
}

/// The newest Helm that the chart works with.
pub fn newest_helm() -> Result<Helm> {
    let helms = HelmPrograms::find()?.helms;
    helms.into_iter().max_by_key(|helm| helm.major).context("no Helm")
}
