//! Helm, as a user runs it, in the two versions that the chart works with; and the schemas of Kubernetes' objects.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::programs::{self, Answer};

/// The versions of Kubernetes that the chart promises to work with, by their minor number.
pub const KUBERNETES: std::ops::RangeInclusive<u8> = 30..=37;

/// The chart's folder.
pub fn chart() -> PathBuf {
    programs::repository().join("charts/podlane")
}

/// What the chart is tested with.
#[derive(Clone, Debug)]
pub struct HelmPrograms {
    /// Helm 3 and Helm 4.
    pub helms: [Helm; 2],
    /// Checks objects against schemas.
    pub schemas: Schemas,
}

impl HelmPrograms {
    /// Finds them; an error says how to fetch them where they are missing.
    pub fn find() -> Result<Self> {
        let answer = Answer::of("helm/fetch", &["--check"], Stdio::piped(), "Helm was not found")?;
        let helm = |major: u8| {
            Ok::<_, anyhow::Error>(Helm {
                major,
                program: answer.path(&format!("helm{major}"))?,
            })
        };
        Ok(Self {
            helms: [helm(3)?, helm(4)?],
            schemas: Schemas(answer.path("schemas")?),
        })
    }
}

/// One Helm.
#[derive(Clone, Debug)]
pub struct Helm {
    /// Its major version.
    pub major: u8,
    program: PathBuf,
}

impl Helm {
    /// Where it is.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// The environment in which it has neither this machine's settings nor its plugins.
    pub fn own_settings() -> impl Iterator<Item = (String, String)> {
        let home = std::env::temp_dir().join("podlane-helm");
        ["cache", "config", "data"].into_iter().map(move |kind| {
            let name = format!("HELM_{}_HOME", kind.to_uppercase());
            (name, home.join(kind).display().to_string())
        })
    }

    /// Runs it; its standard output.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        self.run_as(None, arguments)
    }

    /// The same as whom a kubeconfig says.
    pub fn run_as(&self, kubeconfig: Option<&Path>, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.program);
        command
            .args(arguments)
            .stdin(Stdio::null())
            .envs(Self::own_settings())
            .env_remove("KUBECONFIG");
        if let Some(kubeconfig) = kubeconfig {
            command.env("KUBECONFIG", kubeconfig);
        }
        let output = command
            .output()
            .with_context(|| format!("cannot run {}", self.program.display()))?;
        if !output.status.success() {
            bail!(
                "helm {} of version {}: {}",
                arguments.join(" "),
                self.major,
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// The schemas of Kubernetes' own kinds in each of its versions, and a program that checks objects against them.
#[derive(Clone, Debug)]
pub struct Schemas(PathBuf);

impl Schemas {
    /// Checks the objects in a YAML file as version 1.`minor` has them. Words that it does not know are errors.
    pub fn check(&self, minor: u8, file: &Path) -> Result<()> {
        let output = Command::new("python3")
            .args(["-m", "kubernetes_validate", "--strict", "--quiet", "-k"])
            .arg(format!("1.{minor}"))
            .arg(file)
            .env("PYTHONPATH", &self.0)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdin(Stdio::null())
            .output()
            .context("cannot run python3")?;
        if !output.status.success() {
            bail!(
                "Kubernetes 1.{minor}: {}{}",
                String::from_utf8_lossy(&output.stdout).trim(),
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(())
    }
}
