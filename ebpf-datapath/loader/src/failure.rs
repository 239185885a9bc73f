//! Why something had no effect, in words that say what to do.

use aya::maps::MapError;
use aya::pin::PinError;
use aya::programs::{ProgramError, links::LinkError};
use aya::{EbpfError, sys::SyscallError};
use nix::errno::Errno;
use std::error::Error;
use std::fmt;
use std::io;
use std::path::Path;

/// What kind of failure it is: each asks something else of whoever runs the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// A capability is missing.
    Permission,
    /// The directory is on no bpffs.
    NoBpffs,
    /// The kernel lacks what every program needs.
    OldKernel,
    /// The verifier refused a program.
    Verifier,
    /// There is no memory, or none that may be locked.
    Memory,
    /// A map, or the table of tunnels, has no place left.
    Full,
    /// A device that is declared is not there.
    NoDevice,
    /// Anything else.
    Other,
}

/// Why something had no effect, in words that say what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{words}")]
pub struct Failure {
    /// What kind.
    pub cause: Cause,
    /// The words.
    pub words: String,
}

impl Failure {
    pub(crate) fn new(cause: Cause, words: impl Into<String>) -> Self {
        Self {
            cause,
            words: words.into(),
        }
    }

    pub(crate) fn no_bpffs(directory: &Path) -> Self {
        Self::new(
            Cause::NoBpffs,
            format!(
                "{} is not on a BPF file system: mount the node's own there (in a container a hostPath volume of /sys/fs/bpf; on the \
                 node: mount -t bpf bpf /sys/fs/bpf)",
                directory.display()
            ),
        )
    }

    pub(crate) fn old_kernel(version: Version) -> Self {
        Self::new(
            Cause::OldKernel,
            format!(
                "Linux {version} is too old for the eBPF datapath, which needs {OLDEST} or newer; the kernel's own tunnel devices \
                 go on carrying packets"
            ),
        )
    }

    pub(crate) fn no_device(name: &str) -> Self {
        Self::new(Cause::NoDevice, format!("there is no device {name}"))
    }

    /// The kernel's no to something, named as in "cannot …".
    pub(crate) fn of(what: &str, error: &(dyn Error + 'static)) -> Self {
        if let Some(log) = verifier_log(error) {
            let why = io_error(error).map(io_words).unwrap_or_default();
            // EPERM and ENOMEM come before the verifier has said anything.
            if !log.is_empty() {
                return if may_use_pointers() {
                    let words = format!(
                        "the kernel's verifier refuses to {what} ({why}). Report this, with the kernel's version. {log}"
                    );
                    Self::new(Cause::Verifier, words)
                } else {
                    let words = format!(
                        "cannot {what}: give the agent's container the capability PERFMON, beside BPF and NET_ADMIN; without it the kernel's verifier lets no \
                         program compute with pointers ({why}). {log}"
                    );
                    Self::new(Cause::Permission, words)
                };
            }
        }
        match io_error(error) {
            Some(why) => Self::of_io(what, why),
            None => Self::new(Cause::Other, format!("cannot {what}: {error}")),
        }
    }

    pub(crate) fn of_io(what: &str, error: &io::Error) -> Self {
        let errno = error.raw_os_error().map(Errno::from_raw);
        Self::of_errno(what, errno, Version::running(), Limit::memory())
            .unwrap_or_else(|| Self::new(Cause::Other, format!("cannot {what}: {}", io_words(error))))
    }

    /// Errors whose cause lies with how the agent is run.
    fn of_errno(what: &str, errno: Option<Errno>, kernel: Version, limit: Limit) -> Option<Self> {
        // Since Linux 5.11 the memory of maps and programs counts for the cgroup, not for RLIMIT_MEMLOCK; before, EPERM is the answer
        // where the limit is met (`bpf_charge_memlock`, kernel/bpf/syscall.c).
        let locked = kernel < Version(5, 11) && matches!(limit, Limit::Bytes(_));
        Some(match errno? {
            Errno::EPERM if locked => Self::new(
                Cause::Memory,
                format!(
                    "cannot {what}: the limit of locked memory is {limit}, and Linux {kernel} counts eBPF maps for it. Raise it (ulimit -l unlimited; \
                     LimitMEMLOCK=infinity), or give the agent's container the capability SYS_RESOURCE. If that is not it, it lacks BPF or NET_ADMIN (EPERM)"
                ),
            ),
            Errno::EPERM | Errno::EACCES => Self::new(
                Cause::Permission,
                format!(
                    "cannot {what}: give the agent's container the capabilities BPF, NET_ADMIN and PERFMON ({})",
                    name(errno?)
                ),
            ),
            Errno::ENOMEM => Self::new(
                Cause::Memory,
                format!(
                    "cannot {what}: the kernel has no memory for it, or the container's limit is reached (ENOMEM). Raise resources.limits.memory of the agent"
                ),
            ),
            Errno::E2BIG | Errno::ENOSPC => Self::new(
                Cause::Full,
                format!("cannot {what}: its map is full ({})", name(errno?)),
            ),
            Errno::ENODEV => Self::new(
                Cause::NoDevice,
                format!("cannot {what}: the device is gone (ENODEV)"),
            ),
            _ => return None,
        })
    }
}

/// The oldest kernel that will do: `BPF_F_ADJ_ROOM_ENCAP_L2_ETH` is of 5.13.
pub(crate) const OLDEST: Version = Version(5, 13);

/// A kernel's version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version(pub(crate) u32, pub(crate) u32);

impl Version {
    /// The running kernel's; 0.0 where it cannot be told.
    pub(crate) fn running() -> Self {
        nix::sys::utsname::uname()
            .ok()
            .and_then(|name| Self::parse(name.release().to_str()?))
            .unwrap_or(Self(0, 0))
    }

