//! What can be wrong with a configuration, where, and what was expected there.

use std::{borrow::Cow, fmt, io, path::PathBuf};

use crate::text;

/// Why a file is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}; -c names another file", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The file is no text.
    #[error("{}:{position}: not UTF-8: expected a TOML text", path.display())]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// Of the first octet that is wrong.
        position: Position,
    },
    /// The file says something that is refused; at least one problem, sorted by position.
    #[error("{}", lines(path, problems))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// All of them.
        problems: Vec<Problem>,
    },
}

/// One thing that is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where it stands.
    pub position: Position,
    /// Which deployment and service it is about; empty if about neither.
    pub place: String,
    /// What is wrong.
    pub kind: Expected,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { position, place, kind } = self;
        let kind = if place.is_empty() { kind.to_string() } else { format!("{place}: {kind}") };
        // What stands in the file is somebody else's text, and a problem is one line.
        write!(f, "{position}: {}", text::one_line(&kind))
    }
}

/// Line and column, both from 1; columns count characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Line.
    pub line: usize,
    /// Column.
    pub column: usize,
}

/// Where the lines and characters of a text stand, so that a position costs the same wherever it is.
#[derive(Debug)]
pub(super) struct Places<'t> {
    text: &'t str,
    /// Offset of each line's first octet.
    lines: Vec<usize>,
    /// Characters before each [`Self::STEP`]th octet.
    characters: Vec<usize>,
}

impl<'t> Places<'t> {
    const STEP: usize = 1024;

    pub(super) fn new(text: &'t str) -> Self {
        let newlines = text.bytes().enumerate().filter(|(_, octet)| *octet == b'\n').map(|(at, _)| at + 1);
        let mut characters = vec![0];
        for chunk in text.as_bytes().chunks(Self::STEP) {
            characters.push(characters[characters.len() - 1] + count_characters(chunk));
        }
        Self { text, lines: std::iter::once(0).chain(newlines).collect(), characters }
    }

    /// Position of an octet; of the text's end, if no character begins there.
    pub(super) fn position(&self, offset: usize) -> Position {
        let offset = if self.text.is_char_boundary(offset) { offset } else { self.text.len() };
        let line = self.lines.partition_point(|start| *start <= offset);
        let column = self.characters_before(offset) - self.characters_before(self.lines[line - 1]) + 1;
        Position { line, column }
    }

    fn characters_before(&self, offset: usize) -> usize {
        let step = offset / Self::STEP;
        self.characters[step] + count_characters(&self.text.as_bytes()[step * Self::STEP..offset])
    }
}

/// Characters that begin in these octets of UTF-8.
fn count_characters(octets: &[u8]) -> usize {
    octets.iter().filter(|octet| **octet & 0xc0 != 0x80).count()
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// What was expected at a place, and what stood there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Expected {
    /// A text that is TOML.
    #[error("not TOML: {0}")]
    Toml(String),
    /// A key that exists.
    #[error("unknown key \"{key}\", expected one of {}", quoted(known))]
    KnownKey {
        /// What stood there.
        key: String,
        /// What may stand there.
        known: &'static [&'static str],
    },
    /// A key that is not there.
    #[error("missing key \"{0}\"")]
    Key(&'static str),
    /// A file that names its deployments, be it that there are none.
    #[error(
        "no deployments, expected at least one [deployments.NAME] (or an empty [deployments], to say that there are none)"
    )]
    Deployments,
    /// A value of another type.
    #[error("\"{key}\" is {got}, expected {expected}")]
    Type {
        /// The value's key.
        key: String,
        /// Its type.
        got: &'static str,
        /// The type that it should have, with an example.
        expected: &'static str,
    },
    /// One of a few words.
    #[error("unknown {what} \"{got}\", expected {}{note}", any_of(words))]
    Word {
        /// What the words are.
        what: &'static str,
        /// What stood there.
        got: String,
        /// What may stand there.
        words: &'static [&'static str],
        /// What else to know about it, or nothing.
        note: &'static str,
    },
    /// An address with a port.
    #[error("bad {what} \"{got}\", expected {expected}")]
    Address {
        /// What the address is for.
        what: &'static str,
        /// What stood there.
        got: String,
        /// What it lacks.
        expected: Cow<'static, str>,
    },
    /// An address of the VIP's family.
    #[error("{what} {got} and VIP {vip} are of different families, expected {family} for all of a service")]
    Family {
        /// What the address is for.
        what: &'static str,
        /// The address.
        got: std::net::SocketAddr,
        /// The service's VIP.
        vip: std::net::SocketAddr,
        /// The VIP's family.
        family: &'static str,
    },
    /// A duration.
    #[error("bad {key} \"{got}\": {why}, expected a duration such as \"500ms\", \"2m\" or \"1h 30m\"")]
    Duration {
        /// The key.
        key: &'static str,
        /// What stood there.
        got: String,
        /// What is wrong with it.
        why: String,
    },
    /// A number within limits.
    #[error("weight {got} is out of range, expected 0 to {max}")]
    Weight {
        /// What stood there.
        got: String,
        /// The largest.
        max: u32,
    },
    /// A name that is short enough for its place in the maps, and can be typed.
    #[error("bad name \"{got}\": {why}, expected 1 to {max} bytes without control characters", max = super::parse::MAX_NAME)]
    Name {
        /// What stood there.
        got: String,
        /// What is wrong with it.
        why: String,
    },
    /// Something that occurs once.
    #[error("duplicate {what} {got}, first at {first}; expected each once{scope}")]
    Unique {
        /// What it is.
        what: &'static str,
        /// Its value.
        got: String,
        /// Where it stood before.
        first: Position,
        /// Within what, or nothing.
        scope: &'static str,
    },
    /// A colour that has backends.
    #[error("{0} is empty, expected at least one backend with a weight above 0")]
    Backends(&'static str),
    /// A colour that can take new flows.
    #[error(
        "all backends of {0} have weight 0, so that no new flow could go there; expected at least one with a weight above 0"
    )]
    Weights(&'static str),
    /// A deployment that has something to switch.
    #[error("no services, expected at least one [[deployments.NAME.services]]")]
    Services,
    /// A backend that is not its own service.
    #[error("backend {0} is the service's own {1}: its packets would go round; expected another address or port")]
    NotItself(std::net::SocketAddr, &'static str),
    /// A backend that is a server, not an address of another service.
    #[error(
        "backend {got} is the {what} at {at}: a packet is rewritten once, so it would never be answered; expected the \
         address of a server"
    )]
    Server {
        /// The backend.
        got: std::net::SocketAddr,
        /// What it is: VIP or preview address.
        what: &'static str,
        /// Where that stands.
        at: Position,
    },
    /// Fewer than there are.
    #[error("too many {what}: {got}, expected at most {max} in one file")]
    Limit {
        /// Of what.
        what: &'static str,
        /// How many there are here.
        got: u64,
        /// How many there may be.
        max: u64,
    },
}

/// Problems that are told one by one.
const SHOWN: usize = 20;

fn lines(path: &std::path::Path, problems: &[Problem]) -> String {
    let path = path.display();
    let mut lines: Vec<_> = problems.iter().take(SHOWN).map(|problem| format!("{path}:{problem}")).collect();
    match problems.len().saturating_sub(SHOWN) {
        0 => {}
        1 => lines.push(format!("{path}: and 1 more problem")),
        more => lines.push(format!("{path}: and {more} more problems")),
    }
    lines.join("\n")
}

fn quoted(words: &[&str]) -> String {
    words.iter().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(", ")
}

fn any_of(words: &[&str]) -> String {
    words.iter().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(" or ")
}
