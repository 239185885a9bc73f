//! A real etcd and Kubernetes API server in one node's network namespace, and identities for those who speak to it.

mod identity;

use std::fs;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

pub use self::identity::Identity;
use crate::certificates::Authority;
use crate::kubectl::Kubectl;
use crate::ledger::{self, HostLink, Ledger};
use crate::netns::Namespace;
use crate::process::{Process, Program};
use crate::programs::{self, ControlPlanePrograms};
use crate::topology::{Node, Topology};
use crate::wait::wait_until;

/// The namespace that Podlane's own namespaced objects are in.
pub const SYSTEM_NAMESPACE: &str = "podlane-system";

/// The names, without their endings, of the files with the key that signs service accounts' tokens.
const SERVICE_ACCOUNTS: &str = "service-accounts";

/// The address of the cluster's resolver, out of the Services' range.
pub const KUBERNETES_DNS: &str = "10.96.0.10";

const API_PORT: u16 = 6443;
const READY_WITHIN: Duration = Duration::from_secs(60);

/// etcd, the API server and what is needed to speak to it.
#[derive(Debug)]
pub struct ControlPlane {
    kubectl: Kubectl,
    authority: Authority,
    directory: PathBuf,
    /// The addresses of its node.
    inside: Vec<IpAddr>,
    /// Where the machine itself reaches it.
    outside: SocketAddr,
    apiserver: Process,
    etcd: Process,
}

impl ControlPlane {
    /// Starts both in `node`'s namespace and waits until the API server is ready. `kubeconfig` is written for the
    /// administrator on the machine itself.
    pub fn start(
        programs: &ControlPlanePrograms,
        node: &Node,
        namespace: &Namespace,
        host_link: &HostLink,
        kubeconfig: &Path,
        ledger: &Arc<Ledger>,
    ) -> Result<Self> {
        let directory = ledger.state().directory;
        let authority = Authority::create(&directory.join("pki"))?;
        let address = node
            .internal_ip()
            .with_context(|| format!("{} has no address", node.name))?;
        let (_, outside) = host_link.addresses()?;

        let etcd = start_etcd(&programs.etcd, namespace, &directory, ledger)?;
        let alternatives = [
            "localhost",
            "127.0.0.1",
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
        ]
        .into_iter()
        .map(str::to_owned)
        .chain(node.all_addresses().map(|own| own.addr().to_string()))
        .chain([outside.to_string(), "10.96.0.1".to_owned()])
        .collect();
        let serving = authority.server("kube-apiserver", alternatives)?;
        let accounts = authority.key_pair(SERVICE_ACCOUNTS)?;
        // For `kubectl logs` and `exec`, where there are kubelets.
        let of_kubelets = authority.client(
            "kube-apiserver-kubelet-client",
            "kube-apiserver",
            "system:masters",
        )?;

        let of_families = [(false, "10.96.0.0/16"), (true, "fd00:10:96::/112")];
        // The first one's family is that of the Service kubernetes, whose pod has the address that is advertised.
        let first = of_families.iter().filter(|(six, _)| *six == address.is_ipv6());
        let other = of_families.iter().filter(|(six, _)| {
            *six != address.is_ipv6() && node.addresses.iter().any(|own| own.addr().is_ipv6() == *six)
        });
        let services: Vec<&str> = first.chain(other).map(|(_, services)| *services).collect();
        let services = services.join(",");
        let file = |path: &Path| path.display().to_string();
        let mut program = Program::new(
            "kube-apiserver",
            [
                file(&programs.kube_apiserver),
                "--etcd-servers=http://127.0.0.1:2379".into(),
                format!("--secure-port={API_PORT}"),
                format!("--advertise-address={address}"),
                format!("--service-cluster-ip-range={services}"),
                "--authorization-mode=Node,RBAC".into(),
                "--enable-admission-plugins=NodeRestriction".into(),
                "--allow-privileged=true".into(),
                format!("--cert-dir={}", file(&directory.join("pki"))),
                format!("--tls-cert-file={}", file(&serving.certificate)),
                format!("--tls-private-key-file={}", file(&serving.key)),
                format!("--client-ca-file={}", file(&authority.certificate())),
                "--service-account-issuer=https://kubernetes.default.svc".into(),
                format!("--service-account-key-file={}", file(&accounts.certificate)),
                format!("--service-account-signing-key-file={}", file(&accounts.key)),
                format!(
                    "--kubelet-certificate-authority={}",
                    file(&authority.certificate())
                ),
                format!("--kubelet-client-certificate={}", file(&of_kubelets.certificate)),
                format!("--kubelet-client-key={}", file(&of_kubelets.key)),
                "--kubelet-preferred-address-types=InternalIP".into(),
            ],
        )
        .within(namespace);
        // A stopped API server otherwise keeps its port for a minute of politeness.
        program.arguments.push("--shutdown-delay-duration=0s".into());
        let apiserver = Process::start(program, ledger)?;

        let kubectl = Kubectl::new(
            programs.kubectl.clone(),
            kubeconfig.to_owned(),
            directory.join("kubectl-cache"),
        );
        let control_plane = Self {
            kubectl,
            authority,
            directory,
            inside: node.all_addresses().map(|own| own.addr()).collect(),
            outside: SocketAddr::new(outside, API_PORT),
            apiserver,
            etcd,
        };
        control_plane.write_kubeconfig(&Identity::Admin, control_plane.outside, kubeconfig)?;
        control_plane.wait_until_ready()?;
        Ok(control_plane)
    }

