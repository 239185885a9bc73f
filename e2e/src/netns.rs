//! Named network namespaces, as `ip netns` makes them.

use std::fs::{self, File};
use std::io;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, anyhow, bail};
use nix::sched::{CloneFlags, setns};
use serde::{Deserialize, Serialize};

/// Where `ip netns` keeps the names.
pub const DIRECTORY: &str = "/run/netns";

/// A network namespace by its name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// The namespace of this name, whether it exists or not.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into() }
    }

    /// Makes the namespace. It stays when the value is dropped: the lab's ledger is what takes it away.
    pub fn add(&self) -> Result<()> {
        ip(None, &["netns", "add", &self.name]).map(drop)
    }

    /// Takes the name away; the namespace itself goes with the last process in it.
    pub fn delete(&self) -> Result<()> {
        ip(None, &["netns", "delete", &self.name]).map(drop)
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for the namespace.
    pub fn path(&self) -> PathBuf {
        Path::new(DIRECTORY).join(&self.name)
    }

    /// Whether the name is taken.
    pub fn exists(&self) -> bool {
        self.path().exists()
    }

    /// The number that processes in this namespace have in /proc/PID/ns/net.
    pub fn inode(&self) -> io::Result<u64> {
        Ok(fs::metadata(self.path())?.ino())
    }

    /// The arguments that run a program in this namespace under the program's own process number.
    pub fn enter_arguments(&self) -> [String; 3] {
        [
            "nsenter".to_owned(),
            format!("--net={}", self.path().display()),
            "--".to_owned(),
        ]
    }

    /// A command that runs `program` in this namespace.
    pub fn command(&self, program: &str) -> Command {
        let [enter, net, end] = self.enter_arguments();
        let mut command = Command::new(enter);
        command.args([net, end]).arg(program);
        command
    }

    /// Runs `ip` in this namespace; its output.
    pub fn ip(&self, arguments: &[&str]) -> Result<String> {
        ip(Some(self), arguments)
    }

    /// Gives nft(8) commands in this namespace.
    pub fn nft(&self, commands: &str) -> Result<()> {
        let output = self
            .command("nft")
            .arg(commands)
            .output()
            .context("cannot run nft")?;
        if !output.status.success() {
            bail!("nft {commands}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }

    /// Runs several `ip` commands in this namespace, stopping at the first that fails.
    pub fn ip_batch(&self, lines: &[String]) -> Result<()> {
        let mut command = self.command("ip");
        command
            .args(["-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().context("cannot start ip")?;
        if let Some(mut stdin) = child.stdin.take() {
            // An ip that stops early closes the pipe; its own message says more than that.
            let _ = stdin.write_all((lines.join("\n") + "\n").as_bytes());
        }
        let output = child.wait_with_output().context("cannot wait for ip")?;
        if output.status.success() {
            return Ok(());
        }
        let message = String::from_utf8_lossy(&output.stderr);
        let line = message
            .rsplit_once(':')
            .and_then(|(_, number)| number.trim().parse::<usize>().ok())
            .and_then(|number| lines.get(number.checked_sub(1)?));
        bail!(
            "in {}: ip {}: {}",
            self.name,
            line.map_or("-batch", String::as_str),
            message.trim()
        )
    }

    /// Runs `inside` on a thread of its own that has entered the namespace. Sockets made there belong to the namespace,
    /// and /proc/sys/net is its.
    pub fn within<T: Send>(&self, inside: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let file = File::open(self.path()).with_context(|| format!("no network namespace {}", self.name))?;
        thread::scope(|scope| {
            let worker = scope.spawn(move || {
                setns(file, CloneFlags::CLONE_NEWNET).context("cannot enter the network namespace")?;
                inside()
            });
            worker
                .join()
                .map_err(|_| anyhow!("panicked in network namespace {}", self.name))?
        })
    }

    /// Sets parameters below /proc/sys/net, such as `("ipv4/ip_forward", "1")`.
    pub fn set_parameters(&self, parameters: &[(&str, &str)]) -> Result<()> {
        self.within(|| {
            for (name, value) in parameters {
                fs::write(Path::new("/proc/sys/net").join(name), value)
                    .with_context(|| format!("cannot set net/{name} to {value}"))?;
            }
            Ok(())
        })
        .with_context(|| format!("in {}", self.name))
    }
}

/// A network namespace that is deleted when the guard is dropped, for what needs less than a lab.
#[derive(Debug)]
pub struct TemporaryNamespace(Namespace);

impl TemporaryNamespace {
    /// Makes a namespace of this name, with its loopback up.
    pub fn add(name: &str) -> Result<Self> {
        let namespace = Namespace::named(name);
        namespace.add()?;
        let guard = Self(namespace);
        guard.ip(&["link", "set", "lo", "up"])?;
        Ok(guard)
    }
}

impl std::ops::Deref for TemporaryNamespace {
    type Target = Namespace;

    fn deref(&self) -> &Namespace {
        &self.0
    }
}

impl Drop for TemporaryNamespace {
    fn drop(&mut self) {
        // Nothing to do about a failure here; the name is seen in `ip netns list`.
        let _ = self.0.delete();
    }
}

/// Runs `ip`, in a namespace or in the machine's own; its output.
pub fn ip(namespace: Option<&Namespace>, arguments: &[&str]) -> Result<String> {
    let mut command = match namespace {
        Some(namespace) => namespace.command("ip"),
        None => Command::new("ip"),
    };
    // Ctrl-C must not end it in the middle of taking a lab down.
    command.process_group(0).args(arguments).stdin(Stdio::null());
    let output = command.output().context("cannot run ip")?;
    if !output.status.success() {
        let place = namespace.map_or_else(String::new, |namespace| format!("in {}: ", namespace.name));
        bail!(
            "{place}ip {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
