//! What the kernel answers, datagram by datagram: dumps and acknowledgements.

use super::transport::{Refused, TransportError};
use super::wire::{self, Message, Messages};
use netlink_packet_core::NLM_F_DUMP_INTR;
use nix::errno::Errno;

/// Follows a dump through its datagrams.
pub(super) struct DumpReader {
    pub(super) sequence: u32,
    pub(super) interrupted: bool,
}

impl DumpReader {
    /// Takes a datagram; says whether more are to come.
    pub(super) fn datagram(
        &mut self,
        bytes: &[u8],
        collect: &mut dyn FnMut(u16, &[u8]),
    ) -> Result<bool, TransportError> {
        for message in Messages(bytes) {
            let message = message.map_err(|()| TransportError::Malformed("it ends within a message"))?;
            if message.sequence != self.sequence {
                continue;
            }
            self.interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
            match message.kind {
                wire::NOOP => {}
                wire::DONE | wire::ERROR => return refused(&message).map_or(Ok(false), Err),
                wire::OVERRUN => {
                    return Err(TransportError::Socket {
                        call: "recv",
                        errno: Errno::ENOBUFS,
                    });
                }
                kind => collect(kind, message.payload),
            }
        }
        Ok(true)
    }
}

/// Follows a batch through its acknowledgements.
pub(super) struct AckReader {
    pub(super) first: u32,
    pub(super) results: Vec<Option<Result<(), TransportError>>>,
    pub(super) missing: usize,
}

impl AckReader {
    pub(super) fn datagram(&mut self, bytes: &[u8]) -> Result<(), TransportError> {
        for message in Messages(bytes) {
            let message = message.map_err(|()| TransportError::Malformed("it ends within a message"))?;
            if message.kind != wire::ERROR {
                continue;
            }
            let index = message.sequence.wrapping_sub(self.first) as usize;
            if let Some(result @ None) = self.results.get_mut(index) {
                *result = Some(refused(&message).map_or(Ok(()), Err));
                self.missing -= 1;
            }
        }
        Ok(())
    }
}

fn refused(message: &Message<'_>) -> Option<TransportError> {
    wire::verdict(message).map(|(errno, words)| TransportError::Refused(Refused { errno, words }))
}

#[cfg(test)]
mod tests {
    use super::super::wire::tests::message;
    use super::*;

    const MULTIPART: u16 = 2;

    fn read(datagrams: &[Vec<u8>]) -> (Result<bool, TransportError>, bool, usize) {
        let mut reader = DumpReader {
            sequence: 7,
            interrupted: false,
        };
        let mut seen = 0;
        let mut last = Ok(true);
        for datagram in datagrams {
            last = reader.datagram(datagram, &mut |_, _| seen += 1);
        }
        (last, reader.interrupted, seen)
    }

    #[test]
    fn a_dump_ends_with_done_and_skips_what_belongs_to_another_request() {
        let first = [
            message(24, MULTIPART, 7, &[0; 12]),
            message(24, MULTIPART, 6, &[0; 12]),
        ]
        .concat();
        let done = message(wire::DONE, MULTIPART, 7, &[0; 4]);
        assert_eq!(read(&[first.clone(), done.clone()]), (Ok(false), false, 1));
        assert_eq!(read(&[first]), (Ok(true), false, 1));
        // `NLMSG_DONE` with the length of the dump in it is no error.
        assert_eq!(
            read(&[message(wire::DONE, MULTIPART, 7, &24_i32.to_ne_bytes())]),
            (Ok(false), false, 0)
        );
    }

    #[test]
    fn an_interruption_is_noticed_wherever_it_is_flagged() {
        let whole = message(24, MULTIPART, 7, &[0; 12]);
        let flagged = message(24, MULTIPART | NLM_F_DUMP_INTR, 7, &[0; 12]);
        let done = message(wire::DONE, MULTIPART, 7, &[0; 4]);
        let done_flagged = message(wire::DONE, MULTIPART | NLM_F_DUMP_INTR, 7, &[0; 4]);
        assert_eq!(read(&[whole.clone(), done.clone()]), (Ok(false), false, 1));
        assert_eq!(read(&[flagged, done]), (Ok(false), true, 1));
        assert_eq!(read(&[whole, done_flagged]), (Ok(false), true, 1));
    }

    #[test]
    fn a_refused_or_cut_dump_is_an_error() {
        let refused = message(wire::DONE, MULTIPART, 7, &(-2_i32).to_ne_bytes());
        let expected = TransportError::Refused(Refused {
            errno: Errno::ENOENT,
            words: None,
        });
        assert_eq!(read(&[refused]).0, Err(expected));
        let cut = message(24, MULTIPART, 7, &[0; 12]);
        assert!(matches!(
            read(&[cut[..20].to_vec()]).0,
            Err(TransportError::Malformed(_))
        ));
    }

    #[test]
    fn acknowledgements_find_their_requests_in_any_order_and_over_the_end_of_the_numbers() {
        let mut reader = AckReader {
            first: u32::MAX,
            results: vec![None; 3],
            missing: 3,
        };
        let error = (-17_i32).to_ne_bytes();
        let datagram = [
            message(wire::ERROR, 0x100, 1, &error),
            message(wire::ERROR, 0x100, u32::MAX, &[0; 20]),
            message(wire::ERROR, 0x100, 2, &error),
        ]
        .concat();
        reader.datagram(&datagram).expect("whole");
        assert_eq!(reader.missing, 1);
        assert_eq!(reader.results[0], Some(Ok(())));
        assert_eq!(reader.results[1], None);
        assert!(
            matches!(&reader.results[2], Some(Err(TransportError::Refused(refused))) if refused.errno == Errno::EEXIST)
        );
    }
}
