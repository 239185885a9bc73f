//! From whom plain packets are taken.

use super::*;

#[test]
fn the_native_lane_is_open_to_those_that_may_use_it() {
    let on_link = NativeLane {
        device: "eth0".to_owned(),
        next_hop: at("192.168.10.101"),
        on_link: true,
        mtu: 1500,
    };
    let mut node = story();
    let (plan, _) = node.plan();
    // All policies ask for a tunnel; a peer that has not heard of it sends natively as it did.
    assert!(plan.native && plan.check_underlay && plan.attached.leaving_plain);
    assert_eq!(native(&plan, "172.20.1.0/24"), Some(&on_link));
    assert_eq!(native(&plan, "172.20.2.0/24"), None);
    // One that has not reported its links may be on ours.
    node.peers.get_mut("k8s-w1").expect("a peer").addresses[0].prefix_length = None;
    assert_eq!(native(&node.plan().0, "172.20.1.0/24"), Some(&on_link));
    // By way of gateways while that is kept open, from wherever.
    node.receive_on("native underlay vxlan:8472:1");
    let (plan, _) = node.plan();
    let by_gateway = NativeLane {
        next_hop: at("192.168.10.200"),
        on_link: false,
        ..on_link.clone()
    };
    assert_eq!(native(&plan, "172.20.2.0/24"), Some(&by_gateway));
    assert_eq!(native(&plan, "172.20.1.0/24"), Some(&on_link));
    // Or while the policies ask for it.
    node.receive_on("native");
    node.told.policy = policy(RoutingMode::Native, OffLinkPeers::Underlay);
    node.peers.get_mut("k8s-w0").expect("a peer").policy = node.told.policy.clone();
    assert_eq!(native(&node.plan().0, "172.20.2.0/24"), Some(&by_gateway));
    // Closed, it is closed.
    let mut node = story();
    node.receive_on("vxlan:8472:1");
    let (plan, _) = node.plan();
    assert!(!plan.native);
    assert_eq!(native(&plan, "172.20.1.0/24"), None);
    assert!(
        !plan.attached.leaving_plain,
        "nothing leaves as it is, and there is nothing to watch"
    );
}

#[test]
fn of_several_common_links_only_one_that_both_choose_is_checked() {
    let mut node = story();
    let second = |host: &str| NodeAddress {
        address: at(host),
        prefix_length: Some(24),
    };
    node.told.addresses.push(at("192.168.11.100"));
    node.kernel.underlay.push(UnderlayAddress {
        device: "eth1".to_owned(),
        address: cidr("192.168.11.100/24"),
        mtu: 1500,
    });
    let peer = node.peers.get_mut("k8s-w1").expect("a peer");
    peer.addresses.push(second("192.168.11.101"));
    let lane = |node: &Node| native(&node.plan().0, "172.20.1.0/24").cloned().expect("a lane");
    assert!(lane(&node).on_link);
    // The peer prefers the other link for itself: it sends from there to our first address' link.
    node.peers.get_mut("k8s-w1").expect("a peer").addresses.reverse();
    let lane = lane(&node);
    assert_eq!((lane.next_hop, lane.on_link), (at("192.168.11.101"), false));
}
