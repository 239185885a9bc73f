//! A test program's tests, run by libtest-mimic as `cargo test` runs others.

use crate::fresh::attempted;
use libtest_mimic::{Arguments, Failed, Trial};
use std::sync::mpsc::channel;

/// A test and its name.
pub type Test = (&'static str, fn());

/// Tests that need something of the kernel which not every kernel has.
pub struct Conditional {
    /// What the kernel lacks, asked in a namespace as the tests have.
    pub lacking: fn() -> Option<String>,
    /// The tests.
    pub tests: &'static [Test],
}

/// What is done in each fresh namespace before the test; the error says why no test can run here.
type Prepare = fn() -> Result<(), String>;

/// The tests of one program, each in a fresh network namespace on a thread of its own.
pub struct Suite {
    of: &'static str,
    prepare: Prepare,
    /// Why none can run on this machine.
    impossible: Option<String>,
    trials: Vec<Trial>,
}

impl Suite {
    /// Nothing yet. `of` says in the log whose tests they are ("of the eBPF programs"); `prepare` runs in each test's namespace first.
    #[must_use]
    pub fn new(of: &'static str, prepare: Prepare) -> Self {
        Self {
            of,
            prepare,
            impossible: prepared(prepare, || ()).err(),
            trials: Vec::new(),
        }
    }

    /// Adds tests that run on every kernel that the suite is for. Where no namespace can be made or prepared they count as ignored.
    #[must_use]
    pub fn tests(self, tests: &[Test]) -> Self {
        let reason = self.impossible.clone();
        self.add(tests, reason)
    }

    /// Adds tests that count as ignored where the kernel lacks what they need.
    #[must_use]
    pub fn where_possible(self, conditional: &Conditional) -> Self {
        let reason = self.lacking(conditional);
        self.add(conditional.tests, reason)
    }

    /// Adds tests that mean nothing where the kernel lacks what they are about: there they are no tests, which is said. Where nothing can
    /// be asked of the kernel they count as ignored.
    #[must_use]
    pub fn where_there_is(self, conditional: &Conditional) -> Self {
        match self.lacking(conditional) {
            Some(reason) if self.impossible.is_none() => {
                say(&format!(
                    "{} tests {} are left out: {reason}",
                    conditional.tests.len(),
                    self.of
                ));
                self
            }
            reason => self.add(conditional.tests, reason),
        }
    }

    /// Runs the tests that the command line asks for, and ends the process with the code that says whether all passed.
    pub fn run(self) -> ! {
        libtest_mimic::run(&Arguments::from_args(), self.trials).exit()
    }

    fn add(mut self, tests: &[Test], reason: Option<String>) -> Self {
        if let Some(reason) = &reason {
            say(&format!(
                "{} tests {} are NOT RUN: {reason}",
                tests.len(),
                self.of
            ));
        }
        let prepare = self.prepare;
        self.trials.extend(tests.iter().copied().map(|(name, test)| {
            Trial::test(name, move || prepared(prepare, test).map_err(Failed::from))
                .with_ignored_flag(reason.is_some())
        }));
        self
    }

    fn lacking(&self, conditional: &Conditional) -> Option<String> {
        if self.impossible.is_some() {
            return self.impossible.clone();
        }
        let lacking = conditional.lacking;
        let (tell, told) = channel();
        prepared(self.prepare, move || {
            tell.send(lacking()).expect("it is waited for");
        })
        .err()
        .or_else(|| told.recv().expect("an answer"))
    }
}

fn prepared(prepare: Prepare, test: impl FnOnce() + Send + 'static) -> Result<(), String> {
    attempted(move || {
        prepare()?;
        test();
        Ok(())
    })
}

#[expect(clippy::print_stderr, reason = "a test that is left out has to be seen")]
fn say(words: &str) {
    eprintln!("\n*** {words}.\n");
}
