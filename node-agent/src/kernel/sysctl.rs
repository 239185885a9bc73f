//! Kernel parameters below /proc/sys.

use nix::errno::Errno;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Where the kernel's parameters are found. Only those below `net/` are Podlane's business; they are of the network namespace
/// of the thread that opens them (`net_ctl_root` in net/sysctl_net.c).
#[derive(Clone, Debug)]
pub struct Sysctls {
    root: PathBuf,
}

/// A text that names no network parameter.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} names no kernel parameter below net/")]
pub struct NoSysctl(String);

impl Default for Sysctls {
    fn default() -> Self {
        Self::at("/proc/sys")
    }
}

impl Sysctls {
    /// The parameters below another directory, where /proc/sys cannot be written (a container with the node's /proc/sys/net
    /// mounted elsewhere).
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The file of a parameter. Components are parted by slashes, so that a device's name may have dots (`eth0.100`); it cannot
    /// have slashes (`dev_valid_name` in net/core/dev.c).
    ///
    /// # Errors
    /// When the path leaves `net/`.
    pub fn file(&self, path: &str) -> Result<PathBuf, NoSysctl> {
        let well_formed = path.split('/').all(|part| !matches!(part, "" | "." | ".."));
        let is_file = path.strip_prefix("net/").is_some_and(|rest| !rest.is_empty());
        if !well_formed || !is_file || path.contains('\0') {
            return Err(NoSysctl(path.to_owned()));
        }
        Ok(self.root.join(Path::new(path)))
    }

    /// Reads a parameter; none where the kernel has none of that name.
    pub fn read(&self, path: &str) -> Option<String> {
        let text = fs::read_to_string(self.file(path).ok()?).ok()?;
        Some(text.trim_end().to_owned())
    }

    /// Writes a parameter.
    ///
    /// # Errors
    /// The file's error. EROFS: /proc/sys is mounted read-only, as in an unprivileged container.
    pub fn write(&self, path: &str, value: &str) -> Result<(), Errno> {
        let file = self.file(path).map_err(|_| Errno::EINVAL)?;
        fs::OpenOptions::new()
            .write(true)
            .open(file)
            .and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes()))
            .map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_stays_below_net() {
        let sysctls = Sysctls::at("/host/proc/sys");
        for good in [
            "net/ipv4/ip_forward",
            "net/ipv4/conf/eth0.100/rp_filter",
            "net/ipv4/conf/..a/rp_filter",
        ] {
            assert_eq!(
                sysctls.file(good),
                Ok(Path::new("/host/proc/sys").join(good)),
                "{good}"
            );
        }
        for bad in [
            "",
            "net",
            "net/",
            "/net/ipv4",
            "net/../kernel/x",
            "net//x",
            "net/./x",
            "kernel/panic",
            "net/ipv4/a\0b",
        ] {
            assert!(sysctls.file(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_not_there_is_not_read() {
        assert_eq!(Sysctls::at("/nowhere").read("net/ipv4/ip_forward"), None);
        assert_eq!(
            Sysctls::at("/nowhere").write("net/ipv4/ip_forward", "1"),
            Err(Errno::ENOENT)
        );
    }
}
