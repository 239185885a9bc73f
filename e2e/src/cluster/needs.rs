//! What a machine has to have for a cluster.

use std::path::Path;

use anyhow::{Context, Result};

use super::{cgroups, images};
use crate::lab::Extent;
use crate::programs::{self, ClusterPrograms};
use crate::scenario;

/// Where the standard CNI plugins may be: where Debian's package has them, and where those who build them put them.
const CNI_FOLDERS: [&str; 2] = ["/usr/lib/cni", "/opt/cni/bin"];

/// What Podlane's CNI configuration calls, what every container runtime does, and another way to connect pods.
pub(super) const CNI_PLUGINS: [&str; 5] = ["ptp", "host-local", "portmap", "loopback", "bridge"];

/// What this machine lacks for a cluster; none when it can have one.
pub fn missing() -> Option<String> {
    scenario::missing_for(Extent::ControlPlane)
        .or_else(|| {
            let needed = [
                "containerd",
                "ctr",
                "runc",
                "containerd-shim-runc-v2",
                "unshare",
                "mount",
                "nft",
                "iptables",
                "sha256sum",
                "tar",
                "curl",
                "strip",
            ];
            programs::first_missing_on(path(), &needed)
                .map(|name| format!("{name} is not installed; `make deps` installs what is missing"))
        })
        .or_else(|| cni_folder(&CNI_PLUGINS).err().map(|error| format!("{error:#}")))
        .or_else(|| images::busybox_path().err().map(|error| format!("{error:#}")))
        .or_else(cgroups::missing)
        .or_else(|| ClusterPrograms::find().err().map(|error| format!("{error:#}")))
}

/// The folder that has all of these CNI plugins.
pub fn cni_folder(plugins: &[&str]) -> Result<&'static str> {
    CNI_FOLDERS
        .into_iter()
        .find(|folder| {
            plugins
                .iter()
                .all(|plugin| Path::new(folder).join(plugin).is_file())
        })
        .with_context(|| {
            format!(
                "the CNI plugins {} are not in {}; `make deps` installs them",
                plugins.join(", "),
                CNI_FOLDERS.join(" nor in ")
            )
        })
}

/// PATH with the folders of the system's own programs, which not everybody's has.
pub(super) fn path() -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    format!("{path}:/usr/local/sbin:/usr/sbin:/sbin")
}
