//! What a node's programs know probes by.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A key of SipHash, 128 bits, drawn at random. It keeps strangers from having probes answered; the cluster's agents all know it.
/// Written as 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct ProbeKey(pub [u8; 16]);

impl fmt::Display for ProbeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|octet| write!(f, "{octet:02x}"))
    }
}

impl fmt::Debug for ProbeKey {
    /// Without the key itself: logs are read by others than status is.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ProbeKey(…)")
    }
}

impl From<ProbeKey> for String {
    fn from(key: ProbeKey) -> Self {
        key.to_string()
    }
}

/// A text that is no key. It is not repeated: it may be one, but for a slip.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a probe key is 32 hexadecimal digits")]
pub struct NoProbeKey;

impl FromStr for ProbeKey {
    type Err = NoProbeKey;

    fn from_str(text: &str) -> Result<Self, NoProbeKey> {
        let digits = text.as_bytes();
        if digits.len() != 32 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err(NoProbeKey);
        }
        let number = u128::from_str_radix(text, 16).map_err(|_| NoProbeKey)?;
        Ok(Self(number.to_be_bytes()))
    }
}

impl TryFrom<String> for ProbeKey {
    type Error = NoProbeKey;

    fn try_from(text: String) -> Result<Self, NoProbeKey> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_being_written_and_read() {
        let key = ProbeKey([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 255]);
        assert_eq!(key.to_string(), "000102030405060708090a0b0c0d0eff");
        assert_eq!(key.to_string().parse(), Ok(key));
        assert_eq!(format!("{key:?}"), "ProbeKey(…)");
        for text in [
            "",
            "00",
            "+00102030405060708090a0b0c0d0eff",
            &"g".repeat(32),
            &"0".repeat(33),
        ] {
            assert_eq!(text.parse::<ProbeKey>(), Err(NoProbeKey), "{text:?}");
        }
    }
}
