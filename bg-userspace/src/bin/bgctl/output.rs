//! Output: text for people, JSON for programs.

use std::{
    borrow::Cow,
    io::{self, Write as _},
    sync::OnceLock,
};

use anstream::{AutoStream, ColorChoice, adapter::strip_str};
use serde::Serialize;

/// Writes text to stdout.
pub(crate) fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    written.map_err(|error| io::Error::new(error.kind(), NotPrinted(error)))
}

/// The error that the result of a command could not be written to stdout.
#[derive(Debug)]
struct NotPrinted(io::Error);

impl std::fmt::Display for NotPrinted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "cannot write the result to standard output: {}", self.0)
    }
}

impl std::error::Error for NotPrinted {}

/// Whether the command is done, and only its result could not be printed.
pub(crate) fn is_not_printed(error: &anyhow::Error) -> bool {
    let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    inner.is_some_and(|inner| inner.is::<NotPrinted>())
}

/// Writes styled text to stdout, with colours if stdout should have them.
pub(crate) fn print_styled(text: &str) -> io::Result<()> {
    print(&painted(text))
}

/// The text for stdout, without colours if it is not a terminal or the user wants none.
pub(crate) fn painted(text: &str) -> String {
    match AutoStream::choice(&io::stdout()) {
        ColorChoice::Never => strip_str(text).to_string(),
        _ => text.to_owned(),
    }
}

/// The options that name the instance of this command; empty if it is the default one.
static INSTANCE: OnceLock<String> = OnceLock::new();

/// Sets the options that are added to the commands in messages.
pub(crate) fn advise_for(options: String) {
    let _ = INSTANCE.set(options);
}

/// The text with complete commands: a command between backticks gets the options of the instance. Without
/// them, `bgctl detach --all` would remove another instance. Completing a text twice has no further effect.
pub(crate) fn advice(text: &str) -> Cow<'_, str> {
    complete(text, INSTANCE.get().map_or("", String::as_str))
}

fn complete<'a>(text: &'a str, options: &str) -> Cow<'a, str> {
    if options.is_empty() {
        return Cow::Borrowed(text);
    }
    let mut completed = String::with_capacity(text.len() + options.len());
    let mut rest = text;
    // Not by pairs of backticks, because quoted text in a message may contain one.
    while let Some((before, after)) = rest.split_once('`') {
        completed.push_str(before);
        completed.push('`');
        rest = after;
        if let Some((command, _)) = after.split_once('`').filter(|(command, _)| is_for_this_instance(command)) {
            completed.push_str(command);
            completed.push_str(options);
            rest = &after[command.len()..];
        }
    }
    completed.push_str(rest);
    Cow::Owned(completed)
}

/// Whether it is a call of bgctl, in this or another namespace, that does not name its instance.
fn is_for_this_instance(command: &str) -> bool {
    let is_call = command.starts_with("bgctl ") || (command.starts_with("nsenter ") && command.contains(" bgctl "));
    is_call && !["--pin-root", "--state-dir"].iter().any(|option| command.contains(option))
}

/// Writes a message to stderr. If that fails, the command continues, because its work must not depend on it.
pub(crate) fn message(text: &str) {
    line(&format!("bgctl: {text}"));
}

/// The same without the program's name. All messages go through this function. They may quote text from elsewhere, so control characters
/// are escaped.
pub(crate) fn line(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{}", printable(text));
}

/// A message in the form for a terminal.
pub(crate) fn printable(text: &str) -> String {
    bg_userspace::text::lines(&advice(text)).into_owned()
}

/// Writes a value to stdout as indented JSON.
pub(crate) fn print_json(value: &impl Serialize) -> io::Result<()> {
    print(&(serde_json::to_string_pretty(value)? + "\n"))
}

/// Writes a value to stdout as one line of JSON.
pub(crate) fn print_json_line(value: &impl Serialize) -> io::Result<()> {
    print(&(serde_json::to_string(value)? + "\n"))
}

/// Whether the reader of stdout has closed it, as in `bgctl flows | head`.
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// A number of items, in the singular or the plural.
pub(crate) fn count(number: usize, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

/// A number of bytes in readable form.
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
    fn advice_is_for_the_instance_that_the_message_is_about() {
        let text = "no map `live`: run `bgctl detach --all`, then `bgctl attach IFACE`; bgctl does it";
        assert_eq!(complete(text, ""), text);
        assert_eq!(
            complete(text, " --pin-root /sys/fs/bpf/x"),
            "no map `live`: run `bgctl detach --all --pin-root /sys/fs/bpf/x`, then `bgctl attach IFACE --pin-root \
             /sys/fs/bpf/x`; bgctl does it"
        );
        let options = " --state-dir /x";
        for (text, completed) in [
            // A backtick of somebody else.
            ("\"a`b\": see `bgctl status`", "\"a`b\": see `bgctl status --state-dir /x`"),
            ("`bgctl status`, \"a`", "`bgctl status --state-dir /x`, \"a`"),
            ("run `nsenter --net=/n bgctl doctor` there", "run `nsenter --net=/n bgctl doctor --state-dir /x` there"),
            // Another instance, or no call.
            ("`bgctl --pin-root DIR detach`", "`bgctl --pin-root DIR detach`"),
            ("`bgctl status --state-dir /x`", "`bgctl status --state-dir /x`"),
            ("`bgctl`, `nft list` or bgctl `", "`bgctl`, `nft list` or bgctl `"),
        ] {
            assert_eq!(complete(text, options), completed);
        }
    }

    #[test]
    fn octets_are_rounded_to_units() {
        assert_eq!([0, 999, 1000, 1_550_000].map(bytes), ["0 B", "999 B", "1.0 kB", "1.6 MB"]);
    }
}
