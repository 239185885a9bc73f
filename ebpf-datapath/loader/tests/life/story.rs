//! What the tests declare: the story's first node, k8s-ctr, and what sees what came of it.

use aya::programs::SchedClassifier;
use ipnet::IpNet;
use podlane_bpf_syscall::{Hook, programs};
use podlane_datapath::{Options, Programs, Synced};
use podlane_plan::datapath::{Attached, Datapath, DatapathPeer, NativeLane, OpenTunnel, Owner, Way};
use podlane_plan::kernel::MacAddress;
use podlane_plan::lane::{Tunnel, TunnelProtocol};
use podlane_test_namespaces::{bpffs, command, index};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

pub(crate) const VXLAN: Tunnel = Tunnel {
    protocol: TunnelProtocol::Vxlan,
    port: 8472,
    vni: 1,
};

/// The devices of the declared node.
pub(crate) fn devices() {
    for line in [
        "ip link set lo up",
        "ip link add eth1 type veth peer name far",
        "ip link add podlane_vxlan type veth peer name tunnel_end",
        "ip link add pod1 type veth peer name pod1_end",
        "ip addr add 192.168.10.100/24 dev eth1",
    ] {
        command(line);
    }
    for device in ["eth1", "far", "podlane_vxlan", "pod1"] {
        command(&format!("ip link set {device} up"));
    }
    forward();
}

/// Makes the calling thread's namespace a router, as every node is.
pub(crate) fn forward() {
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("the parameter is writable");
}

pub(crate) fn network(text: &str) -> IpNet {
    text.parse().expect("a network")
}

pub(crate) fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// k8s-ctr: k8s-w1 on the link, k8s-w0 behind a gateway and a tunnel.
pub(crate) fn declared() -> Datapath {
    let mut datapath = Datapath {
        native: true,
        bypass: true,
        check_underlay: true,
        dscp: 10,
        ..Datapath::default()
    };
    datapath.tunnels.insert(
        VXLAN,
        OpenTunnel {
            device: "podlane_vxlan".to_owned(),
            mac: MacAddress([2, 0x50, 192, 168, 10, 100]),
            stand_in: false,
        },
    );
    datapath.local_pod_cidrs.insert(network("172.20.0.0/24"));
    datapath
        .networks
        .insert(network("172.20.0.0/16"), Owner::Unassigned);
    datapath
        .networks
        .insert(network("172.20.0.0/24"), Owner::Local { device: None });
    let pod = Owner::Local {
        device: Some("pod1".to_owned()),
    };
    datapath.networks.insert(network("172.20.0.5/32"), pod);
    add_peer(&mut datapath, 1, Ipv4Addr::new(192, 168, 10, 101), true);
    add_peer(&mut datapath, 2, Ipv4Addr::new(192, 168, 20, 100), false);
    datapath.attached = Attached {
        tunnels: ["podlane_vxlan".to_owned()].into(),
        underlay: ["eth1".to_owned()].into(),
        leaving_plain: true,
        pods: [("pod1".to_owned(), true)].into(),
    };
    datapath
}

/// k8s-w1 without pods, as it sees k8s-ctr.
pub(crate) fn other_node() -> Datapath {
    let mut datapath = declared();
    datapath.peers.clear();
    datapath.networks.clear();
    add_peer(&mut datapath, 0, Ipv4Addr::new(192, 168, 10, 100), true);
    for peer in datapath.peers.values_mut() {
        peer.source = address("192.168.10.101");
    }
    let pod_cidr = network("172.20.1.0/24");
    datapath.local_pod_cidrs = [pod_cidr].into();
    datapath.networks.insert(pod_cidr, Owner::Local { device: None });
    datapath.attached.pods.clear();
    datapath
}

/// A peer with the pod CIDR 172.20.N.0/24 (the higher numbers: 172.20 and more, each of 256).
pub(crate) fn add_peer(datapath: &mut Datapath, number: u32, outer: Ipv4Addr, on_link: bool) {
    let [_, _, high, low] = number.to_be_bytes();
    let pods = IpNet::from(ipnet::Ipv4Net::new_assert(
        Ipv4Addr::new(172, 20 + high, low, 0),
        24,
    ));
    let next_hop = IpAddr::V4(if on_link {
        outer
    } else {
        Ipv4Addr::new(192, 168, 10, 200)
    });
    datapath.peers.insert(
        IpAddr::V4(outer),
        DatapathPeer {
            name: format!("node-{number}"),
            source: address("192.168.10.100"),
            tunnels: BTreeSet::from([VXLAN]).into(),
            mtu: 1450,
            way: Some(Way {
                device: "eth1".to_owned(),
                next_hop,
                several: false,
            }),
            pod_cidrs: [pods].into(),
        },
    );
    let native = on_link.then(|| NativeLane {
        device: "eth1".to_owned(),
        next_hop,
        on_link: true,
        mtu: 1500,
    });
    let owner = Owner::Peer {
        outer: Some(IpAddr::V4(outer)),
        native,
    };
    datapath.networks.insert(pods, owner);
}

pub(crate) fn open() -> Programs {
    open_with(&Options::default())
}

pub(crate) fn open_with(options: &Options) -> Programs {
    Programs::open(&bpffs().join("podlane"), options).unwrap_or_else(|failure| panic!("{failure}"))
}

/// Settles, and shows that a second pass finds nothing to do.
pub(crate) fn settle(programs: &mut Programs, datapath: &Datapath) -> Synced {
    let synced = programs.sync(datapath, Some([1, 2]));
    assert_eq!(synced.failures, [], "everything declared is in effect");
    let again = programs.sync(datapath, Some([1, 2]));
    assert_eq!(
        (again.applied, &again.failures),
        (0, &vec![]),
        "a second pass finds nothing to do"
    );
    assert_eq!(again.generation, synced.generation);
    synced
}

/// Whether this kernel has tcx.
pub(crate) fn has_tcx() -> bool {
    programs(1, Hook::Ingress).is_ok()
}

/// The numbers of the programs on a hook, in their order; without tcx, of those that are filters of a clsact queueing discipline.
pub(crate) fn on(device: &str, hook: Hook) -> Vec<u32> {
    if has_tcx() {
        return programs(index(device), hook).expect("the hook can be asked");
    }
    let hook = match hook {
        Hook::Ingress => "ingress",
        Hook::Egress => "egress",
    };
    let shown = command(&format!("tc filter show dev {device} {hook}"));
    let words: Vec<_> = shown.split_whitespace().collect();
    let ids = words.windows(2).filter(|words| words[0] == "id");
    ids.map(|words| words[1].parse().expect("a number")).collect()
}

/// Somebody else's program: one of the object's own, which lets everything pass as long as nothing is in its maps, loaded apart from ours.
pub(crate) fn stranger() -> SchedClassifier {
    let mut loaded = aya::EbpfLoader::new()
        .btf(None)
        .load(podlane_datapath::object())
        .expect("the object loads");
    let Some(aya::programs::Program::SchedClassifier(_)) = loaded.program("pod_egress") else {
        panic!("the object has the program");
    };
    let directory = bpffs().join("stranger");
    std::fs::create_dir_all(&directory).expect("a directory");
    let pin = (0..)
        .map(|at| directory.join(at.to_string()))
        .find(|pin| !pin.exists())
        .expect("a name");
    let program: &mut SchedClassifier = loaded
        .program_mut("pod_egress")
        .expect("the program")
        .try_into()
        .expect("a classifier");
    program.load().expect("it loads");
    program.pin(&pin).expect("it is pinned");
    SchedClassifier::from_pin(&pin).expect("it is taken")
}
