//! The directory of CNI configurations from which the node's container runtime takes the first: ours is written whole or not at all, and
//! never over anybody else's.

use podlane_datapath::Routed;
use podlane_plan::cni::{Found, Hindrance, NETWORK, Verdict};
use serde_json::Value;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// What a runtime reads (`ConfFiles` in libcni, as containerd and CRI-O call it).
const EXTENSIONS: [&str; 3] = ["conf", "conflist", "json"];

/// The directory, and the name of our file in it.
#[derive(Clone, Debug)]
pub struct Directory {
    path: PathBuf,
    name: String,
}

impl Directory {
    /// `name` has to end as a runtime expects it.
    pub fn new(path: PathBuf, name: String) -> Self {
        Self { path, name }
    }

    /// Reads what is there.
    ///
    /// # Errors
    /// Why it cannot be read.
    pub fn look(&self) -> Result<Found, Hindrance> {
        self.read().map_err(|error| self.failure(&error))
    }

    /// Carries out what was decided, and says what then stands.
    pub fn carry_out(&self, verdict: Verdict, found: &Found) -> Result<String, Hindrance> {
        if let Some(text) = &verdict.write {
            let place = self.path.join(&self.name);
            self.write(text, found.ours.is_none())
                .map_err(|error| self.failure(&error))?;
            tracing::info!(file = %place.display(), "the CNI configuration is written");
        }
        verdict.standing
    }

    /// Removes our file. Says whether there was one.
    ///
    /// # Errors
    /// Why it cannot be removed.
    pub fn clean(&self) -> io::Result<bool> {
        let found = match self.read() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            found => found?,
        };
        if found.ours.is_none() {
            return Ok(false);
        }
        fs::remove_file(self.path.join(&self.name))?;
        self.sync()?;
        Ok(true)
    }

    fn read(&self) -> io::Result<Found> {
        let mut found = Found::default();
        for entry in fs::read_dir(&self.path)? {
            let path = entry?.path();
            let (Some(name), Some(extension)) = (path.file_name(), path.extension()) else {
                continue;
            };
            if !EXTENSIONS.iter().any(|known| extension == *known) {
                continue;
            }
            let name = name.to_string_lossy().into_owned();
            let text = match fs::read_to_string(&path) {
                // Removed since, or nothing that a runtime could read either.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                text => text.unwrap_or_default(),
            };
            let value: Value = serde_json::from_str(&text).unwrap_or_default();
            if name == self.name {
                found.is_taken = value["name"] != NETWORK;
                found.ours = (!found.is_taken).then_some(text);
            } else if is_loopback_alone(&value) {
                // What runtimes are installed with: it connects nothing.
            } else if name < self.name {
                found.before.insert(name);
            } else {
                found.after.insert(name);
            }
        }
        Ok(found)
    }

    /// A file that ends otherwise is none that a runtime reads.
    fn write(&self, text: &str, is_new: bool) -> io::Result<()> {
        let place = self.path.join(&self.name);
        let draft = self.path.join(format!(".{}.new", self.name));
        // One that an agent left which was killed. Made anew, so that nobody's link is followed.
        match fs::remove_file(&draft) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&draft)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        if is_new {
            // Unlike a renaming this fails where somebody else's has come to be in the meantime.
            let linked = fs::hard_link(&draft, &place);
            fs::remove_file(&draft)?;
            linked?;
        } else {
            fs::rename(&draft, &place)?;
        }
        self.sync()
    }

    /// Has what was renamed outlive a loss of power.
    fn sync(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }

    fn failure(&self, error: &io::Error) -> Hindrance {
        let place = self.path.display();
        Hindrance::NotWritten(match error.kind() {
            io::ErrorKind::NotFound => format!(
                "there is no directory {place}: mount the node's (/etc/cni/net.d) there, or name another with --cni-conf-dir"
            ),
            io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
                format!(
                    "{place} cannot be written to ({error}): mount it writable into the agent's container"
                )
            }
            _ => format!("{place}: {error}"),
        })
    }
}

/// Says that pods may be connected, once the node has its routes: until then a configuration that outlived a boot connects no pod, whose
/// packets would follow the default route. Takes it back while the configuration is of former pod CIDRs. Whether a configuration may ask
/// for the word.
pub fn keep_word(word: &Routed, is_routed: bool, is_former: bool) -> bool {
    let file = word.path().display();
    let kept = match (is_former, is_routed) {
        (true, _) => word.take_back().map(|was_said| {
            if was_said {
                tracing::info!(%file, "the CNI configuration is of other pod CIDRs than the node's: it connects no pod");
            }
        }),
        (false, true) => word.say().map(|is_new| {
            if is_new {
                tracing::info!(%file, "the node has its routes: pods may be connected");
            }
        }),
        (false, false) => Ok(()),
    };
    if let Err(error) = &kept {
        tracing::debug!(%error, "pods are connected whether the node has its routes or not");
    }
    kept.is_ok()
}

/// Whether a configuration is of nothing but the plugin loopback.
fn is_loopback_alone(value: &Value) -> bool {
    match value["plugins"].as_array() {
        Some(plugins) => !plugins.is_empty() && plugins.iter().all(|plugin| plugin["type"] == "loopback"),
        None => value["type"] == "loopback",
    }
}

/// A name that a runtime takes for a configuration's, without a path.
///
/// # Errors
/// What is wrong with it.
pub fn file_name(text: &str) -> Result<String, String> {
    let path = Path::new(text);
    let is_plain = path.file_name().is_some_and(|name| name == text) && !text.starts_with('.');
    let is_list = path.extension().is_some_and(|extension| extension == "conflist");
    if is_plain && is_list {
        Ok(text.to_owned())
    } else {
        Err("must be a file's name that ends in .conflist, without a path".to_owned())
    }
}

#[cfg(test)]
mod tests;
