//! Runs tests in namespaces of their own, or says loudly why not.

use libtest_mimic::{Arguments, Failed, Trial};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A test and its name.
pub(crate) type Test = (&'static str, fn());

/// Where each test has its own BPF file system.
pub(crate) fn bpffs() -> PathBuf {
    PathBuf::from("/sys/fs/bpf")
}

/// Runs the tests, each on a thread of its own. Where namespaces cannot be made, or the kernel takes no eBPF programs, all count as ignored; where the kernel has no tcx (before 6.6),
/// those that are about tcx are no tests.
pub(crate) fn run(everywhere: &[Test], with_tcx: &[Test]) -> ! {
    let arguments = Arguments::from_args();
    let impossible = in_fresh(able).err();
    if let Some(reason) = &impossible {
        #[expect(clippy::print_stderr, reason = "a test that is left out has to be seen")]
        {
            eprintln!(
                "\n*** {} tests of the loader are NOT RUN: {reason}. Run them as root, on Linux 5.13 or newer.\n",
                everywhere.len() + with_tcx.len()
            );
        }
    }
    let mut tests = everywhere.to_vec();
    if crate::story::has_tcx() || impossible.is_some() {
        tests.extend(with_tcx);
    } else {
        #[expect(clippy::print_stderr, reason = "a test that is left out has to be seen")]
        {
            eprintln!(
                "\n*** {} tests of tcx are left out: this kernel has none.\n",
                with_tcx.len()
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

/// Whether a map can be made here at all.
fn able() {
    let map = aya::maps::Array::<_, u32>::create(1, 0);
    assert!(map.is_ok(), "the kernel makes no eBPF maps: {:?}", map.err());
}

/// Runs something in a fresh network namespace, with a fresh BPF file system.
pub(crate) fn in_fresh(test: impl FnOnce() + Send + 'static) -> Result<(), String> {
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
            .map_err(|errno| format!("no namespaces can be made ({errno})"))?;
        let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, flags, None::<&str>)
            .and_then(|()| {
                mount(
                    Some("sysfs"),
                    "/sys",
                    Some("sysfs"),
                    MsFlags::empty(),
                    None::<&str>,
                )
            })
            .and_then(|()| mount_bpffs(&bpffs()))
            .map_err(|errno| format!("no BPF file system can be mounted ({errno})"))?;
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

fn mount_bpffs(directory: &Path) -> nix::Result<()> {
    mount(
        Some("bpf"),
        directory,
        Some("bpf"),
        MsFlags::empty(),
        None::<&str>,
    )
}

/// Runs a program in the calling thread's namespaces and returns what it prints.
pub(crate) fn command(line: &str) -> String {
    let mut words = line.split_whitespace();
    let program = words.next().expect("a program");
    let output = Command::new(program)
        .args(words)
        .output()
        .unwrap_or_else(|error| panic!("{program} is not installed: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {errors}");
    String::from_utf8(output.stdout).expect("text")
}

/// A device's index.
pub(crate) fn index(device: &str) -> u32 {
    nix::net::if_::if_nametoindex(device).expect("the device is there")
}