    /// Waits until the API server says that it is ready.
    pub fn wait_until_ready(&self) -> Result<()> {
        wait_until("the API server to be ready", READY_WITHIN, || {
            if !self.etcd.runs() || !self.apiserver.runs() {
                return Ok(());
            }
            self.kubectl
                .run(&["get", "--raw=/readyz", "--request-timeout=2s"])
                .map(drop)
        })?;
        self.etcd.ensure_runs()?;
        self.apiserver.ensure_runs()
    }

    /// kubectl as the administrator, from the machine itself.
    pub fn kubectl(&self) -> &Kubectl {
        &self.kubectl
    }

    /// Who signs certificates in this cluster.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// The key that signs service accounts' tokens.
    pub fn service_accounts_key(&self) -> PathBuf {
        self.directory.join("pki").join(format!("{SERVICE_ACCOUNTS}.key"))
    }

    /// The API server's process, to freeze, stop and start again.
    pub fn apiserver(&mut self) -> &mut Process {
        &mut self.apiserver
    }

    /// etcd's process.
    pub fn etcd(&mut self) -> &mut Process {
        &mut self.etcd
    }

    /// Kills the API server: nobody answers on its port until `start_apiserver`.
    pub fn stop_apiserver(&mut self) -> Result<()> {
        self.apiserver.kill().map(drop)
    }

    /// Starts the API server again and waits until it is ready.
    pub fn start_apiserver(&mut self) -> Result<()> {
        self.apiserver.restart()?;
        self.wait_until_ready()
    }

    /// A kubeconfig for something on a node of the lab, with a client certificate of its own. It names the API server by the first address of a
    /// family that the node has.
    pub fn kubeconfig_for(&self, identity: &Identity, on: &Node) -> Result<PathBuf> {
        let (file, ..) = identity.names();
        let path = self.directory.join(format!("{file}.kubeconfig"));
        self.write_kubeconfig(identity, self.reached_from(on)?, &path)?;
        Ok(path)
    }

    /// A kubeconfig with a service account's token, for something on a node of the lab, or on the machine itself.
    pub fn kubeconfig_with_token(&self, file: &str, token: &str, on: Option<&Node>) -> Result<PathBuf> {
        let path = self.directory.join(format!("{file}.kubeconfig"));
        let server = on.map_or(Ok(self.outside), |node| self.reached_from(node))?;
        self.write(&path, server, file, &format!("{{token: \"{token}\"}}"))?;
        Ok(path)
    }

    fn reached_from(&self, on: &Node) -> Result<SocketAddr> {
        let is_reachable = |server: &&IpAddr| {
            on.all_addresses()
                .any(|own| own.addr().is_ipv6() == server.is_ipv6())
        };
        let server =
            self.inside.iter().find(is_reachable).with_context(|| {
                format!("{} has no address family in common with the API server", on.name)
            })?;
        Ok(SocketAddr::new(*server, API_PORT))
    }

    fn write_kubeconfig(&self, identity: &Identity, server: SocketAddr, path: &Path) -> Result<()> {
        let (file, user, group) = identity.names();
        let client = self.authority.client(&file, &user, group)?;
        let credentials = format!(
            "{{client-certificate: \"{}\", client-key: \"{}\"}}",
            client.certificate.display(),
            client.key.display()
        );
        self.write(path, server, &user, &credentials)
    }

