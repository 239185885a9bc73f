//! Makes a topology out of network namespaces, veths and bridges.

mod replug;

use std::fs;
use std::hash::Hasher as _;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use anyhow::{Context, Result, bail};
use fnv::FnvHasher;
use ipnet::{IpNet, Ipv4Net};

use crate::interrupt;
use crate::ledger::{self, BaseLock, HostLink, Ledger};
use crate::netns::{self, Namespace};
use crate::topology::{Attachment, INTERNET, Link, Node, Pod, ROUTER, SWITCH, Topology};

pub use self::replug::{Plugs, plug, unplug};

/// The lab's end of the link to the machine's own namespace.
pub const HOST_LINK_INTERFACE: &str = "lab0";

/// How a lab names its namespaces: the default lab by the plain names, others with their own name before them.
#[derive(Clone, Debug)]
pub struct Naming {
    lab: String,
}

impl Naming {
    /// The name of the lab whose namespaces have plain names.
    pub const PLAIN: &str = "default";

    /// How the lab of this name does it.
    pub fn of(lab: &str) -> Self {
        Self { lab: lab.to_owned() }
    }

    /// The namespace of a node, a pod, the router, the switch or the internet.
    pub fn namespace(&self, name: &str) -> Namespace {
        if self.lab == Self::PLAIN {
            Namespace::named(name)
        } else {
            Namespace::named(format!("{}-{name}", self.lab))
        }
    }

    /// The name of the interface in the machine's own namespace.
    pub fn host_interface(&self) -> String {
        if self.lab == Self::PLAIN {
            return "podlane-lab".to_owned();
        }
        // Interface names have 15 characters at most: FNV-1a tells the labs apart.
        let mut hash = FnvHasher::default();
        hash.write(self.lab.as_bytes());
        let hash = hash.finish();
        format!("podlane{:08x}", (hash >> 32) ^ (hash & 0xffff_ffff))
    }
}

/// An error when a namespace of the lab exists already. Call it under the lock of all labs.
pub fn refuse_taken(topology: &Topology, naming: &Naming) -> Result<()> {
    let taken: Vec<String> = topology
        .namespaces()
        .into_iter()
        .map(|name| naming.namespace(name))
        .filter(Namespace::exists)
        .map(|namespace| namespace.name().to_owned())
        .collect();
    if !taken.is_empty() {
        bail!(
            "these network namespaces exist already: {}. If a lab is up, take it down with `make lab-down`; if they are \
             not a lab's, `ip netns delete` them or start the lab under another name",
            taken.join(", ")
        );
    }
    Ok(())
}

/// Makes the namespaces, each one in the ledger first.
pub fn add_namespaces(topology: &Topology, naming: &Naming, ledger: &Ledger) -> Result<()> {
    for name in topology.namespaces() {
        interrupt::check()?;
        let namespace = naming.namespace(name);
        ledger.change(|state| state.namespaces.push(namespace.name().to_owned()))?;
        if let Err(error) = namespace.add() {
            // Somebody else's namespace of that name must not be in the ledger.
            ledger.change(|state| state.namespaces.retain(|name| name != namespace.name()))?;
            return Err(error);
        }
        without_waiting_for_duplicates(&namespace)?;
    }
    Ok(())
}

/// Has the link-local addresses of interfaces to come usable at once: nobody else has them, and looking for that takes a second (RFC 4862,
/// section 5.4).
fn without_waiting_for_duplicates(namespace: &Namespace) -> Result<()> {
    if Path::new("/proc/sys/net/ipv6").exists() {
        namespace.set_parameters(&[("ipv6/conf/default/accept_dad", "0")])?;
    }
    Ok(())
}

