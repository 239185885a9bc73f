//! Carries out operations, each with its result.

mod devices;

use super::Kernel;
use super::failure::{self, Failure, gone, is_benign, not_ours, place_taken, unless_benign};
use super::link::Link;
use super::request::{self, Place};
use super::transport::{Refused, Request, TransportError};
use ipnet::IpNet;
use nix::errno::Errno;
use podlane_plan::diff::Operation;
use podlane_plan::kernel::{ForeignRoute, Observed, Route, RouteKey, RouteTarget};
use std::collections::BTreeMap;

/// Routes or neighbours that are told to the kernel together.
const BATCH: usize = 512;

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
                results[start + at] = self.judge(&operations[at], error);
            }
        }
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
            Operation::SetMasquerade(_) | Operation::RemoveMasquerade => {
                Err(Failure::new("nftables are no routing request"))
            }
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
            Operation::SetSysctl { path, value } => {
                let written = self.kernel.sysctls.write(path, value);
                written.map_err(|errno| failure::sysctl(path, value, errno))
            }
            Operation::CreateDevice { name, device } => self.create_device(operation, name, device),
            Operation::ConfigureDevice { name, device } => self.configure_device(name, device),
            Operation::DeleteDevice { name } => {
                // Who it is now, not who it was when it was looked up.
                self.links.remove(name);
                let result = self.plain(operation);
                self.links.remove(name);
                result
            }
            Operation::SetMasquerade(masquerade) => self.kernel.nftables.set(masquerade),
            Operation::RemoveMasquerade => self.kernel.nftables.remove(),
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
