//! What is remembered in the state directory: the journal of who changed what and why, and the last
//! live colours.

mod journal;
mod last_live;
mod who;

use std::{
    io,
    path::{Path, PathBuf},
};

use bg_common::Colour;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

pub use journal::{Action, History, Journal, Record};
pub use last_live::LastLive;
pub use who::Who;

/// A deployment's live state at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    /// Number of changes so far.
    pub generation: u32,
    /// The colour that new flows go to.
    #[serde(serialize_with = "write_colour", deserialize_with = "read_colour")]
    pub live: Colour,
}

/// Why something could not be remembered or recalled.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// The state directory or a file in it cannot be made, read or written.
    #[error("cannot {doing} {}; the state directory must be writable, --state-dir names another", path.display())]
    Io {
        /// What was tried: "open", "write", ...
        doing: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Expected what [`LastLive`] writes, got something else. It has been left as it is.
    #[error(
        "{} is not what bgctl writes there ({got}); it has been left as it is. Put back a good copy, or move it away: \
         what runs is not affected, but after a reboot the next apply then begins with each deployment's `initial` colour",
        path.display()
    )]
    ForeignLastLive {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        got: String,
    },
}

impl HistoryError {
    fn io<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Self + use<'a> {
        move |source| Self::Io { doing, path: path.to_owned(), source }
    }
}

/// Makes the state directory if it is missing.
pub fn prepare_state_dir(state_dir: &Path) -> Result<(), HistoryError> {
    std::fs::create_dir_all(state_dir).map_err(HistoryError::io("create", state_dir))
}

/// Makes a new or renamed entry of a directory survive a loss of power.
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