    fn write(&self, path: &Path, server: SocketAddr, user: &str, credentials: &str) -> Result<()> {
        let text = format!(
            "apiVersion: v1\n\
             kind: Config\n\
             current-context: podlane-lab\n\
             clusters:\n\
             - name: podlane-lab\n  \
               cluster: {{server: \"https://{server}\", certificate-authority: \"{}\"}}\n\
             users:\n\
             - name: \"{user}\"\n  \
               user: {credentials}\n\
             contexts:\n\
             - name: podlane-lab\n  \
               context: {{cluster: podlane-lab, user: \"{user}\"}}\n",
            self.authority.certificate().display(),
        );
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Makes the Node objects that kubelets would make, with the seed's addresses and pod CIDRs. Where there are kubelets, the status is
    /// left to them.
    pub fn create_nodes(&self, topology: &Topology, kubelets: bool) -> Result<()> {
        let of = |node: &Node| {
            let mut object = node_object(node);
            if kubelets && let Some(fields) = object.as_object_mut() {
                fields.remove("status");
            }
            object
        };
        let items: Vec<Value> = topology.nodes.iter().map(of).collect();
        let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
        self.kubectl.create(&list.to_string()).map(drop)
    }

    /// Makes Podlane's namespace, roles and types.
    pub fn install_podlane(&self) -> Result<()> {
        let types = programs::repository().join("crds/yaml");
        let has_types = fs::read_dir(&types).is_ok_and(|mut files| files.next().is_some());
        if !has_types {
            bail!(
                "there are no types in {}: write them by `make crds`",
                types.display()
            );
        }
        let types = types.display().to_string();
        let rbac = programs::sources()
            .join("manifests/rbac.yaml")
            .display()
            .to_string();
        self.kubectl
            .run(&["apply", "--server-side", "-f", &types, "-f", &rbac])?;
        self.kubectl.run(&[
            "wait",
            "--for=condition=Established",
            "--timeout=30s",
            "-f",
            &types,
        ])?;
        // The API server obeys a role a moment after it is made.
        let granted: [&[&str]; 2] = [
            &[
                "watch",
                "peerslices.podlane.io",
                "--as=podlane-agent:any",
                "--as-group=podlane:agents",
            ],
            &[
                "update",
                "leases.coordination.k8s.io/podlane-operator",
                "--as=podlane-operator",
                "--namespace",
                SYSTEM_NAMESPACE,
            ],
        ];
        for grant in granted {
            let question: Vec<&str> = ["auth", "can-i"].iter().chain(grant).copied().collect();
            wait_until("Podlane's roles to be obeyed", READY_WITHIN, || {
                self.kubectl.run(&question).map(drop)
            })?;
        }
        Ok(())
    }
}

fn start_etcd(
    program: &Path,
    namespace: &Namespace,
    directory: &Path,
    ledger: &Arc<Ledger>,
) -> Result<Process> {
    let client = "http://127.0.0.1:2379";
    let peer = "http://127.0.0.1:2380";
    let etcd = Process::start(
        Program::new(
            "etcd",
            [
                program.display().to_string(),
                format!("--data-dir={}", directory.join("etcd").display()),
                format!("--listen-client-urls={client}"),
                format!("--advertise-client-urls={client}"),
                format!("--listen-peer-urls={peer}"),
                format!("--initial-advertise-peer-urls={peer}"),
                format!("--initial-cluster=default={peer}"),
                // Nothing of the lab outlives it.
                "--unsafe-no-fsync".to_owned(),
                "--log-level=warn".to_owned(),
            ],
        )
        .within(namespace),
        ledger,
    )?;
    wait_until("etcd to listen", READY_WITHIN, || {
        if !etcd.runs() {
            return Ok(());
        }
        namespace.within(|| {
            TcpStream::connect_timeout(&SocketAddr::from(([127, 0, 0, 1], 2379)), Duration::from_secs(1))
                .map(drop)
                .context("127.0.0.1:2379")
        })
    })?;
    etcd.ensure_runs()?;
    Ok(etcd)
}

/// The Node that this node's kubelet would make; the lab runs none, and its condition says so.
pub fn node_object(node: &Node) -> Value {
    let cidrs: Vec<String> = node.pod_cidrs.iter().map(ToString::to_string).collect();
    let mut addresses: Vec<Value> = node
        .all_addresses()
        .map(|address| json!({"type": "InternalIP", "address": address.addr().to_string()}))
        .collect();
    addresses.push(json!({"type": "Hostname", "address": node.name}));
    let mut spec = json!({});
    if let Some(first) = cidrs.first() {
        spec = json!({"podCIDR": first, "podCIDRs": cidrs});
    }
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": node.name, "labels": {"kubernetes.io/hostname": node.name, "kubernetes.io/os": "linux"}},
        "spec": spec,
        "status": {
            "addresses": addresses,
            "conditions": [{
                "type": "Ready",
                "status": "True",
                "reason": "PodlaneLab",
                "message": "a network namespace of the lab; no kubelet runs here",
            }],
        },
    })
}

/// The kubeconfig of the lab's administrator on the machine itself.
pub fn admin_kubeconfig(lab: &str) -> PathBuf {
    ledger::directory_of(lab).join("kubeconfig")
}
