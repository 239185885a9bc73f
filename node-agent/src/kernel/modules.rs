//! Modules of the kernel, loaded without modprobe: an image that holds one program has none.

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// `MODULE_INIT_COMPRESSED_FILE` (include/uapi/linux/module.h, Linux 5.17): the kernel unpacks the file itself.
const COMPRESSED: u32 = 4;

/// Where a node's modules are found: a directory for each kernel, with the tables that depmod(8) makes.
#[derive(Clone, Debug)]
pub struct Modules {
    root: PathBuf,
}

impl Modules {
    /// The modules below a directory: /lib/modules.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Loads a module and what it depends on. One that is there already, or built in, stays as it is.
    ///
    /// # Errors
    /// Why it is not loaded, in words.
    pub fn load(&self, name: &str) -> Result<(), String> {
        let release = nix::sys::utsname::uname().map_err(|errno| format!("uname: {errno}"))?;
        let directory = self.root.join(release.release());
        let read = |table: &str| {
            let path = directory.join(table);
            fs::read_to_string(&path).map_err(|error| (path, error))
        };
        let dependencies = read("modules.dep").map_err(|(path, error)| {
            let place = path.display();
            match error.kind() {
                io::ErrorKind::NotFound => {
                    format!("there is no {place}: this kernel's modules are not installed, or /lib/modules is not mounted")
                }
                _ => format!("{place}: {error}"),
            }
        })?;
        if let Some(files) = files_of(name, &dependencies) {
            return files
                .into_iter()
                .try_for_each(|file| insert(&directory.join(file)));
        }
        let built_in = read("modules.builtin").unwrap_or_default();
        if built_in.lines().any(|file| is_module(file, name)) {
            return Ok(());
        }
        Err(format!("there is no module {name} in {}", directory.display()))
    }
}

/// The files to load for a module, in their order: what others need goes first. A line of the table names a module, and after a colon
/// what it needs, of which the last needs nothing of those before (modules.dep(5)).
fn files_of<'a>(name: &str, dependencies: &'a str) -> Option<Vec<&'a str>> {
    dependencies.lines().find_map(|line| {
        let (file, needs) = line.split_once(':')?;
        is_module(file, name).then(|| needs.split_whitespace().rev().chain([file]).collect())
    })
}

/// Whether a file is the module of this name. Hyphens and underlines are the same to the kernel.
fn is_module(file: &str, name: &str) -> bool {
    let base = file.rsplit('/').next().unwrap_or(file);
    let (stem, _) = base.split_once(".ko").unwrap_or((base, ""));
    stem.replace('-', "_") == name.replace('-', "_")
}

fn insert(path: &Path) -> Result<(), String> {
    let file = File::open(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let is_compressed = path.extension().is_some_and(|extension| extension != "ko");
    let flags = ModuleInitFlags::from_bits_retain(if is_compressed { COMPRESSED } else { 0 });
    let place = path.display();
    match finit_module(file, c"", flags) {
        Ok(()) => {
            tracing::info!(module = %place, "loaded");
            Ok(())
        }
        Err(Errno::EEXIST) => Ok(()),
        Err(Errno::EPERM) => Err(format!(
            "{place}: not permitted: the agent needs the capability SYS_MODULE, and a kernel that takes modules"
        )),
        Err(Errno::EOPNOTSUPP | Errno::EINVAL) if is_compressed => Err(format!(
            "{place}: this kernel does not load compressed modules by itself"
        )),
        Err(errno) => Err(format!("{place}: {}", errno.desc())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_module_needs_is_loaded_before_it() {
        let table = "kernel/drivers/net/geneve.ko.xz: kernel/net/ipv6/ip6_udp_tunnel.ko.xz kernel/net/ipv4/udp_tunnel.ko.xz\n\
                     kernel/net/ipv4/udp_tunnel.ko.xz:\n\
                     kernel/drivers/net/dm-mod.ko:\n";
        assert_eq!(
            files_of("geneve", table),
            Some(vec![
                "kernel/net/ipv4/udp_tunnel.ko.xz",
                "kernel/net/ipv6/ip6_udp_tunnel.ko.xz",
                "kernel/drivers/net/geneve.ko.xz"
            ])
        );
        assert_eq!(
            files_of("dm_mod", table),
            Some(vec!["kernel/drivers/net/dm-mod.ko"])
        );
        assert_eq!(files_of("udp", table), None);
    }

    #[test]
    fn where_there_are_no_modules_that_is_said() {
        let why = Modules::at("/nowhere").load("geneve").expect_err("nothing there");
        assert!(why.contains("/nowhere/") && why.contains("modules.dep"), "{why}");
    }
}
