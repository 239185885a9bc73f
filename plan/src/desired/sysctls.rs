//! The kernel parameters that forwarding pods' packets takes.

use super::peer_routes::Routed;
use super::{Assignment, Desired, LocalLink, Reason};
use crate::kernel::{Item, Observed};
use std::collections::BTreeSet;

const IPV4_FORWARDING: &str = "net/ipv4/ip_forward";
pub(crate) const IPV6_FORWARDING: &str = "net/ipv6/conf/all/forwarding";

/// Kernel parameters that [`super::desired`] wants to know, given the devices that carry the node's addresses, those of gateways, and ours.
pub fn sysctls_to_read<'a>(devices: impl IntoIterator<Item = &'a str>) -> BTreeSet<String> {
    let fixed = [IPV4_FORWARDING, IPV6_FORWARDING, "net/ipv4/conf/all/rp_filter"];
    fixed
        .into_iter()
        .chain(FOR_BYPASS)
        .map(str::to_owned)
        .chain(
            devices
                .into_iter()
                .flat_map(|device| [rp_filter(device), accept_ra(device), forwarding(device)]),
        )
        .collect()
}

/// What connection tracking has to take where packets of a connection pass it by: sequence numbers beyond its window, and a RST that lies
/// beyond it (Documentation/networking/nf_conntrack-sysctl.rst). Without them, rules that drop what is invalid stall long
/// connections. They are there only where connection tracking is loaded.
const FOR_BYPASS: [&str; 2] = [
    "net/netfilter/nf_conntrack_tcp_be_liberal",
    "net/netfilter/nf_conntrack_tcp_ignore_invalid_rst",
];

/// The parameters for want of which no flow may bypass the stack, with what they are.
pub(crate) fn against_bypass(observed: &Observed) -> impl Iterator<Item = (&'static str, &str)> {
    FOR_BYPASS.into_iter().filter_map(|path| {
        let value = observed.ours.sysctls.get(path)?;
        (value != "1").then_some((path, value.as_str()))
    })
}

/// Whether a device's reverse path filter is strict: the kernel takes the greater of `all` and the device's own
/// (Documentation/networking/ip-sysctl.rst).
pub(crate) fn has_strict_reverse_path(device: &str, observed: &Observed) -> bool {
    let value = |path: &str| {
        let text = observed.ours.sysctls.get(path)?;
        text.parse::<u8>().ok()
    };
    value("net/ipv4/conf/all/rp_filter").max(value(&rp_filter(device))) == Some(1)
}

pub(super) fn rp_filter(device: &str) -> String {
    format!("net/ipv4/conf/{device}/rp_filter")
}

/// Whether a device takes routers' advertisements: 0 no, 1 while it does not forward, 2 always (`ipv6_accept_ra` in include/net/ipv6.h).
fn accept_ra(device: &str) -> String {
    format!("net/ipv6/conf/{device}/accept_ra")
}

/// Whether a device forwards IPv6.
fn forwarding(device: &str) -> String {
    format!("net/ipv6/conf/{device}/forwarding")
}

/// Forwarding on; and reverse path filtering on no device stricter than loose (RFC 3704, section 2.4): while lanes change, a
/// peer's packets come in over one lane and go out over another.
pub(super) fn declare(
    plan: &mut Desired,
    assignment: &Assignment,
    links: &[LocalLink],
    observed: &Observed,
    routed: &Routed,
) {
    declare_forwarding(plan, assignment, observed, routed);
    for path in FOR_BYPASS {
        if assignment.datapath.bypass && observed.ours.sysctls.contains_key(path) {
            plan.declare(Item::Sysctl(path.to_owned()), Reason::Bypass, |state| {
                state.sysctls.insert(path.to_owned(), "1".to_owned())
            });
        }
    }
    let value = |path: &str| observed.ours.sysctls.get(path).map(String::as_str);
    let strict_everywhere = value("net/ipv4/conf/all/rp_filter") == Some("1");
    for link in links.iter().filter(|link| link.address.is_ipv4()) {
        let path = rp_filter(&link.device);
        // The kernel takes the greater of `all` and the device's own (Documentation/networking/ip-sysctl.rst).
        let loosen = match value(&path) {
            Some("1" | "2") => true,
            Some("0") => strict_everywhere,
            _ => false,
        };
        if loosen {
            plan.declare(Item::Sysctl(path.clone()), Reason::ReversePath, |state| {
                state.sysctls.insert(path, "2".to_owned())
            });
        }
    }
}

/// Of the pods' families, since their packets pass; and of the underlay's, since the programs ask the kernel for the way to a peer, which
/// says none by a device that does not forward the family (`BPF_FIB_LKUP_RET_FWD_DISABLED` in net/core/filter.c).
fn declare_forwarding(plan: &mut Desired, assignment: &Assignment, observed: &Observed, routed: &Routed) {
    for (path, six) in [(IPV4_FORWARDING, false), (IPV6_FORWARDING, true)] {
        let mut pods = assignment.pod_cidrs.iter();
        let reason = if pods.any(|cidr| cidr.addr().is_ipv6() == six) {
            Reason::Forwarding
        } else if routed.goes_by_family(six) {
            Reason::WaysOfPrograms
        } else {
            continue;
        };
        plan.declare(Item::Sysctl(path.to_owned()), reason, |state| {
            state.sysctls.insert(path.to_owned(), "1".to_owned())
        });
        if six {
            declare_advertisements(plan, observed);
        }
    }
}

/// A device that has its addresses and its default route from routers' advertisements keeps them when it forwards from now on. One that
/// forwarded before ignores them, and goes on so.
fn declare_advertisements(plan: &mut Desired, observed: &Observed) {
    let is = |path: &str, value: &str| observed.ours.sysctls.get(path).is_some_and(|is| is == value);
    if !is(IPV6_FORWARDING, "0") {
        return;
    }
    let links = observed.underlay.iter().map(|on| on.device.as_str());
    let hops = observed.foreign_routes.iter().flat_map(|route| &route.next_hops);
    let devices: BTreeSet<&str> = links.chain(hops.map(|hop| hop.device.as_str())).collect();
    for device in devices {
        let path = accept_ra(device);
        if is(&path, "1") && is(&forwarding(device), "0") {
            plan.declare(
                Item::Sysctl(path.clone()),
                Reason::RouterAdvertisements,
                |state| state.sysctls.insert(path, "2".to_owned()),
            );
        }
    }
}
