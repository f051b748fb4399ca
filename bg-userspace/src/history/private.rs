//! Files and directories that nobody but their owner can open. Whoever can open one can lock it (flock), and keep
//! everybody from recording.

use std::{
    fs::{DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::Path,
};

use rustix::fs::Mode;

/// Whether others than the owner can open it.
fn is_open_to_others(metadata: &std::fs::Metadata) -> bool {
    metadata.mode() & 0o077 != 0
}

/// Whether nobody but the owner can open it.
pub(crate) fn is_private(file: &File) -> bool {
    file.metadata().is_ok_and(|metadata| !is_open_to_others(&metadata))
}

/// Makes a directory for its owner alone, and what is missing above it. One that is there stays as it is.
pub(crate) fn make_private(directory: &Path) -> io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    if let Some(parent) = directory.parent() {
        std::fs::create_dir_all(parent)?;
    }
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && directory.is_dir() => Ok(()),
        made => made,
    }
}

/// Closes a directory to others if it is open to them and holds nothing but what `is_ours` says. Somebody else's
/// directory, such as /var/lib, stays as it is: the files in it are private all the same.
pub(super) fn close(directory: &Path, is_ours: impl Fn(&str) -> bool) -> io::Result<()> {
    if !is_open_to_others(&std::fs::metadata(directory)?) {
        return Ok(());
    }
    for entry in std::fs::read_dir(directory)? {
        if !entry?.file_name().to_str().is_some_and(&is_ours) {
            return Ok(());
        }
    }
    // On a file system without modes, or where it is not ours, it cannot be done, and recording is still right.
    let _ = rustix::fs::chmod(directory, Mode::RWXU);
    Ok(())
}

/// Opens a file for its owner alone to read, and to write or append; made if it is missing, closed to others if it is open
/// to them.
pub(super) fn open(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    let file = options.read(true).create(true).mode(0o600).open(path)?;
    if !is_private(&file) {
        // As in `close`.
        let _ = rustix::fs::fchmod(&file, Mode::RUSR | Mode::WUSR);
    }
    Ok(file)
}

/// Opens a file that is only there to be locked. One that others could open, and may have locked, is replaced.
pub(crate) fn open_lock(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let file = options.open(path)?;
    if is_private(&file) {
        return Ok(file);
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => options.open(path),
    }
}
