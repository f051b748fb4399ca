//! The pin `state`, which is a symbolic link to the instance's state directory.

use std::{
    io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use crate::Paths;

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
