//! The lab's processes: started so that the ledger knows them before they run, ended by their own number only.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::ledger::{Ledger, ProcessId, StartedProcess};
use crate::netns::Namespace;

/// The shell reads one line before it becomes the program: until then the process has a number but has done nothing.
/// A lab that dies in between closes the pipe, and the process ends.
const GATE: &str = "read -r go && exec \"$@\"";
const GATE_WITHOUT_STDIN: &str = "read -r go && exec \"$@\" </dev/null";

/// What to start, and how often one likes.
#[derive(Clone, Debug)]
pub struct Program {
    /// What the lab calls it; its log is named after it.
    pub name: String,
    /// Where it runs; none: in the machine's own network namespace.
    pub namespace: Option<Namespace>,
    /// The program and its arguments.
    pub arguments: Vec<String>,
    /// Variables added to the environment.
    pub environment: Vec<(String, String)>,
    /// Where its standard output goes; none: to the log, with its standard error.
    pub output: Option<PathBuf>,
    /// Whether it is written to through a pipe; else it reads nothing.
    pub takes_input: bool,
    /// Whether it is asked to end (SIGTERM) before it is killed when the lab is taken down.
    pub asked_to_end: bool,
}

impl Program {
    /// A program in the machine's own namespace, with its output in its log.
    pub fn new(name: impl Into<String>, arguments: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            name: name.into(),
            namespace: None,
            arguments: arguments.into_iter().map(Into::into).collect(),
            environment: Vec::new(),
            output: None,
            takes_input: false,
            asked_to_end: false,
        }
    }

    /// The same program in a network namespace.
    #[must_use]
    pub fn within(mut self, namespace: &Namespace) -> Self {
        self.namespace = Some(namespace.clone());
        self
    }
}

/// A program that the lab has started. Dropping it kills it, unless the lab is one that stays.
#[derive(Debug)]
pub struct Process {
    program: Program,
    ledger: Arc<Ledger>,
    log: PathBuf,
    child: Child,
    input: Option<ChildStdin>,
    id: ProcessId,
}

impl Process {
    /// Starts a program. Its log is `logs/NAME.log` in the lab's directory.
    pub fn start(program: Program, ledger: &Arc<Ledger>) -> Result<Self> {
        let name = program.name.clone();
        Self::begin(program, ledger).with_context(|| format!("cannot start {name}"))
    }

