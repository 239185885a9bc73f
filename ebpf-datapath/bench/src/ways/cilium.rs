//! How Cilium carries packets in tunnel mode: two eBPF programs around a flow-based device. The programs are in `comparison/`.

use std::net::IpAddr;

use anyhow::{Context, Result};
use aya::maps::lpm_trie::Key;
use aya::maps::{HashMap as BpfHash, LpmTrie};
use aya::programs::{SchedClassifier, TcAttachType};
use aya::{Ebpf, EbpfLoader};

use super::{Installed, Way, Wire};
use crate::site::{ETH0, Family, Node, POD_MTU, POD_VETH, Site};

const DEVICE: &str = "cilium_vxlan";
const PORT: u16 = 8472;
const PROGRAMS: &[u8] = aya::include_bytes_aligned!(env!("PODLANE_COMPARISON_OBJECT"));

/// A flow-based device between two eBPF programs.
pub(super) struct Cilium;

impl Way for Cilium {
    fn name(&self) -> &'static str {
        "cilium"
    }

    fn title(&self) -> &'static str {
        "Cilium's way, no policy"
    }

    fn description(&self) -> &'static str {
        "eBPF at the pod's veth: LPM lookup, bpf_skb_set_tunnel_key, bpf_redirect to a collect-metadata VXLAN device; there \
         bpf_skb_get_tunnel_key and bpf_redirect_peer into the pod; no policy, conntrack or Service lookup"
    }

    fn wire(&self) -> Wire {
        Wire::Udp(PORT)
    }

    fn set_up(&self, site: &Site) -> Result<Box<dyn Installed>> {
        let programs = site.nodes.each_ref().map(install);
        let [one, other] = programs;
        Ok(Box::new(Installation {
            _programs: [one?, other?],
        }))
    }
}

struct Installation {
    /// The programs are attached for as long as these live.
    _programs: [Ebpf; 2],
}

impl Installed for Installation {
    fn tear_down(self: Box<Self>, site: &Site) -> Result<()> {
        for node in &site.nodes {
            node.namespace.ip(&["link", "delete", DEVICE])?;
        }
        Ok(())
    }
}

fn install(node: &Node) -> Result<Ebpf> {
    node.namespace.ip_batch(&[
        format!(
            "link add {DEVICE} address {} type vxlan external dstport {PORT} nolearning",
            node.identity.tunnel_mac()
        ),
        format!("link set {DEVICE} mtu {POD_MTU} up"),
    ])?;
    let overlay = index_of(&node.namespace, DEVICE)?;
    let mut programs = EbpfLoader::new()
        .override_global("OVERLAY", &overlay, true)
        .load(PROGRAMS)
        .context("cannot load the programs of the comparison")?;
    add_peers(&mut programs, node)?;
    add_pod(&mut programs, node)?;
    // Interfaces are found by name in the namespace of the thread that attaches.
    node.namespace.within(|| {
        attach(&mut programs, "to_overlay", POD_VETH)?;
        attach(&mut programs, "from_overlay", DEVICE)
    })?;
    Ok(programs)
}

fn attach(programs: &mut Ebpf, name: &str, interface: &str) -> Result<()> {
    let program: &mut SchedClassifier = programs
        .program_mut(name)
        .with_context(|| format!("no program {name}"))?
        .try_into()?;
    program
        .load()
        .with_context(|| format!("the kernel refuses the program {name}"))?;
    program
        .attach(interface, TcAttachType::Ingress)
        .with_context(|| format!("cannot attach {name} to {interface}"))?;
    Ok(())
}

fn add_peers(programs: &mut Ebpf, node: &Node) -> Result<()> {
    let mut v4: LpmTrie<_, [u8; 4], u32> = map(programs, "PEERS_IPV4")?.try_into()?;
    for peer in &node.peers {
        if let IpAddr::V4(network) = peer.network(Family::Ipv4) {
            let key = Key::new(Family::Ipv4.pod_cidr_bits().into(), network.octets());
            v4.insert(&key, u32::from(peer.address()), 0)?;
        }
    }
    let mut v6: LpmTrie<_, [u8; 16], u32> = map(programs, "PEERS_IPV6")?.try_into()?;
    for peer in &node.peers {
        if let IpAddr::V6(network) = peer.network(Family::Ipv6) {
            let key = Key::new(Family::Ipv6.pod_cidr_bits().into(), network.octets());
            v6.insert(&key, u32::from(peer.address()), 0)?;
        }
    }
    Ok(())
}

fn add_pod(programs: &mut Ebpf, node: &Node) -> Result<()> {
    let mut endpoint = [0_u8; 16];
    endpoint[..4].copy_from_slice(&index_of(&node.namespace, POD_VETH)?.to_ne_bytes());
    endpoint[4..10].copy_from_slice(&mac_of(&node.pod, ETH0)?);
    endpoint[10..].copy_from_slice(&mac_of(&node.namespace, POD_VETH)?);
    for family in Family::ALL {
        match node.identity.pod_address(family) {
            IpAddr::V4(pod) => {
                let mut pods: BpfHash<_, [u8; 4], [u8; 16]> = map(programs, "PODS_IPV4")?.try_into()?;
                pods.insert(pod.octets(), endpoint, 0)?;
            }
            IpAddr::V6(pod) => {
                let mut pods: BpfHash<_, [u8; 16], [u8; 16]> = map(programs, "PODS_IPV6")?.try_into()?;
                pods.insert(pod.octets(), endpoint, 0)?;
            }
        }
    }
    Ok(())
}

fn map<'programs>(programs: &'programs mut Ebpf, name: &str) -> Result<&'programs mut aya::maps::Map> {
    programs.map_mut(name).with_context(|| format!("no map {name}"))
}

/// An interface's number.
fn index_of(namespace: &podlane_e2e::netns::Namespace, interface: &str) -> Result<u32> {
    namespace.within(|| {
        nix::net::if_::if_nametoindex(interface).with_context(|| format!("no interface {interface}"))
    })
}

fn mac_of(namespace: &podlane_e2e::netns::Namespace, interface: &str) -> Result<[u8; 6]> {
    let shown = namespace.ip(&["-brief", "link", "show", "dev", interface])?;
    let words = shown.split_whitespace().nth(2).unwrap_or_default();
    let bytes: Vec<u8> = words
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16))
        .collect::<Result<_, _>>()
        .with_context(|| format!("no MAC address in {shown:?}"))?;
    <[u8; 6]>::try_from(bytes.as_slice()).with_context(|| format!("no MAC address in {shown:?}"))
}
