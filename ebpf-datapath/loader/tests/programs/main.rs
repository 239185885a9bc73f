//! Podlane's eBPF programs in the kernel, packet by packet, next to a plain model of their specification (docs/datapath.md).

mod cases;
mod compare;
mod forged;
mod fuzz;
mod machine;
mod model;
mod packet;
mod pool;
mod random;
mod story;
mod verified;
mod wire;

use podlane_test_namespaces::Suite;

fn main() {
    Suite::new("of the eBPF programs", || Ok(()))
        // The longest ones first, so that the others fill the other processor.
        .tests(fuzz::TESTS)
        .tests(forged::TESTS)
        .tests(cases::encapsulated::TESTS)
        .tests(cases::inner::TESTS)
        .tests(cases::plain::TESTS)
        .tests(cases::pods::TESTS)
        .tests(cases::tagged::TESTS)
        .tests(cases::bypass::TESTS)
        .tests(cases::refused::TESTS)
        .tests(cases::probes::TESTS)
        .tests(wire::probe::TESTS)
        .tests(wire::raw::TESTS)
        .tests(wire::forged::TESTS)
        .tests(wire::native::TESTS)
        .tests(wire::several_ways::TESTS)
        .tests(wire::between_tunnels::TESTS)
        .tests(wire::tshark::TESTS)
        .tests(wire::kernel::TESTS)
        .where_possible(&wire::open_vswitch::TESTS)
        .where_possible(&wire::kernel::GENEVE_TESTS)
        .where_possible(&wire::kernel::VLAN_TESTS)
        .where_possible(&wire::kernel::BOND_TESTS)
        .tests(verified::TESTS)
        .run();
}
