//! The object file that the build made of the programs (ebpf-datapath/program).

use fnv::FnvHasher;
use std::hash::Hasher as _;

/// The object's bytes (ELF), aligned as a parser wants them.
pub fn object() -> &'static [u8] {
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/podlane.o"))
}

/// The object's hash, in 16 hexadecimal digits (FNV-1a, 64 bits): a name for what is loaded, not a proof of who made it.
pub fn hash() -> String {
    let mut hash = FnvHasher::default();
    hash.write(object());
    format!("{:016x}", hash.finish())
}
