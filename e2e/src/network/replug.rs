//! A node's network from nothing, as after its machine's boot: what the kernel held of it is gone, its cables are where they were.

use anyhow::{Context, Result};

use super::{Naming, connect_node, port_lines, without_waiting_for_duplicates};
use crate::topology::{Node, SWITCH, Topology};

/// A node's interfaces and where they are plugged in.
#[derive(Clone, Debug)]
pub struct Plugs(Vec<Plug>);

#[derive(Clone, Debug)]
struct Plug {
    bridge: String,
    port: String,
    interface: String,
    /// A machine that boots has the link-layer addresses that it had.
    address: String,
}

/// Takes a node off the network, and with its namespace everything that its kernel held: devices, routes, neighbours, nftables, tracked
/// connections, parameters. Nothing of the lab's may run there any more. Pods of the topology (those of labs without kubelets) do not come back.
pub fn unplug(node: &Node, naming: &Naming) -> Result<Plugs> {
    let namespace = naming.namespace(&node.name);
    let first = (node.link.clone(), node.name.clone(), "eth0".to_owned());
    let further = node.further.iter().zip(1..).map(|(attachment, number)| {
        let interface = format!("eth{number}");
        let port = format!("{}-{interface}", node.name);
        (attachment.link.clone(), port, interface)
    });
    let plugs = std::iter::once(first)
        .chain(further)
        .map(|(bridge, port, interface)| {
            let shown = namespace.ip(&["-o", "link", "show", "dev", &interface])?;
            let mut words = shown.split_whitespace();
            let address = words
                .find(|word| *word == "link/ether")
                .and_then(|_| words.next())
                .with_context(|| format!("{interface} of {} has no link-layer address", node.name))?
                .to_owned();
            Ok(Plug {
                bridge,
                port,
                interface,
                address,
            })
        })
        .collect::<Result<Vec<_>>>()?;
    let lines: Vec<String> = plugs
        .iter()
        .map(|plug| format!("link delete {}", plug.port))
        .collect();
    naming.namespace(SWITCH).ip_batch(&lines)?;
    namespace.delete()?;
    Ok(Plugs(plugs))
}

/// Puts it back, with the addresses and routes that the topology says and nothing else; `forwards` as in [`super::connect`].
pub fn plug(topology: &Topology, node: &Node, naming: &Naming, plugs: &Plugs, forwards: bool) -> Result<()> {
    let namespace = naming.namespace(&node.name);
    namespace.add()?;
    without_waiting_for_duplicates(&namespace)?;
    let mut lines = Vec::new();
    for plug in &plugs.0 {
        lines.extend(port_lines(&plug.bridge, &plug.port, &plug.interface, &namespace));
    }
    naming.namespace(SWITCH).ip_batch(&lines)?;
    let addresses: Vec<String> = plugs
        .0
        .iter()
        .map(|plug| format!("link set {} address {}", plug.interface, plug.address))
        .collect();
    namespace.ip_batch(&addresses)?;
    connect_node(topology, node, naming, forwards)
}
