//! Modules, loaded by the agent itself.

use podlane_agent::kernel::Modules;
use podlane_test_namespaces::Conditional;
use std::path::Path;

/// One that no other test needs, and what it depends on.
const MODULE: &str = "ip_gre";
const NEEDS: [&str; 2] = ["gre", "ip_tunnel"];

/// Where there are modules that are not loaded yet, and the right to load them.
pub(crate) const TESTS: Conditional = Conditional {
    lacking,
    tests: &[(
        "a_module_is_loaded_with_what_it_needs_and_without_modprobe",
        loaded_without_modprobe,
    )],
};

fn is_loaded(module: &str) -> bool {
    Path::new("/sys/module").join(module).exists()
}

fn lacking() -> Option<String> {
    if !Path::new("/proc/modules").exists() {
        return Some("this kernel has no modules".to_owned());
    }
    let release = nix::sys::utsname::uname().expect("a name");
    let table = Path::new("/lib/modules")
        .join(release.release())
        .join("modules.dep");
    let text = std::fs::read_to_string(&table).unwrap_or_default();
    if !text.contains(&format!("/{MODULE}.ko")) {
        return Some(format!("{} has no {MODULE}", table.display()));
    }
    is_loaded(MODULE).then(|| format!("{MODULE} is loaded already"))
}

fn loaded_without_modprobe() {
    let modules = Modules::at("/lib/modules");
    modules.load(MODULE).expect("it is loaded");
    assert!(is_loaded(MODULE), "{MODULE} is not there");
    for needed in NEEDS {
        assert!(is_loaded(needed), "{needed} is not there");
    }
    modules.load(MODULE).expect("it is there");
    let why = modules.load("podlane").expect_err("there is none");
    assert!(why.starts_with("there is no module podlane"), "{why}");
}
