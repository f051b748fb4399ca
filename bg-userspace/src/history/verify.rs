//! Checking the chain of a journal.

use std::{
    collections::HashMap,
    fmt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    chain::{Hash, Head, Link},
    directory::HEAD,
    record::Record,
};

/// What the chain of a journal shows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// Whether no fault was found.
    #[serde(rename = "whole")]
    pub is_whole: bool,
    /// The number of records with a hash.
    pub records: usize,
    /// The number of records at the beginning that versions without a chain have written. The first record with a hash protects them.
    pub without_hash: usize,
    /// Lines that are not records: left incomplete by a crash. They count from 1.
    pub damaged_lines: Vec<usize>,
    /// The last record.
    pub head: Option<Head>,
    /// The places where the last record is noted as such.
    pub noted_in: Vec<PathBuf>,
    /// What is wrong; empty if the chain is whole.
    pub faults: Vec<Fault>,
}

/// A place where the chain is broken. Lines count from 1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "fault", rename_all = "snake_case")]
pub enum Fault {
    /// The first record with a hash follows other lines than when it was written.
    Beginning {
        /// The line of this record.
        line: usize,
    },
    /// The record in this line, or the hash of it in the next record, is not as it was.
    Changed {
        /// The line.
        line: usize,
    },
    /// Records are missing.
    Missing {
        /// The line before which they are missing.
        line: usize,
        /// The number of the first one.
        first: u64,
        /// The number of the last one.
        last: u64,
    },
    /// A record was moved, or records were inserted or moved before it.
    Moved {
        /// Its line.
        line: usize,
        /// The line of the record that it was written after.
        after: usize,
    },
    /// A record without a hash after one with a hash.
    WithoutHash {
        /// Its line.
        line: usize,
    },
    /// Records follow the one that is noted as the last.
    Added {
        /// The line of the first one.
        line: usize,
    },
    /// The record that is noted as the last one is not there.
    End {
        /// The last line.
        line: usize,
        /// The number of the record that has been noted.
        number: u64,
        /// Where.
        noted_in: PathBuf,
    },
}

