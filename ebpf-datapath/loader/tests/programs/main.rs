//! Podlane's eBPF programs in the kernel, packet by packet, next to a plain model of their specification (docs/datapath.md).

mod cases;
mod compare;
mod forged;
mod fuzz;
mod machine;
mod model;
mod packet;
mod random;
mod story;
mod wire;

use podlane_test_namespaces::Suite;

fn main() {
    Suite::new("of the eBPF programs", || Ok(()))
        .tests(cases::encapsulated::TESTS)
        .tests(cases::inner::TESTS)
        .tests(cases::plain::TESTS)
        .tests(cases::pods::TESTS)
        .tests(cases::bypass::TESTS)
        .tests(cases::refused::TESTS)
        .tests(cases::probes::TESTS)
        .tests(forged::TESTS)
        .tests(wire::raw::TESTS)
        .tests(wire::kernel::TESTS)
        .tests(fuzz::TESTS)
        .run();
}
