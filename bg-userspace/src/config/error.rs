//! The errors of a configuration: what is wrong, where, and what was expected.

use std::{borrow::Cow, fmt, io, path::PathBuf, time::Duration};

use crate::text;

/// The error of reading a configuration.
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
    /// The file is not UTF-8.
    #[error("{}:{position}: not UTF-8, expected TOML", path.display())]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// The position of the first wrong byte.
        position: Position,
    },
    /// The file has problems, at least one. They are sorted by position.
    #[error("{}", lines(path, problems))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The problems.
        problems: Vec<Problem>,
    },
}

/// A problem in a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Its position.
    pub position: Position,
    /// The deployment and the service that it concerns; empty if it concerns neither.
    pub place: String,
    /// What is wrong.
    pub kind: Expected,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { position, place, kind } = self;
        let kind = if place.is_empty() { kind.to_string() } else { format!("{place}: {kind}") };
        // The text may come from the file, and a problem is one line.
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

/// The positions of lines and characters in a text, so that finding a position takes the same time everywhere.
#[derive(Debug)]
pub(super) struct Places<'t> {
    text: &'t str,
    /// Offset of each line's first byte.
    lines: Vec<usize>,
    /// Number of characters before each [`Self::STEP`]th byte.
    characters: Vec<usize>,
}

impl<'t> Places<'t> {
    const STEP: usize = 1024;

    pub(super) fn new(text: &'t str) -> Self {
        let newlines = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at + 1);
        let mut characters = vec![0];
        for chunk in text.as_bytes().chunks(Self::STEP) {
            characters.push(characters[characters.len() - 1] + count_characters(chunk));
        }
        Self { text, lines: std::iter::once(0).chain(newlines).collect(), characters }
    }

    /// Position of a byte, or of the text's end if no character begins there.
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

