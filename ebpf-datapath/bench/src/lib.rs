//! Measures the ways between two pods on two nodes against each other, in pairs next to each other in time, in network
//! namespaces of its own: what `make bench-datapath` runs, and what docs/performance.md is written from.
//!
//! A [`ways::Way`] is one manner of carrying pods' packets; a [`site::Site`] is two nodes behind a router with one pod each; a
//! [`condition::Condition`] is what else the nodes' kernels have to do. [`measurement`] puts a load on a site and reads figures,
//! [`pairs`] alternates between two sites, [`record`] keeps everything that was read, and [`document`] tells it.

pub mod condition;
pub mod document;
pub mod figure;
pub mod machine;
pub mod measurement;
pub mod noise;
pub mod pairs;
pub mod plan;
pub mod record;
pub mod site;
pub mod statistics;
pub mod ways;
