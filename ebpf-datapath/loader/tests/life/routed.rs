//! That a node has its routes is said where a boot takes it back.

use podlane_datapath::{Cause, Routed};
use podlane_test_namespaces::{Test, bpffs};
use std::fs;

pub(crate) const TESTS: &[Test] = &[(
    "routes_are_told_of_by_an_empty_file",
    routes_are_told_of_by_an_empty_file,
)];

fn routes_are_told_of_by_an_empty_file() {
    let directory = bpffs().join("podlane");
    let routed = Routed::below(&directory).expect("it is on a bpffs");
    assert!(!directory.exists(), "asking makes nothing");
    assert!(fs::read(routed.path()).is_err());
    assert_eq!(routed.say(), Ok(true));
    assert_eq!(
        fs::read(routed.path()).expect("it can be opened"),
        Vec::<u8>::new()
    );
    assert_eq!(routed.say(), Ok(false), "it was said");
    // As somebody may have made it who looked around.
    fs::remove_file(routed.path()).expect("it was there");
    std::os::unix::fs::symlink("/nowhere", routed.path()).expect("a link");
    assert_eq!(routed.say(), Ok(true));
    assert!(fs::read(routed.path()).is_ok());
    assert_eq!(routed.take_back(), Ok(true));
    assert!(fs::read(routed.path()).is_err());
    assert_eq!(routed.take_back(), Ok(false), "it was taken back");
    assert_eq!(routed.say(), Ok(true));
    let removed = podlane_datapath::clean(&directory).expect("it is on a bpffs");
    assert!(matches!(removed.as_slice(), [(_, Ok(()))]), "{removed:?}");
    assert!(!directory.exists());
    let elsewhere = Routed::below(&std::env::temp_dir().join("podlane"));
    assert_eq!(elsewhere.map_err(|why| why.cause), Err(Cause::NoBpffs));
}
