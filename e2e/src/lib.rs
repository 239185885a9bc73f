//! The lab: the three nodes, the router and the pods of Podlane's story as network namespaces of one machine, with a
//! real Kubernetes API server, and what the scenarios need to look at them: captures, pings, a stream of numbered packets.
//!
//! Everything here is synchronous: the lab starts programs and asks the kernel, and a scenario is read top to bottom.

pub mod capture;
pub mod certificates;
pub mod cluster;
pub mod control_plane;
pub mod helm;
pub mod interrupt;
pub mod kubectl;
pub mod lab;
pub mod ledger;
pub mod metrics;
pub mod netns;
pub mod network;
pub mod probe;
pub mod process;
pub mod programs;
pub mod scenario;
pub mod story;
pub mod teardown;
pub mod topology;
pub mod traces;
pub mod traffic;
pub mod wait;
