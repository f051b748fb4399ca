//! Removing the pins of an instance.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::files::{entries, remove};
use crate::{Error, Paths, fence};

/// Removes all pins and the directories. Returns the names of what is left, because bgctl has not created it.
pub(crate) fn remove_all(paths: &Paths) -> Result<Vec<PathBuf>, Error> {
    clear(paths)?;
    remove_directory(&paths.pin_root)?;
    let directories = [paths.maps(), paths.programs(), paths.links(), paths.pin_root.clone()];
    let left = directories.iter().map(|directory| entries(directory)).collect::<Result<Vec<_>, _>>()?;
    // Names with a dot are the kernel's own, because it accepts none from others.
    let is_foreign =
        |path: &PathBuf| !directories.contains(path) && *path != paths.changes() && path.extension().is_none();
    Ok(left.concat().into_iter().filter(is_foreign).collect())
}

/// Removes all pins, but not the pin root, which the caller has locked.
pub(crate) fn clear(paths: &Paths) -> Result<(), Error> {
    let of = |directory| entries(directory);
    fence::repair(paths);
    let gates = [paths.gates_link(), paths.new_gates_link()];
    let first = [paths.map("meta"), paths.state_link(), paths.head_link(), paths.expedited()];
    let first = [first.as_slice(), &gates].concat();
    let ordered = [of(&paths.links())?, of(&paths.programs())?, first, of(&paths.maps())?];
    for entry in ordered.concat() {
        // bgctl creates no directories there.
        if !fs::symlink_metadata(&entry).is_ok_and(|metadata| metadata.is_dir()) {
            remove(&entry)?;
        }
    }
    let directories = [paths.maps(), paths.programs(), paths.links(), paths.controller()];
    directories.iter().try_for_each(|directory| remove_directory(directory))
}

/// Removes a directory, unless it is not empty or is a mount point.
fn remove_directory(directory: &Path) -> Result<(), Error> {
    use io::ErrorKind::{DirectoryNotEmpty, NotFound, ResourceBusy};
    match fs::remove_dir(directory) {
        Err(error) if !matches!(error.kind(), NotFound | DirectoryNotEmpty | ResourceBusy) => {
            Err(Error::io("remove", directory)(error))
        }
        _ => Ok(()),
    }
}