    fn begin(program: Program, ledger: &Arc<Ledger>) -> Result<Self> {
        let state = ledger.state();
        let logs = state.directory.join("logs");
        fs::create_dir_all(&logs).with_context(|| format!("cannot make {}", logs.display()))?;
        let log = logs.join(format!("{}.log", program.name));
        let to_log = append(&log)?;
        let output = match &program.output {
            Some(path) => append(path)?,
            None => to_log.try_clone().context("cannot share the log")?,
        };

        // A lab that is not meant to stay takes its processes with it, however it ends.
        let dies_with_lab: &[&str] = if state.outlives_owner {
            &[]
        } else {
            &["setpriv", "--pdeathsig", "KILL", "--"]
        };
        let gate = if program.takes_input {
            GATE
        } else {
            GATE_WITHOUT_STDIN
        };
        let mut arguments: Vec<String> = dies_with_lab.iter().map(|&word| word.to_owned()).collect();
        arguments.extend(["sh", "-c", gate, "sh"].map(str::to_owned));
        if let Some(namespace) = &program.namespace {
            arguments.extend(namespace.enter_arguments());
        }
        arguments.extend(program.arguments.iter().cloned());

        let mut command = Command::new(&arguments[0]);
        command
            .args(&arguments[1..])
            .envs(program.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(output)
            .stderr(to_log)
            // Ctrl-C is for the lab, which then ends its processes in order.
            .process_group(0);
        let mut child = on_lasting_thread(move || command.spawn())?.context("cannot start a process")?;

        let pid = i32::try_from(child.id()).context("a process number")?;
        let id = ProcessId::of(pid).context("cannot read the start time of a process")?;
        let started = StartedProcess {
            name: program.name.clone(),
            id,
            asked_to_end: program.asked_to_end,
        };
        ledger.change(|state| state.processes.push(started))?;
        let mut input = child.stdin.take();
        if let Some(input) = &mut input {
            input
                .write_all(b"go\n")
                .context("the process ended before it began")?;
        }
        if !program.takes_input {
            input = None;
        }
        Ok(Self {
            program,
            ledger: Arc::clone(ledger),
            log,
            child,
            input,
            id,
        })
    }

    /// The process's own number.
    pub fn pid(&self) -> i32 {
        self.id.pid
    }

    /// What the lab calls it.
    pub fn name(&self) -> &str {
        &self.program.name
    }

    /// Whether it runs.
    pub fn runs(&self) -> bool {
        self.id.runs()
    }

    /// An error with the end of its log when it does not run any more.
    pub fn ensure_runs(&self) -> Result<()> {
        if !self.runs() {
            bail!(
                "{} has ended; the end of its log:\n{}",
                self.program.name,
                self.log_tail(15)
            );
        }
        Ok(())
    }

    /// Its log.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The last lines of its log.
    pub fn log_tail(&self, lines: usize) -> String {
        tail(&self.log, lines)
    }

    /// Writes a line to its standard input.
    pub fn write_line(&mut self, line: &str) -> Result<()> {
        let input = self
            .input
            .as_mut()
            .with_context(|| format!("{} takes no input", self.program.name))?;
        writeln!(input, "{line}").with_context(|| format!("cannot write to {}", self.program.name))
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        send(self.id, signal).with_context(|| format!("{} to {}", signal, self.program.name))
    }

    /// Stops it where it is (SIGSTOP): it answers nothing, but its sockets stay open.
    pub fn freeze(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// Lets it go on after `freeze`.
    pub fn thaw(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    /// Waits for it to end by itself.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().context("cannot wait for a process")? {
                self.forget()?;
                return Ok(status);
            }
            if start.elapsed() >= limit {
                bail!(
                    "{} has not ended within {:.1} s",
                    self.program.name,
                    limit.as_secs_f64()
                );
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Asks it to end with `signal`, and kills it when it has not after `limit`.
    pub fn end_with(&mut self, signal: Signal, limit: Duration) -> Result<ExitStatus> {
        if self.runs() {
            self.signal(signal)?;
            // One that was frozen ends when it goes on; one that was not may have ended by now.
            let _ = self.signal(Signal::SIGCONT);
        }
        match self.wait(limit) {
            Ok(status) => Ok(status),
            Err(_) => self.kill(),
        }
    }

    /// Asks it to end (SIGTERM), and kills it when it has not after `limit`.
    pub fn stop(&mut self, limit: Duration) -> Result<ExitStatus> {
        self.end_with(Signal::SIGTERM, limit)
    }

    /// Kills it (SIGKILL) and waits until it is gone.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.child.kill().context("cannot kill a process")?;
        let status = self.child.wait().context("cannot wait for a process")?;
        self.forget()?;
        Ok(status)
    }

    /// Starts the same program again, after killing it if it still runs.
    pub fn restart(&mut self) -> Result<()> {
        self.kill()?;
        *self = Self::start(self.program.clone(), &self.ledger)?;
        Ok(())
    }

    fn forget(&self) -> Result<()> {
        self.ledger
            .change(|state| state.processes.retain(|process| process.id != self.id))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.ledger.state().outlives_owner && matches!(self.child.try_wait(), Ok(None)) {
            // What is left after this is found by taking the lab down.
            let _ = self.kill();
        }
    }
}

/// Sends a signal to a process, if it still is that process.
pub fn send(id: ProcessId, signal: Signal) -> Result<()> {
    if !id.runs() {
        bail!("process {} has ended", id.pid);
    }
    kill(Pid::from_raw(id.pid), signal).with_context(|| format!("process {}", id.pid))
}

/// The last lines of a file; what is wrong with it when it cannot be read.
pub fn tail(path: &Path, lines: usize) -> String {
    match fs::read(path) {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            let all: Vec<&str> = text.lines().collect();
            all[all.len().saturating_sub(lines)..].join("\n")
        }
        Err(error) => format!("({}: {error})", path.display()),
    }
}

fn append(path: &Path) -> Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("cannot open {}", path.display()))
}

type Job = Box<dyn FnOnce() + Send>;

/// Runs a job on a thread that lives as long as this program. The kernel counts the end of the thread that started a
/// process as its parent's death, so a thread of the test harness must not start one that dies with its parent.
fn on_lasting_thread<T: Send + 'static>(job: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    static JOBS: OnceLock<Mutex<Sender<Job>>> = OnceLock::new();
    let jobs = JOBS.get_or_init(|| {
        let (sender, receiver) = channel::<Job>();
        thread::spawn(move || receiver.into_iter().for_each(|job| job()));
        Mutex::new(sender)
    });
    let (answer, answered) = channel();
    let job: Job = Box::new(move || {
        // Nobody waits any more only when the asking thread has panicked.
        let _ = answer.send(job());
    });
    jobs.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .send(job)
        .map_err(|_| anyhow!("the thread that starts processes has ended"))?;
    answered
        .recv()
        .context("the thread that starts processes has ended")
}
