//! The policies of the story, and what tells that they are carried out.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::lab::Lab;
use crate::probe::{PingReport, ping};
use crate::topology::Pod;
use crate::traffic::Stream;
use crate::wait::wait_until;

/// How long a change of policy may take before a scenario fails; figures are the benchmarks' matter.
pub const SETTLED_WITHIN: Duration = Duration::from_secs(60);

/// How long a change may take whose operator was killed: its lease has to run out before the next one leads.
pub const LED_AGAIN_WITHIN: Duration = Duration::from_secs(120);

/// How long a program may take to end that is asked to.
pub const ENDS_WITHIN: Duration = Duration::from_secs(20);

/// The policy's name in every scenario that has one policy.
pub const POLICY: &str = "default";

/// A RoutingPolicy.
pub fn policy(name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "podlane.io/v1alpha1", "kind": "RoutingPolicy", "metadata": {"name": name}, "spec": spec})
}

/// native, and off-link peers refused.
pub fn native() -> Value {
    json!({"routingMode": "native", "autoDirectNodeRoutes": true})
}

/// tunnel, VXLAN.
pub fn vxlan() -> Value {
    json!({"routingMode": "tunnel", "tunnel": {"protocol": "vxlan"}})
}

/// tunnel, GENEVE.
pub fn geneve() -> Value {
    json!({"routingMode": "tunnel", "tunnel": {"protocol": "geneve"}})
}

/// native on the link, VXLAN across the router.
pub fn native_and_vxlan() -> Value {
    json!({"routingMode": "native", "offLinkPeers": "tunnel", "tunnel": {"protocol": "vxlan"}})
}

/// Puts a spec in the place of the policy's: nothing of the one before stays, as with a file that was edited.
pub fn apply(lab: &Lab, spec: &Value) -> Result<()> {
    let kubectl = lab.kubectl()?;
    let manifest = policy(POLICY, spec).to_string();
    match kubectl.run(&["get", "routingpolicy", POLICY]) {
        Err(error) if error.to_string().contains("(NotFound)") => return kubectl.create(&manifest).map(drop),
        found => drop(found?),
    }
    // It reads the policy first, and whoever writes its status in between makes it begin again.
    for _ in 0..10 {
        match kubectl.run_with_input(&["replace", "-f", "-"], &manifest) {
            Err(error) if error.to_string().contains("(Conflict)") => {}
            replaced => return replaced.map(drop),
        }
    }
    bail!("the policy was written by others each of ten times");
}

