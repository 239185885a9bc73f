//! Numbers as they lie in packets: at any octet, in network byte order.
//!
//! Rust takes a number that may lie anywhere for one of single octets, and reads it octet by octet. The machine that the kernel makes of these programs
//! reads it whole (a kernel that runs where it cannot has the verifier refuse the program), so that is said here in its own instructions.

use core::arch::asm;

/// What can lie in a packet at any octet.
///
/// # Safety
/// Of alignment one, without padding, and any octets are a value of it.
pub(crate) unsafe trait Wire: Copy {}

// SAFETY: octets.
unsafe impl<const N: usize> Wire for [u8; N] {}

macro_rules! number {
    ($(#[$doc:meta])* $name:ident, $number:ty, $octets:literal, $load:literal, $store:literal) => {
        $(#[$doc])*
        #[repr(transparent)]
        #[derive(Clone, Copy)]
        pub(crate) struct $name([u8; $octets]);
        // SAFETY: octets.
        unsafe impl Wire for $name {}

        impl $name {
            /// As it stands there.
            #[inline(always)]
            pub(crate) fn get(&self) -> $number {
                let value: u64;
                // SAFETY: reads the octets that the reference is to, and nothing else.
                unsafe {
                    asm!($load, value = out(reg) value, place = in(reg) self, options(pure, readonly, nostack));
                }
                value as $number
            }

            #[inline(always)]
            pub(crate) fn set(&mut self, value: $number) {
                // SAFETY: writes the octets that the reference is to, and nothing else.
                unsafe {
                    asm!($store, value = in(reg) u64::from(value), place = in(reg) self, options(nostack));
                }
            }
        }
    };
}

number!(
    /// Two octets.
    Word16, u16, 2, "{value} = *(u16 *)({place} + 0)", "*(u16 *)({place} + 0) = {value}"
);
number!(
    /// Four octets.
    Word32, u32, 4, "{value} = *(u32 *)({place} + 0)", "*(u32 *)({place} + 0) = {value}"
);
number!(
    /// Eight octets.
    Word64, u64, 8, "{value} = *(u64 *)({place} + 0)", "*(u64 *)({place} + 0) = {value}"
);

/// An IPv6 address.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub(crate) struct Address6([Word32; 4]);
// SAFETY: of what is so itself.
unsafe impl Wire for Address6 {}

impl Address6 {
    #[inline(always)]
    pub(crate) fn get(&self) -> [u32; 4] {
        [self.0[0].get(), self.0[1].get(), self.0[2].get(), self.0[3].get()]
    }

    #[inline(always)]
    pub(crate) fn set(&mut self, value: [u32; 4]) {
        self.0[0].set(value[0]);
        self.0[1].set(value[1]);
        self.0[2].set(value[2]);
        self.0[3].set(value[3]);
    }
}

/// A link-layer address.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub(crate) struct LinkAddress([Word16; 3]);
// SAFETY: of what is so itself.
unsafe impl Wire for LinkAddress {}

impl LinkAddress {
    #[inline(always)]
    pub(crate) fn get(&self) -> [u16; 3] {
        [self.0[0].get(), self.0[1].get(), self.0[2].get()]
    }

    #[inline(always)]
    pub(crate) fn set(&mut self, value: [u16; 3]) {
        self.0[0].set(value[0]);
        self.0[1].set(value[1]);
        self.0[2].set(value[2]);
    }
}

/// The octets of a link-layer address.
#[inline(always)]
pub(crate) fn octets(link: [u16; 3]) -> [u8; 6] {
    let [[a, b], [c, d], [e, f]] = [
        link[0].to_ne_bytes(),
        link[1].to_ne_bytes(),
        link[2].to_ne_bytes(),
    ];
    [a, b, c, d, e, f]
}
