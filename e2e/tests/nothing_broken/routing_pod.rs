//! Pods that pass on what they get: one with a network behind it, one that hands connections to another pod.

use std::net::{IpAddr, SocketAddr, TcpListener};

use anyhow::{Context as _, Result, ensure};
use podlane_e2e::lab::Lab;
use podlane_e2e::scenario::Context;
use podlane_e2e::story::SETTLED_WITHIN;
use podlane_e2e::wait::wait_until;

use crate::family::Family;
use crate::packets::Flow;
use crate::segments::{Offload, datagrams_in_segments, transfer, transfer_to};
use crate::{HERE, Over, Rules, address, command, ready};

const OCTETS: usize = 8 << 20;
/// The device between a pod that routes and what is behind it.
const BEHIND: &str = "behind0";

/// A namespace behind a pod, which routes: the other pod of that node, by a device of its own and an address out of the node's pod CIDR.
struct Behind<'a> {
    lab: &'a Lab,
    node: &'a str,
    router: &'a str,
    host: &'a str,
    address: IpAddr,
    over: Over,
}

impl<'a> Behind<'a> {
    fn add(lab: &'a Lab, over: Over) -> Result<Self> {
        let [router, host] = over.pods();
        let behind = Self {
            lab,
            node: over.node(),
            router,
            host,
            address: over.address_behind()?,
            over,
        };
        behind.connect()?;
        Ok(behind)
    }

    fn connect(&self) -> Result<()> {
        let (router, host) = (self.lab.namespace(self.router), self.lab.namespace(self.host));
        let (of_router, of_host) = (address(self.lab, self.router)?, self.address);
        let there = address(self.lab, HERE)?;
        router.ip_batch(&[
            format!(
                "link add {BEHIND} type veth peer name {BEHIND} netns {}",
                host.name()
            ),
            format!("link set {BEHIND} up"),
            format!("route add {of_host} dev {BEHIND} src {of_router}"),
        ])?;
        if self.over.family == Family::Six {
            // A neighbour's question is answered for addresses of the device that it comes by, and for no other's (ndisc_recv_ns in net/ipv6/ndisc.c).
            router.ip(&["address", "add", &of_router.to_string(), "dev", BEHIND, "nodad"])?;
        }
        router.set_parameters(&[(self.over.family.forwarding(), "1")])?;
        host.ip_batch(&[
            // Of 32 or 128 bits, and in use at once.
            format!("address add {of_host} dev {BEHIND}{}", self.over.family.at_once()),
            format!("link set {BEHIND} up"),
            format!("route add {of_router} dev {BEHIND} src {of_host}"),
            format!("route add {there} via {of_router} dev {BEHIND} src {of_host}"),
        ])?;
        // The plugin's route to the pod has the scope of a host's, so the kernel takes it for no gateway unless it is told.
        let route = format!("route add {of_host} via {of_router} dev {} onlink", self.router);
        self.lab
            .namespace(self.node)
            .ip(&route.split(' ').collect::<Vec<_>>())?;
        // The agent sees the route, and lets that address be a source at the pod's device.
        wait_until("an answer from behind the pod", SETTLED_WITHIN, || {
            let ping = ["ping", "-n", "-c", "1", "-W", "1", &of_host.to_string()];
            command(self.lab, HERE, &ping).map(drop)
        })
    }
}

impl Drop for Behind<'_> {
    fn drop(&mut self) {
        // Nothing to do about a failure: the lab goes with the scenario that fails. The routes by the device go with it.
        let address = self.address.to_string();
        let _ = self.lab.namespace(self.node).ip(&["route", "del", &address]);
        let _ = self.lab.namespace(self.router).ip(&["link", "del", BEHIND]);
    }
}

pub(crate) fn carries(context: &mut Context, over: Over) -> Result<()> {
    let lab = over.lab(context)?;
    let behind = Behind::add(lab, over)?;
    // Small ones first, as a flow of its own.
    Flow::to_address(lab, HERE, behind.host, behind.address)?.warm(50)?;
    // Whoever has to part them: nobody, the pod's kernel when it passes them on, that of a node before they are on the wire (the other node's then merges
    // what it gets).
    let by_the_pod = |feature| vec![(behind.router, BEHIND, [feature, "off"])];
    let real_frames = ["k8s-ctr", over.node()]
        .into_iter()
        .flat_map(|node| [(node, "eth0", ["tx", "off"]), (node, "eth0", ["gro", "on"])])
        .collect::<Vec<_>>();
    let mut merged_and_parted = by_the_pod("tso");
    merged_and_parted.extend(&real_frames);
    for states in [
        Vec::new(),
        by_the_pod("tso"),
        by_the_pod("tx-udp_tnl-segmentation"),
        real_frames.clone(),
        merged_and_parted,
    ] {
        let what = format!("through a pod that routes, with {states:?}");
        let _set = states
            .into_iter()
            .map(|(namespace, device, state)| Offload::set(lab, namespace, device, &state))
            .collect::<Result<Vec<_>>>()?;
        let routed =
            transfer(lab, HERE, behind.host, behind.address, OCTETS).with_context(|| what.clone())?;
        routed.ensure_hardly_any_lost(&what)?;
        let back = transfer(lab, behind.host, HERE, address(lab, HERE)?, OCTETS)
            .with_context(|| format!("back {what}"))?;
        back.ensure_hardly_any_lost(&what)?;
        datagrams_in_segments(lab, HERE, behind.host, behind.address).with_context(|| what.clone())?;
        datagrams_in_segments(lab, behind.host, HERE, address(lab, HERE)?).with_context(|| what.clone())?;
    }
    // With all of them through the stack none overtakes another.
    ready(lab, &over.spec_through_the_stack())?;
    let _set = real_frames
        .into_iter()
        .map(|(namespace, device, state)| Offload::set(lab, namespace, device, &state))
        .collect::<Result<Vec<_>>>()?;
    let overtaken = datagrams_in_segments(lab, HERE, behind.host, behind.address)?;
    ensure!(
        overtaken == 0,
        "{overtaken} of 100 blocks came out of order without the bypass"
    );
    Ok(())
}

/// A pod in front of another pod: connections come by a lane, are translated in the pod, and leave by a lane again.
pub(crate) fn passes_on(context: &mut Context, over: Over) -> Result<()> {
    let lab = over.lab(context)?;
    let (front, backend) = (over.pods()[0], over.third());
    let listener = lab
        .namespace(backend)
        .within(|| TcpListener::bind((over.family.any(), 0)).context("cannot listen"))?;
    let port = listener.local_addr()?.port();
    lab.namespace(front)
        .set_parameters(&[(over.family.forwarding(), "1")])?;
    let rules = format!(
        "chain prerouting {{ type nat hook prerouting priority -100; tcp dport 80 dnat to {}; }}; \
         chain postrouting {{ type nat hook postrouting priority 100; tcp dport {port} masquerade; }};",
        SocketAddr::new(address(lab, backend)?, port)
    );
    let _rules = Rules::add(lab, front, over.family.nft(), &rules)?;
    let at = (address(lab, front)?, 80).into();
    let passed = transfer_to(lab, HERE, at, listener, OCTETS).context("through a pod that passes on")?;
    passed.ensure_hardly_any_lost("through a pod that passes on")
}
