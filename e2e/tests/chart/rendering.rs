//! What the chart makes of values.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context as _, Result, bail, ensure};
use podlane_e2e::helm::{Helm, HelmPrograms, KUBERNETES, chart};
use podlane_e2e::scenario::Context;
use podlane_operator::configuration::Configuration;
use podlane_operator::rollout::daemon_set::{Owner, declare};

use super::installed::helm_of;

/// Values, each a `--set`.
const VARIANTS: [&[&str]; 11] = [
    &[],
    &[
        "cni.install=false",
        "firstPolicy.routingMode=native",
        "firstPolicy.masquerade.mode=Always",
    ],
    &[
        "ipam.clusterPoolIPv4PodCIDRList={172.20.0.0/16,172.21.0.0/16}",
        "ipam.clusterPoolIPv6PodCIDRList={fd00:20::/104}",
        "ipam.clusterPoolIPv6MaskSize=112",
        "cni.confDir=/var/lib/rancher/k3s/agent/etc/cni/net.d",
    ],
    &[
        "firstPolicy.routingMode=tunnel",
        "firstPolicy.tunnel.protocol=geneve",
        "firstPolicy.mtu=576",
        "firstPolicy.priority=-1",
        "firstPolicy.nodeSelector.matchLabels.role=edge",
        "firstPolicy.nodeSelector.matchExpressions[0].key=zone",
        "firstPolicy.nodeSelector.matchExpressions[0].operator=Exists",
    ],
    &[
        "firstPolicy.routingMode=native",
        "firstPolicy.mtu=1280",
        "firstPolicy.nativeRoutingCIDRs={172.20.0.0/16,fd00:20::/48}",
        "firstPolicy.nodeSelector.matchExpressions[0].key=zone",
        "firstPolicy.nodeSelector.matchExpressions[0].operator=In",
        "firstPolicy.nodeSelector.matchExpressions[0].values={a,b}",
        "agents.patienceSeconds=600",
    ],
    &[
        "clusterPodCIDRs={172.20.0.0/16,fd00:20::/48}",
        "k8sServiceHost=fd00:10::1",
        "k8sServicePort=443",
    ],
    &[
        "operator.hostNetwork=false",
        "networkPolicy.enabled=false",
        "crds.install=false",
    ],
    &[
        "operator.image.repository=registry.example/podlane/operator",
        "agents.image.digest=sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
        "imagePullSecrets[0].name=registry",
    ],
    &[
        "operator.replicas=1",
        "operator.maxUnavailable=50%",
        "operator.podLabels.team=network",
        "operator.podLabels.app\\.kubernetes\\.io/name=not-podlane",
        "agents.podLabels.team=network",
        "agents.podAnnotations.note=a\\,b: {c}",
        "agents.logLevel=podlane_agent=debug\\,warn",
    ],
    &[
        "keepDatapath=true",
        "uninstall.patienceSeconds=3600",
        "agents.loadModules=true",
    ],
    &[
        "operator.tolerations=null",
        "agents.tolerations=null",
        "agents.resources=null",
        "operator.priorityClassName=",
        "agents.priorityClassName=",
    ],
];

pub(crate) fn render(helm: &Helm, values: &[&str], more: &[&str]) -> Result<String> {
    let chart = chart().display().to_string();
    let mut arguments = vec!["template", "podlane", &chart, "--namespace", "podlane-system"];
    arguments.extend(values.iter().flat_map(|value| ["--set", value]));
    arguments.extend(more);
    helm.run(&arguments)
}

