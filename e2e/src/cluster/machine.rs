//! A node as a machine of its own: its mounts, its control group, its container runtime, its kubelet, its kube-proxy.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::ProxyMode;
use super::cgroups;
use super::needs;
use super::settings::{self, RUNTIME_SOCKET};
use crate::control_plane::{ControlPlane, Identity};
use crate::ledger::Ledger;
use crate::netns::Namespace;
use crate::process::{Process, Program};
use crate::programs::ClusterPrograms;
use crate::topology::{Node, Topology};
use crate::wait::wait_until;

const UP_WITHIN: Duration = Duration::from_secs(240);

/// Makes the mounts that are a node's own, then waits for as long as the node is to be.
///
/// `$1`: the node's folder; `$2`: its name. What the node's programs write below /etc and /var is in that folder and outlives a boot, /run is
/// empty after each. A boot has a number of its own, by which kubelets tell one from the next. Mounts are shared, as systemd makes them: containers see those that come later. What a kubelet would set for the whole machine it
/// finds set as it wants it (`setupKernelTunables` in its pkg/kubelet/cm): files in the place of those parameters.
const BOOT: &str = r#"set -e
cd "$1"
mount --make-rshared /
hostname "$2"
mount -t tmpfs -o mode=755 tmpfs /run
for place in etc var; do
    mkdir -p $place $place.work
    mount -t overlay -o "lowerdir=/$place,upperdir=$1/$place,workdir=$1/$place.work" overlay /$place
done
if ! [ -e installed ]; then
    rm -rf /etc/cni/net.d
    mkdir -p /etc/cni/net.d
    touch installed
fi
for place in kubelet containerd; do
    mkdir -p $place /var/lib/$place
    mount --bind $place /var/lib/$place
