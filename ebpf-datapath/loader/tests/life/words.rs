//! The loader's errors say what to do.

use crate::story::{declared, devices};
use podlane_datapath::{Cause, Options, Programs};
use podlane_test_namespaces::{Test, bpffs};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

pub(crate) const TESTS: &[Test] = &[
    (
        "a_directory_that_is_no_bpffs_is_said",
        a_directory_that_is_no_bpffs_is_said,
    ),
    ("missing_capabilities_are_said", missing_capabilities_are_said),
    ("three_capabilities_are_enough", three_capabilities_are_enough),
];

fn a_directory_that_is_no_bpffs_is_said() {
    for directory in ["/tmp", "/tmp/nothing/there", "/sys"] {
        let failure = Programs::open(Path::new(directory), &Options::default())
            .err()
            .expect("no bpffs");
        assert_eq!(failure.cause, Cause::NoBpffs);
        assert!(
            failure.words.contains(directory) && failure.words.contains("mount -t bpf"),
            "{failure}"
        );
        assert!(!Path::new("/tmp/nothing").exists(), "nothing is made there");
    }
    assert_eq!(
        podlane_datapath::clean(Path::new("/tmp")).map_err(|failure| failure.cause),
        Err(Cause::NoBpffs)
    );
}

/// Asks this test program to open programs there and to attach them, and to print what comes of it.
const ASKED: &str = "PODLANE_LOADER_TEST_OPEN";

/// True: this process has been asked, and has answered.
pub(crate) fn answered() -> bool {
    let Some(directory) = std::env::var_os(ASKED) else {
        return false;
    };
    let words = match Programs::open(Path::new(&directory), &Options::default()) {
        Ok(mut programs) => match &programs.sync(&declared(), None).failures[..] {
            [] => "opened".to_owned(),
            failures => format!("{failures:?}"),
        },
        Err(failure) => format!("{:?}: {failure}", failure.cause),
    };
    #[expect(clippy::print_stdout, reason = "the parent reads it")]
    {
        println!("{words}");
    }
    true
}

/// What this program says when it opens programs, run in a certain way.
fn said(command: &mut Command) -> String {
    let output = command
        .env(ASKED, bpffs().join("podlane"))
        .output()
        .expect("this program runs");
    String::from_utf8(output.stdout).expect("text")
}

fn missing_capabilities_are_said() {
    devices();
    let words = said(Command::new("/proc/self/exe").uid(65_534).gid(65_534));
    assert!(
        words.starts_with("Permission: ") && words.contains("BPF, NET_ADMIN and PERFMON"),
        "{words}"
    );
}

fn three_capabilities_are_enough() {
    devices();
    let program = std::env::current_exe().expect("this program's file");
    let with = |capabilities: &str| {
        let bounding = format!("--bounding-set=-all{capabilities}");
        said(Command::new("setpriv").arg(bounding).arg(&program))
    };
    let words = with(",+bpf,+net_admin");
    assert!(
        words.starts_with("Permission: ")
            && words.contains("the capability PERFMON")
            && words.contains("It says: "),
        "{words}"
    );
    assert_eq!(with(",+bpf,+net_admin,+perfmon"), "opened\n");
}
