//! flock(2), which the kernel lets go of when its holder dies, however it dies.

use std::{fs::File, io, os::fd::AsRawFd as _};

/// Locks the file for this process alone; `Ok(false)` if another one holds it.
pub(crate) fn try_lock(file: &File) -> io::Result<bool> {
    // SAFETY: the descriptor is open, and no pointers are passed.
    if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
        return Ok(true);
    }
    match io::Error::last_os_error() {
        error if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        error => Err(error),
    }
}