impl Fault {
    /// The line at which the fault shows.
    pub const fn line(&self) -> usize {
        match self {
            Self::Beginning { line }
            | Self::Changed { line }
            | Self::Missing { line, .. }
            | Self::Moved { line, .. }
            | Self::WithoutHash { line }
            | Self::Added { line }
            | Self::End { line, .. } => *line,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = self.line();
        match self {
            Self::Beginning { .. } if line == 1 => write!(f, "line 1: it was changed, or lines before it are missing"),
            Self::Beginning { .. } => {
                write!(f, "lines 1 to {}: a line was changed, inserted, moved or removed before line {line}", line - 1)
            }
            Self::Changed { .. } => {
                write!(f, "line {line}: the record was changed, or the hash in the next one was")
            }
            Self::Missing { first, last, .. } if first == last => {
                write!(f, "line {line}: record {first} is missing before it")
            }
            Self::Missing { first, last, .. } => {
                write!(f, "line {line}: records {first} to {last} are missing before it")
            }
            Self::Moved { after, .. } => write!(
                f,
                "line {line}: it was written after line {after}, so it was moved, or lines before it were moved or inserted"
            ),
            Self::WithoutHash { .. } => {
                write!(f, "line {line}: it has no hash, so it was inserted, or an earlier version of bgctl wrote it")
            }
            Self::Added { .. } => write!(
                f,
                "line {line}: bgctl knows an earlier record as the last one, so this one was added by other means (or the machine \
                 stopped while bgctl wrote it)"
            ),
            Self::End { number, noted_in, .. } => write!(
                f,
                "line {line}, the last one: record {number}, which {} knows as the last one, is changed or missing",
                noted_in.display()
            ),
        }
    }
}

/// A record with a hash.
struct Chained {
    line: usize,
    hash: Hash,
    link: Link,
}

/// Checks a journal, whose head is noted in `notes`.
pub(super) fn verify(content: &[u8], notes: &[(PathBuf, Head)]) -> Verified {
    let mut verified = Verified::default();
    let mut chain: Vec<Chained> = Vec::new();
    let (mut start, mut last_line) = (0, 0);
    for (index, line) in content.split(|octet| *octet == b'\n').enumerate() {
        let before = &content[..start];
        start += line.len() + 1;
        if line.is_empty() {
            continue;
        }
        last_line = index + 1;
        if let Some(link) = Link::in_line(line) {
            if chain.is_empty() {
                verified.faults.extend(beginning(&link, last_line, before));
            }
            chain.push(Chained { line: last_line, hash: Hash::of(line), link });
        } else if serde_json::from_slice::<Record>(line).is_err() {
            verified.damaged_lines.push(last_line);
        } else if chain.is_empty() {
            verified.without_hash += 1;
        } else {
            verified.faults.push(Fault::WithoutHash { line: last_line });
        }
    }
    let lines: HashMap<&Hash, usize> = chain.iter().rev().map(|record| (&record.hash, record.line)).collect();
    verified.faults.extend(chain.windows(2).filter_map(|pair| between(&pair[0], &pair[1], &lines)));
    for (place, head) in notes {
        match chain.iter().position(|record| record.hash == head.hash) {
            Some(position) if position + 1 == chain.len() => verified.noted_in.push(place.clone()),
            // Another instance may have written to the directory. It notes that beside the journal, but not in the pins of this one.
            Some(_) if place.file_name() != Some(HEAD.as_ref()) => {}
            Some(position) => verified.faults.push(Fault::Added { line: chain[position + 1].line }),
            None if is_shown(head, &chain) => {}
            None => {
                verified.faults.push(Fault::End { line: last_line, number: head.number, noted_in: place.clone() });
            }
        }
    }
    verified.faults.sort_by_key(Fault::line);
    verified.is_whole = verified.faults.is_empty();
    verified.records = chain.len();
    verified.head = chain.pop().map(|Chained { hash, link, .. }| Head { number: link.number, hash });
    verified
}

/// The fault of the first record with a hash.
fn beginning(link: &Link, line: usize, before: &[u8]) -> Option<Fault> {
    match link.number {
        0 | 1 => (link.previous != Hash::of(before)).then_some(Fault::Beginning { line }),
        number => Some(Fault::Missing { line, first: 1, last: number - 1 }),
    }
}

/// The fault between two records that follow each other in the file.
fn between(before: &Chained, record: &Chained, lines: &HashMap<&Hash, usize>) -> Option<Fault> {
    let (line, number) = (record.line, record.link.number);
    if record.link.previous == before.hash {
        return None;
    }
    if let Some(after) = lines.get(&record.link.previous) {
        return Some(Fault::Moved { line, after: *after });
    }
    let expected = before.link.number.saturating_add(1);
    Some(match number.checked_sub(1) {
        Some(last) if number > expected => Fault::Missing { line, first: expected, last },
        _ => Fault::Changed { line: before.line },
    })
}

/// Whether the chain itself shows that the noted record is not there: a later record has been written after it.
fn is_shown(head: &Head, chain: &[Chained]) -> bool {
    chain.iter().any(|record| record.link.previous == head.hash)
}

impl Verified {
    /// Checks the chain of a journal with this content, whose head is noted nowhere.
    pub fn of(content: &[u8]) -> Self {
        verify(content, &[])
    }

    /// The result in sentences, one per line. `journal` is the file.
    pub fn sentences(&self, journal: &Path) -> Vec<String> {
        let journal = journal.display();
        let mut told = Vec::new();
        if self.without_hash > 0 {
            told.push(format!(
                "{} at the beginning, which an earlier version wrote, {} no hash",
                counted(self.without_hash, "record"),
                if self.without_hash == 1 { "has" } else { "have" }
            ));
        }
        told.extend(
            self.damaged_lines
                .iter()
                .map(|line| format!("line {line} is not a record (a crash can leave a line incomplete)")),
        );
        told.extend(self.faults.iter().map(Fault::to_string));
        let state = if self.is_whole { "the chain is whole" } else { "the chain is broken" };
        told.push(format!("{journal}: {} with a hash, {state}", counted(self.records, "record")));
        if let (Some(head), true) = (&self.head, self.is_whole) {
            told.push(format!("the last one is number {}, SHA-256 {}", head.number, head.hash));
            let places: Vec<_> = self.noted_in.iter().map(|place| place.display().to_string()).collect();
            told.push(match places.join(" and ") {
                none if none.is_empty() => {
                    "the end is not noted anywhere, so records may be missing after it".to_owned()
                }
                places => format!("the end is as noted in {places}"),
            });
        }
        told
    }
}

fn counted(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}
