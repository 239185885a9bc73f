//! Podlane's eBPF programs in the kernel, packet by packet, next to a plain model of their specification (docs/datapath.md).

mod cases;
mod compare;
mod forged;
mod fuzz;
mod machine;
mod model;
mod netns;
mod packet;
mod random;
mod story;
mod wire;

fn main() {
    netns::run(
        &[
            cases::encapsulated::TESTS,
            cases::inner::TESTS,
            cases::plain::TESTS,
            cases::pods::TESTS,
            cases::bypass::TESTS,
            cases::refused::TESTS,
            cases::probes::TESTS,
            forged::TESTS,
            wire::raw::TESTS,
            wire::kernel::TESTS,
            fuzz::TESTS,
        ]
        .concat(),
    );
}
