//! One node's agent: it reads the kernel, plans, tells the kernel, and reports.
//!
//! [`watch`] keeps what the API server says in [`world`]; [`agent`] runs a [`pass`] whenever that, the kernel or the slow timer
//! gives a reason; [`report`] says how it went, and [`status`] writes that into the node's RoutingNode.

pub mod agent;
pub mod clean;
pub mod cni;
pub mod connection;
pub mod datapath;
pub mod kernel;
pub mod metrics;
mod neighbours;
pub mod options;
pub mod pace;
pub mod pass;
pub mod report;
pub mod retries;
pub mod status;
pub mod watch;
pub mod world;