/// Connects the namespaces and gives them their addresses and routes. `nodes_forward` says whether nodes forward packets.
pub fn connect(topology: &Topology, naming: &Naming, nodes_forward: bool) -> Result<()> {
    naming
        .namespace(SWITCH)
        .ip_batch(&switch_lines(topology, naming))?;
    naming
        .namespace(ROUTER)
        .ip_batch(&router_lines(topology, naming))?;
    naming.namespace(INTERNET).ip_batch(&internet_lines(topology))?;
    for router in &topology.further_routers {
        let namespace = naming.namespace(&router.name);
        let mut lines = vec!["link set lo up".to_owned()];
        lines.extend(attachment_lines(&router.attachments));
        namespace.ip_batch(&lines)?;
        set_forwarding(&namespace, true)?;
        without_redirects(&namespace)?;
    }
    for node in &topology.nodes {
        interrupt::check()?;
        connect_node(topology, node, naming, nodes_forward)?;
        for pod in &node.pods {
            naming.namespace(&pod.name).ip_batch(&pod_lines(node, pod))?;
        }
    }
    let router = naming.namespace(ROUTER);
    set_forwarding(&router, true)?;
    without_redirects(&router)
}

/// Gives a node, whose interfaces are there, its addresses and routes.
fn connect_node(topology: &Topology, node: &Node, naming: &Naming, forwards: bool) -> Result<()> {
    let link = topology.link_of(node).with_context(|| {
        format!(
            "{} is on {}, which the topology does not have",
            node.name, node.link
        )
    })?;
    let namespace = naming.namespace(&node.name);
    namespace.ip_batch(&node_lines(node, link, naming))?;
    // A namespace may have IPv4's from the machine's own.
    set_forwarding(&namespace, forwards)
}

/// Keeps a router from telling nodes of one link the way past it (ICMP redirect): a cloud's gateway does not either. (Nodes take none of
/// IPv6's, since they forward: `rt6_do_redirect` in net/ipv6/route.c.)
fn without_redirects(router: &Namespace) -> Result<()> {
    router.within(|| {
        for interface in fs::read_dir("/proc/sys/net/ipv4/conf").context("the router's interfaces")? {
            let place = interface?.path().join("send_redirects");
            fs::write(&place, "0").with_context(|| format!("cannot write {}", place.display()))?;
        }
        Ok(())
    })
}

/// Whether a node or a router forwards packets, of both families where the kernel has both.
fn set_forwarding(namespace: &Namespace, forwards: bool) -> Result<()> {
    let value = if forwards { "1" } else { "0" };
    namespace.set_parameters(&[("ipv4/ip_forward", value)])?;
    if Path::new("/proc/sys/net/ipv6").exists() {
        namespace.set_parameters(&[("ipv6/conf/all/forwarding", value)])?;
    }
    Ok(())
}

/// Makes a further pod on a node that is up.
pub fn add_pod(node: &Node, pod: &Pod, naming: &Naming, ledger: &Ledger) -> Result<()> {
    let namespace = naming.namespace(&pod.name);
    if namespace.exists() {
        bail!("the network namespace {} exists already", namespace.name());
    }
    ledger.change(|state| state.namespaces.push(namespace.name().to_owned()))?;
    namespace.add()?;
    naming
        .namespace(&node.name)
        .ip_batch(&pod_veth_lines(node, pod, naming))?;
    namespace.ip_batch(&pod_lines(node, pod))
}

/// Makes the link between the machine's own namespace and a node; its two addresses are a free /30 of 198.18.0.0/15.
pub fn add_host_link(node: &Namespace, naming: &Naming, ledger: &Ledger) -> Result<HostLink> {
    let _lock = BaseLock::take()?;
    let network = free_host_network()?;
    let link = HostLink {
        interface: naming.host_interface(),
        network,
    };
    ledger.change(|state| state.host_link = Some(link.clone()))?;
    let interface = link.interface.as_str();
    netns::ip(
        None,
        &[
            "link",
            "add",
            interface,
            "type",
            "veth",
            "peer",
            "name",
            HOST_LINK_INTERFACE,
            "netns",
            node.name(),
        ],
    )?;
    let (host, lab) = link.addresses()?;
    netns::ip(None, &["address", "add", &format!("{host}/30"), "dev", interface])?;
    netns::ip(None, &["link", "set", interface, "up"])?;
    node.ip_batch(&[
        format!("address add {lab}/30 dev {HOST_LINK_INTERFACE}"),
        format!("link set {HOST_LINK_INTERFACE} up"),
    ])?;
    Ok(link)
}

impl HostLink {
    /// The machine's address and the lab's.
    pub fn addresses(&self) -> Result<(IpAddr, IpAddr)> {
        let mut hosts = self.network.hosts();
        match (hosts.next(), hosts.next()) {
            (Some(host), Some(lab)) => Ok((IpAddr::V4(host), IpAddr::V4(lab))),
            _ => bail!("{} has no two addresses", self.network),
        }
    }
}

