//! The pin `state`, which is a symbolic link to the instance's state directory, and the check that no other instance uses that directory.

use std::{
    io,
    os::unix::fs::{MetadataExt as _, symlink},
    path::{Path, PathBuf},
};

use super::State;
use crate::{
    Error, Paths,
    history::{HistoryError, LastLive, Writer},
};

/// The absolute path. It is computed without looking at the file system.
pub(super) fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

pub(super) fn read(paths: &Paths) -> Option<PathBuf> {
    std::fs::read_link(paths.state_link()).ok()
}

/// The link is replaced by a rename, so there is always one.
pub(super) fn write(paths: &Paths, state_dir: &Path) -> io::Result<()> {
    if read(paths).is_some_and(|there| there == state_dir) {
        return Ok(());
    }
    let temporary = paths.pin_root.join("state:new");
    match std::fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => symlink(state_dir, &temporary)?,
    }
    std::fs::rename(&temporary, paths.state_link())
}

fn is_same(one: &Path, other: &Path) -> bool {
    let inode = |path: &Path| std::fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino()));
    one == other || inode(one).is_ok_and(|one| inode(other).is_ok_and(|other| one == other))
}

/// A warning if the command names another directory than the instance's.
pub(super) fn mismatch(state: &State) -> Option<String> {
    let given = absolute(state.paths.state_dir());
    (!is_same(&state.home, &given)).then(|| {
        format!(
            "this instance keeps its state in {}, not in {}: name its directory by --state-dir or BGCTL_STATE_DIR (sudo drops \
             variables), or run an apply that names the new directory",
            state.home.display(),
            given.display()
        )
    })
}

/// Refuses the directory of another instance that is still pinned.
pub(super) fn refuse_shared(state: &State, last: &LastLive) -> Result<(), Error> {
    let Some(other) = last.instance.as_ref().filter(|other| Some(&other.identity) != state.identity()) else {
        return Ok(());
    };
    let lives = identity_at(&other.pin_root).as_ref() == Some(&other.identity);
    let theirs = Paths { pin_root: other.pin_root.clone(), ..state.paths.clone() };
    // That instance may use another directory now.
    if lives && read(&theirs).is_none_or(|home| is_same(&home, &state.home)) {
        return Err(HistoryError::Shared { state_dir: state.home.clone(), other: other.pin_root.clone() }.into());
    }
    Ok(())
}

/// The identity of the instance that is pinned there now.
pub(super) fn identity_at(pin_root: &Path) -> Option<String> {
    let paths = Paths { pin_root: pin_root.to_owned(), ..Paths::default() };
    State::of_pins(&paths).writer.map(|Writer { identity, .. }| identity)
}
