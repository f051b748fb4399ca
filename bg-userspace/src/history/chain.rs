//! The chain of records: each record carries the hash of the one before it.
//!
//! What is hashed is the text of the file, so no other form has to be agreed on. The hash of a record is the SHA-256 of the octets of its
//! line, without the line feed. The first record with a hash carries the hash of all octets before its line, which may be records of versions
//! without a chain; in a new file, that is the hash of nothing.
//!
//! No key is involved. Whoever can write the file can also write all later records anew, so the hash of the last record, the *head*, is noted in
//! [two other places](super::head).

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// A SHA-256 as 64 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Hash(String);

impl Hash {
    /// The hash of these octets.
    pub(super) fn of(octets: &[u8]) -> Self {
        Self(Sha256::digest(octets).iter().map(|octet| format!("{octet:02x}")).collect())
    }

    /// From hexadecimal digits.
    pub(super) fn from_digits(digits: &str) -> Option<Self> {
        (digits.len() == 64 && digits.bytes().all(|digit| digit.is_ascii_hexdigit())).then(|| Self(digits.to_owned()))
    }
}

impl std::fmt::Display for Hash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// The place of a record in the chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// The number of the record. The first record with a hash is number 1.
    pub number: u64,
    /// The hash of the record before; for number 1, of all octets before it.
    pub previous: Hash,
}

impl Link {
    /// The link in a line of the journal. `None` if the line has none, or is not a record at all.
    pub(super) fn in_line(line: &[u8]) -> Option<Self> {
        serde_json::from_slice(line).ok()
    }

    /// The link of the record that follows `head`, or of the first one, which follows `content`.
    pub(super) fn after(head: Option<Head>, content: &[u8]) -> Self {
        match head {
            Some(Head { number, hash }) => Self { number: number.saturating_add(1), previous: hash },
            None => Self { number: 1, previous: Hash::of(content) },
        }
    }
}

/// The last record of a chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Its number.
    pub number: u64,
    /// Its hash.
    pub hash: Hash,
}

impl Head {
    /// The last record with a link in the end of a file.
    pub(super) fn in_end(end: &[u8]) -> Option<Self> {
        let mut lines = end.rsplit(|octet| *octet == b'\n');
        lines.find_map(|line| Some(Self { number: Link::in_line(line)?.number, hash: Hash::of(line) }))
    }
}
