//! Runs commands as a user would type them, and shows them with what they really answered.

use std::fs;
use std::io::Read;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use podlane_e2e::helm::Helm;
use podlane_e2e::interrupt;
use podlane_e2e::lab::Lab;
use podlane_e2e::process::{Process, Program};
use podlane_e2e::programs;
use podlane_e2e::wait::wait_until;

const LIMIT: Duration = Duration::from_secs(240);

/// A shell in which `kubectl` speaks to the lab.
pub(crate) struct Shell {
    environment: Vec<(String, String)>,
}

/// What a command answered.
pub(crate) struct Answer {
    /// Standard output and standard error, in the order in which they came.
    pub(crate) text: String,
    /// Whether it exited with 0.
    pub(crate) success: bool,
    /// How long it took.
    pub(crate) elapsed: Duration,
}

impl Shell {
    /// `kubectl` and `helm` of this shell speak to the lab.
    pub(crate) fn of(lab: &Lab, helm: &Helm) -> Result<Self> {
        let mut environment = lab.kubectl()?.environment();
        // By its plain name.
        let programs = lab.directory().join("programs");
        fs::create_dir_all(&programs).context("cannot make a folder for helm")?;
        symlink(helm.program(), programs.join("helm")).context("cannot link helm")?;
        for (name, value) in &mut environment {
            if name == "PATH" {
                *value = format!("{}:{value}", programs.display());
            }
        }
        environment.extend(Helm::own_settings());
        environment.push(("LAB".to_owned(), lab.directory().display().to_string()));
        environment.push(("LC_ALL".to_owned(), "C".to_owned()));
        Ok(Self { environment })
    }

    /// Shows the command, runs precisely it, and shows what it answered.
    pub(crate) fn run(&self, line: &str) -> Result<Answer> {
        println!("$ {line}");
        let answer = self.ask(line)?;
        print!("{}", answer.text);
        if !answer.text.is_empty() && !answer.text.ends_with('\n') {
            println!();
        }
        Ok(answer)
    }

    /// The same for a command that must succeed.
    pub(crate) fn run_well(&self, line: &str) -> Result<Answer> {
        let answer = self.run(line)?;
        if !answer.success {
            bail!("`{line}` failed");
        }
        Ok(answer)
    }

    fn ask(&self, line: &str) -> Result<Answer> {
        let start = Instant::now();
        let (mut reader, writer) = std::io::pipe().context("cannot make a pipe")?;
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--", "sh", "-c", line])
            .current_dir(programs::repository())
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(writer.try_clone().context("cannot share a pipe")?)
            .stderr(writer)
            // Ctrl-C reaches the demo alone, which then ends the command.
            .process_group(0);
        let mut child = command.spawn().with_context(|| format!("cannot run `{line}`"))?;
        // The command's own ends of the pipe must be the only ones, or its end would not be seen.
        drop(command);
        let text = thread::spawn(move || {
            let mut bytes = Vec::new();
            reader
                .read_to_end(&mut bytes)
                .map(|_| String::from_utf8_lossy(&bytes).into_owned())
        });
        let status = loop {
            if let Some(status) = child.try_wait().context("cannot wait for a command")? {
                break status;
            }
            if interrupt::raised() || start.elapsed() > LIMIT {
                end_group(&mut child)?;
                interrupt::check()?;
                bail!("`{line}` has not ended within {} s", LIMIT.as_secs());
            }
            thread::sleep(Duration::from_millis(2));
        };
        let elapsed = start.elapsed();
        let text = text
            .join()
            .map_err(|_| anyhow!("reading an answer panicked"))?
            .context("cannot read an answer")?;
        Ok(Answer {
            text,
            success: status.success(),
            elapsed,
        })
    }

    /// Shows a tcpdump command with the `&` that a user would put behind it, starts it, and returns when it listens.
    pub(crate) fn capture(&self, lab: &Lab, name: &str, line: &str) -> Result<Process> {
        println!("$ {line} &");
        let mut program = Program::new(format!("demo-{name}"), ["sh", "-c", &format!("exec {line}")]);
        program.environment.clone_from(&self.environment);
        let process = Process::start(program, lab.ledger())?;
        wait_until("tcpdump to listen", Duration::from_secs(10), || {
            let log = process.log_tail(5);
            if !process.runs() || log.contains("listening on") {
                Ok(())
            } else {
                bail!("{log}")
            }
        })?;
        process.ensure_runs()?;
        Ok(process)
    }

    /// Ends a capture, and shows what tcpdump says then.
    pub(crate) fn end_capture(&self, mut capture: Process) -> Result<()> {
        println!("$ kill -INT %1");
        capture.end_with(Signal::SIGINT, Duration::from_secs(5))?;
        let log = capture.log_tail(5);
        println!("{log}");
        if !log.contains("0 packets dropped by kernel") {
            bail!("tcpdump has not seen every packet");
        }
        Ok(())
    }
}

fn end_group(child: &mut Child) -> Result<()> {
    let group = Pid::from_raw(i32::try_from(child.id()).context("a process number")?);
    killpg(group, Signal::SIGKILL).context("cannot end a command")?;
    child.wait().context("cannot wait for a command").map(drop)
}
