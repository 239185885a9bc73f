//! The operator: from RoutingPolicies and Nodes to what each node is told (RoutingNode, PeerSlice), and from what the nodes
//! answer to what users read (status, events).
//!
//! Everything is decided by one pure function, [`decide::decide`], from one picture of the cluster, [`world::World`]. The rest
//! is a thin shell: [`watch`] keeps the picture, [`passes`] decides again whenever it changes, [`apply`] carries out the
//! writes, and [`leader`] sees to it that only one operator does so. Beside that the leader keeps the agents' DaemonSet: [`rollout`].
//! What is done when all of that is to end, [`uninstall`] says.

pub mod apply;
pub mod configuration;
pub mod decide;
pub mod failure;
pub mod first_policy;
pub mod health;
pub mod leader;
pub mod options;
pub mod passes;
pub mod rollout;
pub mod run;
pub mod said;
pub mod seen;
pub mod uninstall;
pub mod watch;
pub mod world;
pub mod write;
