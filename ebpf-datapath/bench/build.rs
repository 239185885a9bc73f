//! Builds the eBPF programs of the comparison and says where they are.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result};

fn main() -> Result<()> {
    let directory = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").context("cargo names the folder")?);
    let object = podlane_bpf_toolchain::build(&directory.join("comparison"), "podlane-comparison")?;
    writeln!(
        std::io::stdout(),
        "cargo::rustc-env=PODLANE_COMPARISON_OBJECT={}",
        object.display()
    )?;
    Ok(())
}
