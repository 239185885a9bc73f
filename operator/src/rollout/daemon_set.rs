//! The agents' DaemonSet, out of the configuration: a pure function.
//!
//! What an agent is allowed follows from what it does (docs/operating.md, "What the agent needs"): three capabilities, the
//! node's network, its BPF file system, and /proc/sys/net, which is writable only where it is mounted a second time.

use super::agent_labels;
use crate::configuration::Agents;
use fnv::FnvHasher;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hasher as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The label by which a pod tells from which template it is.
pub const TEMPLATE: &str = "podlane.io/template";

/// Where the node's /proc/sys/net is in an agent's container.
const SYSCTLS: &str = "/host/proc/sys";

/// Where the node's directory of CNI configurations is in an agent's container.
const CNI: &str = "/host/cni";

/// Where the node's kernel modules are, on the node and in an agent's container.
const MODULES: &str = "/lib/modules";

/// Nodes that are left out by name, at most: an object has to be small enough to be kept. Whoever has more gives agents.nodeSelector.
const MOST_EXCLUDED: usize = 1000;

/// Who owns the DaemonSet: it goes when that goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The Deployment's name.
    pub name: String,
    /// Its `metadata.uid`.
    pub uid: String,
}

/// The DaemonSet as it is to be, for server-side apply.
#[derive(Clone, Debug, PartialEq)]
pub struct Declared {
    /// The object.
    pub object: Value,
    /// A name for the pods' template: one is another where anything in it is.
    pub template: String,
}

/// The DaemonSet. No pod of it comes to the nodes in `without`, and one that is there goes.
pub fn declare(agents: &Agents, namespace: &str, owner: &Owner, without: &BTreeSet<String>) -> Declared {
    let mut template = pod_template(agents);
    let name = fingerprint(&template);
    template["metadata"]["labels"][TEMPLATE] = name.as_str().into();
    // Not in the name: where else there is no agent makes none another.
    if !without.is_empty() {
        template["spec"]["affinity"] = elsewhere(without);
    }
    let object = json!({
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {
            "name": agents.name,
            "namespace": namespace,
            "labels": agents.labels,
            "ownerReferences": [
                {"apiVersion": "apps/v1", "kind": "Deployment", "name": owner.name, "uid": owner.uid},
            ],
        },
        "spec": {
            "selector": {"matchLabels": agent_labels()},
            // Pods are replaced by the operator, each once the one before has proved its lanes.
            "updateStrategy": {"type": "OnDelete"},
            "template": template,
        },
    });
    Declared {
        object,
        template: name,
    }
}

fn pod_template(agents: &Agents) -> Value {
    let mut labels: BTreeMap<String, String> = agents.pod_labels.clone();
    let own = agent_labels()
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value.to_owned()));
    labels.extend(own);
    let mut spec = json!({
        "serviceAccountName": agents.service_account,
        "hostNetwork": true,
        // The node's resolver: the cluster's is a pod, which needs an agent to be reached.
        "dnsPolicy": "Default",
        "terminationGracePeriodSeconds": 10,
        "imagePullSecrets": agents.image_pull_secrets,
        "nodeSelector": agents.node_selector,
        "tolerations": agents.tolerations,
        "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container(agents)],
        "volumes": volumes(agents),
    });
    if !agents.priority_class_name.is_empty() {
        spec["priorityClassName"] = agents.priority_class_name.as_str().into();
    }
    json!({"metadata": {"labels": labels, "annotations": agents.pod_annotations}, "spec": spec})
}

/// Any node but those. By their names: labels would have to be written to Nodes first, which is a right over every node.
fn elsewhere(without: &BTreeSet<String>) -> Value {
    let fields: Vec<Value> = without
        .iter()
        .take(MOST_EXCLUDED)
        // The API takes one value a field.
        .map(|name| json!({"key": "metadata.name", "operator": "NotIn", "values": [name]}))
        .collect();
    json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
        "nodeSelectorTerms": [{"matchFields": fields}],
    }}})
}

fn volumes(agents: &Agents) -> Vec<Value> {
    let mut volumes = vec![
        json!({"name": "bpffs", "hostPath": {"path": "/sys/fs/bpf", "type": "Directory"}}),
        json!({"name": "sysctls", "hostPath": {"path": "/proc/sys/net", "type": "Directory"}}),
    ];
    if let Some(cni) = &agents.cni {
        // Not there yet where the container runtime is new.
        volumes.push(json!({"name": "cni", "hostPath": {"path": cni.conf_dir, "type": "DirectoryOrCreate"}}));
    }
    if agents.load_modules {
        volumes.push(json!({"name": "modules", "hostPath": {"path": MODULES, "type": "Directory"}}));
    }
    volumes
}

