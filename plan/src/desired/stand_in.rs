//! A VXLAN device in the place of a GENEVE one, where the kernel has no driver for that: the programs at its egress encapsulate, and
//! those at the underlay's ingress decapsulate.

use crate::kernel::{Device, MacAddress, Observed};
use crate::lane::{Tunnel, TunnelProtocol};

/// A tunnel's device as it is declared here.
///
/// One that stands in stays so even when a driver turns up: to make it anew would lose what is under way. Without programs nothing is
/// under way, and the driver is tried.
pub(super) fn device(tunnel: &Tunnel, mac: MacAddress, mtu: u32, observed: &Observed) -> Device {
    let able = observed.capabilities;
    let stands_in = || {
        let is = observed.ours.devices.get(&tunnel.device());
        is.is_some_and(|device| device.stand_in)
    };
    let stand_in = tunnel.protocol == TunnelProtocol::Geneve
        && match able.geneve_driver {
            Some(true) => able.programs && stands_in(),
            Some(false) => able.programs || stands_in(),
            None => able.programs && stands_in(),
        };
    Device {
        stand_in,
        ..Device::declared(tunnel, mac, mtu)
    }
}

/// What is the matter with a device that stands in while there are no programs: it would send VXLAN on GENEVE's port.
pub(super) fn without_programs(name: &str, observed: &Observed) -> Option<&'static str> {
    let stands_in = observed
        .ours
        .devices
        .get(name)
        .is_some_and(|device| device.stand_in);
    (stands_in && !observed.capabilities.programs).then_some(
        "this kernel has no geneve driver, and the eBPF programs that take its place are not loaded: see what the agent says of \
         them, or choose another spec.tunnel.protocol",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Capabilities;

    #[test]
    fn a_stand_in_is_made_only_without_a_driver_and_stays_while_it_works() {
        let geneve = Tunnel {
            protocol: TunnelProtocol::Geneve,
            port: 6081,
            vni: 1,
        };
        let mac = MacAddress([2, 0, 0, 0, 0, 1]);
        for (programs, geneve_driver, is, expected) in [
            (true, None, None, false),
            (true, Some(true), None, false),
            (true, Some(false), None, true),
            (false, Some(false), None, false),
            (false, None, None, false),
            // A real device is never made anew while there is a driver.
            (true, Some(true), Some(false), false),
            // What works stays.
            (true, Some(true), Some(true), true),
            (true, None, Some(true), true),
            (true, Some(false), Some(true), true),
            // What does not work stays where nothing better can be had.
            (false, Some(false), Some(true), true),
            (false, None, Some(true), false),
            (false, Some(true), Some(true), false),
        ] {
            let mut observed = Observed {
                capabilities: Capabilities {
                    programs,
                    geneve_driver,
                    ..Capabilities::default()
                },
                ..Observed::default()
            };
            if let Some(stand_in) = is {
                let device = Device {
                    stand_in,
                    ..Device::declared(&geneve, mac, 1450)
                };
                observed.ours.devices.insert(geneve.device(), device);
            }
            let planned = device(&geneve, mac, 1450, &observed);
            let case = format!("{programs} {geneve_driver:?} {is:?}");
            assert_eq!(planned.stand_in, expected, "{case}");
            assert_eq!(planned.driver(), if expected { "vxlan" } else { "geneve" });
            let refused = without_programs(&geneve.device(), &observed).is_some();
            assert_eq!(refused, is == Some(true) && !programs, "{case}");
            let vxlan = Tunnel {
                protocol: TunnelProtocol::Vxlan,
                ..geneve
            };
            assert!(!device(&vxlan, mac, 1450, &observed).stand_in);
        }
    }
}
