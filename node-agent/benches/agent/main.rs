//! Measures the agent at 5,000 peers, in network namespaces of its own: `cargo bench -p podlane-agent`, as root.
//!
//! First single passes, in this process; then the program itself with an API server made of canned answers, of which its
//! memory and its time to repair are read.
#![expect(clippy::print_stdout, reason = "a benchmark prints what it measured")]

mod api_server;
mod passes;
mod program;
mod table;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    // Cargo passes --bench; a word chooses a part.
    let only = std::env::args()
        .skip(1)
        .find(|argument| !argument.starts_with('-'));
    let chosen = |part: &str| only.as_deref().is_none_or(|only| only == part);
    if let Err(reason) = in_fresh_namespace(|| ()) {
        println!("NOT RUN: {reason}. Run it as root.");
        return ExitCode::SUCCESS;
    }
    let mut measured = Ok(());
    if chosen("passes") {
        measured = measured.and(in_fresh_namespace(passes::measure));
    }
    if chosen("program") {
        measured = measured.and(in_fresh_namespace(program::measure));
    }
    match measured {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            println!("FAILED: {reason}");
            ExitCode::FAILURE
        }
    }
}

/// Runs something on a thread in a network namespace of its own, with a BPF file system of its own where agents look for one.
fn in_fresh_namespace(work: impl FnOnce() + Send + 'static) -> Result<(), String> {
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
            .and_then(|()| {
                let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
                mount(None::<&str>, "/", None::<&str>, private, None::<&str>)?;
                mount(
                    Some("bpf"),
                    "/sys/fs/bpf",
                    Some("bpf"),
                    MsFlags::empty(),
                    None::<&str>,
                )
            })
            .map_err(|errno| format!("no namespaces of its own can be made ({errno})"))?;
        work();
        Ok(())
    });
    thread.join().unwrap_or_else(|_| Err("see above".to_owned()))
}

/// Runs ip(8) in the calling thread's namespace.
fn ip(arguments: &str) {
    let status = Command::new("ip")
        .args(arguments.split_whitespace())
        .status()
        .expect("ip(8) is installed");
    assert!(status.success(), "ip {arguments}");
}

/// The node's underlay: eth1 with 192.168.10.100/24 and a default route.
fn underlay() {
    ip("link set lo up");
    ip("link add eth1 type veth peer name far");
    ip("addr add 192.168.10.100/24 dev eth1");
    ip("link set eth1 up");
    ip("link set far up");
    ip("route add default via 192.168.10.200");
}
