//! Services, as kube-proxy carries them out.

use std::time::Duration;

use anyhow::{Result, ensure};
use podlane_e2e::cluster::{Cluster, ProxyMode};
use podlane_e2e::scenario::Context;
use podlane_e2e::wait::wait_until;

use super::installed;

pub(crate) fn in_both_modes(context: &mut Context) -> Result<()> {
    let cluster = installed(context)?;
    all_answer(cluster)?;
    cluster.restart_proxies(ProxyMode::Iptables)?;
    let translates = |rules: Result<String>| rules.is_ok_and(|rules| rules.contains("default/webpod"));
    wait_until("kube-proxy's rules in iptables", Duration::from_secs(240), || {
        let rules = cluster.machine("k8s-ctr")?.run("iptables-save", &["-t", "nat"]);
        ensure!(translates(rules), "none for webpod");
        Ok(())
    })?;
    all_answer(cluster)?;
    cluster.restart_proxies(ProxyMode::Nftables)?;
    all_answer(cluster)
}

pub(crate) fn all_answer(cluster: &Cluster) -> Result<()> {
    wait_until(
        "each replica's answers, and nothing else",
        Duration::from_secs(240),
        || {
            let answers = cluster.ask(30)?;
            ensure!(
                answers.keys().eq(["k8s-ctr", "k8s-w0", "k8s-w1"]),
                "answers came from {answers:?}"
            );
            Ok(())
        },
    )
}
