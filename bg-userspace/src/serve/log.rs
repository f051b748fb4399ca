//! Messages of the controller, by `tracing`.

use std::io::{self, IsTerminal as _};

use tracing_subscriber::{EnvFilter, Layer as _, Registry, layer::SubscriberExt as _, util::SubscriberInitExt as _};

use super::error::ServeError;

/// The form of messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// The fields of the systemd journal if systemd has connected stderr to it, else text.
    #[default]
    Auto,
    /// A line of text for each message.
    Text,
    /// A JSON object for each message.
    Json,
}

/// The variable that says which messages are printed, in the form of `RUST_LOG`.
const FILTER: &str = "BGCTL_LOG";

/// Prints messages to stderr, or sends them to the journal, from now on.
pub(super) fn begin(format: LogFormat, verbose: bool) -> Result<(), ServeError> {
    let usual = if verbose { "bg_userspace=debug,info" } else { "bg_userspace=info,warn" };
    let filter = std::env::var(FILTER).unwrap_or_else(|_| usual.to_owned());
    let filter = EnvFilter::try_new(&filter).map_err(|error| {
        let source = io::Error::new(io::ErrorKind::InvalidInput, error);
        ServeError::Io { doing: format!("read the variable {FILTER}, \"{filter}\""), source }
    })?;
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_target(false)
        .with_ansi(io::stderr().is_terminal());
    let layer = match format {
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
        LogFormat::Auto if is_journal() => match tracing_journald::layer() {
            Ok(journal) => journal.with_syslog_identifier("bgctl".to_owned()).with_field_prefix(None).boxed(),
            Err(_) => lines.boxed(),
        },
        LogFormat::Auto | LogFormat::Text => lines.boxed(),
    };
    // Only the first controller of a process begins it, which is one in a test.
    let _ = Registry::default().with(layer.with_filter(filter)).try_init();
    Ok(())
}

/// Whether systemd has connected stderr to the journal: `JOURNAL_STREAM` has its device and inode.
fn is_journal() -> bool {
    let named = std::env::var("JOURNAL_STREAM").ok();
    let stat = rustix::fs::fstat(io::stderr());
    named.zip(stat.ok()).is_some_and(|(named, stat)| named == format!("{}:{}", stat.st_dev, stat.st_ino))
}
