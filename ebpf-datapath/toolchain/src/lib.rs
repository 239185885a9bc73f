//! Builds eBPF programs written in Rust. For build scripts.
//!
//! The programs are a cargo workspace of their own, since another compiler builds them, for another machine. Two kinds of
//! compiler do: one that comes with a `core` built for `bpfel-unknown-none` (Debian's `libstd-rust-web-dev-bpf`), and a nightly
//! one with the `rust-src` component, which builds `core` itself.

use std::env;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The eBPF machine's target, little-endian.
pub const TARGET: &str = "bpfel-unknown-none";

/// The version of bpf-linker that `.ci/install-dependencies` installs.
const LINKER: &str = "bpf-linker-0.13.0";

/// Why programs could not be built.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no compiler for them.
    #[error(
        "no Rust compiler for eBPF found. On Debian: apt-get install rustc-web cargo-web libstd-rust-web-dev-bpf. Elsewhere: a \
         nightly toolchain with its rust-src component. `make deps` says what else is missing; PODLANE_BPF_RUSTC names a compiler \
         that stands elsewhere"
    )]
    NoCompiler,
    /// There is no linker for them.
    #[error(
        "no bpf-linker found: `make deps` installs it (cargo install bpf-linker --version 0.13.0 --no-default-features --features \
         llvm-22, with llvm-22-dev there); PODLANE_BPF_LINKER names one that stands elsewhere"
    )]
    NoLinker,
    /// Cargo could not be started.
    #[error("cannot start {program}: {why}")]
    Start {
        /// Which program.
        program: String,
        /// The system's words.
        why: std::io::Error,
    },
    /// The programs do not compile. Cargo has said why.
    #[error("building the eBPF programs of {0} failed")]
    Failed(String),
    /// What was built is no object file that can be read.
    #[error("what was built is no ELF object file: {0}")]
    NoObject(String),
}

/// A compiler for eBPF.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Compiler {
    rustc: PathBuf,
    cargo: PathBuf,
    /// Whether `core` has to be built first.
    builds_core: bool,
}

/// Builds the workspace in `directory` and returns the object file of its binary `name`. Tells cargo when to do so again.
///
/// # Errors
/// What is missing, or that the programs do not compile.
pub fn build(directory: &Path, name: &str) -> Result<PathBuf, Error> {
    for watched in ["src", "Cargo.toml", "Cargo.lock", ".cargo", "common/src"] {
        let watched = directory.join(watched);
        // Cargo would take one that is not there for one that has changed.
        if watched.exists() {
            emit(&format!("rerun-if-changed={}", watched.display()));
        }
    }
    for variable in ["PODLANE_BPF_RUSTC", "PODLANE_BPF_LINKER", "PODLANE_CACHE"] {
        emit(&format!("rerun-if-env-changed={variable}"));
    }
    let compiler = compiler()?;
    let linker = linker()?;
    let mut cargo = Command::new(&compiler.cargo);
    // What the outer cargo says of its own build would be taken for this one's.
    for (variable, _) in env::vars_os() {
        let name = variable.to_string_lossy();
        if name.starts_with("CARGO") && name != "CARGO_HOME" || name.starts_with("RUST") {
            cargo.env_remove(&variable);
        }
    }
    cargo
        .current_dir(directory)
        .env("RUSTC", &compiler.rustc)
        // A stable compiler takes the target's few unstable features so; a nightly one needs no leave.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("PATH", path_from(linker.parent()))
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags(&linker, directory))
        .args([
            "build",
            "--release",
            "--locked",
            "--quiet",
            "--target",
            TARGET,
            "--bin",
            name,
        ]);
    if compiler.builds_core {
        cargo.arg("-Zbuild-std=core");
    }
    let status = cargo.status().map_err(|why| Error::Start {
        program: compiler.cargo.display().to_string(),
        why,
    })?;
    if !status.success() {
        return Err(Error::Failed(directory.display().to_string()));
    }
    Ok(directory.join("target").join(TARGET).join("release").join(name))
}

