//! The files in the state directory: the journal of who changed what and why, and the last
//! live colours.

mod ask;
mod journal;
mod last_live;
mod private;
mod who;

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use bg_common::Colour;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

pub use ask::PATIENCE;
pub(crate) use ask::ask;
pub use journal::{Action, History, Journal, Record};
pub use last_live::{Entry, LastLive, Writer};
pub(crate) use private::{is_private, make_private, open_lock};
pub use who::Who;

/// A deployment's live state at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    /// The number of changes so far.
    pub generation: u32,
    /// The colour that new flows go to.
    #[serde(serialize_with = "write_colour", deserialize_with = "read_colour")]
    pub live: Colour,
}

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
    fn io<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Self + use<'a> {
        move |source| Self::Io { doing, path: path.to_owned(), source }
    }
}

/// Creates the state directory if it is missing. Only its owner can open it. If others can open an existing one, the mode is corrected.
pub(crate) fn prepare_state_dir(state_dir: &Path) -> Result<(), HistoryError> {
    let is_ours = |name: &str| {
        name == History::FILE
            || name.trim_start_matches('.').starts_with(LastLive::FILE)
            || name.ends_with(".lock")
            || name == "lost+found"
    };
    make_private(state_dir)
        .map_err(HistoryError::io("create", state_dir))
        .and_then(|()| private::close(state_dir, is_ours).map_err(HistoryError::io("look at", state_dir)))
}

/// Makes sure that a new or renamed entry of a directory survives a loss of power.
fn sync_directory(directory: &Path) -> Result<(), HistoryError> {
    std::fs::File::open(directory).and_then(|file| file.sync_all()).map_err(HistoryError::io("write", directory))
}

fn write_colour<S: Serializer>(colour: &Colour, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(colour.name())
}

fn read_colour<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Colour, D::Error> {
    let name = String::deserialize(deserializer)?;
    Colour::ALL
        .into_iter()
        .find(|colour| colour.name() == name)
        .ok_or_else(|| D::Error::custom(format!("expected \"blue\" or \"green\", got \"{name}\"")))
}
