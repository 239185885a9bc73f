//! Measures the agent at 5,000 peers, in network namespaces of its own: `cargo bench -p podlane-agent`, as root.
//!
//! First single passes, in this process; then the program itself with an API server made of canned answers, of which its
//! memory and its time to repair are read.
#![expect(clippy::print_stdout, reason = "a benchmark prints what it measured")]

mod api_server;
mod passes;
mod program;
mod table;

use podlane_test_namespaces::{in_fresh, ip};
use std::process::ExitCode;

fn main() -> ExitCode {
    // Cargo passes --bench; a word chooses a part.
    let only = std::env::args()
        .skip(1)
        .find(|argument| !argument.starts_with('-'));
    let chosen = |part: &str| only.as_deref().is_none_or(|only| only == part);
    if let Err(reason) = in_fresh(|| ()) {
        println!("NOT RUN: {reason}.");
        return ExitCode::SUCCESS;
    }
    let mut measured = Ok(());
    if chosen("passes") {
        measured = measured.and(in_fresh(passes::measure));
    }
    if chosen("program") {
        measured = measured.and(in_fresh(program::measure));
    }
    match measured {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            println!("FAILED: {reason}");
            ExitCode::FAILURE
        }
    }
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
