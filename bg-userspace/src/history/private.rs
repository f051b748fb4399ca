//! Files and directories that only their owner can open. Whoever can open such a file can lock it (flock), and so block
//! all recording.

use std::{
    fs::{DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::Path,
};

use rustix::fs::Mode;

/// Whether users other than the owner can open it.
fn is_open_to_others(metadata: &std::fs::Metadata) -> bool {
    metadata.mode() & 0o077 != 0
}

/// Whether only the owner can open it.
pub(crate) fn is_private(file: &File) -> bool {
    file.metadata().is_ok_and(|metadata| !is_open_to_others(&metadata))
}

/// Creates a directory that only its owner can open, and its missing parents. An existing directory is not changed.
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

/// Closes a directory to others if they can open it and `is_ours` holds for all its entries. A directory
/// with other files, such as /var/lib, is not changed; bgctl's files in it are private anyway.
pub(super) fn close(directory: &Path, is_ours: impl Fn(&str) -> bool) -> io::Result<()> {
    if !is_open_to_others(&std::fs::metadata(directory)?) {
        return Ok(());
    }
    for entry in std::fs::read_dir(directory)? {
        if !entry?.file_name().to_str().is_some_and(&is_ours) {
            return Ok(());
        }
    }
    // This fails on a file system without modes, or if the directory belongs to another user. Recording still works.
    let _ = rustix::fs::chmod(directory, Mode::RWXU);
    Ok(())
}

/// Opens a file that only its owner can read, and write or append to. Creates it if it is missing, and closes it to others if they can open
/// it.
pub(super) fn open(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    let file = options.read(true).create(true).mode(0o600).open(path)?;
    if !is_private(&file) {
        // As in `close`.
        let _ = rustix::fs::fchmod(&file, Mode::RUSR | Mode::WUSR);
    }
    Ok(file)
}

/// Opens a file that only serves as a lock. If others could open it, and may have locked it, it is replaced.
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
