//! Whether a node can have an agent at all, by what its kubelet says of the machine. What the kernel can do beyond that, its agent finds
//! out and says itself.

use std::fmt;

/// The oldest kernel on which an agent can be started: CAP_BPF and CAP_PERFMON, which its container is given, are of Linux 5.8
/// (include/uapi/linux/capability.h), and runtimes refuse a container with capabilities that the kernel does not know. Its eBPF programs
/// ask for more, and without them the kernel's drivers encapsulate.
pub const OLDEST_KERNEL: (u32, u32) = (5, 8);

/// GOARCH of big-endian machines: the eBPF programs are compiled for little-endian ones.
const BIG_ENDIAN: [&str; 5] = ["armbe", "mips", "mips64", "ppc64", "s390x"];

/// What a kubelet says of its machine (`Node.status.nodeInfo`). What it says nothing of is empty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Machine<'a> {
    /// As `uname -r` has it.
    pub kernel_version: &'a str,
    /// GOOS.
    pub operating_system: &'a str,
    /// GOARCH.
    pub architecture: &'a str,
}

/// Why a node can have no agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// It runs another operating system.
    OperatingSystem(String),
    /// It is a machine of this architecture.
    Architecture(String),
    /// Its kernel is too old.
    Kernel(String),
}

/// Looks at a machine. What is not known, or cannot be read, speaks for it: its agent will say.
///
/// # Errors
/// Why it can have no agent.
pub fn check(machine: Machine<'_>) -> Result<(), Unfit> {
    let Machine {
        kernel_version,
        operating_system,
        architecture,
    } = machine;
    if !matches!(operating_system, "" | "linux") {
        return Err(Unfit::OperatingSystem(operating_system.to_owned()));
    }
    if BIG_ENDIAN.contains(&architecture) {
        return Err(Unfit::Architecture(architecture.to_owned()));
    }
    match version(kernel_version) {
        Some(version) if version < OLDEST_KERNEL => Err(Unfit::Kernel(kernel_version.to_owned())),
        _ => Ok(()),
    }
}

/// The first two numbers of a kernel's version.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// In words that follow the node's name.
impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OperatingSystem(name) => write!(f, "runs {name}, and agents are programs for Linux"),
            Self::Architecture(name) => write!(
                f,
                "is a machine of architecture {name}, and agents' eBPF programs are for little-endian ones"
            ),
            Self::Kernel(version) => write!(
                f,
                "has kernel {version}, and agents need Linux {}.{} (capabilities BPF and PERFMON): boot a newer one",
                OLDEST_KERNEL.0, OLDEST_KERNEL.1
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_known_to_be_in_the_way_is() {
        let linux = |kernel_version| Machine {
            kernel_version,
            operating_system: "linux",
            architecture: "amd64",
        };
        for (machine, fits) in [
            (Machine::default(), true),
            (linux("6.18.44-fc-v657"), true),
            (linux("5.8.0"), true),
            (linux("5.7.19-1.el8.elrepo.x86_64"), false),
            (linux("4.19.0-27-amd64"), false),
            (linux("10.0"), true),
            (linux("custom"), true),
            (linux("6"), true),
            (
                Machine {
                    architecture: "s390x",
                    ..linux("6.1.0")
                },
                false,
            ),
            (
                Machine {
                    architecture: "arm64",
                    ..linux("6.1.0")
                },
                true,
            ),
            (
                Machine {
                    operating_system: "windows",
                    ..linux("10.0.20348.2031")
                },
                false,
            ),
        ] {
            assert_eq!(check(machine).is_ok(), fits, "{machine:?}");
        }
        let why = check(linux("4.19.0-27-amd64")).expect_err("too old").to_string();
        assert!(why.contains("4.19.0-27-amd64") && why.contains("5.8"), "{why}");
    }
}