pub(crate) fn refused(_: &mut Context) -> Result<()> {
    let networks: Vec<String> = (0..17).map(|third| format!("172.20.{third}.0/24")).collect();
    let seventeen = format!("ipam.clusterPoolIPv4PodCIDRList={{{}}}", networks.join(","));
    for helm in HelmPrograms::find()?.helms {
        for (value, name) in [
            ("operater.replicas=2", "operater"),
            ("operator.replica=2", "replica"),
            ("operator.image.tga=1", "tga"),
            ("operator.replicas=two", "replicas"),
            ("operator.logFormat=xml", "logFormat"),
            ("operator.resources.limit.memory=1Gi", "limit"),
            ("agents.resources.limits.memory=much", "memory"),
            ("agents.image.digest=sha1:00", "digest"),
            ("agents.metrics=9964", "metrics"),
            ("agents.tolerations[0].operater=Exists", "operater"),
            ("agents.metrics=127.0.0.1:65536", "metrics"),
            ("agents.metrics=127.0.0.1:0", "metrics"),
            ("agents.patienceSeconds=0", "patienceSeconds"),
            ("agents.privileged=true", "privileged"),
            ("agents.loadModules=vxlan", "loadModules"),
            ("clusterPodCIDRs={pods}", "clusterPodCIDRs"),
            ("clusterPodCIDRs={172.20.0.0/33}", "clusterPodCIDRs"),
            ("clusterPodCIDRs={fd00:20::/129}", "clusterPodCIDRs"),
            (
                "ipam.clusterPoolIPv4PodCIDRList={172.20.0.0/99}",
                "clusterPoolIPv4PodCIDRList",
            ),
            (
                "ipam.clusterPoolIPv4PodCIDRList={fd00:20::/104}",
                "clusterPoolIPv4PodCIDRList",
            ),
            (
                "ipam.clusterPoolIPv6PodCIDRList={172.20.0.0/16}",
                "clusterPoolIPv6PodCIDRList",
            ),
            (&seventeen, "clusterPoolIPv4PodCIDRList"),
            ("ipam.clusterPoolIPv4MaskSize=31", "clusterPoolIPv4MaskSize"),
            ("ipam.clusterPoolIPv6MaskSize=127", "clusterPoolIPv6MaskSize"),
            ("k8sServicePort=0", "k8sServicePort"),
            ("k8sServiceHost=https://192.168.10.100", "k8sServiceHost"),
            ("firstPolicy.routingMode=bridge", "routingMode"),
            ("firstPolicy.offLinkPeers=tunnel", "routingMode"),
            ("firstPolicy.tunnel.vni=16777216", "vni"),
            ("firstPolicy.routes=1", "routes"),
            // Kubernetes drops what it does not know, and a selector without labels selects every node.
            ("firstPolicy.nodeSelector.role=edge", "role"),
            (
                "firstPolicy.nodeSelector.matchExpressions[0].key=role,firstPolicy.nodeSelector.matchExpressions[0].operator=In",
                "values",
            ),
            ("firstPolicy.mtu=575", "mtu"),
            ("firstPolicy.mtu=-1", "mtu"),
            (
                "firstPolicy.mtu=1279,firstPolicy.nativeRoutingCIDRs={fd00:20::/48}",
                "mtu",
            ),
            ("networkPolicy.ports=1", "ports"),
            ("crds.keep=false", "keep"),
            ("keepDatapath=1", "keepDatapath"),
            ("uninstall.patience=5", "patience"),
            ("uninstall.patienceSeconds=0", "patienceSeconds"),
        ] {
            match render(&helm, &[value], &[]) {
                Ok(_) => bail!("Helm {} takes {value}", helm.major),
                Err(error) => {
                    let words = format!("{error:#}");
                    let said = words.split_once("schema").map_or("", |(_, said)| said);
                    ensure!(
                        said.contains(name),
                        "refused, but without the name {name}: {words}"
                    );
                }
            }
        }
    }
    Ok(())
}

pub(crate) fn rendered(_: &mut Context) -> Result<()> {
    let programs = HelmPrograms::find()?;
    let chart = chart().display().to_string();
    // Each document once: Python takes its time over the types.
    let mut all = BTreeSet::new();
    for values in VARIANTS {
        let [three, four] = &programs.helms;
        let text = render(four, values, &[])?;
        // They differ in empty lines.
        let lines = |text: &str| -> Vec<String> {
            let lines = text.lines().filter(|line| !line.is_empty());
            lines.map(str::to_owned).collect()
        };
        ensure!(
            lines(&text) == lines(&render(three, values, &[])?),
            "Helm 3 and Helm 4 render different things of {values:?}"
        );
        for helm in &programs.helms {
            let sets = values.iter().flat_map(|value| ["--set", value]);
            let arguments: Vec<&str> = ["lint", "--strict", &chart].into_iter().chain(sets).collect();
            helm.run(&arguments)?;
        }
        let keeps = text.matches("helm.sh/resource-policy: keep").count();
        let types = text.matches("kind: CustomResourceDefinition\n").count();
        let expected = if values.contains(&"crds.install=false") {
            0
        } else {
            3
        };
        ensure!(
            (types, keeps) == (expected, expected),
            "{types} types, {keeps} of them kept: {values:?}"
        );
        let daemon_set = daemon_set(&text).with_context(|| format!("{values:?}"))?;
        let documents = text.split("\n---\n").chain([daemon_set.as_str()]);
        all.extend(documents.map(|document| document.trim().trim_start_matches("---\n").to_owned()));
    }
    // The oldest cluster that it is for takes it, and the one before does not.
    for (version, is_taken) in [("v1.29.9", false), ("v1.30.0", true), ("v1.30.1-gke.1", true)] {
        for helm in &programs.helms {
            let taken = render(helm, &[], &["--kube-version", version]).is_ok();
            ensure!(taken == is_taken, "Helm {}: {version} taken: {taken}", helm.major);
        }
    }
    let directory = std::env::temp_dir().join(format!("podlane-chart-{}", std::process::id()));
    fs::create_dir_all(&directory)?;
    let file = directory.join("rendered.yaml");
    fs::write(&file, all.into_iter().collect::<Vec<_>>().join("\n---\n"))?;
    let checked = check(&programs, &file);
    fs::remove_dir_all(&directory)?;
    checked
}

