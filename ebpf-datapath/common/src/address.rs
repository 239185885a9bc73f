//! Addresses and networks.

/// An IPv6 address, or an IPv4 address as IPv4-mapped (`::ffff:a.b.c.d`, RFC 4291, section 2.5.5.2): four words as they stand in a packet,
/// in network byte order.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address(pub [u32; 4]);

impl Address {
    /// No address.
    pub const NONE: Self = Self([0; 4]);

    /// The IPv4 address that stands so in a packet.
    pub const fn v4(word: u32) -> Self {
        Self([0, 0, 0x0000_ffff_u32.to_be(), word])
    }

    /// Of four or sixteen octets.
    pub const fn of_v4_octets(octets: [u8; 4]) -> Self {
        Self::v4(u32::from_ne_bytes(octets))
    }

    /// Of sixteen octets.
    pub const fn of_v6_octets(o: [u8; 16]) -> Self {
        Self([
            u32::from_ne_bytes([o[0], o[1], o[2], o[3]]),
            u32::from_ne_bytes([o[4], o[5], o[6], o[7]]),
            u32::from_ne_bytes([o[8], o[9], o[10], o[11]]),
            u32::from_ne_bytes([o[12], o[13], o[14], o[15]]),
        ])
    }

    /// Whether it is an IPv4 address.
    pub const fn is_v4(&self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == 0x0000_ffff_u32.to_be()
    }

    /// Whether it is an IPv6 address of a link (fe80::/10, RFC 4291, section 2.5.6).
    pub const fn is_link_local(&self) -> bool {
        self.0[0] & 0xffc0_0000_u32.to_be() == 0xfe80_0000_u32.to_be()
    }

    /// The IPv4 address as it stands in a packet; meaningless for an IPv6 address.
    pub const fn word(&self) -> u32 {
        self.0[3]
    }

    /// The sixteen octets in their order.
    pub const fn octets(&self) -> [u8; 16] {
        let [a, b, c, d] = [
            self.0[0].to_ne_bytes(),
            self.0[1].to_ne_bytes(),
            self.0[2].to_ne_bytes(),
            self.0[3].to_ne_bytes(),
        ];
        [
            a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3],
        ]
    }
}

/// An IPv4 network, for comparing without a look-up: `address & mask == network`, all in network byte order. One without an address
/// is `mask` 0 and `network` all ones.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network4 {
    /// The network, host bits zero.
    pub network: u32,
    /// Its mask.
    pub mask: u32,
}

impl Network4 {
    /// A network that contains nothing.
    pub const EMPTY: Self = Self {
        network: u32::MAX,
        mask: 0,
    };

    /// Whether the address, as it stands in a packet, is in it.
    #[inline(always)]
    pub const fn contains(&self, address: u32) -> bool {
        address & self.mask == self.network
    }
}

/// An IPv6 network; see [`Network4`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network6 {
    /// The network, host bits zero.
    pub network: [u32; 4],
    /// Its mask.
    pub mask: [u32; 4],
}

impl Network6 {
    /// A network that contains nothing.
    pub const EMPTY: Self = Self {
        network: [u32::MAX; 4],
        mask: [0; 4],
    };

    /// Whether the address, as it stands in a packet, is in it.
    #[inline(always)]
    pub const fn contains(&self, address: &[u32; 4]) -> bool {
        address[0] & self.mask[0] == self.network[0]
            && address[1] & self.mask[1] == self.network[1]
            && address[2] & self.mask[2] == self.network[2]
            && address[3] & self.mask[3] == self.network[3]
    }
}

/// A key of a longest-prefix-match trie, as the kernel lays it out (`struct bpf_lpm_trie_key_u8`, include/uapi/linux/bpf.h).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrieKey {
    /// Bits that count: 0 to 128; an IPv4 prefix's length and 96.
    pub prefix_length: u32,
    /// The network's address.
    pub address: Address,
}