/// An object file without what only debuggers read of it (DWARF, four fifths of it). What loaders and the verifier's log read stays: BTF, and with it the lines
/// of the source.
///
/// # Errors
/// When it is no object file.
pub fn without_dwarf(whole: &[u8]) -> Result<Vec<u8>, Error> {
    use object::build::elf::{Builder, Section, SectionData};
    let failed = |why: object::build::Error| Error::NoObject(why.to_string());
    let mut builder = Builder::read(whole).map_err(failed)?;
    for section in &mut builder.sections {
        let name = section.name.as_slice();
        section.delete = name.starts_with(b".debug_") || name.starts_with(b".rel.debug_");
    }
    builder.delete_orphans();
    let has_names = |section: &Section<'_>| matches!(section.data, SectionData::SectionString);
    if !builder.sections.iter().any(has_names) {
        // LLVM has one table of names for sections and symbols; what writes here wants two.
        let names = builder.sections.add();
        names.name = ".shstrtab".into();
        names.sh_type = object::elf::SHT_STRTAB;
        names.sh_addralign = 1;
        names.data = SectionData::SectionString;
    }
    builder.set_section_sizes();
    let mut stripped = Vec::new();
    builder.write(&mut stripped).map_err(failed)?;
    Ok(stripped)
}

fn emit(instruction: &str) {
    use std::io::Write;
    // Where nobody reads what a build script says, nothing depends on it.
    let _ = writeln!(std::io::stdout(), "cargo::{instruction}");
}

/// PATH, beginning with a folder.
fn path_from(folder: Option<&Path>) -> OsString {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = folder
        .map(Path::to_owned)
        .into_iter()
        .chain(env::split_paths(&path));
    env::join_paths(folders).unwrap_or(path)
}

/// Flags as cargo wants them, apart by the unit separator. Where sources and tools lie on this machine is in no object: the same sources give
/// the same bytes.
fn rustflags(linker: &Path, directory: &Path) -> String {
    let linker = linker.file_name().unwrap_or(linker.as_os_str());
    let mut flags = vec![
        format!("-Clinker={}", linker.display()),
        // The kernel wants type information of programs and maps.
        "-Clink-arg=--btf".to_owned(),
        // The verifier knows the third instruction set since Linux 5.1, and its 32-bit arithmetic halves many programs.
        "-Ctarget-cpu=v3".to_owned(),
        "-Cdebuginfo=2".to_owned(),
    ];
    let sources = directory.canonicalize().ok();
    let sources = sources.as_deref().and_then(Path::parent).map(Path::to_owned);
    let cargo_home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::home_dir().map(|home| home.join(".cargo")));
    for (place, name) in [(sources, "/src"), (cargo_home, "/cargo")] {
        if let Some(place) = place {
            flags.push(format!("--remap-path-prefix={}={name}", place.display()));
        }
    }
    flags.join("\x1f")
}

fn compiler() -> Result<Compiler, Error> {
    let named = env::var_os("PODLANE_BPF_RUSTC").map(PathBuf::from);
    // The distribution's own compiler first: a toolchain elsewhere on PATH has another `core`.
    let candidates = named
        .into_iter()
        .chain([PathBuf::from("/usr/bin/rustc")])
        .chain(on_path("rustc"));
    for rustc in candidates {
        let beside = rustc.with_file_name("cargo");
        let cargo = if beside.is_file() {
            beside
        } else {
            PathBuf::from("cargo")
        };
        let libraries = said(Command::new(&rustc).args(["--print", "target-libdir", "--target", TARGET]));
        if libraries.is_some_and(|directory| has_core(Path::new(&directory))) {
            return Ok(Compiler {
                rustc,
                cargo,
                builds_core: false,
            });
        }
    }
    let root = said(Command::new("rustup").args(["run", "nightly", "rustc", "--print", "sysroot"]))
        .map(PathBuf::from)
        .filter(|root| root.join("lib/rustlib/src/rust/library/core").is_dir())
        .ok_or(Error::NoCompiler)?;
    Ok(Compiler {
        rustc: root.join("bin/rustc"),
        cargo: root.join("bin/cargo"),
        builds_core: true,
    })
}

