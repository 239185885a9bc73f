//! Probes: packets between nodes that tell whether a lane carries traffic. Programs answer and take them; no socket is involved.
//!
//! A probe is an IP packet of protocol 253 between router addresses, sent over the very lane it is to prove. A request bears a tag under the
//! receiver's key, which the cluster's agents know; the answer bears one under the same key, with the number that the prober drew for
//! the request.

/// The form of a probe, behind the IP header. Length and number are big-endian; the tag is little-endian, as SipHash's authors give its result,
/// and so are the two words of which it is made. What follows, up to the packet's length, is padding.
///
/// | octets | |
/// |---|---|
/// | 0–3 | [`MAGIC`] |
/// | 4 | [`REQUEST`] or [`REPLY`] |
/// | 5 | flags, [`SHORT_REPLY`] |
/// | 6–7 | length of the IP packet as it was sent |
/// | 8–15 | number, drawn at random by the prober for each probe |
/// | 16–23 | tag: SipHash-2-4 (Aumasson and Bernstein, 2012) of octets 0–15 under the responder's key |
pub const LENGTH: usize = 24;

/// The first octets.
pub const MAGIC: [u8; 4] = *b"Pdl1";

/// Asks.
pub const REQUEST: u8 = 1;

/// Answers.
pub const REPLY: u8 = 2;

/// The answer is to be without the request's padding.
pub const SHORT_REPLY: u8 = 1;

/// Requests that a node answers to one peer in a second, at most.
pub const MOST_A_SECOND: u32 = 64;

/// A probe on its way, in the map `PROBES` by its number (native byte order).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProbeState {
    /// The tag that the answer must bear, as it stands in the packet.
    pub reply_tag: u64,
    /// When it was sent, in ns of the kernel's monotonic clock; 0: not yet.
    pub sent: u64,
    /// When its answer came; 0: not yet.
    pub answered: u64,
    /// The length of the answer's IP packet, in bytes.
    pub reply_length: u32,
    /// The slot of the lane on which the answer came.
    pub slot: u32,
}

/// SipHash-2-4 of sixteen octets, given as two little-endian words.
#[inline(always)]
pub const fn sip_hash(key: &[u64; 2], words: &[u64; 2]) -> u64 {
    let mut v = [
        key[0] ^ 0x736f_6d65_7073_6575,
        key[1] ^ 0x646f_7261_6e64_6f6d,
        key[0] ^ 0x6c79_6765_6e65_7261,
        key[1] ^ 0x7465_6462_7974_6573,
    ];
    let mut block = 0;
    while block < 3 {
        // The last block is the length, 16, in its highest octet.
        let word = if block < 2 { words[block] } else { 16 << 56 };
        v[3] ^= word;
        v = round(round(v));
        v[0] ^= word;
        block += 1;
    }
    v[2] ^= 0xff;
    v = round(round(round(round(v))));
    v[0] ^ v[1] ^ v[2] ^ v[3]
}

#[inline(always)]
const fn round([mut a, mut b, mut c, mut d]: [u64; 4]) -> [u64; 4] {
    a = a.wrapping_add(b);
    c = c.wrapping_add(d);
    b = b.rotate_left(13) ^ a;
    d = d.rotate_left(16) ^ c;
    a = a.rotate_left(32);
    c = c.wrapping_add(b);
    a = a.wrapping_add(d);
    b = b.rotate_left(17) ^ c;
    d = d.rotate_left(21) ^ a;
    c = c.rotate_left(32);
    [a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sip_hash_is_as_its_authors_give_it() {
        // The reference implementation's vector for sixteen octets 00 01 … 0f under the key 00 01 … 0f.
        let words = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];
        assert_eq!(sip_hash(&words, &words), 0x3f2a_cc7f_57c2_9bdb);
    }
}