fn free_host_network() -> Result<Ipv4Net> {
    let pool: Ipv4Net = "198.18.0.0/15".parse().context("the pool of addresses")?;
    let mut taken = Vec::new();
    for lab in ledger::labs()? {
        taken.extend(
            ledger::read(&lab)?
                .and_then(|state| state.host_link)
                .map(|link| link.network),
        );
    }
    // Whatever else the machine routes out of the pool.
    for line in netns::ip(None, &["-4", "route", "show", "table", "all"])?.lines() {
        for word in line.split_ascii_whitespace() {
            let network = word
                .parse()
                .or_else(|_| word.parse::<Ipv4Addr>().map(Ipv4Net::from));
            taken.extend(network.ok().filter(|network| pool.contains(network)));
        }
    }
    pool.subnets(30)
        .context("the pool of addresses")?
        .find(|candidate| {
            !taken
                .iter()
                .any(|other| other.contains(candidate) || candidate.contains(other))
        })
        .context("no /30 of 198.18.0.0/15 is free on this machine")
}

fn switch_lines(topology: &Topology, naming: &Naming) -> Vec<String> {
    let mut lines = vec!["link set lo up".to_owned()];
    let mut attach = |bridge: &str, port: &str, interface: &str, peer: &str| {
        lines.extend(port_lines(bridge, port, interface, &naming.namespace(peer)));
    };
    for link in &topology.links {
        attach(
            &link.name,
            &format!("router-{}", link.router_interface),
            &link.router_interface,
            ROUTER,
        );
        for node in topology.nodes.iter().filter(|node| node.link == link.name) {
            attach(&link.name, &node.name, "eth0", &node.name);
        }
    }
    let nodes = topology
        .nodes
        .iter()
        .map(|node| (node.name.as_str(), &node.further));
    let routers = topology
        .further_routers
        .iter()
        .map(|router| (router.name.as_str(), &router.attachments));
    for (name, attachments) in nodes.chain(routers) {
        for (attachment, interface) in attachments.iter().zip(1..) {
            let interface = format!("eth{interface}");
            attach(&attachment.link, &format!("{name}-{interface}"), &interface, name);
        }
    }
    for link in &topology.links {
        lines.insert(1, format!("link add {} type bridge mcast_snooping 0", link.name));
        lines.push(format!("link set {} up", link.name));
    }
    lines
}

/// A port of the switch, and at its other end an interface.
fn port_lines(bridge: &str, port: &str, interface: &str, of: &Namespace) -> [String; 2] {
    [
        format!(
            "link add {port} type veth peer name {interface} netns {}",
            of.name()
        ),
        format!("link set {port} master {bridge} up"),
    ]
}

fn router_lines(topology: &Topology, naming: &Naming) -> Vec<String> {
    let internet = naming.namespace(INTERNET);
    let mut lines = vec![
        "link set lo up".to_owned(),
        format!("link add eth0 type veth peer name eth0 netns {}", internet.name()),
    ];
    let links = topology
        .links
        .iter()
        .map(|link| (link.router_interface.as_str(), &link.router_addresses));
    for (interface, addresses) in std::iter::once(("eth0", &topology.uplink.router)).chain(links) {
        lines.extend(addresses.iter().map(|address| address_line(*address, interface)));
        lines.push(format!("link set {interface} up"));
    }
    lines.extend(
        topology
            .uplink
            .internet
            .iter()
            .map(|gateway| default_route(gateway.addr())),
    );
    lines
}

fn internet_lines(topology: &Topology) -> Vec<String> {
    let mut lines = vec!["link set lo up".to_owned()];
    lines.extend(
        topology
            .uplink
            .internet
            .iter()
            .map(|address| address_line(*address, "eth0")),
    );
    lines.push("link set eth0 up".to_owned());
    // In place of the address translation that a router has there: the nodes' own addresses find the way back.
    for network in topology.links.iter().flat_map(|link| &link.router_addresses) {
        for gateway in topology
            .uplink
            .router
            .iter()
            .filter(|router| same_family(router.addr(), network.addr()))
        {
            lines.push(format!("route add {} via {}", network.trunc(), gateway.addr()));
        }
    }
    lines
}

