//! Runs tests in network namespaces of their own, or says loudly why not.

use libtest_mimic::{Arguments, Failed, Trial};
use nix::sched::{CloneFlags, unshare};
use std::process::Command;

/// A test and its name.
pub(crate) type Test = (&'static str, fn());

/// Runs the tests, each in a fresh network namespace on a thread of its own. Where namespaces cannot be made, all count as ignored.
pub(crate) fn run(tests: &[Test]) -> ! {
    let arguments = Arguments::from_args();
    let impossible = in_fresh(|| ()).err();
    if let Some(reason) = &impossible {
        #[expect(clippy::print_stderr, reason = "a test that is left out has to be seen")]
        {
            eprintln!(
                "\n*** {} tests of the eBPF programs are NOT RUN: {reason}. Run them as root.\n",
                tests.len()
            );
        }
    }
    let trials = tests
        .iter()
        .copied()
        .map(|(name, test)| {
            Trial::test(name, move || in_fresh(test).map_err(Failed::from))
                .with_ignored_flag(impossible.is_some())
        })
        .collect();
    libtest_mimic::run(&arguments, trials).exit()
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

/// Sets one of the namespace's parameters below /proc/sys/net.
pub(crate) fn parameter(name: &str, value: &str) {
    std::fs::write(format!("/proc/sys/net/{name}"), value).unwrap_or_else(|error| panic!("{name}: {error}"));
}

/// A device's index in the calling thread's namespace.
pub(crate) fn index(device: &str) -> u32 {
    nix::net::if_::if_nametoindex(device).unwrap_or_else(|error| panic!("{device}: {error}"))
}
