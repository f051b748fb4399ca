//! The Unix socket.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io,
    os::unix::{
        fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, chown},
        net::UnixStream,
    },
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};
use tokio::net::UnixListener;

use crate::serve::error::ServeError;

/// A socket that this process listens on. It is removed when this is dropped.
#[derive(Debug)]
pub(super) struct Socket {
    pub(super) listener: UnixListener,
    path: PathBuf,
    inode: u64,
    /// Held as long as the socket is. The file stays, because another process may be waiting for it.
    _lock: File,
}

impl Socket {
    /// Makes the socket, for root and this group. One that nobody listens on is replaced.
    pub(super) fn listen(path: &Path, group: Option<u32>) -> Result<Self, ServeError> {
        let io = || ServeError::io(format!("listen on {}", path.display()));
        let taken = |what: &str| {
            io::Error::new(io::ErrorKind::AddrInUse, format!("{what}: name another path, `socket` in [serve]"))
        };
        let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty());
        if let Some(directory) = directory.filter(|directory| !directory.exists()) {
            // Members of the group have to pass, whatever the umask is.
            let made = fs::create_dir_all(directory);
            made.and_then(|()| fs::set_permissions(directory, Permissions::from_mode(0o755))).map_err(io())?;
        }
        let mut lock = path.as_os_str().to_owned();
        lock.push(".lock");
        let lock = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(lock).map_err(io())?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| io()(taken("another controller listens there")))?;
        match fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => {
                return Err(io()(taken("there is something that is no socket")));
            }
            Ok(_) if UnixStream::connect(path).is_ok() => return Err(io()(taken("another process listens there"))),
            Ok(_) => fs::remove_file(path).map_err(io())?,
            Err(_) => {}
        }
        let listener = UnixListener::bind(path).map_err(io())?;
        let inode = give(path, group).and_then(|()| fs::symlink_metadata(path)).map_err(io())?.ino();
        Ok(Self { listener, path: path.to_owned(), inode, _lock: lock })
    }

    /// Lets root connect, and the members of a group, from now on. A socket that somebody else has put in its place is left alone.
    pub(super) fn give(&self, group: Option<u32>) -> io::Result<()> {
        if !self.is_there() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "it is no longer this controller's"));
        }
        give(&self.path, group)
    }

    /// Whether the socket at its path is this one.
    fn is_there(&self) -> bool {
        fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode)
    }
}

/// Lets root connect, and the members of a group. `None` is root's own.
fn give(path: &Path, group: Option<u32>) -> io::Result<()> {
    let mode = if group.is_some() { 0o660 } else { 0o600 };
    chown(path, None, group).and_then(|()| fs::set_permissions(path, Permissions::from_mode(mode)))
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Not one that somebody else has put there.
        if self.is_there() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_is_for_one_process_and_a_stale_one_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/api.sock");
        let socket = Socket::listen(&path, None).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let refused = Socket::listen(&path, None).unwrap_err();
        assert!(format!("{:#}", anyhow::Error::from(refused)).contains("another controller listens there"));
        drop(socket);
        assert!(!path.exists());
        // Somebody was killed.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let us = rustix::process::getegid().as_raw();
        let socket = Socket::listen(&path, Some(us)).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o660);
        drop(socket);
        let other = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert!(Socket::listen(&path, None).is_err(), "another program");
        drop(other);
        fs::remove_file(&path).unwrap();
        fs::write(&path, "precious").unwrap();
        assert!(Socket::listen(&path, None).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[tokio::test]
    async fn only_the_own_socket_is_given_to_another_group() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        let socket = Socket::listen(&path, None).unwrap();
        let us = rustix::process::getegid().as_raw();
        socket.give(Some(us)).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o660);
        // Bound before the old one is removed, so that it has another inode.
        let next = dir.path().join("next.sock");
        let other = std::os::unix::net::UnixListener::bind(&next).unwrap();
        fs::set_permissions(&next, Permissions::from_mode(0o640)).unwrap();
        fs::rename(&next, &path).unwrap();
        assert!(socket.give(None).is_err());
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o640, "another controller's");
        drop(socket);
        assert!(path.exists());
        drop(other);
    }
}
