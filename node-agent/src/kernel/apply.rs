//! Carries out operations, each with its result.

use super::Kernel;
use super::drivers;
use super::link::Link;
use super::request::{self, Place};
use super::transport::{Refused, Request, TransportError};
use super::udp_ports;
use ipnet::IpNet;
use nix::errno::Errno;
use podlane_plan::diff::Operation;
use podlane_plan::kernel::{Device, ForeignRoute, Observed, Route, RouteKey, RouteTarget};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Routes or neighbours that are told to the kernel together.
const BATCH: usize = 512;

/// Why an operation had no effect, in words that say what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{words}")]
pub struct Failure {
    /// The kernel's error, where it was the kernel that said no.
    pub errno: Option<Errno>,
    /// The words.
    pub words: String,
}

impl Failure {
    fn new(words: impl Into<String>) -> Self {
        Self {
            errno: None,
            words: words.into(),
        }
    }
}

impl From<TransportError> for Failure {
    fn from(error: TransportError) -> Self {
        match error {
            TransportError::Refused(Refused { errno: Errno::EPERM, words: None }) => Self {
                errno: Some(Errno::EPERM),
                words: "the agent may not change this node's network: give its container the capability NET_ADMIN (EPERM)"
                    .to_owned(),
            },
            TransportError::Refused(refused) => Self { errno: Some(refused.errno), words: refused.to_string() },
            TransportError::Socket { errno, .. } => Self { errno: Some(errno), words: error.to_string() },
            error => Self::new(error.to_string()),
        }
    }
}

/// The errors that mean that what was to be done is done already. EEXIST is none of them for a route: somebody else's has
/// the place (`fib_table_insert` in net/ipv4/fib_trie.c, `fib6_add_rt2node` in net/ipv6/ip6_fib.c).
fn is_benign(operation: &Operation, errno: Errno) -> bool {
    match operation {
        Operation::AddAddress(_) => errno == Errno::EEXIST,
        Operation::RemoveAddress(_) => matches!(errno, Errno::EADDRNOTAVAIL | Errno::ENODEV),
        Operation::RemoveNeighbour(_) => matches!(errno, Errno::ENOENT | Errno::ENODEV),
        Operation::RemoveRoute(_) => matches!(errno, Errno::ESRCH | Errno::ENODEV),
        Operation::DeleteDevice { .. } => errno == Errno::ENODEV,
        Operation::SetSysctl { .. }
        | Operation::CreateDevice { .. }
        | Operation::ConfigureDevice { .. }
        | Operation::SetNeighbour(..)
        | Operation::AddRoute(..)
        | Operation::ReplaceRoute(..) => false,
    }
}

fn unless_benign(operation: &Operation, failure: Failure) -> Result<(), Failure> {
    if failure.errno.is_some_and(|errno| is_benign(operation, errno)) {
        Ok(())
    } else {
        Err(failure)
    }
}

/// The outcome of removing a stray: what is gone already (an address goes with the first one of its network) is as wanted.
pub(super) fn unless_gone(result: Result<(), TransportError>) -> Result<(), Failure> {
    match result {
        Err(TransportError::Refused(refused))
            if matches!(refused.errno, Errno::EADDRNOTAVAIL | Errno::ESRCH | Errno::ENODEV) =>
        {
            Ok(())
        }
        result => result.map_err(Failure::from),
    }
}

#[derive(PartialEq, Eq)]
enum Together {
    Routes,
    Neighbours,
    No,
}

fn together(operation: &Operation) -> Together {
    match operation {
        Operation::AddRoute(..) | Operation::ReplaceRoute(..) | Operation::RemoveRoute(_) => Together::Routes,
        Operation::SetNeighbour(..) | Operation::RemoveNeighbour(_) => Together::Neighbours,
        _ => Together::No,
    }
}

pub(super) struct Applier<'a> {
    kernel: &'a mut Kernel,
    seen: &'a Observed,
    /// Devices by name, as they are now; none: not there.
    links: BTreeMap<String, Option<Link>>,
}

