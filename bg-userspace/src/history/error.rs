//! The errors of reading and writing the state directory.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

/// The error of reading or writing the state directory.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// The state directory or a file in it cannot be created, read or written.
    #[error("cannot {doing} {}; the state directory must be writable, --state-dir names another", path.display())]
    Io {
        /// What was attempted: "open", "write", ...
        doing: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The state directory, or its file system, does not respond.
    #[error(
        "{} does not respond within {} seconds (does its file system hang, or is it frozen?); --state-dir names another directory",
        state_dir.display(), waited.as_secs()
    )]
    Unanswered {
        /// The directory.
        state_dir: PathBuf,
        /// The time that was waited.
        waited: Duration,
    },
    /// Another instance that is pinned keeps its state here.
    #[error(
        "{} is the state directory of the running instance that is pinned in {}: give each instance its own directory, by \
         --state-dir or BGCTL_STATE_DIR",
        state_dir.display(), other.display()
    )]
    Shared {
        /// The directory.
        state_dir: PathBuf,
        /// The pin root of the other instance.
        other: PathBuf,
    },
    /// The error of the process that works on the state directory.
    #[error("{0}")]
    Told(String),
}

impl HistoryError {
    pub(super) fn io<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Self + use<'a> {
        move |source| Self::Io { doing, path: path.to_owned(), source }
    }
}
