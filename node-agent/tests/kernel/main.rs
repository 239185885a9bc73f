//! The agent against a real kernel, each test in a network namespace of its own.

mod foreign;
mod hands;
mod lanes;
mod masquerade;
mod modules;
mod passes;
mod programs;
mod reading;
mod story;
mod traffic;
mod waking;

use podlane_test_namespaces::Suite;

fn main() {
    Suite::new("of the agent on a real kernel", || Ok(()))
        .tests(lanes::TESTS)
        .tests(foreign::TESTS)
        .tests(hands::TESTS)
        .tests(reading::TESTS)
        .tests(passes::TESTS)
        .tests(traffic::TESTS)
        .where_possible(&traffic::GENEVE_TESTS)
        .where_possible(&masquerade::TESTS)
        .where_possible(&modules::TESTS)
        .where_possible(&programs::TESTS)
        .run();
}