done
mount -t bpf bpf /sys/fs/bpf
mkdir -p sysctl
for pair in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 \
    kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
    name=${pair%=*}
    file=sysctl/$(echo $name | tr / .)
    echo ${pair#*=} >$file
    mount --bind $file /proc/sys/$name
done
cat /proc/sys/kernel/random/uuid >sysctl/boot_id
mount --bind sysctl/boot_id /proc/sys/kernel/random/boot_id
touch booted
exec sleep infinity
"#;

/// Joins the control groups that come before `--`, then becomes the program after it.
const JOIN: &str = r#"while [ "$1" != -- ]; do echo $$ >"$1" || exit; shift; done; shift; exec "$@""#;

/// A node of the cluster.
#[derive(Debug)]
pub struct Machine {
    name: String,
    folder: PathBuf,
    cgroup: String,
    holder: Process,
    containerd: Option<Process>,
    kubelet: Option<Process>,
    proxy: Option<Process>,
    ledger: Arc<Ledger>,
}

impl Machine {
    /// Makes a node's mounts and control group; none of its programs runs yet. `lab` is the control group of all nodes.
    pub fn boot(node: &Node, namespace: &Namespace, lab: &str, ledger: &Arc<Ledger>) -> Result<Self> {
        let folder = ledger.state().directory.join("nodes").join(&node.name);
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let cgroup = format!("{lab}/{}", node.name);
        cgroups::make(&format!("{cgroup}/{SYSTEM}"))?;
        // Made anew by each boot.
        let booted = folder.join("booted");
        let _ = fs::remove_file(&booted);
        let mut arguments = joining(&cgroup)?;
        arguments.extend(namespace.enter_arguments());
        arguments.extend(["unshare", "--mount", "--uts", "--propagation", "slave", "--"].map(str::to_owned));
        arguments.extend(
            [
                "sh",
                "-c",
                BOOT,
                "boot",
                &folder.display().to_string(),
                &node.name,
            ]
            .map(str::to_owned),
        );
        let holder = Process::start(Program::new(format!("node-{}", node.name), arguments), ledger)?;
        wait_until(&format!("{} to have its mounts", node.name), UP_WITHIN, || {
            if !holder.runs() {
                return Ok(());
            }
            ensure!(booted.exists(), "not yet");
            Ok(())
        })?;
        holder.ensure_runs()?;
        Ok(Self {
            name: node.name.clone(),
            folder,
            cgroup,
            holder,
            containerd: None,
            kubelet: None,
            proxy: None,
            ledger: Arc::clone(ledger),
        })
    }

    /// Takes its power away: everything in its control group is killed, and with the last process go its mounts, so what was in /run and in the
    /// BPF file system. What is on its disk stays. `boot` makes it anew.
    pub fn power_off(mut self) -> Result<()> {
        cgroups::kill_within(&self.cgroup)?;
        for process in [self.kubelet.take(), self.proxy.take(), self.containerd.take()]
            .iter_mut()
            .flatten()
        {
            process.kill()?;
        }
        self.holder.kill()?;
        cgroups::remove(&self.cgroup)
    }

    /// Starts the container runtime and waits until it answers.
    pub fn start_containerd(&mut self) -> Result<()> {
        let file = self.folder.join("containerd.toml");
        fs::write(
            &file,
            settings::containerd(needs::cni_folder(&needs::CNI_PLUGINS)?),
        )
        .context("cannot write containerd's configuration")?;
        let mut program = self.program(
            "containerd",
            ["containerd", "--config", &file.display().to_string()],
        )?;
        // Looked up beside runc, in folders that are not on everybody's PATH.
        program.environment.push(("PATH".to_owned(), needs::path()));
        self.containerd = Some(Process::start(program, &self.ledger)?);
        self.wait_for_containerd()
    }

    /// Waits until the container runtime answers.
    pub fn wait_for_containerd(&mut self) -> Result<()> {
        let containerd = self.containerd()?;
        let pid = containerd.pid();
        let name = self.name.clone();
        wait_until(&format!("containerd of {name} to answer"), UP_WITHIN, || {
            if !self.containerd()?.runs() {
                return Ok(());
            }
            self.run("ctr", &["--address", RUNTIME_SOCKET, "version"])
                .map(drop)
        })?;
        self.containerd()?.ensure_runs()?;
        ensure!(
            self.containerd()?.pid() == pid,
            "containerd of {name} has been replaced"
        );
        Ok(())
    }

    /// Imports images, so that no registry is asked for them.
    pub fn import(&self, archives: &[PathBuf]) -> Result<()> {
        for archive in archives {
            let archive = archive.display().to_string();
            let said = self
                .images(&["import", &archive])
                .with_context(|| format!("cannot import {archive}"))?;
            // An OCI archive bears the name that it was given; Kubernetes asks for the whole one.
            for name in said.lines().filter_map(|line| line.strip_prefix("unpacking ")) {
                let name = name.split(' ').next().unwrap_or_default();
                let first = name.split('/').next().unwrap_or_default();
                if !first.contains(['.', ':']) {
                    self.images(&["tag", "--force", name, &format!("docker.io/{name}")])?;
                }
            }
        }
        Ok(())
    }

    /// The containers that run on the node, each with the number of its first process on the machine itself.
    pub fn tasks(&self) -> Result<Vec<(String, i32)>> {
        let listed = self.run(
            "ctr",
            &[
                "--address",
                RUNTIME_SOCKET,
                "--namespace",
                "k8s.io",
                "tasks",
                "list",
            ],
        )?;
        // TASK PID STATUS
        Ok(listed
            .lines()
            .filter_map(|line| {
                let mut words = line.split_whitespace();
                Some((words.next()?.to_owned(), words.next()?.parse().ok()?))
            })
            .collect())
    }

    /// `ctr images` of what the kubelet takes them from; its standard output.
    pub fn images(&self, arguments: &[&str]) -> Result<String> {
        let own = ["--address", RUNTIME_SOCKET, "--namespace", "k8s.io", "images"];
        let all: Vec<&str> = own.iter().chain(arguments).copied().collect();
        self.run("ctr", &all)
    }

    /// Starts the kubelet, which registers the node where there is none of its name.
    pub fn start_kubelet(
        &mut self,
        programs: &ClusterPrograms,
        control_plane: &ControlPlane,
        node: &Node,
    ) -> Result<()> {
        let address = node
            .internal_ip()
            .with_context(|| format!("{} has no address", node.name))?;
        let kubeconfig = control_plane.kubeconfig_for(&Identity::Kubelet(node.name.clone()), node)?;
        let serving = control_plane.authority().server(
            &format!("kubelet-serving-{}", node.name),
            vec![node.name.clone(), address.to_string()],
        )?;
        let resolver = self.folder.join("resolv.conf");
        // Nobody resolves names outside the cluster: there is no outside.
        fs::write(&resolver, "nameserver 192.0.2.1\n").context("cannot write resolv.conf")?;
        let configuration = settings::Kubelet {
            cgroup: &self.cgroup,
            authority: &control_plane.authority().certificate(),
            serving: (&serving.certificate, &serving.key),
            resolver: &resolver,
        };
        let file = self.folder.join("kubelet.json");
        fs::write(&file, configuration.configuration().to_string())
            .context("cannot write the kubelet's configuration")?;
        let mut program = self.program(
            "kubelet",
            [
                programs.kubelet.display().to_string(),
                format!("--config={}", file.display()),
                format!("--kubeconfig={}", kubeconfig.display()),
                format!("--hostname-override={}", node.name),
                format!("--node-ip={address}"),
            ],
        )?;
        program.environment.push(("PATH".to_owned(), needs::path()));
        self.kubelet = Some(Process::start(program, &self.ledger)?);
        Ok(())
    }

    /// Waits until the kubelet answers. One that has ended is started again, as systemd does: it ends where the container runtime has only
    /// begun to answer.
    pub fn wait_for_kubelet(&mut self) -> Result<()> {
        wait_until(
            &format!("the kubelet of {} to answer", self.name),
            UP_WITHIN,
            || {
                if !self.kubelet()?.runs() {
                    self.kubelet()?.restart()?;
                }
                self.run("curl", &["--silent", "--show-error", "--fail", KUBELET_HEALTH])
                    .map(drop)
            },
        )
    }

    /// Starts kube-proxy.
    pub fn start_proxy(
        &mut self,
        programs: &ClusterPrograms,
        control_plane: &ControlPlane,
        mode: ProxyMode,
        (node, topology): (&Node, &Topology),
    ) -> Result<()> {
        let kubeconfig = control_plane.kubeconfig_for(&Identity::Proxy, node)?;
        let mut words = vec![programs.kube_proxy.display().to_string()];
        words.extend(settings::proxy_arguments(
            &kubeconfig,
            &mode.to_string(),
            node,
            topology,
        ));
        let mut program = self.program("kube-proxy", words)?;
        program.environment.push(("PATH".to_owned(), needs::path()));
        self.proxy = Some(Process::start(program, &self.ledger)?);
        Ok(())
    }

    /// The container runtime's process, to stop and start again: pods go on without it.
    pub fn containerd(&mut self) -> Result<&mut Process> {
        self.containerd
            .as_mut()
            .with_context(|| format!("containerd of {} was not started", self.name))
    }

    /// The kubelet's process.
    pub fn kubelet(&mut self) -> Result<&mut Process> {
        self.kubelet
            .as_mut()
            .with_context(|| format!("the kubelet of {} was not started", self.name))
    }

    /// The same, to look at.
    pub(super) const fn kubelet_process(&self) -> Option<&Process> {
        self.kubelet.as_ref()
    }

    /// kube-proxy's process.
    pub fn proxy(&mut self) -> Result<&mut Process> {
        self.proxy
            .as_mut()
            .with_context(|| format!("kube-proxy of {} was not started", self.name))
    }

    /// Every program of the node that was started.
    pub fn processes(&self) -> impl Iterator<Item = &Process> {
        [
            Some(&self.holder),
            self.containerd.as_ref(),
            self.kubelet.as_ref(),
            self.proxy.as_ref(),
        ]
        .into_iter()
        .flatten()
    }

    /// Runs a program on the node, among its mounts and in its network; its standard output.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let output = self
            .command(program)
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot run {program}"))?;
        if !output.status.success() {
            bail!(
                "on {}: {program} {}: {}",
                self.name,
                arguments.join(" "),
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// A command that runs a program on the node.
    pub fn command(&self, program: &str) -> Command {
        let [enter, rest @ ..] = self.enter_arguments();
        let mut command = Command::new(enter);
        command.args(rest).arg(program).env("PATH", needs::path());
        command
    }

    /// The folder that has what the node's programs write: `etc`, `var`, `kubelet`, `containerd`.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn enter_arguments(&self) -> [String; 7] {
        [
            "nsenter".to_owned(),
            "--target".to_owned(),
            self.holder.pid().to_string(),
            "--mount".to_owned(),
            "--uts".to_owned(),
            "--net".to_owned(),
            "--".to_owned(),
        ]
    }

    fn program<T: Into<String>>(
        &self,
        what: &str,
        arguments: impl IntoIterator<Item = T>,
    ) -> Result<Program> {
        let mut all = joining(&self.cgroup)?;
        all.extend(self.enter_arguments());
        all.extend(arguments.into_iter().map(Into::into));
        Ok(Program::new(format!("{what}-{}", self.name), all))
    }
}

/// Where a kubelet says whether it works (`healthzBindAddress` and `healthzPort` where nothing else is said).
const KUBELET_HEALTH: &str = "http://127.0.0.1:10248/healthz";

/// The control group of a node's own programs, beside its pods'.
const SYSTEM: &str = "system";

/// The arguments that have what follows run in a node's control group.
fn joining(cgroup: &str) -> Result<Vec<String>> {
    let doors = cgroups::doors(&format!("{cgroup}/{SYSTEM}"))?;
    let mut arguments: Vec<String> = ["sh", "-c", JOIN, "join"].map(str::to_owned).to_vec();
    arguments.extend(doors.iter().map(|door| door.display().to_string()));
    arguments.push("--".to_owned());
    Ok(arguments)
}
