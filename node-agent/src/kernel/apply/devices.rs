//! Tunnel devices: made, configured, and what to say when either fails.

use super::super::failure::{Failure, not_ours};
use super::super::link::Link;
use super::super::transport::{Refused, TransportError};
use super::super::{drivers, request, udp_ports};
use super::Applier;
use nix::errno::Errno;
use podlane_plan::diff::Operation;
use podlane_plan::kernel::Device;

impl Applier<'_> {
    pub(super) fn create_device(
        &mut self,
        operation: &Operation,
        name: &str,
        device: &Device,
    ) -> Result<(), Failure> {
        self.links.remove(name);
        let driver = device.driver();
        let mut result = self.tell(request::create_device(name, device));
        if refused_with(&result, Errno::EOPNOTSUPP) {
            let loaded = self.kernel.drivers.load(driver);
            if matches!(loaded, drivers::Load::Loaded) {
                result = self.tell(request::create_device(name, device));
            }
            if refused_with(&result, Errno::EOPNOTSUPP) {
                self.kernel.learn_driver(driver, false);
                let words = drivers::no_driver(driver, &loaded);
                return Err(Failure {
                    errno: Some(Errno::EOPNOTSUPP),
                    words,
                });
            }
        }
        let Err(error) = result else {
            self.kernel.learn_driver(driver, true);
            return Ok(());
        };
        // The kernel's EEXIST, and GENEVE's EPERM, are about the name or about another device with the same port.
        match &error {
            TransportError::Refused(Refused {
                errno: errno @ (Errno::EEXIST | Errno::EPERM | Errno::EBUSY),
                words,
            }) => {
                if let Some(link) = self.link(name)?.filter(|link| link.ours().is_none()) {
                    return Err(not_ours(&link));
                }
                let Some(other) = self.device_on_port(name, device) else {
                    return self.judge(operation, error);
                };
                let words = words.as_deref().unwrap_or_else(|| errno.desc());
                Err(Failure {
                    errno: Some(*errno),
                    words: format!(
                        "the device {} ({}) keeps {name} from being made on the same port: {words}. Remove it, or give the \
                         RoutingPolicy another spec.tunnel.port",
                        other.name,
                        other.description()
                    ),
                })
            }
            _ => self.judge(operation, error),
        }
    }

    pub(super) fn configure_device(&mut self, name: &str, device: &Device) -> Result<(), Failure> {
        self.links.remove(name);
        let index = self.ours(name)?;
        let requests = vec![
            request::no_link_local_address(index),
            request::configure_device(index, device),
            request::set_up(index, device.up),
        ];
        let mut results = self.kernel.transport.batch(requests).into_iter().skip(1);
        self.links.remove(name);
        let configured = results.next().unwrap_or(Err(TransportError::Silent));
        let up = results.next().unwrap_or(Err(TransportError::Silent));
        if refused_with(&up, Errno::EADDRINUSE) {
            let holder = match self.device_on_port(name, device) {
                Some(other) => format!("the device {} ({})", other.name, other.description()),
                None => udp_ports::holder(device.port).unwrap_or_else(|| "another socket".to_owned()),
            };
            let words = format!(
                "UDP port {} is already in use by {holder}: stop that, or give the RoutingPolicy another spec.tunnel.port",
                device.port
            );
            return Err(Failure {
                errno: Some(Errno::EADDRINUSE),
                words,
            });
        }
        configured.and(up).map_err(Failure::from)
    }

    /// Another device of the same driver on the same port.
    fn device_on_port(&mut self, name: &str, device: &Device) -> Option<Link> {
        let links: Vec<Link> = self
            .kernel
            .transport
            .dump(&request::all_links(), |links: &mut Vec<Link>, _, payload| {
                links.extend(Link::decode(payload))
            })
            .ok()?;
        let on_port = |link: &Link| {
            link.tunnel
                .as_ref()
                .is_some_and(|tunnel| tunnel.device.port == device.port)
        };
        links.into_iter().find(|link| link.name != name && on_port(link))
    }
}

fn refused_with(result: &Result<(), TransportError>, errno: Errno) -> bool {
    matches!(result, Err(TransportError::Refused(refused)) if refused.errno == errno)
}
