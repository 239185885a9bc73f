//! The loader against a real kernel, each test in network and mount namespaces of its own, with a BPF file system of its own.

mod attaching;
mod clsact;
mod contents;
mod foreign;
mod opening;
mod pods;
mod probes;
mod replacing;
mod routed;
mod story;
mod words;

use podlane_test_namespaces::{Conditional, Suite, own_bpffs};

fn main() {
    if words::answered() {
        return;
    }
    let about_tcx = |tests| Conditional {
        lacking: || (!story::has_tcx()).then(|| "this kernel has no tcx".to_owned()),
        tests,
    };
    Suite::new("of the loader", prepare)
        .tests(opening::TESTS)
        .tests(contents::TESTS)
        .tests(attaching::TESTS)
        .tests(foreign::TESTS)
        .tests(replacing::TESTS)
        .tests(routed::TESTS)
        .tests(clsact::TESTS)
        .tests(probes::TESTS)
        .tests(words::TESTS)
        .where_there_is(&about_tcx(attaching::TCX_TESTS))
        .where_there_is(&about_tcx(foreign::TCX_TESTS))
        .where_there_is(&about_tcx(replacing::TCX_TESTS))
        .run();
}

/// A BPF file system for each test; and whether there is anything to put there.
fn prepare() -> Result<(), String> {
    own_bpffs()?;
    aya::maps::Array::<_, u32>::create(1, 0)
        .map(|_| ())
        .map_err(|error| format!("the kernel makes no eBPF maps ({error}); run them on Linux 5.13 or newer"))
}