/// Number of characters that begin in these bytes of UTF-8.
fn count_characters(bytes: &[u8]) -> usize {
    bytes.iter().filter(|byte| **byte & 0xc0 != 0x80).count()
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// What was expected, and what was found instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Expected {
    /// Valid TOML.
    #[error("not TOML: {0}")]
    Toml(String),
    /// A known key.
    #[error("unknown key \"{key}\", expected one of {}", quoted(known))]
    KnownKey {
        /// The key that was found.
        key: String,
        /// The known keys.
        known: &'static [&'static str],
    },
    /// A key that is missing.
    #[error("missing key \"{0}\"")]
    Key(&'static str),
    /// A file that names its deployments, or says that there are none.
    #[error("no deployments, expected at least one [deployments.NAME] (or an empty [deployments] for none)")]
    Deployments,
    /// A value of another type.
    #[error("\"{key}\" is {got}, expected {expected}")]
    Type {
        /// The value's key.
        key: String,
        /// The type that was found.
        got: &'static str,
        /// The expected type, with an example.
        expected: &'static str,
    },
    /// One of a few words.
    #[error("unknown {what} \"{got}\", expected {}{note}", any_of(words))]
    Word {
        /// What the words are.
        what: &'static str,
        /// What was found.
        got: String,
        /// The words that are allowed.
        words: &'static [&'static str],
        /// A note, or nothing.
        note: &'static str,
    },
    /// An address with a port.
    #[error("bad {what} \"{got}\", expected {expected}")]
    Address {
        /// What the address is for.
        what: &'static str,
        /// What was found.
        got: String,
        /// What was expected.
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
        /// What was found.
        got: String,
        /// What is wrong with it.
        why: String,
    },
    /// A number within limits.
    #[error("weight {got} is out of range, expected 0 to {max}")]
    Weight {
        /// What was found.
        got: String,
        /// The largest.
        max: u32,
    },
    /// A whole number within limits.
    #[error("{what} {got} is out of range, expected {least} to {most}")]
    Number {
        /// What it is.
        what: &'static str,
        /// What was found.
        got: String,
        /// The smallest.
        least: u64,
        /// The largest.
        most: u64,
    },
    /// A name that fits into the maps and can be typed.
    #[error("bad name \"{got}\": {why}, expected 1 to {max} bytes without control characters", max = super::name::MAX_NAME)]
    Name {
        /// What was found.
        got: String,
        /// What is wrong with it.
        why: String,
    },
    /// Something that occurs only once.
    #[error("duplicate {what} {got}, first at {first}; expected each once{scope}")]
    Unique {
        /// What it is.
        what: &'static str,
        /// Its value.
        got: String,
        /// Where it occurred first.
        first: Position,
        /// In what it must be unique, or nothing.
        scope: &'static str,
    },
    /// A colour with backends.
    #[error("{0} is empty, expected at least one backend with a weight above 0")]
    Backends(&'static str),
    /// A colour that can take new flows.
    #[error(
        "all backends of {0} have weight 0, so no new flow could go there; expected at least one with a weight above 0"
    )]
    Weights(&'static str),
    /// A deployment with services.
    #[error("no services, expected at least one [[deployments.NAME.services]]")]
    Services,
    /// A backend that is not an address of its own service.
    #[error("backend {0} is the service's own {1}: its packets would go in a circle; expected another address or port")]
    NotItself(std::net::SocketAddr, &'static str),
    /// A backend that is not an address of another service.
    #[error(
        "backend {got} is the {what} at {at}: a packet is rewritten only once, so it would never be answered; expected the \
         address of a server"
    )]
    Server {
        /// The backend.
        got: std::net::SocketAddr,
        /// VIP or preview address.
        what: &'static str,
        /// The position of that address.
        at: Position,
    },
    /// A protocol whose packets can be copied.
    #[error(
        "\"mirror\" of a TCP service: the idle colour knows nothing of the connections that copied segments would belong to; \
         expected protocol = \"udp\", or no \"mirror\""
    )]
    Mirrorable,
    /// A protocol whose connections can be fed to both colours.
    #[error(
        "mode \"tee\" of a UDP service: only TCP connections are fed to both colours this way; expected protocol = \"tcp\", \
         or mode = \"nat\" with mirror = \"idle\""
    )]
    Teed,
    /// A mode that has this key.
    #[error("\"{0}\" without mode = \"tee\", which alone has it; expected that mode, or no \"{0}\"")]
    OnlyTee(&'static str),
    /// A backend of one colour, where both are fed.
    #[error(
        "mode \"tee\" while backend {0} is in both colours: it would get each connection twice; expected other addresses or \
         ports in blue than in green"
    )]
    FedTwice(std::net::SocketAddr),
    /// A mode that has this key.
    #[error("\"{key}\" in another mode than {}, expected that mode, or no \"{key}\"", any_of(modes))]
    OnlyMode {
        /// The key.
        key: &'static str,
        /// The modes that have it.
        modes: &'static [&'static str],
    },
    /// A backend that gets packets as they are.
    #[error(
        "backend {got} in mode \"{mode}\": packets reach it as they are, with port {port}; expected port {port}, at which it has to listen on the VIP too"
    )]
    SamePort {
        /// The backend.
        got: std::net::SocketAddr,
        /// The mode.
        mode: &'static str,
        /// The VIP's port.
        port: u16,
    },
    /// A mode in which replies pass this host.
    #[error(
        "\"mirror\" in mode \"{0}\": backends reply to clients directly there, so clients would get the answers of both colours; expected mode = \"nat\" or \"local\", or no \"mirror\""
    )]
    Unheard(&'static str),
    /// A backend of one colour.
    #[error(
        "\"mirror\" while backend {0} is in both colours: it would get each datagram twice, and answer twice; expected other \
         addresses or ports in blue than in green"
    )]
    OfOneColour(std::net::SocketAddr),
    /// Another text.
    #[error("bad {what} \"{got}\", expected {expected}")]
    Text {
        /// What the text is.
        what: &'static str,
        /// What was found.
        got: String,
        /// What was expected.
        expected: Cow<'static, str>,
    },
    /// A key of the kind that is configured.
    #[error("\"{key}\" is not for kind \"{kind}\", expected it only with {}", any_of(kinds))]
    OfKind {
        /// The key.
        key: String,
        /// The kind beside it.
        kind: &'static str,
        /// The kinds that have this key.
        kinds: &'static [&'static str],
    },
    /// A program.
    #[error("an empty command, expected a program and its arguments, without zero bytes")]
    Command,
    /// An answer before the next check.
    #[error(
        "timeout {} is longer than the interval {}: a backend is asked once at a time, so it would be asked \
         less often than that; expected a timeout of at most the interval",
        humantime::format_duration(*timeout), humantime::format_duration(*interval)
    )]
    Timeout {
        /// The timeout.
        timeout: Duration,
        /// The interval.
        interval: Duration,
    },
    /// A check that reaches a UDP service.
    #[error(
        "kind = \"{kind}\" asks over TCP, and {} is UDP; expected `port` (that of a TCP listener of the backend), kind = \"exec\", or health = \"none\" \
         in the service",
        service.as_ref().map_or("this service".to_owned(), |name| format!("service \"{name}\""))
    )]
    OverTcp {
        /// The kind of the check.
        kind: &'static str,
        /// The service, if the check is that of its deployment.
        service: Option<String>,
    },
    /// Something by which the controller can decide.
    #[error("to_idle = \"auto\" without health checks, expected [deployments.NAME.health], or `health` in a service")]
    Checks,
    /// A bound of a value.
    #[error("missing key \"max\" or \"min\", expected at least one: which values pass?")]
    Bound,
    /// Bounds between which there is something.
    #[error("min {min} is above max {max}, so no value would pass; expected it to be at most that")]
    Bounds {
        /// The smallest value that passes.
        min: super::model::Bound,
        /// The largest value that passes.
        max: super::model::Bound,
    },
    /// Certificates for an address that others can reach.
    #[error(
        "listen {0} can be reached from other hosts, expected tls = {{ certificate = \"cert.pem\", key = \"key.pem\" }} with \
         it, or a loopback address"
    )]
    Tls(std::net::SocketAddr),
    /// Fewer items.
    #[error("too many {what}: {got}, expected at most {max} in one file")]
    Limit {
        /// The items.
        what: &'static str,
        /// Their number.
        got: u64,
        /// The largest number allowed.
        max: u64,
    },
}

/// Number of problems that are listed.
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
