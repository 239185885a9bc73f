//! Podlane's eBPF programs, one for each hook. What each decides is specified in docs/datapath.md.
//!
//! All end with `TCX_NEXT` (`TC_ACT_UNSPEC` to clsact) where they have nothing to say, so that other people's programs on the same hook run.
#![no_std]
#![no_main]

mod maps;

use aya_ebpf::bindings::TC_ACT_UNSPEC;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;

/// Egress of a tunnel device: what a route with an encapsulation sent there is encapsulated and handed to the underlay.
#[classifier]
pub fn tunnel_egress(_context: TcContext) -> i32 {
    TC_ACT_UNSPEC
}

/// Ingress of a tunnel device: what the kernel's driver decapsulated is checked.
#[classifier]
pub fn tunnel_ingress(_context: TcContext) -> i32 {
    TC_ACT_UNSPEC
}

/// Ingress of an underlay device: what is encapsulated for this node is checked and decapsulated; plain packets with a pod's source are checked.
#[classifier]
pub fn underlay_ingress(_context: TcContext) -> i32 {
    TC_ACT_UNSPEC
}

/// Egress of an underlay device: flows of the native lane that the stack let out are stamped.
#[classifier]
pub fn underlay_egress(_context: TcContext) -> i32 {
    TC_ACT_UNSPEC
}

/// Ingress of a device that leads to pods: their packets' source is checked; accepted flows go to the underlay at once.
#[classifier]
pub fn pod_ingress(_context: TcContext) -> i32 {
    TC_ACT_UNSPEC
}

/// Egress of a device that leads to a pod: flows that the stack let in are stamped.
#[classifier]
pub fn pod_egress(_context: TcContext) -> i32 {
    TC_ACT_UNSPEC
}

/// Run by the agent (BPF_PROG_TEST_RUN) with a whole frame: completes its link-layer addresses by the kernel's FIB and sends it.
#[classifier]
pub fn probe_send(_context: TcContext) -> i32 {
    TC_ACT_UNSPEC
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // Nothing panics: the verifier would see a loop without end and refuse the program.
    loop {}
}

/// The kernel gives helpers that are GPL-only to programs with this licence.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
