//! What is printed: text for people, JSON for programs.

use std::io::{self, Write as _};

use anstream::{AutoStream, ColorChoice, adapter::strip_str};
use serde::Serialize;

/// Writes text to stdout.
pub(crate) fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    written.map_err(|error| io::Error::new(error.kind(), NotPrinted(error)))
}

/// The result of a command could not be written to stdout.
#[derive(Debug)]
struct NotPrinted(io::Error);

impl std::fmt::Display for NotPrinted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "cannot write the result to standard output: {}", self.0)
    }
}

impl std::error::Error for NotPrinted {}

/// Whether the command has done what it does, and only its result could not be printed.
pub(crate) fn is_not_printed(error: &anyhow::Error) -> bool {
    let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    inner.is_some_and(|inner| inner.is::<NotPrinted>())
}

/// Writes styled text to stdout: with its colours, if stdout takes them.
pub(crate) fn print_styled(text: &str) -> io::Result<()> {
    print(&painted(text))
}

/// The text as stdout takes it: without its colours, if it is no terminal or the user wants none.
pub(crate) fn painted(text: &str) -> String {
    match AutoStream::choice(&io::stdout()) {
        ColorChoice::Never => strip_str(text).to_string(),
        _ => text.to_owned(),
    }
}

/// Writes a message to stderr. If nobody can read it, the command goes on: what it does must not depend on that.
pub(crate) fn message(text: &str) {
    line(&format!("bgctl: {text}"));
}

/// The same without the program's name in front. Every message passes here, and what it echoes is somebody else's text: a
/// terminal gets no control characters of it.
pub(crate) fn line(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{}", bg_userspace::text::lines(text));
}

/// Writes a value to stdout as indented JSON.
pub(crate) fn print_json(value: &impl Serialize) -> io::Result<()> {
    print(&(serde_json::to_string_pretty(value)? + "\n"))
}

/// Writes a value to stdout as one line of JSON.
pub(crate) fn print_json_line(value: &impl Serialize) -> io::Result<()> {
    print(&(serde_json::to_string(value)? + "\n"))
}

/// Whether the reader of stdout has gone away, which is its right (`bgctl flows | head`).
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// A number of things, in the singular or the plural.
pub(crate) fn count(number: usize, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

/// A number of octets that a person can read.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
    let mut scaled = count as f64;
    let mut unit = 0;
    while scaled >= 1000.0 && unit + 1 < UNITS.len() {
        scaled /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{scaled:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octets_are_rounded_to_units() {
        assert_eq!([0, 999, 1000, 1_550_000].map(bytes), ["0 B", "999 B", "1.0 kB", "1.6 MB"]);
    }
}
