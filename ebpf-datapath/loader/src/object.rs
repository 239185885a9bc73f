//! The object file that the build made of the programs (ebpf-datapath/program).

/// The object's bytes (ELF), aligned as a parser wants them.
pub fn object() -> &'static [u8] {
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/podlane.o"))
}

/// The object's hash, in 16 hexadecimal digits (FNV-1a, 64 bits): a name for what is loaded, not a proof of who made it.
pub fn hash() -> String {
    let hash = object().iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, octet| {
        (hash ^ u64::from(*octet)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("{hash:016x}")
}
