//! Loads Podlane's eBPF programs, attaches, pins and replaces them, and keeps their maps as planned.
//!
//! [`Programs::open`] takes over what is pinned and loads what is missing; [`Programs::sync`] makes maps and attachments as a
//! [`podlane_plan::datapath::Datapath`] declares, reading what they are and changing what differs; [`clean`] takes everything away. What the programs do: docs/datapath.md.

mod attach;
mod clean;
mod contents;
mod counters;
mod failure;
mod frame;
mod kernel;
mod loaded;
mod maps;
mod object;
mod options;
mod pins;
mod place;
mod probes;
mod programs;
mod routed;
mod synced;

pub use clean::{Removed, clean};
pub use counters::{Counters, LaneCount, LaneName, PeerCount};
pub use failure::{Cause, Failure};
pub use kernel::Kernel;
pub use object::{hash, object};
pub use options::Options;
pub use podlane_bpf_syscall::Hook;
pub use podlane_datapath_common::Reason;
pub use probes::{Over, ProbeAnswer, ProbeFailure, ProbeToSend};
pub use programs::Programs;
pub use routed::Routed;
pub use synced::{Followers, Synced, Unfinished};