impl<'a> Applier<'a> {
    pub(super) fn new(kernel: &'a mut Kernel, seen: &'a Observed) -> Self {
        Self {
            kernel,
            seen,
            links: BTreeMap::new(),
        }
    }

    pub(super) fn apply(&mut self, operations: &[Operation]) -> Vec<Result<(), Failure>> {
        let mut results = Vec::with_capacity(operations.len());
        for alike in operations.chunk_by(|a, b| together(a) == together(b)) {
            if together(&alike[0]) == Together::No {
                results.extend(alike.iter().map(|operation| self.one(operation)));
            } else {
                for batch in alike.chunks(BATCH) {
                    self.batch(batch, &mut results);
                }
            }
        }
        results
    }

    /// Many requests to the kernel at once.
    fn batch(&mut self, operations: &[Operation], results: &mut Vec<Result<(), Failure>>) {
        let mut requests = Vec::with_capacity(operations.len());
        let mut asked = Vec::with_capacity(operations.len());
        let start = results.len();
        for (at, operation) in operations.iter().enumerate() {
            results.push(match self.request(operation) {
                Ok(request) => {
                    requests.push(request);
                    asked.push(at);
                    Ok(())
                }
                Err(failure) => unless_benign(operation, failure),
            });
        }
        let answers = self.kernel.transport.batch(requests);
        for (at, answer) in asked.into_iter().zip(answers) {
            if let Err(error) = answer {
                results[start + at] = self.second_try(&operations[at], error);
            }
        }
    }

    /// An IPv6 next hop given as on the link is refused where any route but the default one leads to it over another device
    /// (`ip6_route_check_nh_onlink` in net/ipv6/route.c): always when a lane changes from native to a tunnel, since the peer's
    /// router address is within its own pod CIDR. A route to the next hop alone, for the moment, shows the kernel the device. It
    /// takes no pod's packet, and should we die in between, it is ours and undeclared, so the next pass removes it.
    fn second_try(&mut self, operation: &Operation, error: TransportError) -> Result<(), Failure> {
        let (
            Operation::AddRoute(_, route) | Operation::ReplaceRoute(_, route),
            TransportError::Refused(refused),
        ) = (operation, &error)
        else {
            return self.judge(operation, error);
        };
        let RouteTarget::Encapsulated {
            gateway: gateway @ IpAddr::V6(_),
            device,
            ..
        } = &route.target
        else {
            return self.judge(operation, error);
        };
        if refused.errno != Errno::EINVAL {
            return self.judge(operation, error);
        }
        let next_hop = request::next_hop(*gateway, self.ours(device)?);
        let again = self.request(operation)?;
        let mut results = self
            .kernel
            .transport
            .batch(vec![next_hop.add, again, next_hop.remove])
            .into_iter();
        results
            .nth(1)
            .unwrap_or(Err(TransportError::Silent))
            .or_else(|error| self.judge(operation, error))
    }

    fn request(&mut self, operation: &Operation) -> Result<Request, Failure> {
        match operation {
            Operation::AddRoute(key, route) => self.route(key, route, Place::Empty),
            Operation::ReplaceRoute(key, route) => match self.foreign_route(key) {
                // The kernel replaces the first route with this destination and metric, whosever it is.
                Some(foreign) => Err(place_taken(foreign)),
                None => self.route(key, route, Place::Taken),
            },
            Operation::RemoveRoute(key) => {
                let was = self.seen.ours.routes.get(key);
                let device = match was.and_then(Route::device) {
                    Some(name) => self.link(name)?.map_or(0, |link| link.index),
                    None => 0,
                };
                Ok(request::remove_route(key, was, device))
            }
            Operation::SetNeighbour(on, mac) => {
                let index = self.ours(&on.device)?;
                Ok(request::set_neighbour(index, on.address, *mac))
            }
            Operation::RemoveNeighbour(on) => {
                let index = self.ours(&on.device)?;
                Ok(request::remove_neighbour(index, on.address))
            }
            Operation::AddAddress(on) => {
                let index = self.ours(&on.device)?;
                Ok(request::add_address(index, &IpNet::from(on.address)))
            }
            Operation::RemoveAddress(on) => {
                let index = self.ours(&on.device)?;
                Ok(request::remove_address(index, &IpNet::from(on.address)))
            }
            Operation::CreateDevice { name, device } => Ok(request::create_device(name, device)),
            Operation::ConfigureDevice { name, device } => {
                Ok(request::configure_device(self.ours(name)?, device))
            }
            Operation::DeleteDevice { name } => Ok(request::delete_device(self.ours(name)?)),
            Operation::SetSysctl { path, .. } => Err(Failure::new(format!("{path} is no netlink request"))),
        }
    }

