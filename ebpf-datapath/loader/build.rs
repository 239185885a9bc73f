//! Builds the eBPF programs, which the loader carries within itself.

use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("../program");
    let object = podlane_bpf_toolchain::build(&program, "podlane").map_err(|error| error.to_string())?;
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("no OUT_DIR")?).join("podlane.o");
    // The agent carries it, and reads all of it for its hash.
    let stripped =
        podlane_bpf_toolchain::without_dwarf(&fs::read(object)?).map_err(|error| error.to_string())?;
    fs::write(out, stripped)?;
    Ok(())
}
