//! For tests on a real kernel: each runs in a network namespace of its own, which goes with it; where none can be made, that is said and
//! the tests count as ignored, never as passed.
//!
//! A test that cannot go on panics, as tests do; so do the functions here that act in a test's place.

mod commands;
mod elsewhere;
mod fresh;
mod suite;

pub use commands::{command, index, ip, ip_lines, parameter};
pub use elsewhere::Elsewhere;
pub use fresh::{bpffs, in_fresh, own_bpffs};
pub use suite::{Conditional, Suite, Test};