    fn route(&mut self, key: &RouteKey, route: &Route, place: Place) -> Result<Request, Failure> {
        let device = match &route.target {
            RouteTarget::Unreachable => 0,
            RouteTarget::Encapsulated { device, .. } => self.ours(device)?,
            RouteTarget::Via { device, .. } => match self.link(device)? {
                Some(link) => link.index,
                None => return Err(gone(device)),
            },
        };
        Ok(request::route(key, route, device, place))
    }

    fn one(&mut self, operation: &Operation) -> Result<(), Failure> {
        match operation {
            Operation::SetSysctl { path, value } => self.set_sysctl(path, value),
            Operation::CreateDevice { name, device } => self.create_device(operation, name, device),
            Operation::ConfigureDevice { name, device } => self.configure_device(name, device),
            Operation::DeleteDevice { name } => {
                // Who it is now, not who it was when it was looked up.
                self.links.remove(name);
                let result = self.plain(operation);
                self.links.remove(name);
                result
            }
            operation => self.plain(operation),
        }
    }

    fn plain(&mut self, operation: &Operation) -> Result<(), Failure> {
        match self.request(operation) {
            Ok(request) => self.tell(request).or_else(|error| self.judge(operation, error)),
            Err(failure) => unless_benign(operation, failure),
        }
    }

    fn tell(&mut self, request: Request) -> Result<(), TransportError> {
        self.kernel
            .transport
            .batch(vec![request])
            .pop()
            .unwrap_or(Err(TransportError::Silent))
    }

    fn set_sysctl(&self, path: &str, value: &str) -> Result<(), Failure> {
        self.kernel.sysctls.write(path, value).map_err(|errno| Failure {
            errno: Some(errno),
            words: match errno {
                Errno::EROFS | Errno::EACCES | Errno::EPERM => format!(
                    "{path} cannot be set to {value}: /proc/sys is read-only here ({errno:?}). Mount the node's /proc/sys/net \
                     into the container and name the place with --sysctls, or set it on the node: sysctl -w {}={value}",
                    dotted(path)
                ),
                errno => format!("{path} cannot be set to {value}: {} ({errno:?})", errno.desc()),
            },
        })
    }

