//! The state directory itself, and the names of the files in it.

use std::{os::unix::fs::MetadataExt as _, path::Path};

use super::{
    error::HistoryError,
    private::{self, make_private},
};

/// The name of the journal's file.
pub(super) const JOURNAL: &str = "history.jsonl";
/// The name of the file with the journal's head.
pub(super) const HEAD: &str = "history.head";
/// The name of the file that whoever writes the others locks.
pub(crate) const LOCK: &str = "history.lock";
/// The name of the file with the last live colours.
pub(super) const LAST_LIVE: &str = "live.json";

/// The name of the file with the gates of the last apply.
pub(crate) const GATES: &str = "gates.toml";
/// The name of the file with the listeners that applies have chosen.
pub(crate) const LISTENERS: &str = "listeners.json";

/// Creates the state directory if it is missing. Only its owner can open it. If others can open an existing one, the mode is corrected.
pub(crate) fn prepare_state_dir(state_dir: &Path) -> Result<(), HistoryError> {
    let is_ours = |name: &str| {
        name == JOURNAL
            || name == HEAD
            || [GATES, "gates.new", LISTENERS, "listeners.new"].contains(&name)
            || name.trim_start_matches('.').starts_with(LAST_LIVE)
            || name.ends_with(".lock")
            || name == "lost+found"
    };
    make_private(state_dir)
        .map_err(HistoryError::io("create", state_dir))
        .and_then(|()| private::close(state_dir, is_ours).map_err(HistoryError::io("look at", state_dir)))
}

/// Makes sure that a new or renamed entry of a directory survives a loss of power.
pub(super) fn sync_directory(directory: &Path) -> Result<(), HistoryError> {
    std::fs::File::open(directory).and_then(|file| file.sync_all()).map_err(HistoryError::io("write", directory))
}

/// Whether both are the same directory.
pub(crate) fn is_same(one: &Path, other: &Path) -> bool {
    let inode = |path: &Path| std::fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino()));
    one == other || inode(one).is_ok_and(|one| inode(other).is_ok_and(|other| one == other))
}
