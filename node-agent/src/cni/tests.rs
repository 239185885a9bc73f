use super::*;
use podlane_plan::cni::{Config, verdict};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

/// A directory that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("podlane-cni-{}-{name}", std::process::id()));
        fs::create_dir(&path).expect("a directory of its own");
        Self(path)
    }

    fn put(&self, name: &str, text: &str) {
        fs::write(self.0.join(name), text).expect("written");
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(&self.0)
            .expect("readable")
            .map(|entry| {
                entry
                    .expect("an entry")
                    .file_name()
                    .to_string_lossy()
                    .into_owned()
            })
            .collect();
        names.sort();
        names
    }

    fn directory(&self) -> Directory {
        Directory::new(self.0.clone(), OURS.to_owned())
    }

    /// One pass that finds lanes proved. The reason, where pods are not connected.
    fn keep(&self, mtu: u32) -> Result<(), &'static str> {
        let directory = self.directory();
        let found = directory.look().map_err(|why| why.reason())?;
        let stands = directory.carry_out(verdict(Ok(config(mtu)), None, &found), &found);
        stands.map(drop).map_err(|why| why.reason())
    }

    fn ours(&self) -> String {
        fs::read_to_string(self.0.join(OURS)).expect("it is there")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left is in the machine's own folder for that.
        let _ = fs::remove_dir_all(&self.0);
    }
}

const OURS: &str = "10-podlane.conflist";

fn config(mtu: u32) -> Config {
    Config {
        pod_cidrs: vec!["172.20.0.0/24".parse().expect("a CIDR")],
        mtu,
        routed: None,
    }
}

#[test]
fn a_file_is_written_whole_kept_and_replaced() {
    let folder = Folder::new("written");
    folder.put(
        "200-loopback.conf",
        r#"{"cniVersion": "0.3.1", "type": "loopback"}"#,
    );
    folder.put("notes.txt", "no configuration");
    // As an agent leaves it that is killed in the middle.
    folder.put(".10-podlane.conflist.new", "{\"name\": \"podl");
    assert_eq!(folder.keep(1450), Ok(()));
    assert_eq!(folder.ours(), config(1450).to_string());
    assert_eq!(folder.names(), [OURS, "200-loopback.conf", "notes.txt"]);
    let about = |folder: &Folder| fs::metadata(folder.0.join(OURS)).expect("it is there");
    assert_eq!(about(&folder).permissions().mode() & 0o777, 0o600);
    let before = (about(&folder).ino(), about(&folder).mtime_nsec());
    assert_eq!(folder.keep(1450), Ok(()));
    assert_eq!(
        (about(&folder).ino(), about(&folder).mtime_nsec()),
        before,
        "it is kept"
    );
    assert_eq!(folder.keep(1400), Ok(()));
    assert_eq!(folder.ours(), config(1400).to_string());
    let value: Value = serde_json::from_str(&folder.ours()).expect("JSON");
    assert_eq!(value["plugins"][0]["mtu"], 1400);
}

#[test]
fn anothers_file_stays_and_is_named() {
    let folder = Folder::new("others");
    let others = r#"{"cniVersion": "1.0.0", "name": "other", "plugins": [{"type": "bridge"}]}"#;
    folder.put(OURS, others);
    assert_eq!(folder.keep(1450), Err("ForeignCNIConfiguration"));
    assert_eq!(folder.ours(), others);
    assert!(!folder.directory().clean().expect("readable"));
    // One that cannot be read is a file all the same.
    folder.put(OURS, "{");
    assert_eq!(folder.keep(1450), Err("ForeignCNIConfiguration"));
    fs::remove_file(folder.0.join(OURS)).expect("removed");
    folder.put("20-other.conflist", others);
    assert_eq!(folder.keep(1450), Err("ForeignCNIConfiguration"));
    assert_eq!(folder.names(), ["20-other.conflist"]);
    fs::remove_file(folder.0.join("20-other.conflist")).expect("removed");
    assert_eq!(folder.keep(1450), Ok(()));
    // One that comes to be between looking and writing.
    let found = Found::default();
    let stands = folder
        .directory()
        .carry_out(verdict(Ok(config(1)), None, &found), &found);
    assert_eq!(
        stands.expect_err("it is there").reason(),
        "CNIConfigurationNotWritten"
    );
    assert_eq!(folder.ours(), config(1450).to_string());
    assert_eq!(folder.names(), [OURS]);
}

#[test]
fn clean_removes_ours_alone() {
    let folder = Folder::new("clean");
    assert!(!folder.directory().clean().expect("readable"));
    assert_eq!(folder.keep(1450), Ok(()));
    folder.put("20-other.conflist", "{}");
    assert!(folder.directory().clean().expect("removed"));
    assert_eq!(folder.names(), ["20-other.conflist"]);
    let missing = Directory::new(folder.0.join("missing"), OURS.to_owned());
    assert!(!missing.clean().expect("nothing is there"));
    let why = missing.look().expect_err("no directory").to_string();
    assert!(why.contains("mount the node's (/etc/cni/net.d) there"), "{why}");
}

#[test]
fn a_name_is_a_files_own() {
    for (name, is_one) in [
        ("10-podlane.conflist", true),
        ("10-podlane.conf", false),
        ("a/10-podlane.conflist", false),
        ("../podlane.conflist", false),
        (".conflist", false),
        (".podlane.conflist", false),
    ] {
        assert_eq!(file_name(name).is_ok(), is_one, "{name}");
    }
}
