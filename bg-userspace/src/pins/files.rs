//! Single pins and the directories that hold them.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use aya::{maps::MapError, sys::SyscallError};

use crate::{Error, Paths, history::make_private};

/// Creates the directories of a pin root. Only their owner can open them.
pub(crate) fn make_directories(paths: &Paths) -> Result<(), Error> {
    for directory in [paths.maps(), paths.programs(), paths.links()] {
        make_private(&directory).map_err(Error::io("make", &directory))?;
        let mode = rustix::fs::Mode::RWXU;
        rustix::fs::chmod(&directory, mode).map_err(|errno| Error::io("close to others", directory)(errno.into()))?;
    }
    Ok(())
}

/// Removes a pin, if it exists.
pub(crate) fn remove(pin: &Path) -> Result<(), Error> {
    match fs::remove_file(pin) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", pin)(error)),
        _ => Ok(()),
    }
}

/// The files of a directory; none if it does not exist.
pub(crate) fn entries(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let listing = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        listing => listing.map_err(Error::io("list", directory))?,
    };
    let mut paths: Vec<_> = listing
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()
        .map_err(Error::io("list", directory))?;
    paths.sort();
    Ok(paths)
}

pub(crate) fn exists(path: &Path) -> Result<bool, Error> {
    path.try_exists().map_err(Error::io("look at", path))
}

pub(super) fn has_entries(directory: &Path) -> Result<bool, Error> {
    Ok(!entries(directory)?.is_empty())
}

/// The error for a pin that could not be opened. It is the kernel's, unless the pinned object is not a map.
pub(crate) fn unopened(pin: &Path, error: MapError) -> Error {
    let error = match error {
        MapError::SyscallError(SyscallError { io_error, .. }) => io_error,
        other => return Error::ForeignMap { path: pin.to_owned(), detail: other.to_string() },
    };
    match error.kind() {
        io::ErrorKind::NotFound => Error::Damaged { pin: pin.to_owned() },
        // The pinned object is not a map.
        io::ErrorKind::InvalidInput => Error::ForeignMap { path: pin.to_owned(), detail: error.to_string() },
        _ => Error::io("open the pin", pin)(error),
    }
}
