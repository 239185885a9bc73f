//! The agent against a real kernel, each test in a network namespace of its own.

mod foreign;
mod hands;
mod lanes;
mod netns;
mod passes;
mod programs;
mod reading;
mod story;
mod traffic;

fn main() {
    netns::run(
        &[
            lanes::TESTS,
            foreign::TESTS,
            hands::TESTS,
            reading::TESTS,
            passes::TESTS,
            traffic::TESTS,
        ]
        .concat(),
        &[traffic::GENEVE_TESTS, programs::TESTS],
    );
}
