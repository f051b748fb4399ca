//! Flags of a TCP segment, by name.

use std::{fmt, str::FromStr};

use serde::{Serialize, Serializer};

/// Flags of a TCP segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpFlags(pub u8);

const NAMES: [(&str, u8); 6] = [("FIN", 1), ("SYN", 2), ("RST", 4), ("PSH", 8), ("ACK", 16), ("URG", 32)];

impl TcpFlags {
    /// A segment that opens a connection.
    pub const SYN: Self = Self(2);
    /// A segment of an open connection.
    pub const ACK: Self = Self(16);
}

impl FromStr for TcpFlags {
    type Err = String;

    /// Names, separated by commas or plus signs.
    fn from_str(text: &str) -> Result<Self, String> {
        let bit =
            |name: &str| NAMES.iter().find(|(known, _)| known.eq_ignore_ascii_case(name.trim())).map(|(_, bit)| bit);
        let unknown = || "expected FIN, SYN, RST, PSH, ACK or URG, or several of them with commas between".to_owned();
        text.split([',', '+']).try_fold(Self(0), |flags, name| Ok(Self(flags.0 | bit(name).ok_or_else(unknown)?)))
    }
}

impl fmt::Display for TcpFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = NAMES.iter().filter(|(_, bit)| self.0 & bit != 0).map(|(name, _)| *name).collect();
        f.write_str(&names.join(","))
    }
}

impl Serialize for TcpFlags {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_named_as_they_are_printed() {
        for (text, bits) in [("SYN", 2), ("SYN,ACK", 18), ("fin+ack", 17), ("rst", 4)] {
            let flags: TcpFlags = text.parse().unwrap();
            assert_eq!(flags, TcpFlags(bits));
            assert_eq!(flags.to_string().parse(), Ok(flags));
        }
        assert!("".parse::<TcpFlags>().is_err() && "SIN".parse::<TcpFlags>().is_err());
    }
}
