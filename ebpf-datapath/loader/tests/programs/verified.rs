//! How far the verifier follows each program: near its limit a kernel refuses it.

use crate::cases::tell;
use crate::pool::Object;
use podlane_test_namespaces::Test;

pub(crate) const TESTS: &[Test] = &[(
    "the_verifier_is_far_from_its_limit",
    the_verifier_is_far_from_its_limit,
)];

/// Instructions that the verifier follows at most, along all paths (`BPF_COMPLEXITY_LIMIT_INSNS`, include/linux/bpf.h).
const LIMIT: u32 = 1_000_000;

/// A fifth: what a compiler lays out otherwise, or another kernel's verifier prunes otherwise, has changed the figure by an eighth, and may double it.
const BOUND: u32 = LIMIT / 5;

fn the_verifier_is_far_from_its_limit() {
    let mut object = Object::new();
    let names = object.names();
    assert_eq!(names.len(), 7, "{names:?}");
    let mut too_many = Vec::new();
    for name in names {
        let info = object
            .program(&name)
            .info()
            .expect("the kernel tells of its programs");
        let count = info.verified_instruction_count().expect("told since Linux 5.16");
        tell(&format!("{count:>8} {name}"));
        if count > BOUND {
            too_many.push(format!("{name}: {count}"));
        }
    }
    assert!(too_many.is_empty(), "more than {BOUND}: {too_many:?}");
}
