//! Podlane's eBPF programs, one for each hook. What each decides is specified in docs/datapath.md.
//!
//! All end with `TCX_NEXT` (`TC_ACT_UNSPEC` to clsact) where they have nothing to say, so that other people's programs on the same hook run.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod bypass;
mod counters;
mod flow;
mod inner;
mod kernel;
mod maps;
mod outer;
mod packet;
mod plain;
mod pod;
mod probe;
mod probe_send;
mod slots;
mod tunnel_egress;
mod tunnel_ingress;
mod underlay_ingress;
mod wire;

use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;

use crate::kernel::Packet;

/// Egress of a tunnel device: what a route with an encapsulation sent there is encapsulated and handed to the underlay.
#[classifier]
pub fn tunnel_egress(context: TcContext) -> i32 {
    tunnel_egress::run(&mut Packet::new(&context))
}

/// Ingress of a tunnel device: what the kernel's driver decapsulated is checked.
#[classifier]
pub fn tunnel_ingress(context: TcContext) -> i32 {
    tunnel_ingress::run(&mut Packet::new(&context))
}

/// Ingress of an underlay device: what is encapsulated for this node is checked and decapsulated; plain packets with a pod's source are checked.
#[classifier]
pub fn underlay_ingress(context: TcContext) -> i32 {
    underlay_ingress::run(&mut Packet::new(&context))
}

/// Egress of an underlay device: flows of the native lane that the stack let out are stamped.
#[classifier]
pub fn underlay_egress(context: TcContext) -> i32 {
    plain::leave(&mut Packet::new(&context))
}

/// Ingress of a device that leads to pods: their packets' source is checked; accepted flows go to the underlay at once.
#[classifier]
pub fn pod_ingress(context: TcContext) -> i32 {
    pod::ingress(&mut Packet::new(&context))
}

/// Egress of a device that leads to a pod: flows that the stack let in are stamped.
#[classifier]
pub fn pod_egress(context: TcContext) -> i32 {
    pod::egress(&mut Packet::new(&context))
}

/// Run by the agent (BPF_PROG_TEST_RUN) with a whole frame: completes its link-layer addresses by the kernel's FIB and sends it.
#[classifier]
pub fn probe_send(context: TcContext) -> i32 {
    probe_send::run(&mut Packet::new(&context))
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
