//! What a node's kernel should look like, and why.
//!
//! Everything here is a function of its arguments: no IO, no clock, no randomness, no Kubernetes client, no netlink.
//! The order of inputs never matters, and the order of outputs is deterministic.
//!
//! The way through it, from what a user writes to what a kernel is told:
//! 1. [`policy`]: which [`policy::Policy`] governs a node; [`machine`]: whether it can have an agent;
//! 2. [`pool`]: what nodes number their pods from, where nobody else says it; [`cluster`]: which nodes and pod CIDRs can be
//!    routed at all;
//! 3. [`pair`]: the lane between two nodes, the same seen from both ends;
//! 4. [`protocol`]: how a lane is opened, moved to and closed without losing a packet;
//!    [`probes`]: which of them are known to carry packets;
//! 5. [`desired`]: the kernel state that follows for one node, with a reason for each item;
//! 6. [`diff`]: the ordered operations from what the kernel holds to that.
//!    [`masquerade`]: which pods' packets take the node's address;
//!    [`cni`]: how the node's runtime connects its pods, and from when on;
//! 7. [`datapath`]: what the eBPF programs are told, for the kernel as it is before those operations and after.

pub mod backoff;
pub mod cluster;
pub mod cni;
pub mod datapath;
pub mod desired;
pub mod diff;
pub mod fib;
pub mod kernel;
pub mod lane;
pub mod machine;
pub mod masquerade;
pub mod membership;
pub mod pair;
pub mod policy;
pub mod pool;
pub mod probes;
pub mod protocol;
pub mod slices;