/// Helm 3 renders notes only in sight of a cluster: there a scenario of an installed chart reads them.
pub(crate) fn noted(_: &mut Context) -> Result<()> {
    let chart = chart().display().to_string();
    for (values, told, not_told) in [
        (
            &["clusterPodCIDRs={172.20.0.0/16}"] as &[&str],
            ["kubectl apply -f -", "kind: RoutingPolicy"],
            "The operator makes the RoutingPolicy",
        ),
        (
            &["firstPolicy.routingMode=native"],
            [
                "The operator makes the RoutingPolicy \"default\"",
                "clusterPodCIDRs is not set",
            ],
            "kubectl apply",
        ),
    ] {
        let sets = values.iter().flat_map(|value| ["--set", value]);
        let install = [
            "install",
            "podlane",
            &chart,
            "--namespace=elsewhere",
            "--dry-run=client",
        ];
        let arguments: Vec<&str> = install.into_iter().chain(sets).collect();
        let rendered = helm_of(4)?.run(&arguments)?;
        let (_, notes) = rendered.split_once("\nNOTES:\n").context("no notes")?;
        let always = [
            "kubectl wait --for=condition=Ready routingpolicies --all",
            "kubectl label namespace elsewhere pod-security.kubernetes.io/enforce=privileged",
        ];
        for words in told.into_iter().chain(always) {
            ensure!(
                notes.contains(words),
                "{words} is not in the notes of {values:?}: {notes}"
            );
        }
        ensure!(
            !notes.contains(not_told),
            "{not_told} is in the notes of {values:?}: {notes}"
        );
    }
    Ok(())
}

/// Each version's schemas, all at once: mostly Python that starts.
fn check(programs: &HelmPrograms, file: &std::path::Path) -> Result<()> {
    std::thread::scope(|scope| {
        let checks: Vec<_> = KUBERNETES
            .map(|minor| scope.spawn(move || programs.schemas.check(minor, file)))
            .collect();
        for check in checks {
            check.join().map_err(|_| anyhow::anyhow!("a check panicked"))??;
        }
        Ok(())
    })
}

/// The agents' DaemonSet that the operator makes of what the chart tells it, as a document of YAML.
fn daemon_set(rendered: &str) -> Result<String> {
    let owner = Owner {
        name: "podlane-operator".to_owned(),
        uid: "1b4e28ba-2fa1-11d2-883f-0016d3cca427".to_owned(),
    };
    let configuration = configuration(rendered)?;
    let agents = configuration.agents.context("no agents")?;
    let declared = declare(
        &agents,
        "podlane-system",
        &owner,
        &BTreeSet::from(["old".to_owned()]),
    );
    Ok(declared.object.to_string())
}

/// What the chart tells the operator.
fn configuration(rendered: &str) -> Result<Configuration> {
    let (_, text) = rendered
        .split_once("  configuration.yaml: |\n")
        .context("no configuration")?;
    let lines = text
        .lines()
        .take_while(|line| line.is_empty() || line.starts_with("    "));
    let text: Vec<&str> = lines.map(|line| line.get(4..).unwrap_or_default()).collect();
    Configuration::parse(&text.join("\n")).map_err(anyhow::Error::msg)
}
