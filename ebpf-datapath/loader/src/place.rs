//! Where programs sit.

use podlane_bpf_syscall::Hook;
use podlane_plan::datapath::Attached;
use std::collections::BTreeMap;

/// A program that sits on a hook. What each does: docs/datapath.md.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    TunnelEgress,
    TunnelIngress,
    UnderlayIngress,
    UnderlayEgress,
    PodIngress,
    PodEgress,
}

impl Role {
    pub(crate) const ALL: [Self; 6] = [
        Self::TunnelEgress,
        Self::TunnelIngress,
        Self::UnderlayIngress,
        Self::UnderlayEgress,
        Self::PodIngress,
        Self::PodEgress,
    ];

    /// The program's name in the object, and that of its pin.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::TunnelEgress => "tunnel_egress",
            Self::TunnelIngress => "tunnel_ingress",
            Self::UnderlayIngress => "underlay_ingress",
            Self::UnderlayEgress => "underlay_egress",
            Self::PodIngress => "pod_ingress",
            Self::PodEgress => "pod_egress",
        }
    }

    pub(crate) const fn hook(self) -> Hook {
        match self {
            Self::TunnelIngress | Self::UnderlayIngress | Self::PodIngress => Hook::Ingress,
            Self::TunnelEgress | Self::UnderlayEgress | Self::PodEgress => Hook::Egress,
        }
    }
}

/// A program on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) interface: u32,
    pub(crate) role: Role,
}

impl Place {
    /// The name of its pin: `7-tunnel_egress`. (A bpffs has no dots in names: `bpf_lookup`, kernel/bpf/inode.c.)
    pub(crate) fn pin(self) -> String {
        format!("{}-{}", self.interface, self.role.name())
    }

    pub(crate) fn of_pin(name: &str) -> Option<Self> {
        let (interface, role) = name.split_once('-')?;
        Some(Self {
            interface: interface.parse().ok().filter(|index| *index != 0)?,
            role: Role::ALL.into_iter().find(|known| known.name() == role)?,
        })
    }
}

/// The names of the devices on which programs are to sit, by role.
pub(crate) fn declared(attached: &Attached) -> impl Iterator<Item = (Role, &str)> {
    let tunnels = attached
        .tunnels
        .iter()
        .flat_map(|device| [(Role::TunnelIngress, device), (Role::TunnelEgress, device)]);
    let underlay = attached.underlay.iter().flat_map(|device| {
        let stamping = attached.leaving_plain.then_some((Role::UnderlayEgress, device));
        stamping.into_iter().chain([(Role::UnderlayIngress, device)])
    });
    let pods = attached.pods.iter().flat_map(|(device, stamps)| {
        let stamping = stamps.then_some((Role::PodEgress, device));
        stamping.into_iter().chain([(Role::PodIngress, device)])
    });
    tunnels
        .chain(underlay)
        .chain(pods)
        .map(|(role, device)| (role, device.as_str()))
}

/// The declared places whose devices are there, with the devices' names.
pub(crate) fn places<'a>(
    attached: &'a Attached,
    interfaces: &BTreeMap<String, u32>,
) -> BTreeMap<Place, &'a str> {
    declared(attached)
        .filter_map(|(role, device)| {
            let interface = *interfaces.get(device)?;
            Some((Place { interface, role }, device))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_are_read_as_they_are_written() {
        for role in Role::ALL {
            let place = Place { interface: 7, role };
            assert_eq!(Place::of_pin(&place.pin()), Some(place));
        }
        for name in [
            "7",
            "x-pod_egress",
            "7-probe_send",
            "0-pod_egress",
            "7-pod_egress-old",
        ] {
            assert_eq!(Place::of_pin(name), None, "{name}");
        }
    }
}
