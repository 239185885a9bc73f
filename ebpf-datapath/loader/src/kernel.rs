//! What the running kernel can do.

use crate::failure::{Failure, OLDEST, Version};
use nix::time::{ClockId, clock_getres};
use podlane_bpf_syscall::Hook;
use std::io;

/// What the running kernel can do, as far as loading and the programs' settings depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// Whether hooks take several programs as links (tcx, Linux 6.6); without it filters of a clsact queueing discipline do.
    pub tcx: bool,
    /// Whether `bpf_skb_adjust_room` knows `BPF_F_ADJ_ROOM_DECAP_L3_IPV4` and `_IPV6` (Linux 6.3).
    pub decap_flags: bool,
    /// Jiffies a second (CONFIG_HZ).
    pub jiffies_per_second: u32,
}

impl Kernel {
    /// Asks the running kernel.
    ///
    /// # Errors
    /// It is too old, or says no.
    pub(crate) fn ask() -> Result<Self, Failure> {
        let version = Version::running();
        if version < OLDEST {
            return Err(Failure::old_kernel(version));
        }
        Ok(Self {
            tcx: has_tcx()?,
            decap_flags: version >= Version(6, 3) || types_name(b"BPF_F_ADJ_ROOM_DECAP_L3_IPV4"),
            jiffies_per_second: jiffies_per_second()?,
        })
    }
}

/// Index of the loopback device, which every network namespace has (`loopback_net_init`, drivers/net/loopback.c).
const LOOPBACK: u32 = 1;

/// The kernel says EINVAL to hooks that it does not know (`bpf_prog_query`, kernel/bpf/syscall.c).
fn has_tcx() -> Result<bool, Failure> {
    match podlane_bpf_syscall::programs(LOOPBACK, Hook::Ingress) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(false),
        Err(error) => Err(Failure::of_io("ask for the programs on a device", &error)),
    }
}

/// The coarse clock advances once a jiffy, and its resolution is a jiffy's length (`posix_get_coarse_res`, kernel/time/posix-timers.c;
/// `TICK_NSEC`, include/linux/jiffies.h).
fn jiffies_per_second() -> Result<u32, Failure> {
    let length = clock_getres(ClockId::CLOCK_MONOTONIC_COARSE)
        .map_err(|errno| Failure::of_io("ask for the length of a jiffy", &errno.into()))?;
    Ok(rate(length.tv_nsec()))
}

/// Of a length in ns, which is rounded. CONFIG_HZ is from 24 to 1200.
fn rate(length: i64) -> u32 {
    let length = length.clamp(1, 1_000_000_000).cast_unsigned();
    u32::try_from((1_000_000_000 + length / 2) / length).unwrap_or(u32::MAX)
}

/// Whether the kernel's own types (BTF) have a name: distributions bring features to kernels of older versions.
fn types_name(name: &[u8]) -> bool {
    std::fs::read("/sys/kernel/btf/vmlinux")
        .is_ok_and(|types| types.windows(name.len()).any(|window| window == name))
}

#[cfg(test)]
mod tests {
    #[test]
    fn rates_follow_from_lengths() {
        for rate in [24, 100, 128, 250, 256, 300, 1000, 1024, 1200_u32] {
            let length = (1_000_000_000 + i64::from(rate) / 2) / i64::from(rate);
            assert_eq!(super::rate(length), rate);
        }
    }
}
