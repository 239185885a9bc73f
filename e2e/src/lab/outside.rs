//! What another process than the one that brought it up does to a lab.

use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::ledger;
use crate::network::Naming;
use crate::teardown;

/// Takes down the lab of this name, whoever brought it up; an error when its owner still works with it. False when there
/// is no such lab.
pub fn down(name: &str) -> Result<bool> {
    check_name(name)?;
    let Some(state) = ledger::read(name)? else {
        return remove_unwritten_ledger(name);
    };
    if state.is_held() {
        bail!(
            "process {} is working with the lab {name}; end it first (`kill {}`), then it takes the lab down itself",
            state.owner.pid,
            state.owner.pid
        );
    }
    teardown::take_down(&state)?;
    Ok(true)
}

/// A lab that was killed between making its ledger's directory and writing the ledger has made nothing else.
fn remove_unwritten_ledger(name: &str) -> Result<bool> {
    let directory = ledger::directory_of(name);
    if !directory.exists() {
        return Ok(false);
    }
    std::fs::remove_dir_all(&directory).with_context(|| format!("cannot remove {}", directory.display()))?;
    Ok(true)
}

/// Takes down the labs that were to end with their program and whose program has ended without doing it; but not those that a test
/// program which still runs looks after: it may have ended their program itself.
pub fn down_orphans() -> Result<Vec<String>> {
    let mut ended = Vec::new();
    for name in ledger::labs()? {
        if !is_of_running_test(&name)
            && let Some(state) = ledger::read(&name)?
            && !state.outlives_owner
            && !state.is_held()
        {
            teardown::take_down(&state)?;
            ended.push(name);
        }
    }
    Ok(ended)
}

/// Whether a lab is called as test programs call theirs (`test-PID…`), by another one than this, which runs.
fn is_of_running_test(name: &str) -> bool {
    name.strip_prefix("test-")
        .and_then(|rest| rest.split('-').next()?.parse::<u32>().ok())
        .is_some_and(|test| test != std::process::id() && Path::new("/proc").join(test.to_string()).exists())
}

/// What a user types to take a lab down.
pub fn down_command(name: &str) -> String {
    if name == Naming::PLAIN {
        "make lab-down".to_owned()
    } else {
        format!("podlane-lab --name {name} down")
    }
}

/// An error when a lab cannot have this name.
pub(super) fn check_name(name: &str) -> Result<()> {
    let fits = !name.is_empty()
        && name.len() <= 24
        && !name.starts_with('-')
        && name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    if !fits {
        bail!(
            "a lab's name has 1 to 24 of the characters a-z, 0-9 and -, and does not begin with -: {name:?}"
        );
    }
    Ok(())
}
