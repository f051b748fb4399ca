//! How the controller runs.

use std::path::PathBuf;

use super::log::LogFormat;

/// How the controller runs.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// The configuration.
    pub config: PathBuf,
    /// Whether it is no error that the file does not exist.
    pub may_be_missing: bool,
    /// The form of its messages.
    pub log_format: LogFormat,
    /// Whether messages that matter only when looking for a fault are printed too.
    pub verbose: bool,
}
