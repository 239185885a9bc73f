//! kubectl, run as a user runs it.

use std::io::{BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;

use anyhow::{Context, Result, bail};
use serde_json::{Deserializer, Value};

/// kubectl with a kubeconfig.
#[derive(Clone, Debug)]
pub struct Kubectl {
    program: PathBuf,
    kubeconfig: PathBuf,
    cache: PathBuf,
}

impl Kubectl {
    /// kubectl at `program`, speaking by `kubeconfig`; what it caches of the API goes to `cache`.
    pub fn new(program: PathBuf, kubeconfig: PathBuf, cache: PathBuf) -> Self {
        Self {
            program,
            kubeconfig,
            cache,
        }
    }

    /// The same kubectl as whom another kubeconfig says.
    #[must_use]
    pub fn with_kubeconfig(&self, kubeconfig: PathBuf) -> Self {
        Self {
            kubeconfig,
            ..self.clone()
        }
    }

    /// The environment in which `kubectl` on a command line means this one.
    pub fn environment(&self) -> Vec<(String, String)> {
        let directory = self.program.parent().unwrap_or(Path::new("."));
        let path = std::env::var("PATH").unwrap_or_default();
        vec![
            ("KUBECONFIG".to_owned(), self.kubeconfig.display().to_string()),
            ("KUBECACHEDIR".to_owned(), self.cache.display().to_string()),
            ("PATH".to_owned(), format!("{}:{path}", directory.display())),
        ]
    }

    /// Runs it; its standard output.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        self.run_with_input(arguments, "")
    }

    /// Runs it with something on its standard input; its standard output.
    pub fn run_with_input(&self, arguments: &[&str], input: &str) -> Result<String> {
        let mut child = Command::new(&self.program)
            .args(arguments)
            .env("KUBECONFIG", &self.kubeconfig)
            .env("KUBECACHEDIR", &self.cache)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {}", self.program.display()))?;
        if let Some(mut stdin) = child.stdin.take() {
            // A kubectl that stops early says why on its standard error.
            let _ = stdin.write_all(input.as_bytes());
        }
        let output = child.wait_with_output().context("cannot wait for kubectl")?;
        if !output.status.success() {
            bail!(
                "kubectl {}: {}",
                arguments.join(" "),
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// `kubectl apply` of YAML or JSON.
    pub fn apply(&self, manifest: &str) -> Result<String> {
        self.run_with_input(&["apply", "-f", "-"], manifest)
    }

    /// `kubectl create` of YAML or JSON.
    pub fn create(&self, manifest: &str) -> Result<String> {
        self.run_with_input(&["create", "-f", "-"], manifest)
    }

    /// `kubectl get … -o json`.
    pub fn get(&self, what: &[&str]) -> Result<Value> {
        let arguments: Vec<&str> = ["get"]
            .iter()
            .chain(what)
            .chain(&["-o", "json"])
            .copied()
            .collect();
        serde_json::from_str(&self.run(&arguments)?).context("kubectl answered with no JSON")
    }

    /// Tells of every object of a kind, as it is now and whenever it changes, on a thread of its own, for as long as the watch is there.
    pub fn watch(&self, kind: &str, mut tell: impl FnMut(Value) + Send + 'static) -> Result<Watch> {
        let mut child = Command::new(&self.program)
            .args(["get", kind, "--watch", "--output-watch-events", "-o", "json"])
            .env("KUBECONFIG", &self.kubeconfig)
            .env("KUBECACHEDIR", &self.cache)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {}", self.program.display()))?;
        let output = child.stdout.take().context("kubectl has no output")?;
        thread::spawn(move || {
            // Ends with kubectl.
            let events = Deserializer::from_reader(BufReader::new(output)).into_iter::<Value>();
            for mut event in events.map_while(Result::ok) {
                tell(event["object"].take());
            }
        });
        Ok(Watch(child))
    }
}

/// A kubectl that watches; dropping it ends it.
#[derive(Debug)]
pub struct Watch(Child);

impl Drop for Watch {
    fn drop(&mut self) {
        // One that has ended by itself has nothing left to do.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