fn container(agents: &Agents) -> Value {
    let field = |path: &str| json!({"fieldRef": {"fieldPath": path}});
    let mut environment = vec![
        json!({"name": "NODE_NAME", "valueFrom": field("spec.nodeName")}),
        json!({"name": "PODLANE_INSTANCE", "valueFrom": field("metadata.uid")}),
        json!({"name": "RUST_LOG", "value": agents.log_level}),
    ];
    if let Some(server) = &agents.api_server {
        environment.push(json!({"name": "KUBERNETES_SERVICE_HOST", "value": server.host}));
        environment.push(json!({"name": "KUBERNETES_SERVICE_PORT", "value": server.port.to_string()}));
    }
    let mut arguments = vec![
        format!("--log-format={}", agents.log_format),
        format!("--metrics={}", agents.metrics),
        format!("--sysctls={SYSCTLS}"),
    ];
    let mut mounts = vec![
        // Also where the node mounts its BPF file system later on.
        json!({"name": "bpffs", "mountPath": "/sys/fs/bpf", "mountPropagation": "HostToContainer"}),
        json!({"name": "sysctls", "mountPath": format!("{SYSCTLS}/net")}),
    ];
    if let Some(cni) = &agents.cni {
        arguments.push(format!("--cni-conf-dir={CNI}"));
        arguments.push(format!("--cni-conf-name={}", cni.conf_name));
        mounts.push(json!({"name": "cni", "mountPath": CNI}));
    }
    let mut capabilities = vec!["NET_ADMIN", "BPF", "PERFMON"];
    if agents.load_modules {
        arguments.push(format!("--load-modules={MODULES}"));
        mounts.push(json!({"name": "modules", "mountPath": MODULES, "readOnly": true}));
        capabilities.push("SYS_MODULE");
    }
    json!({
        "name": "agent",
        "image": agents.image,
        "imagePullPolicy": agents.image_pull_policy,
        "args": arguments,
        "env": environment,
        "resources": agents.resources,
        // Its loop turns. A pass over thousands of new routes takes a second or two, and an agent that is killed takes nothing away.
        "livenessProbe": probed(&agents.metrics, "/healthz", &json!({
            "initialDelaySeconds": 15, "periodSeconds": 30, "timeoutSeconds": 10, "failureThreshold": 3,
        })),
        // The node's state is applied and its lanes are proved.
        "readinessProbe": probed(&agents.metrics, "/readyz", &json!({"periodSeconds": 5, "timeoutSeconds": 5})),
        "securityContext": {
            // Capabilities are for root alone: Kubernetes gives no others ambient ones. Of root nothing else is left.
            "runAsUser": 0,
            "privileged": false,
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"], "add": capabilities},
        },
        "volumeMounts": mounts,
    })
}

/// How a kubelet asks the agent whether it is well: where it serves its metrics, on the node's own network.
fn probe(metrics: &str, path: &str) -> Value {
    let Ok(address) = metrics.parse::<SocketAddr>() else {
        return Value::Null;
    };
    let host = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    json!({"httpGet": {"host": host, "port": address.port(), "path": path}})
}

/// A probe with what else it is told.
fn probed(metrics: &str, path: &str, more: &Value) -> Value {
    let mut probe = probe(metrics, path);
    if let (Some(probe), Some(more)) = (probe.as_object_mut(), more.as_object()) {
        probe.extend(more.clone());
    }
    probe
}