    pub(crate) fn parse(release: &str) -> Option<Self> {
        let mut parts = release.split(|letter: char| !letter.is_ascii_digit());
        Some(Self(parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// The limit of locked memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Limit {
    None,
    Bytes(u64),
}

impl Limit {
    fn memory() -> Self {
        use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
        match getrlimit(Resource::RLIMIT_MEMLOCK) {
            Ok((soft, _)) if soft != RLIM_INFINITY => Self::Bytes(soft),
            _ => Self::None,
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Bytes(bytes) => write!(f, "{} KiB", bytes / 1024),
        }
    }
}

/// Whether the calling thread has `CAP_PERFMON`, or `CAP_SYS_ADMIN`, which stands for it (include/uapi/linux/capability.h). Where it cannot be told, yes.
fn may_use_pointers() -> bool {
    const PERFMON: u64 = 1 << 38;
    const SYS_ADMIN: u64 = 1 << 21;
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective
        .and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok())
        .is_none_or(|bits| bits & (PERFMON | SYS_ADMIN) != 0)
}

fn name(errno: Errno) -> String {
    format!("{errno:?}")
}

fn io_words(error: &io::Error) -> String {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(errno) => format!("{} ({errno:?})", errno.desc()),
        None => error.to_string(),
    }
}

/// The kernel's error somewhere below one of aya's. Those that are transparent hide their sources, so each is looked through by name.
fn io_error<'e>(error: &'e (dyn Error + 'static)) -> Option<&'e io::Error> {
    let found: Option<&'e io::Error> = if let Some(error) = error.downcast_ref::<io::Error>() {
        Some(error)
    } else if let Some(SyscallError { io_error, .. }) = error.downcast_ref() {
        Some(io_error)
    } else if let Some(error) = error.downcast_ref::<EbpfError>() {
        match error {
            EbpfError::MapError(error) => io_error(error),
            EbpfError::ProgramError(error) => io_error(error),
            EbpfError::BtfError(error) => io_error(error),
            _ => None,
        }
    } else if let Some(error) = error.downcast_ref::<ProgramError>() {
        match error {
            ProgramError::LoadError { io_error, .. } => Some(io_error),
            ProgramError::SyscallError(error) => Some(&error.io_error),
            ProgramError::MapError(error) => io_error(error),
            ProgramError::IOError(error) => Some(error),
            _ => None,
        }
    } else if let Some(error) = error.downcast_ref::<MapError>() {
        match error {
            MapError::CreateError { io_error, .. } => Some(io_error),
            MapError::SyscallError(error) => Some(&error.io_error),
            MapError::PinError { error, .. } => io_error(error),
            MapError::IoError(error) => Some(error),
            _ => None,
        }
    } else if let Some(PinError::SyscallError(error)) = error.downcast_ref() {
        Some(&error.io_error)
    } else if let Some(LinkError::SyscallError(error)) = error.downcast_ref() {
        Some(&error.io_error)
    } else {
        None
    };
    found.or_else(|| error.source().and_then(io_error))
}

/// The telling lines of the verifier's log; none: the error has none.
fn verifier_log(error: &(dyn Error + 'static)) -> Option<String> {
    let log = match error.downcast_ref::<ProgramError>() {
        Some(ProgramError::LoadError { verifier_log, .. }) => verifier_log,
        _ => return None,
    };
    Some(telling(&log.to_string()))
}

/// How many of the verifier's last lines are given.
const TELLING_LINES: usize = 6;

/// Of the verifier's log its last words and the instructions before them; what follows is its own statistics.
fn telling(log: &str) -> String {
    const STATISTICS: [&str; 5] = [
        "processed ",
        "verification time",
        "stack depth",
        "max_states",
        "insns processed",
    ];
    let lines: Vec<_> = log
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !STATISTICS.iter().any(|begin| line.starts_with(begin)))
        .collect();
    match lines.split_last() {
        None => String::new(),
        Some((last, before)) => {
            let before = &before[before.len().saturating_sub(TELLING_LINES - 1)..];
            match before {
                [] => format!("It says: {last}"),
                before => format!("It says: {last}. Before that: {}", before.join(" | ")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(errno: Errno, kernel: Version, limit: Limit) -> Failure {
        Failure::of_errno("make the map PEERS", Some(errno), kernel, limit).expect("a known error")
    }

    #[test]
    fn a_missing_capability_is_named() {
        let failure = words(Errno::EPERM, Version(6, 1), Limit::Bytes(65_536));
        assert_eq!(failure.cause, Cause::Permission);
        assert!(
            failure.words.contains("BPF, NET_ADMIN and PERFMON (EPERM)"),
            "{failure}"
        );
    }

    #[test]
    fn an_old_kernels_limit_of_locked_memory_is_named() {
        let failure = words(Errno::EPERM, Version(5, 10), Limit::Bytes(65_536));
        assert_eq!(failure.cause, Cause::Memory);
        assert!(
            failure.words.contains("64 KiB") && failure.words.contains("LimitMEMLOCK"),
            "{failure}"
        );
        assert_eq!(
            words(Errno::EPERM, Version(5, 10), Limit::None).cause,
            Cause::Permission
        );
    }

    #[test]
    fn versions_are_read_from_releases() {
        assert_eq!(Version::parse("6.1.0-18-amd64"), Some(Version(6, 1)));
        assert_eq!(Version::parse("6.18.44-fc-v657"), Some(Version(6, 18)));
        assert_eq!(Version::parse("5.10.0"), Some(Version(5, 10)));
        assert_eq!(Version::parse("linux"), None);
        assert!(Failure::old_kernel(Version(5, 4)).words.contains("5.13"));
    }

    #[test]
    fn the_verifiers_log_is_cut_to_what_tells() {
        let log = "0: (79) r6 = *(u64 *)(r1 +0)\n1: (b7) r0 = 0\n\nR6 invalid mem access 'scalar'\nverification time 12 usec\n\
                   processed 2 insns (limit 1000000) max_states_per_insn 0\n";
        let telling = telling(log);
        assert!(
            telling.starts_with("It says: R6 invalid mem access 'scalar'. Before that: 0: "),
            "{telling}"
        );
        assert!(!telling.contains("processed"));
        let long: String = (0..100).map(|at| format!("{at}: (b7) r0 = 0\n")).collect();
        assert!(super::telling(&long).len() < 200);
    }
}
