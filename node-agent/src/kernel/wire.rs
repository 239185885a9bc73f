//! The bytes of netlink messages that dumps are read from, without copying them.
//!
//! netlink-packet-route decodes a message into one vector of all its attributes and refuses it as a whole when it cannot read
//! one of them. A dump is thousands of messages of which a pass needs five attributes each, and an attribute that a later kernel
//! writes differently must not hide a route from us: so dumps are walked here, and what is not needed is not looked at.

use nix::errno::Errno;
use std::net::IpAddr;

/// `struct nlmsghdr` (include/uapi/linux/netlink.h).
pub(crate) const HEADER_LENGTH: usize = 16;

/// `NLMSG_NOOP`, `NLMSG_ERROR`, `NLMSG_DONE`, `NLMSG_OVERRUN` (include/uapi/linux/netlink.h).
pub(crate) const NOOP: u16 = 1;
pub(crate) const ERROR: u16 = 2;
pub(crate) const DONE: u16 = 3;
pub(crate) const OVERRUN: u16 = 4;

/// Attribute types without `NLA_F_NESTED` and `NLA_F_NET_BYTEORDER` (`NLA_TYPE_MASK`).
const TYPE_MASK: u16 = 0x3fff;

/// One message of a datagram.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    /// The socket that caused it, for a notification.
    pub(crate) port: u32,
    pub(crate) payload: &'a [u8],
}

/// The messages of a datagram, one `Err(())` at the end where its bytes end in the middle of one.
pub(crate) struct Messages<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Result<Message<'a>, ()>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let bytes = std::mem::take(&mut self.0);
        let (Some(length), Some(kind), Some(flags), Some(sequence), Some(port)) = (
            u32_at(bytes, 0),
            u16_at(bytes, 4),
            u16_at(bytes, 6),
            u32_at(bytes, 8),
            u32_at(bytes, 12),
        ) else {
            return Some(Err(()));
        };
        let length = length as usize;
        let Some(payload) = bytes.get(HEADER_LENGTH..length) else {
            return Some(Err(()));
        };
        self.0 = bytes.get(aligned(length)..).unwrap_or_default();
        Some(Ok(Message {
            kind,
            flags,
            sequence,
            port,
            payload,
        }))
    }
}

/// Attributes (`struct nlattr`): their type and value. Ends at the first one that is cut off.
#[derive(Clone)]
pub(crate) struct Attributes<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let bytes = std::mem::take(&mut self.0);
        let length = usize::from(u16_at(bytes, 0)?);
        let kind = u16_at(bytes, 2)? & TYPE_MASK;
        let value = bytes.get(4..length)?;
        self.0 = bytes.get(aligned(length)..).unwrap_or_default();
        Some((kind, value))
    }
}

pub(crate) const fn aligned(length: usize) -> usize {
    (length + 3) & !3
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_ne_bytes)
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_ne_bytes)
}

pub(crate) fn u16_be(bytes: &[u8]) -> Option<u16> {
    array(bytes, 0).map(u16::from_be_bytes)
}

pub(crate) fn u64_be(bytes: &[u8]) -> Option<u64> {
    array(bytes, 0).map(u64::from_be_bytes)
}

/// An address by its length.
pub(crate) fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => array::<4>(bytes, 0).map(IpAddr::from),
        16 => array::<16>(bytes, 0).map(IpAddr::from),
        _ => None,
    }
}

/// A text that a zero byte ends.
pub(crate) fn text(bytes: &[u8]) -> Option<&str> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    std::str::from_utf8(&bytes[..end]).ok()
}

/// What an `NLMSG_ERROR` or `NLMSG_DONE` says: `None` for success, else the error and the kernel's own words for it.
pub(crate) fn verdict(message: &Message<'_>) -> Option<(Errno, Option<String>)> {
    /// `NLM_F_CAPPED` and `NLM_F_ACK_TLVS` (include/uapi/linux/netlink.h).
    const CAPPED: u16 = 0x100;
    const WITH_ATTRIBUTES: u16 = 0x200;
    /// `NLMSGERR_ATTR_MSG` (`enum nlmsgerr_attrs`).
    const TEXT: u16 = 1;

    let code = u32_at(message.payload, 0).map_or(0, u32::cast_signed);
    // NLMSG_DONE may carry the number of bytes dumped instead of an error.
    if code >= 0 {
        return None;
    }
    let attributes_at = match (message.kind, message.flags & CAPPED != 0) {
        (DONE, _) => 4,
        (_, true) => 4 + HEADER_LENGTH,
        // The request comes back whole.
        (_, false) => 4 + u32_at(message.payload, 4).map_or(HEADER_LENGTH, |length| aligned(length as usize)),
    };
    let words = (message.flags & WITH_ATTRIBUTES != 0)
        .then(|| message.payload.get(attributes_at..))
        .flatten()
        .and_then(|bytes| Attributes(bytes).find(|(kind, _)| *kind == TEXT))
        .and_then(|(_, value)| text(value))
        .map(str::to_owned);
    Some((Errno::from_raw(-code), words))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A message as the kernel lays it out.
    pub(crate) fn message(kind: u16, flags: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = ((HEADER_LENGTH + payload.len()) as u32).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend(0_u32.to_ne_bytes());
        bytes.extend(payload);
        bytes.resize(aligned(bytes.len()), 0);
        bytes
    }

    pub(crate) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = ((4 + value.len()) as u16).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(aligned(bytes.len()), 0);
        bytes
    }

    #[test]
    fn a_datagram_is_walked_to_its_end_and_a_cut_one_is_noticed() {
        let mut datagram = message(24, 2, 7, &[1, 2, 3]);
        datagram.extend(message(DONE, 2, 7, &[0; 4]));
        let kinds: Vec<_> = Messages(&datagram)
            .map(|message| message.map(|message| message.kind))
            .collect();
        assert_eq!(kinds, [Ok(24), Ok(DONE)]);
        let cut: Vec<_> = Messages(&datagram[..30])
            .map(|message| message.map(|message| message.kind))
            .collect();
        assert_eq!(cut, [Ok(24), Err(())]);
    }

    #[test]
    fn attributes_lose_their_flags_and_end_where_they_are_cut() {
        let mut bytes = attribute(0x8000 | 5, &[9]);
        bytes.extend(attribute(6, &[1, 2, 3, 4]));
        assert_eq!(
            Attributes(&bytes).collect::<Vec<_>>(),
            [(5, &[9][..]), (6, &[1, 2, 3, 4][..])]
        );
        assert_eq!(Attributes(&bytes[..14]).count(), 1);
        assert_eq!(Attributes(&[0, 0, 0, 0, 1]).count(), 0);
    }

    #[test]
    fn the_kernels_words_are_found_behind_a_whole_and_a_capped_request() {
        let mut capped = (-17_i32).to_ne_bytes().to_vec();
        capped.extend(message(24, 0, 7, &[]));
        let mut whole = (-17_i32).to_ne_bytes().to_vec();
        whole.extend(message(24, 0, 7, &[1, 2, 3, 4, 5]));
        for (flags, mut payload) in [(0x300, capped), (0x200, whole)] {
            payload.extend(attribute(1, b"already there\0"));
            let bytes = message(ERROR, flags, 7, &payload);
            let message = Messages(&bytes).next().expect("a message").expect("whole");
            assert_eq!(
                verdict(&message),
                Some((Errno::EEXIST, Some("already there".to_owned())))
            );
        }
        let acknowledged = message(ERROR, 0x100, 7, &[0; 20]);
        assert_eq!(
            verdict(&Messages(&acknowledged).next().expect("a message").expect("whole")),
            None
        );
    }
}
