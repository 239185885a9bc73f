//! What tests do to the calling thread's namespace from outside of what they test.

use std::process::Command;

/// Runs a program, its name and arguments separated by white space, and returns what it prints. It has to succeed.
pub fn command(line: &str) -> String {
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

/// [`command`] with ip(8).
pub fn ip(arguments: &str) -> String {
    command(&format!("ip {arguments}"))
}

/// As [`ip`], one trimmed line at a time, sorted.
pub fn ip_lines(arguments: &str) -> Vec<String> {
    let mut lines: Vec<_> = ip(arguments)
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    lines.sort();
    lines
}

/// Sets one of the namespace's parameters below /proc/sys/net: `ipv4/ip_forward`, for instance.
pub fn parameter(name: &str, value: &str) {
    std::fs::write(format!("/proc/sys/net/{name}"), value).unwrap_or_else(|error| panic!("{name}: {error}"));
}

/// A device's index.
#[must_use]
pub fn index(device: &str) -> u32 {
    nix::net::if_::if_nametoindex(device).unwrap_or_else(|error| panic!("{device}: {error}"))
}
