//! Where the programs are that the lab starts.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// The folder of this crate, with the manifests and the control plane's sources.
pub fn sources() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The repository's folder.
pub fn repository() -> &'static Path {
    sources().parent().unwrap_or(sources())
}

/// One of this repository's own programs: in PODLANE_BIN_DIR, or beside the running program.
pub fn own(name: &str) -> Result<PathBuf> {
    let running = env::current_exe().context("cannot tell where this program is")?;
    let beside = running.parent().map(Path::to_owned).unwrap_or_default();
    // Test programs are one folder deeper.
    let above = beside.parent().map(Path::to_owned).unwrap_or_default();
    let directories = match env::var_os("PODLANE_BIN_DIR") {
        Some(directory) => vec![PathBuf::from(directory)],
        None => vec![beside, above],
    };
    for directory in &directories {
        let path = directory.join(name);
        if path.is_file() {
            return Ok(path);
        }
    }
    let looked: Vec<_> = directories
        .iter()
        .map(|directory| directory.display().to_string())
        .collect();
    bail!(
        "{name} is not in {}: build it first (`make build`)",
        looked.join(" nor in ")
    )
}

/// The programs of the control plane.
#[derive(Clone, Debug)]
pub struct ControlPlanePrograms {
    /// etcd.
    pub etcd: PathBuf,
    /// The API server.
    pub kube_apiserver: PathBuf,
    /// kubectl.
    pub kubectl: PathBuf,
}

impl ControlPlanePrograms {
    /// Finds them; an error says how to build them where they are missing.
    pub fn find() -> Result<Self> {
        Self::ask(&["--check"], Stdio::piped())
    }

    /// Finds them, and builds what is missing; that takes minutes and is told on standard error.
    pub fn find_or_build() -> Result<Self> {
        Self::ask(&[], Stdio::inherit())
    }

    fn ask(arguments: &[&str], messages: Stdio) -> Result<Self> {
        let answer = Answer::of(
            "control-plane/build",
            arguments,
            messages,
            "etcd, kube-apiserver and kubectl were not found",
        )?;
        Ok(Self {
            etcd: answer.path("etcd")?,
            kube_apiserver: answer.path("kube-apiserver")?,
            kubectl: answer.path("kubectl")?,
        })
    }
}

/// The programs of a cluster beside its control plane's: what runs on its nodes, and what works on its objects.
#[derive(Clone, Debug)]
pub struct ClusterPrograms {
    /// kube-controller-manager.
    pub kube_controller_manager: PathBuf,
    /// kube-scheduler.
    pub kube_scheduler: PathBuf,
    /// The kubelet.
    pub kubelet: PathBuf,
    /// kube-proxy.
    pub kube_proxy: PathBuf,
    /// CoreDNS.
    pub coredns: PathBuf,
}

impl ClusterPrograms {
    /// Finds them; an error says how to build them where they are missing.
    pub fn find() -> Result<Self> {
        Self::ask(&["--cluster", "--check"], Stdio::piped())
    }

    /// Finds them, and builds what is missing; that takes minutes and is told on standard error.
    pub fn find_or_build() -> Result<Self> {
        Self::ask(&["--cluster"], Stdio::inherit())
    }

    fn ask(arguments: &[&str], messages: Stdio) -> Result<Self> {
        let answer = Answer::of(
            "control-plane/build",
            arguments,
            messages,
            "the kubelet and its like were not found",
        )?;
        Ok(Self {
            kube_controller_manager: answer.path("kube-controller-manager")?,
            kube_scheduler: answer.path("kube-scheduler")?,
            kubelet: answer.path("kubelet")?,
            kube_proxy: answer.path("kube-proxy")?,
            // One file, as a volume of the pod that runs it.
            coredns: answer.path("coredns")?.canonicalize().context("CoreDNS")?,
        })
    }
}

/// What a script that finds programs has said: a line NAME=PATH for each.
pub(crate) struct Answer {
    script: PathBuf,
    lines: String,
}

impl Answer {
    /// Asks a script of this crate's folder. Where it fails, the error says so in these words, and in its own.
    pub(crate) fn of(script: &str, arguments: &[&str], messages: Stdio, failed: &str) -> Result<Self> {
        let script = sources().join(script);
        let output = Command::new(&script)
            .args(arguments)
            .stdin(Stdio::null())
            .stderr(messages)
            .output()
            .with_context(|| format!("cannot run {}", script.display()))?;
        if !output.status.success() {
            bail!("{failed}: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        let lines = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok(Self { script, lines })
    }

    /// Where a program is.
    pub(crate) fn path(&self, name: &str) -> Result<PathBuf> {
        self.lines
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
            .map(PathBuf::from)
            .with_context(|| format!("{} does not say where {name} is", self.script.display()))
    }
}

/// The first of these programs that is not on PATH.
pub fn first_missing<'a>(names: &[&'a str]) -> Option<&'a str> {
    first_missing_on(env::var_os("PATH").unwrap_or_default(), names)
}

/// Where PATH has a program.
pub fn on_path(name: &str) -> Option<PathBuf> {
    place_on(&env::var_os("PATH").unwrap_or_default(), name)
}

fn place_on(path: &OsStr, name: &str) -> Option<PathBuf> {
    env::split_paths(path)
        .map(|folder| folder.join(name))
        .find(|place| place.is_file())
}

/// The first of these programs that is not on a path of folders.
pub fn first_missing_on<'a>(path: impl AsRef<OsStr>, names: &[&'a str]) -> Option<&'a str> {
    let path = path.as_ref();
    names.iter().copied().find(|name| place_on(path, name).is_none())
}
