//! The loader against a real kernel, each test in network and mount namespaces of its own, with a BPF file system of its own.

mod attaching;
mod clsact;
mod contents;
mod foreign;
mod namespace;
mod opening;
mod probes;
mod replacing;
mod story;
mod words;

fn main() {
    if words::answered() {
        return;
    }
    namespace::run(
        &[
            opening::TESTS,
            contents::TESTS,
            attaching::TESTS,
            foreign::TESTS,
            replacing::TESTS,
            clsact::TESTS,
            probes::TESTS,
            words::TESTS,
        ]
        .concat(),
        &[attaching::TCX_TESTS, foreign::TCX_TESTS, replacing::TCX_TESTS].concat(),
    );
}