/// FNV-1a, 64 bits, of the JSON, whose members are in the order of their names.
fn fingerprint(template: &Value) -> String {
    let mut hash = FnvHasher::default();
    hash.write(template.to_string().as_bytes());
    format!("{:016x}", hash.finish())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::configuration::tests::agents;

    fn declared(change: impl FnOnce(&mut Agents)) -> Declared {
        let mut agents = agents();
        change(&mut agents);
        let owner = Owner {
            name: agents.owner.clone(),
            uid: "u".to_owned(),
        };
        declare(&agents, "podlane-system", &owner, &BTreeSet::new())
    }

    #[test]
    fn an_agent_has_no_more_rights_than_it_needs() {
        let object = declared(|_| {}).object;
        let pod = &object["spec"]["template"]["spec"];
        let container = &pod["containers"][0];
        let security = &container["securityContext"];
        assert_eq!(
            security["capabilities"],
            json!({"drop": ["ALL"], "add": ["NET_ADMIN", "BPF", "PERFMON"]})
        );
        assert_eq!(
            (
                &security["privileged"],
                &security["allowPrivilegeEscalation"],
                &security["readOnlyRootFilesystem"]
            ),
            (&json!(false), &json!(false), &json!(true))
        );
        assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
        assert!(pod.get("hostPID").is_none() && pod.get("hostIPC").is_none());
        let paths: Vec<_> = pod["volumes"]
            .as_array()
            .expect("volumes")
            .iter()
            .map(|volume| volume["hostPath"]["path"].as_str().expect("a hostPath"))
            .collect();
        assert_eq!(paths, ["/sys/fs/bpf", "/proc/sys/net", "/etc/cni/net.d"]);
    }

    #[test]
    fn a_kubelet_asks_where_the_agent_answers() {
        for (metrics, host, port) in [
            ("127.0.0.1:9964", "127.0.0.1", 9964),
            ("0.0.0.0:9965", "127.0.0.1", 9965),
            ("[::]:9965", "::1", 9965),
            ("192.168.10.100:80", "192.168.10.100", 80),
        ] {
            let object = declared(|agents| metrics.clone_into(&mut agents.metrics)).object;
            let container = &object["spec"]["template"]["spec"]["containers"][0];
            for (probe, path) in [("readinessProbe", "/readyz"), ("livenessProbe", "/healthz")] {
                assert_eq!(
                    container[probe]["httpGet"],
                    json!({"host": host, "port": port, "path": path}),
                    "{metrics}"
                );
            }
        }
    }

    #[test]
    fn modules_are_loaded_only_where_that_is_asked_for() {
        let object = declared(|agents| agents.load_modules = true).object;
        let pod = &object["spec"]["template"]["spec"];
        let container = &pod["containers"][0];
        assert_eq!(
            container["securityContext"]["capabilities"]["add"],
            json!(["NET_ADMIN", "BPF", "PERFMON", "SYS_MODULE"])
        );
        let mounts = container["volumeMounts"].as_array().expect("mounts");
        let modules = mounts.iter().find(|mount| mount["name"] == "modules");
        assert_eq!(
            modules,
            Some(&json!({"name": "modules", "mountPath": "/lib/modules", "readOnly": true}))
        );
        assert!(
            container["args"]
                .as_array()
                .expect("arguments")
                .contains(&json!("--load-modules=/lib/modules"))
        );
        assert!(!declared(|_| {}).object.to_string().contains("modules"));
    }

    #[test]
    fn a_template_has_another_name_when_anything_in_it_is_another() {
        let before = declared(|_| {});
        assert_eq!(before, declared(|_| {}));
        let template = &before.object["spec"]["template"];
        assert_eq!(template["metadata"]["labels"][TEMPLATE], before.template.as_str());
        for change in [
            |agents: &mut Agents| agents.image = "podlane/agent:0.2.0".to_owned(),
            |agents: &mut Agents| agents.resources = json!({}),
            |agents: &mut Agents| agents.api_server = None,
            |agents: &mut Agents| agents.cni = None,
        ] {
            assert_ne!(declared(change).template, before.template);
        }
        // What is not in it replaces no pod.
        let relabelled = declared(|agents| agents.labels.clear());
        assert_eq!(relabelled.template, before.template);
    }

    #[test]
    fn nodes_without_an_agent_are_left_out_and_no_other_agent_is_replaced_for_it() {
        let agents = agents();
        let owner = Owner {
            name: agents.owner.clone(),
            uid: "u".to_owned(),
        };
        let without = BTreeSet::from(["old-1".to_owned(), "old-2".to_owned()]);
        let declared = declare(&agents, "podlane-system", &owner, &without);
        let affinity = &declared.object["spec"]["template"]["spec"]["affinity"]["nodeAffinity"];
        let terms = &affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"];
        assert_eq!(
            *terms,
            json!([{"matchFields": [
                {"key": "metadata.name", "operator": "NotIn", "values": ["old-1"]},
                {"key": "metadata.name", "operator": "NotIn", "values": ["old-2"]},
            ]}])
        );
        let all = declare(&agents, "podlane-system", &owner, &BTreeSet::new());
        assert_eq!(all.template, declared.template);
        assert_ne!(all.object, declared.object);
    }

    #[test]
    fn pods_are_found_by_their_labels_whatever_else_they_are_labelled() {
        let object = declared(|agents| {
            agents
                .pod_labels
                .insert("app.kubernetes.io/name".to_owned(), "mine".to_owned());
        })
        .object;
        let selector = object["spec"]["selector"]["matchLabels"]
            .as_object()
            .expect("labels");
        for (key, value) in selector {
            assert_eq!(&object["spec"]["template"]["metadata"]["labels"][key], value);
        }
    }
}
