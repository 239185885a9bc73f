//! A NetworkPolicy as engines enforce it, by a chain at nftables' forward hook: on the node of the pod that it selects (ingress), and on the node
//! of the one that speaks (egress).

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use podlane_e2e::lab::Lab;

use crate::conversations::Conversation;
use crate::over::Over;
use crate::say;
use crate::servers::{PORT, Sizes, ask_tcp};
use crate::workload::Workload;

/// How long an established flow may go on after it is refused. The lease is a second; the rest is for a busy machine.
const ENDS_WITHIN: Duration = Duration::from_secs(15);

/// How long anything else may take.
const WITHIN: Duration = Duration::from_secs(60);

/// The chain of a node; it goes however the scenario ends.
struct Policy<'a> {
    lab: &'a Lab,
    node: &'a str,
}

impl<'a> Policy<'a> {
    fn enforce(lab: &'a Lab, node: &'a str, rules: &str) -> Result<Self> {
        let chain =
            format!("chain forward {{ type filter hook forward priority filter; policy accept; {rules} }};");
        lab.namespace(node)
            .nft(&format!("table inet network_policies {{ {chain} }}"))?;
        Ok(Self { lab, node })
    }
}

impl Drop for Policy<'_> {
    fn drop(&mut self) {
        // Nothing to do about a failure: the lab goes with the scenario that fails.
        let _ = self
            .lab
            .namespace(self.node)
            .nft("delete table inet network_policies");
    }
}

/// Refuses a pod that asks another, with flows of it under way: the pod's own, and one by a Service.
pub(crate) fn honoured(lab: &Lab, over: Over, workload: &Workload) -> Result<()> {
    let (server, at) = over.remote();
    let service = workload.of(server)?;
    let server = SocketAddr::new(workload.pod_address(server)?, PORT);
    let ingress = Conversation::start(lab, "pod-ctr-1", server)?;
    let by_service = Conversation::start(lab, "pod-ctr-1", service.cluster())?;
    let egress = Conversation::start(lab, "pod-ctr-2", server)?;
    let allowed = Conversation::start(lab, over.third(), server)?;

    // Engines let through what connection tracking knows: then it is new flows that are refused, at once.
    let rule = |from: &str| -> Result<String> {
        let from = workload.pod_address(from)?;
        let ip = if from.is_ipv6() { "ip6" } else { "ip" };
        Ok(format!("{ip} saddr {from} {ip} daddr {} reject;", server.ip()))
    };
    let (of_ingress, of_egress) = (rule("pod-ctr-1")?, rule("pod-ctr-2")?);
    let known = "ct state established,related accept;";
    let policies = [
        Policy::enforce(lab, at, &format!("{known} {of_ingress}"))?,
        Policy::enforce(lab, "k8s-ctr", &format!("{known} {of_egress}"))?,
    ];
    ensure_refused(lab, "pod-ctr-1", server)?;
    ensure_refused(lab, "pod-ctr-1", service.cluster())?;
    ensure_refused(lab, "pod-ctr-2", server)?;
    ensure_answered(lab, over.third(), server)?;
    for conversation in [&ingress, &by_service, &egress, &allowed] {
        conversation.ensure_goes_on()?;
    }
    drop(policies);

    // And where every packet is judged, flows under way end too.
    let since = Instant::now();
    let policies = [
        Policy::enforce(lab, at, &of_ingress)?,
        Policy::enforce(lab, "k8s-ctr", &of_egress)?,
    ];
    ensure_refused(lab, "pod-ctr-1", server)?;
    let mut took = Duration::ZERO;
    for conversation in [&ingress, &by_service, &egress] {
        took = took.max(conversation.stalls(since, ENDS_WITHIN)?);
    }
    say(&format!(
        "{over:?}: established flows ended {:.1} s after they were refused",
        took.as_secs_f64()
    ));
    allowed.ensure_goes_on()?;
    drop(policies);
    for conversation in [ingress, by_service, egress, allowed] {
        conversation.ensure_goes_on()?;
        conversation.finish()?;
    }
    ensure_answered(lab, "pod-ctr-1", server)
}

/// A new connection is refused by what the firewall answers, all the way back.
fn ensure_refused(lab: &Lab, from: &str, to: SocketAddr) -> Result<()> {
    lab.namespace(from).within(|| {
        let kind = TcpStream::connect_timeout(&to, WITHIN)
            .map(drop)
            .map_err(|error| error.kind());
        ensure!(
            kind == Err(ErrorKind::ConnectionRefused),
            "{from} to {to} was not refused: {kind:?}"
        );
        Ok(())
    })
}

fn ensure_answered(lab: &Lab, from: &str, to: SocketAddr) -> Result<()> {
    lab.namespace(from)
        .within(|| ask_tcp(to, Sizes::SMALL, WITHIN))
        .map(drop)
        .with_context(|| format!("{from} to {to}"))
}