/// An object's condition, as (status, reason, message); it must speak of the object's newest generation.
pub fn condition(lab: &Lab, kind: &str, name: &str, condition: &str) -> Result<(String, String, String)> {
    let object = lab.kubectl()?.get(&[kind, name])?;
    let found = object["status"]["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|one| one["type"] == condition)
        .with_context(|| format!("{kind} {name} has no condition {condition}"))?;
    let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
    let about = found["observedGeneration"]
        .as_i64()
        .or_else(|| object["status"]["observedGeneration"].as_i64());
    ensure!(
        about.is_none() || about == object["metadata"]["generation"].as_i64(),
        "{kind} {name}: {condition} speaks of generation {about:?}, not of {}",
        object["metadata"]["generation"]
    );
    Ok((text("status"), text("reason"), text("message")))
}

/// Waits until a condition has a status and a reason; its message.
pub fn wait_for_condition(
    lab: &Lab,
    kind: &str,
    name: &str,
    which: &str,
    status: &str,
    reason: &str,
) -> Result<String> {
    wait_until(
        &format!("{kind} {name} to be {which}={status} ({reason})"),
        SETTLED_WITHIN,
        || {
            let (is, because, message) = condition(lab, kind, name, which)?;
            ensure!(
                (is.as_str(), because.as_str()) == (status, reason),
                "it is {is}, {because}: {message}"
            );
            Ok(message)
        },
    )
}

/// Waits until the policy is ready.
pub fn wait_until_ready(lab: &Lab) -> Result<()> {
    wait_for_condition(lab, "routingpolicy", POLICY, "Ready", "True", "AsDeclared").map(drop)
}

/// The first pod of each node.
pub fn first_pods(lab: &Lab) -> Result<Vec<(String, IpAddr)>> {
    lab.topology()
        .nodes
        .iter()
        .map(|node| {
            let pod = node
                .pods
                .first()
                .with_context(|| format!("{} has no pod", node.name))?;
            Ok((
                pod.name.clone(),
                pod.address()
                    .with_context(|| format!("{} has no address", pod.name))?,
            ))
        })
        .collect()
}

/// Pings between the first pods of all nodes, in every direction; each must be answered.
pub fn ensure_all_answer(lab: &Lab) -> Result<()> {
    for (from, _) in first_pods(lab)? {
        for (to, address) in first_pods(lab)? {
            if from != to {
                let report = ping(lab, &from, address, 2)?;
                ensure!(report.all_answered(), "{from} to {to}: {}", report.output);
            }
        }
    }
    Ok(())
}

/// Pings once; it must be refused at once by ICMP unreachable.
pub fn ensure_refused(lab: &Lab, from: &str, to: IpAddr) -> Result<PingReport> {
    let report = ping(lab, from, to, 2)?;
    ensure!(
        report.all_refused(),
        "{from} to {to} is not refused: {}",
        report.output
    );
    Ok(report)
}

/// How a node's kernel reaches a pod CIDR: `via GATEWAY`, `encap DESTINATION`, `unreachable`, or `nothing`. Read from text:
/// the JSON of `ip` has two members `dst` in a route that carries its encapsulation.
pub fn way(lab: &Lab, node: &str, cidr: &str) -> Result<String> {
    let family = if cidr.contains(':') { "-6" } else { "-4" };
    let routes = lab
        .namespace(node)
        .ip(&[family, "route", "show", "table", "main"])?;
    let of_cidr = |line: &&str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let destination = if words.first() == Some(&"unreachable") {
            words.get(1)
        } else {
            words.first()
        };
        // What lies under the lanes is no way to anybody.
        destination == Some(&cidr) && !words.contains(&"1000000")
    };
    let Some(line) = routes.lines().find(of_cidr) else {
        return Ok("nothing".to_owned());
    };
    let words: Vec<&str> = line.split_whitespace().collect();
    let after = |word: &str| {
        words
            .iter()
            .position(|one| *one == word)
            .and_then(|place| words.get(place + 1))
            .copied()
            .unwrap_or("?")
    };
    Ok(if words.first() == Some(&"unreachable") {
        "unreachable".to_owned()
    } else if words.contains(&"encap") {
        format!("encap {}", after("dst"))
    } else {
        format!("via {}", after("via"))
    })
}

/// Streams of `rate` packets a second between the first pods of all nodes, one for each direction, with their names.
pub fn streams_in_all_directions(lab: &Lab, rate: u32) -> Result<Vec<(String, Stream)>> {
    let pods = first_pods(lab)?;
    let names: Vec<&str> = pods.iter().map(|(pod, _)| pod.as_str()).collect();
    in_both_directions(&names, |from, to| Stream::start(lab, from, to, rate))
}

/// What `start` makes of each pair of pods and each of its directions, with the direction's name.
pub fn in_both_directions<T>(
    pods: &[&str],
    start: impl Fn(&str, &str) -> Result<T>,
) -> Result<Vec<(String, T)>> {
    let mut started = Vec::new();
    for from in pods {
        for to in pods.iter().filter(|to| *to != from) {
            started.push((format!("{from} to {to}"), start(from, to)?));
        }
    }
    Ok(started)
}

/// A stream of `rate` packets a second from one pod to another in every family that both have.
pub fn streams_between(lab: &Lab, from: &Pod, to: &Pod, rate: u32) -> Result<Vec<(String, Stream)>> {
    let mut streams = Vec::new();
    for address in &to.addresses {
        if from.address_of(address.is_ipv6()).is_some() {
            let name = format!("{} to {} ({address})", from.name, to.name);
            let stream = Stream::start_to(lab, &from.name, &to.name, *address, rate, 64)?;
            streams.push((name, stream));
        }
    }
    Ok(streams)
}

/// Ends streams; each must have sent something, and have lost and doubled nothing.
pub fn ensure_none_lost(streams: Vec<(String, Stream)>) -> Result<()> {
    count_unless_lost(streams).map(drop)
}

/// The same, and how many packets they were.
pub fn count_unless_lost(streams: Vec<(String, Stream)>) -> Result<u64> {
    let mut sent = 0;
    for (direction, stream) in streams {
        let report = stream.finish()?;
        ensure!(
            report.sent > 100,
            "{direction}: hardly anything was sent: {report:?}"
        );
        ensure!(
            report.lost == 0 && report.duplicated == 0,
            "{direction}: {report:?}"
        );
        sent += report.sent;
    }
    Ok(sent)
}