    fn create_device(&mut self, operation: &Operation, name: &str, device: &Device) -> Result<(), Failure> {
        self.links.remove(name);
        let driver = device.protocol.driver();
        let mut result = self.tell(request::create_device(name, device));
        if refused_with(&result, Errno::EOPNOTSUPP) {
            let loaded = self.kernel.drivers.load(driver);
            if matches!(loaded, drivers::Load::Loaded) {
                result = self.tell(request::create_device(name, device));
            }
            if refused_with(&result, Errno::EOPNOTSUPP) {
                let words = drivers::no_driver(driver, &loaded);
                return Err(Failure {
                    errno: Some(Errno::EOPNOTSUPP),
                    words,
                });
            }
        }
        let Err(error) = result else { return Ok(()) };
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

    fn configure_device(&mut self, name: &str, device: &Device) -> Result<(), Failure> {
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

    /// Turns what the kernel says into what status says.
    fn judge(&self, operation: &Operation, error: TransportError) -> Result<(), Failure> {
        let TransportError::Refused(refused) = &error else {
            return Err(error.into());
        };
        if is_benign(operation, refused.errno) {
            return Ok(());
        }
        match (operation, refused.errno) {
            (Operation::AddRoute(key, _), Errno::EEXIST) => Err(match self.foreign_route(key) {
                Some(foreign) => place_taken(foreign),
                None => Failure {
                    errno: Some(Errno::EEXIST),
                    words: format!(
                        "a route to {key} that is not Podlane's has the place: look at it with `ip route show {}` and remove it",
                        key.destination
                    ),
                },
            }),
            _ => Err(error.into()),
        }
    }

    /// Somebody else's route with this destination and metric.
    fn foreign_route(&self, key: &RouteKey) -> Option<&'a ForeignRoute> {
        let routes = &self.seen.foreign_routes;
        let at =
            routes.partition_point(|route| (route.destination, route.metric) < (key.destination, key.metric));
        routes
            .get(at)
            .filter(|route| (route.destination, route.metric) == (key.destination, key.metric))
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

    /// The index of a device, which has to be ours.
    fn ours(&mut self, name: &str) -> Result<u32, Failure> {
        match self.link(name)? {
            None => Err(gone(name)),
            Some(link) if link.ours().is_none() => Err(not_ours(&link)),
            Some(link) => Ok(link.index),
        }
    }

    fn link(&mut self, name: &str) -> Result<Option<Link>, Failure> {
        if let Some(known) = self.links.get(name) {
            return Ok(known.clone());
        }
        let link = match self.kernel.transport.get(request::link(name), Link::decode) {
            Ok(link) => Some(link),
            Err(TransportError::Refused(Refused {
                errno: Errno::ENODEV, ..
            })) => None,
            Err(error) => return Err(error.into()),
        };
        self.links.insert(name.to_owned(), link.clone());
        Ok(link)
    }
}

fn refused_with(result: &Result<(), TransportError>, errno: Errno) -> bool {
    matches!(result, Err(TransportError::Refused(refused)) if refused.errno == errno)
}

/// A parameter's path as sysctl(8) writes it: a dot in a device's name becomes a slash.
fn dotted(path: &str) -> String {
    path.chars()
        .map(|letter| match letter {
            '/' => '.',
            '.' => '/',
            letter => letter,
        })
        .collect()
}

fn gone(name: &str) -> Failure {
    Failure {
        errno: Some(Errno::ENODEV),
        words: format!("there is no device {name}"),
    }
}

fn not_ours(link: &Link) -> Failure {
    Failure::new(format!(
        "a device that is not Podlane's has the name {} ({}): rename or remove it",
        link.name,
        link.description()
    ))
}

fn place_taken(foreign: &ForeignRoute) -> Failure {
    let way = match foreign.next_hops.first() {
        Some(hop) => match hop.gateway {
            Some(gateway) => format!("via {gateway} dev {}", hop.device),
            None => format!("dev {}", hop.device),
        },
        None => "unreachable".to_owned(),
    };
    Failure {
        errno: Some(Errno::EEXIST),
        words: format!(
            "a route that is not Podlane's has the place ({} {way} metric {} proto {}): remove it, or let its owner give it \
             another destination",
            foreign.destination, foreign.metric, foreign.protocol
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> RouteKey {
        RouteKey {
            destination: "172.20.2.0/24".parse().expect("a CIDR"),
            metric: 0,
        }
    }

    #[test]
    fn a_route_in_the_way_is_never_benign() {
        let add = Operation::AddRoute(key(), Route::UNREACHABLE);
        assert!(!is_benign(&add, Errno::EEXIST));
        assert!(is_benign(&Operation::RemoveRoute(key()), Errno::ESRCH));
        assert!(!is_benign(&Operation::RemoveRoute(key()), Errno::EPERM));
    }

    #[test]
    fn a_missing_capability_is_said_and_the_kernels_own_words_go_first() {
        let refused = |words: Option<&str>| {
            TransportError::Refused(Refused {
                errno: Errno::EPERM,
                words: words.map(str::to_owned),
            })
        };
        assert!(Failure::from(refused(None)).words.contains("NET_ADMIN"));
        assert_eq!(Failure::from(refused(Some("only one"))).words, "only one (EPERM)");
    }

    #[test]
    fn parameters_are_written_as_sysctl_reads_them() {
        assert_eq!(
            dotted("net/ipv4/conf/eth0.100/rp_filter"),
            "net.ipv4.conf.eth0/100.rp_filter"
        );
    }
}
