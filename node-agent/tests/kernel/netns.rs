//! Runs tests in network namespaces of their own, or says loudly why not.

use libtest_mimic::{Arguments, Failed, Trial};
use nix::sched::{CloneFlags, unshare};
use std::process::Command;

/// A test and its name.
pub(crate) type Test = (&'static str, fn());

/// Tests that need something of the kernel which not every kernel has.
pub(crate) struct Conditional {
    /// What the kernel lacks, in a fresh network namespace.
    pub(crate) lacking: fn() -> Option<String>,
    pub(crate) tests: &'static [Test],
}

/// Runs the tests, each in a fresh network namespace on a thread of its own. Where namespaces cannot be made, all count as
/// ignored; where the kernel lacks something, those that need it do.
pub(crate) fn run(tests: &[Test], conditional: &[Conditional]) -> ! {
    let arguments = Arguments::from_args();
    let impossible = in_fresh(|| ())
        .err()
        .map(|reason| format!("{reason}. Run them as root"));
    let mut trials = Vec::new();
    let mut add = |tests: &[Test], reason: Option<String>| {
        if let Some(reason) = &reason {
            not_run(tests.len(), reason);
        }
        trials.extend(tests.iter().copied().map(|(name, test)| {
            Trial::test(name, move || in_fresh(test).map_err(Failed::from))
                .with_ignored_flag(reason.is_some())
        }));
    };
    add(tests, impossible.clone());
    for conditional in conditional {
        let lacking = || asked(conditional.lacking);
        add(conditional.tests, impossible.clone().or_else(lacking));
    }
    libtest_mimic::run(&arguments, trials).exit()
}

/// What the kernel lacks, asked in a fresh network namespace.
fn asked(lacking: fn() -> Option<String>) -> Option<String> {
    let (tell, told) = std::sync::mpsc::channel();
    in_fresh(move || tell.send(lacking()).expect("it is waited for"))
        .err()
        .or_else(|| told.recv().expect("an answer"))
}

#[expect(clippy::print_stderr, reason = "a test that is left out has to be seen")]
fn not_run(count: usize, reason: &str) {
    eprintln!("\n*** {count} tests on a real kernel are NOT RUN: {reason}.\n");
}

/// Runs something in a fresh network namespace.
pub(crate) fn in_fresh(test: impl FnOnce() + Send + 'static) -> Result<(), String> {
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET)
            .map_err(|errno| format!("no network namespace can be made ({errno})"))?;
        test();
        Ok(())
    });
    thread.join().unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        Err(text
            .or_else(|| panic.downcast_ref().map(|text: &&str| (*text).to_owned()))
            .unwrap_or_default())
    })
}

/// Runs ip(8) in the calling thread's namespace and returns what it prints.
pub(crate) fn ip(arguments: &str) -> String {
    let output = Command::new("ip")
        .args(arguments.split_whitespace())
        .output()
        .expect("ip(8) is installed");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {errors}");
    String::from_utf8(output.stdout).expect("text")
}

/// As [`ip`], one trimmed line at a time, sorted.
pub(crate) fn ip_lines(arguments: &str) -> Vec<String> {
    let mut lines: Vec<_> = ip(arguments)
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    lines.sort();
    lines
}
