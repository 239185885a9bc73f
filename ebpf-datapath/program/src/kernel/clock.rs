//! Clocks.

use aya_ebpf::helpers::{bpf_jiffies64, bpf_ktime_get_ns};

/// The lower half of the jiffies.
#[inline(always)]
pub(crate) fn jiffies() -> u32 {
    // SAFETY: takes nothing.
    unsafe { bpf_jiffies64() as u32 }
}

/// The monotonic clock, in ns.
#[inline(always)]
pub(crate) fn nanoseconds() -> u64 {
    // SAFETY: takes nothing.
    unsafe { bpf_ktime_get_ns() }
}

/// The monotonic clock in units of 2²⁰ ns, of which [`SECOND`] are one second; right in differences of up to 52 days.
#[inline(always)]
pub(crate) fn ticks() -> u32 {
    (nanoseconds() >> 20) as u32
}

/// A second in [`ticks`], rounded up.
pub(crate) const SECOND: u32 = 954;