fn has_core(directory: &Path) -> bool {
    let is_core = |name: &OsStr| {
        let name = name.to_string_lossy();
        name.starts_with("libcore-") && name.ends_with(".rlib")
    };
    std::fs::read_dir(directory)
        .is_ok_and(|entries| entries.flatten().any(|entry| is_core(&entry.file_name())))
}

fn linker() -> Result<PathBuf, Error> {
    let named = env::var_os("PODLANE_BPF_LINKER").map(PathBuf::from);
    let home = env::var_os("HOME").map(PathBuf::from);
    let cache = env::var_os("PODLANE_CACHE")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("XDG_CACHE_HOME")?).join("podlane")))
        .or_else(|| Some(home?.join(".cache/podlane")));
    named
        .into_iter()
        .chain(cache.map(|cache| cache.join(LINKER).join("bin/bpf-linker")))
        .chain(on_path("bpf-linker"))
        .find(|linker| linker.is_file())
        .ok_or(Error::NoLinker)
}

fn on_path(program: &str) -> Vec<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .map(|directory| directory.join(program))
        .filter(|file| file.is_file())
        .collect()
}

/// What a program says, in one line; none where it fails.
fn said(command: &mut Command) -> Option<String> {
    let output = command.output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_core_only_where_the_library_is() {
        assert!(!has_core(Path::new("/nonexistent")));
        assert!(!has_core(Path::new(env!("CARGO_MANIFEST_DIR"))));
    }

    #[test]
    fn what_only_debuggers_read_goes_and_the_rest_stays() {
        use object::build::elf::{Builder, SectionData};
        let mut whole = Builder::new(object::Endianness::Little, true);
        whole.header.e_type = object::elf::ET_REL;
        whole.header.e_machine = object::elf::EM_BPF;
        for (name, kind) in [
            ("classifier", object::elf::SHT_PROGBITS),
            (".debug_info", object::elf::SHT_PROGBITS),
            (".BTF", object::elf::SHT_PROGBITS),
            (".shstrtab", object::elf::SHT_STRTAB),
        ] {
            let section = whole.sections.add();
            section.name = name.into();
            section.sh_type = kind;
            section.sh_addralign = 8;
            section.data = if kind == object::elf::SHT_STRTAB {
                SectionData::SectionString
            } else {
                SectionData::Data(name.as_bytes().to_vec().into())
            };
        }
        whole.set_section_sizes();
        let mut octets = Vec::new();
        whole.write(&mut octets).expect("an object file");

        let stripped = without_dwarf(&octets).expect("an object file");
        let read = Builder::read(&stripped[..]).expect("an object file");
        let names: Vec<_> = read
            .sections
            .iter()
            .map(|section| String::from_utf8_lossy(section.name.as_slice()).into_owned())
            .collect();
        assert_eq!(names, ["classifier", ".BTF", ".shstrtab"]);
        let data = |name: &str| {
            let section = read
                .sections
                .iter()
                .find(|section| section.name.as_slice() == name.as_bytes());
            match section.map(|section| &section.data) {
                Some(SectionData::Data(data)) => data.as_slice().to_vec(),
                _ => Vec::new(),
            }
        };
        assert_eq!(data("classifier"), b"classifier");
        assert_eq!(data(".BTF"), b".BTF");
        assert!(matches!(without_dwarf(b"no object"), Err(Error::NoObject(_))));
    }

    #[test]
    fn flags_name_no_place_but_to_leave_it_out() {
        let flags = rustflags(
            Path::new("/a b/bpf-linker"),
            Path::new(env!("CARGO_MANIFEST_DIR")),
        );
        let mut flags = flags.split('\x1f');
        assert_eq!(flags.next(), Some("-Clinker=bpf-linker"));
        assert!(flags.all(|flag| !flag.contains('/') || flag.starts_with("--remap-path-prefix=/")));
        let path = path_from(Some(Path::new("/a b")));
        assert_eq!(env::split_paths(&path).next(), Some(PathBuf::from("/a b")));
    }
}