fn node_lines(node: &Node, link: &Link, naming: &Naming) -> Vec<String> {
    let mut lines = vec!["link set lo up".to_owned()];
    lines.extend(
        node.addresses
            .iter()
            .map(|address| address_line(*address, "eth0")),
    );
    lines.push("link set eth0 up".to_owned());
    lines.extend(attachment_lines(&node.further));
    for gateway in link.router_addresses.iter().map(IpNet::addr) {
        let mut own = node
            .addresses
            .iter()
            .filter(|address| same_family(address.addr(), gateway))
            .peekable();
        if own.peek().is_none() {
            continue;
        }
        if !own.any(|address| address.contains(&gateway)) {
            lines.push(on_link_route(gateway, "eth0"));
        }
        lines.push(default_route(gateway));
    }
    for pod in &node.pods {
        lines.extend(pod_veth_lines(node, pod, naming));
    }
    lines
}

/// Interfaces eth1, eth2, … with their addresses.
fn attachment_lines(attachments: &[Attachment]) -> Vec<String> {
    let mut lines = Vec::new();
    for (attachment, interface) in attachments.iter().zip(1..) {
        let interface = format!("eth{interface}");
        lines.extend(
            attachment
                .addresses
                .iter()
                .map(|address| address_line(*address, &interface)),
        );
        lines.push(format!("link set {interface} up"));
    }
    lines
}

/// The node's side of a pod, as the CNI plugin ptp makes it.
fn pod_veth_lines(node: &Node, pod: &Pod, naming: &Naming) -> Vec<String> {
    let veth = &pod.name;
    let namespace = naming.namespace(&pod.name);
    let mut lines = vec![format!(
        "link add {veth} type veth peer name eth0 netns {}",
        namespace.name()
    )];
    lines.extend(
        node.pod_gateways()
            .map(|gateway| address_line(IpNet::from(gateway), veth)),
    );
    lines.push(format!("link set {veth} up"));
    for address in &pod.addresses {
        // IPv6 knows no scopes of routes.
        let scope = if address.is_ipv4() { " scope host" } else { "" };
        lines.push(format!("route add {} dev {veth}{scope}", IpNet::from(*address)));
    }
    lines
}

/// The pod's side: one address, and everything else by way of the node.
fn pod_lines(node: &Node, pod: &Pod) -> Vec<String> {
    let mut lines = vec!["link set lo up".to_owned()];
    lines.extend(
        pod.addresses
            .iter()
            .map(|address| address_line(IpNet::from(*address), "eth0")),
    );
    lines.push("link set eth0 up".to_owned());
    for gateway in node.pod_gateways() {
        if pod.addresses.iter().any(|address| same_family(*address, gateway)) {
            lines.push(on_link_route(gateway, "eth0"));
            lines.push(default_route(gateway));
        }
    }
    lines
}

fn address_line(address: IpNet, interface: &str) -> String {
    // Nobody else has the address: waiting for duplicate address detection would only take time.
    let nodad = if address.addr().is_ipv6() { " nodad" } else { "" };
    format!("address add {address} dev {interface}{nodad}")
}

fn on_link_route(gateway: IpAddr, interface: &str) -> String {
    let scope = if gateway.is_ipv4() { " scope link" } else { "" };
    format!("route add {} dev {interface}{scope}", IpNet::from(gateway))
}

fn default_route(gateway: IpAddr) -> String {
    format!("route add default via {gateway}")
}

fn same_family(one: IpAddr, other: IpAddr) -> bool {
    one.is_ipv4() == other.is_ipv4()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_interfaces_differ_and_fit() {
        let names = ["default", "test-1-0", "test-1-1"].map(|lab| Naming::of(lab).host_interface());
        assert_eq!(names[0], "podlane-lab");
        assert_ne!(names[1], names[2]);
        assert!(names.iter().all(|name| name.len() <= 15), "{names:?}");
    }

    #[test]
    fn a_named_lab_has_its_name_before_each_namespace() {
        assert_eq!(Naming::of("default").namespace("router").name(), "router");
        assert_eq!(Naming::of("test-7").namespace("router").name(), "test-7-router");
    }
}
