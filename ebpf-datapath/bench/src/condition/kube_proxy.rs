//! Rules laid out as kube-proxy's nftables mode lays them out (kubernetes/kubernetes, pkg/proxy/nftables/README.md; the code here
//! is Podlane's): base chains that send new connections to the Services' checks, verdict maps by address, protocol and port, a
//! chain for every Service and one for every endpoint. Both families, as on a dual-stack node.

use std::fmt::Write;

/// Rules in each family's table.
pub(super) const RULES: usize = 85;

/// Each has two rules, and its endpoints two each.
const SERVICES: u16 = 10;
const ENDPOINTS: u16 = 2;
/// One in so many has a port on the nodes too, and two rules more.
const WITH_NODE_PORT: u16 = 5;

struct Words {
    table: &'static str,
    protocol: &'static str,
    address: &'static str,
    cluster: &'static str,
    unreachable: &'static str,
    service: fn(u16) -> String,
    endpoint: fn(u16) -> String,
    node: &'static str,
}

const FAMILIES: [Words; 2] = [
    Words {
        table: "ip",
        protocol: "ip",
        address: "ipv4_addr",
        cluster: "172.20.0.0/16",
        unreachable: "icmp",
        service: |number| format!("10.96.0.{}", number + 10),
        endpoint: |number| format!("172.20.9.{}", number + 10),
        node: "192.168.10.100",
    },
    Words {
        table: "ip6",
        protocol: "ip6",
        address: "ipv6_addr",
        cluster: "fd20::/48",
        unreachable: "icmpv6",
        service: |number| format!("fd96::{:x}", number + 16),
        endpoint: |number| format!("fd20:0:0:9::{:x}", number + 16),
        node: "fd00:0:0:a::100",
    },
];

/// The rules, as nft reads them.
pub(super) fn rules() -> String {
    FAMILIES.iter().map(table).collect()
}

fn table(words: &Words) -> String {
    let Words {
        table,
        protocol,
        address,
        unreachable,
        node,
        ..
    } = words;
    let mut text = format!("table {table} kube-proxy {{\n");
    let services: Vec<u16> = (0..SERVICES).collect();
    let list = |item: &dyn Fn(u16) -> String| {
        services
            .iter()
            .map(|number| item(*number))
            .collect::<Vec<_>>()
            .join(", ")
    };
    let addresses = list(&|number| (words.service)(number));
    let to_service =
        list(&|number| format!("{} . tcp . 80 : goto service-{number}", (words.service)(number)));
    let node_ports = services
        .iter()
        .filter(|number| number.is_multiple_of(WITH_NODE_PORT))
        .map(|number| format!("tcp . {} : goto external-{number}", 30_000 + number))
        .collect::<Vec<_>>()
        .join(", ");
    let _ = write!(
        text,
        " set cluster-ips {{ type {address}; elements = {{ {addresses} }} }}
 set nodeport-ips {{ type {address}; elements = {{ {node} }} }}
 map service-ips {{ type {address} . inet_proto . inet_service : verdict; elements = {{ {to_service} }} }}
 map service-nodeports {{ type inet_proto . inet_service : verdict; elements = {{ {node_ports} }} }}
 map no-endpoint-services {{ type {address} . inet_proto . inet_service : verdict; }}
 map no-endpoint-nodeports {{ type inet_proto . inet_service : verdict; }}
 map firewall-ips {{ type {address} . inet_proto . inet_service : verdict; }}
 chain mark-for-masquerade {{
  meta mark set meta mark | 0x4000
 }}
 chain masquerading {{
  meta mark & 0x4000 == 0 return
  meta mark set meta mark ^ 0x4000
  masquerade fully-random
 }}
 chain reject-chain {{
  reject with {unreachable} type port-unreachable
 }}
"
    );
    for number in &services {
        service_chains(&mut text, words, *number);
    }
    let _ = write!(
        text,
        " chain services {{
  {protocol} daddr . meta l4proto . th dport vmap @service-ips
  {protocol} daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
 }}
 chain service-endpoints-check {{
  {protocol} daddr . meta l4proto . th dport vmap @no-endpoint-services
 }}
 chain nodeport-endpoints-check {{
  {protocol} daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports
 }}
 chain firewall-check {{
  {protocol} daddr . meta l4proto . th dport vmap @firewall-ips
 }}
 chain cluster-ips-check {{
  {protocol} daddr @cluster-ips reject with {unreachable} type port-unreachable
 }}
 chain filter-prerouting {{
  type filter hook prerouting priority dstnat - 10;
  ct state new jump firewall-check
 }}
 chain filter-input {{
  type filter hook input priority -110;
  ct state new jump nodeport-endpoints-check
  ct state new jump service-endpoints-check
 }}
 chain filter-forward {{
  type filter hook forward priority -110;
  ct state new jump service-endpoints-check
  ct state new jump cluster-ips-check
 }}
 chain filter-output {{
  type filter hook output priority -110;
  ct state new jump service-endpoints-check
  ct state new jump firewall-check
 }}
 chain nat-prerouting {{
  type nat hook prerouting priority dstnat;
  jump services
 }}
 chain nat-output {{
  type nat hook output priority -100;
  jump services
 }}
 chain nat-postrouting {{
  type nat hook postrouting priority srcnat;
  jump masquerading
 }}
}}
"
    );
    text
}

/// A Service's chain: what comes from outside the cluster is masqueraded, then an endpoint is drawn.
fn service_chains(text: &mut String, words: &Words, number: u16) {
    let Words {
        protocol, cluster, ..
    } = words;
    let service = (words.service)(number);
    let mut draw = Vec::new();
    for endpoint in 0..ENDPOINTS {
        let address = (words.endpoint)(number * ENDPOINTS + endpoint);
        let target = if *protocol == "ip" {
            format!("{address}:8080")
        } else {
            format!("[{address}]:8080")
        };
        let _ = write!(
            text,
            " chain endpoint-{number}-{endpoint} {{
  {protocol} saddr {address} jump mark-for-masquerade
  meta l4proto tcp dnat to {target}
 }}
"
        );
        draw.push(format!("{endpoint} : goto endpoint-{number}-{endpoint}"));
    }
    let draw = draw.join(", ");
    let _ = write!(
        text,
        " chain service-{number} {{
  {protocol} daddr {service} tcp dport 80 {protocol} saddr != {cluster} jump mark-for-masquerade
  numgen random mod {ENDPOINTS} vmap {{ {draw} }}
 }}
"
    );
    if number.is_multiple_of(WITH_NODE_PORT) {
        let _ = write!(
            text,
            " chain external-{number} {{
  jump mark-for-masquerade
  goto service-{number}
 }}
"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines that are rules: within a chain, and not its declaration.
    fn count(table: &str) -> usize {
        let is_rule = |line: &&str| line.starts_with("  ") && !line.trim_start().starts_with("type ");
        table.lines().filter(is_rule).count()
    }

    #[test]
    fn the_number_of_rules_is_the_one_that_is_told() {
        for words in &FAMILIES {
            assert_eq!(count(&table(words)), RULES);
        }
    }
}
