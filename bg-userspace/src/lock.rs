//! The locks of an instance.
//!
//! The locks (flock) are the directories of the pins, because the pins are what they protect. So locking needs no disk, and processes
//! with different state directories use the same locks. The kernel releases a lock when its holder dies.
//!
//! | directory | holder |
//! | --- | --- |
//! | the pin root | attach, detach, apply, what sets the health of backends, and what learns sources of outer headers: they change pins or tables, and hold it as long as they run |
//! | its `maps` | a switch, which changes a live word, from writing the terms to the end of the fence. It is separate, so that a stuck apply never blocks an emergency rollback |
//! | its `links` | a freeze, or what plays held packets back, which opens and closes queues. It is separate, so that no switch waits for many packets |
//! | its `controller` | `bgctl serve`, as long as it runs, so that there is one controller at most. Nothing else needs it |
//! | its `programs` | shared: a switch, or an apply, until it is recorded, so that nobody takes it for a killed one |
//!
//! The state directory has its own lock, the file `history.lock`. It is locked when the change is done.
//!
//! Whoever can open a directory or file can lock it, so only the owner can open these. If others can open one, its mode is corrected
//! when it is locked.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd as _, BorrowedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::{fs::FlockOperation, io::Errno};

use crate::{
    Error, Paths,
    history::{HistoryError, LOCK, is_private, make_private, open_lock, prepare_state_dir},
};

/// A held lock. Dropping it releases the lock.
#[derive(Debug)]
pub(crate) struct Lock {
    /// `None` if there is nothing to protect.
    file: Option<File>,
}

impl Drop for Lock {
    fn drop(&mut self) {
        if let Some(file) = &self.file {
            // A process that this one has just started may keep the file open until it runs its program, so closing the file
            // here would not be enough.
            let _ = rustix::fs::flock(file, FlockOperation::NonBlockingUnlock);
        }
    }
}

impl Lock {
    /// The lock of detach and apply. Waits for a moment, then another holder is an error.
    pub(crate) fn apply(paths: &Paths) -> Result<Self, Error> {
        Self::of_pins(&paths.pin_root, Duration::from_millis(500))
    }

    /// The same for the health of backends, which waits longer, because nobody repeats it by hand.
    pub(crate) fn health(paths: &Paths) -> Result<Self, Error> {
        Self::of_pins(&paths.pin_root, Duration::from_secs(5))
    }

    /// The same, to look whether there is another holder, which is an error at once.
    pub(crate) fn apply_if_free(paths: &Paths) -> Result<Self, Error> {
        Self::of_pins(&paths.pin_root, Duration::ZERO)
    }

    /// The same for detach, which waits longer.
    pub(crate) fn detach(paths: &Paths, patience: Duration) -> Result<Self, Error> {
        Self::of_pins(&paths.pin_root, patience)
    }

    /// The same for attach, which creates the pin root if there is none.
    pub(crate) fn attach(paths: &Paths, patience: Duration) -> Result<Self, Error> {
        loop {
            make_private(&paths.pin_root).map_err(Error::io("make", &paths.pin_root))?;
            let lock = Self::detach(paths, patience)?;
            // A detach that held the lock may have removed the directory meanwhile.
            if lock.file.is_some() {
                return Ok(lock);
            }
        }
    }

    /// The lock of the live words. Its holders are quick, so this waits for a short time.
    pub(crate) fn switch(paths: &Paths) -> Result<Self, Error> {
        Self::of_pins(&paths.maps(), Duration::from_secs(5))
    }

    /// The same for work that the next command can do just as well. Another holder is an error at once.
    pub(crate) fn switch_if_free(paths: &Paths) -> Result<Self, Error> {
        Self::of_pins(&paths.maps(), Duration::ZERO)
    }

    /// The lock of the queues of held packets. Taken before that of the live words. Its holders take as long as it takes to play the
    /// packets back.
    pub(crate) fn hold(paths: &Paths) -> Result<Self, Error> {
        Self::of_pins(&paths.links(), Duration::from_secs(5))
    }

    /// The same for work that the next command can do just as well. Another holder is an error at once.
    pub(crate) fn hold_if_free(paths: &Paths) -> Result<Self, Error> {
        Self::of_pins(&paths.links(), Duration::ZERO)
    }

    /// The lock of the controller. Its directory is created if it is missing. A predecessor that is just ending is waited for.
    #[cfg(feature = "serve")]
    pub(crate) fn controller(paths: &Paths) -> Result<Self, Error> {
        let directory = paths.controller();
        make_private(&directory).map_err(Error::io("make", &directory))?;
        Self::of_pins(&directory, Duration::from_secs(1))
    }

    /// The lock of the journal and of the last live colours.
    pub(crate) fn history(state_dir: &Path) -> Result<Self, Error> {
        prepare_state_dir(state_dir)?;
        let path = state_dir.join(LOCK);
        let open = || open_lock(&path).map_err(|source| HistoryError::Io { doing: "open", path: path.clone(), source });
        let locked = lock(&path, || open().map(Some).map_err(Error::from), Duration::from_secs(2))?;
        Ok(Self { file: locked })
    }

    fn of_pins(directory: &Path, patience: Duration) -> Result<Self, Error> {
        Ok(Self { file: lock(directory, || open_directory(directory), patience)? })
    }
}

/// The lock that whoever changes a live word holds from before the change until it is recorded. It is shared.
#[derive(Debug)]
pub(crate) struct Recording(File);

impl Recording {
    /// `None` if it cannot be locked, which does not prevent a switch.
    pub(crate) fn begin(paths: &Paths) -> Option<Self> {
        let file = open_directory(&paths.programs()).ok()??;
        let start = Instant::now();
        // An exclusive holder reads a few words and releases the lock.
        while rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared).is_err() {
            if start.elapsed() >= Duration::from_millis(100) {
                return None;
            }
            std::thread::yield_now();
        }
        Some(Self(file))
    }

    /// Calls `look` if no other process records. The caller holds the lock of the history.
    pub(crate) fn alone<T>(&self, look: impl FnOnce() -> T) -> Option<T> {
        // If this fails, the shared lock is no longer held either. That does no harm, because looking requires the history's lock.
        let alone = rustix::fs::flock(&self.0, FlockOperation::NonBlockingLockExclusive).is_ok();
        let seen = alone.then(look);
        let _ = rustix::fs::flock(&self.0, FlockOperation::NonBlockingLockShared);
        seen
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Opens and locks. `Ok(None)` if there is nothing to open.
fn lock(
    path: &Path,
    open: impl Fn() -> Result<Option<File>, Error>,
    patience: Duration,
) -> Result<Option<File>, Error> {
    let start = Instant::now();
    loop {
        let Some(file) = open()? else {
            return Ok(None);
        };
        let inode = |metadata: io::Result<std::fs::Metadata>| metadata.map(|metadata| metadata.ino());
        let ours = inode(file.metadata()).map_err(Error::io("look at", path))?;
        if try_lock(&file).map_err(Error::io("lock", path))? {
            // Its holder may have removed it, and another process may have created it anew.
            if inode(std::fs::metadata(path)).is_ok_and(|now| now == ours) {
                return Ok(Some(file));
            }
            continue;
        }
        if start.elapsed() >= patience {
            return Err(Error::Busy { path: path.to_owned(), holder: holder_of(ours) });
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Opens a directory of pins, and closes it to others. `None` if there is none.
fn open_directory(path: &Path) -> Result<Option<File>, Error> {
    let directory = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(Error::io("open", path))?,
    };
    if !is_private(&directory) {
        // If this fails, the lock still works.
        let _ = rustix::fs::fchmod(&directory, rustix::fs::Mode::RWXU);
    }
    Ok(Some(directory))
}

/// The process that has locked a file, as far as /proc shows it.
fn holder_of(inode: u64) -> String {
    let unknown = || "a process that /proc/locks does not name".to_owned();
    let Some(process) = locker(inode) else {
        return unknown();
    };
    let command = std::fs::read(PathBuf::from("/proc").join(process.to_string()).join("cmdline")).unwrap_or_default();
    let words: Vec<_> = command.split(|octet| *octet == 0).map(String::from_utf8_lossy).collect();
    let command = words.join(" ").replace(char::is_control, " ");
    format!("process {process}: {}", if command.trim().is_empty() { "unknown" } else { command.trim() })
}

fn locker(inode: u64) -> Option<u32> {
    // 2: FLOCK  ADVISORY  WRITE 1234 00:1e:5678 0 EOF
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    let of_file = |line: &&str| {
        let file = line.split_whitespace().nth(5).and_then(|file| file.rsplit(':').next());
        line.contains("FLOCK") && file.and_then(|number| number.parse().ok()) == Some(inode)
    };
    locks.lines().find(of_file)?.split_whitespace().nth(4)?.parse().ok().filter(|process| *process != 0)
}

/// Locks a file exclusively. `Ok(false)` if another process holds the lock.
fn try_lock(file: &File) -> io::Result<bool> {
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::Permissions, os::unix::fs::PermissionsExt as _};

    use super::*;

    fn paths(dir: &tempfile::TempDir, state: &str) -> Paths {
        Paths { pin_root: dir.path().join("pins"), state_dir: dir.path().join(state) }
    }

    #[test]
    fn a_second_apply_is_told_who_holds_the_lock_whatever_its_state_directory() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(paths(&dir, "a").maps()).unwrap();
        let held = Lock::apply(&paths(&dir, "a")).unwrap();
        let error = Lock::apply(&paths(&dir, "b")).unwrap_err().to_string();
        let process = format!("process {}: ", std::process::id());
        assert!(error.contains(&process) && error.contains("pins"), "{error}");
        Lock::switch(&paths(&dir, "b")).expect("a stuck apply does not block a switch");
        drop(held);
        Lock::apply(&paths(&dir, "b")).unwrap();
        assert!(!paths(&dir, "a").state_dir.exists() && !paths(&dir, "b").state_dir.exists());
    }

    #[test]
    fn a_switch_waits_for_another() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(paths(&dir, "a").maps()).unwrap();
        let held = Lock::switch(&paths(&dir, "a")).unwrap();
        let start = Instant::now();
        std::thread::scope(|scope| {
            let other = scope.spawn(|| Lock::switch(&paths(&dir, "b")).map(|_| start.elapsed()));
            std::thread::sleep(Duration::from_millis(50));
            drop(held);
            assert!(other.join().unwrap().unwrap() >= Duration::from_millis(50), "it has waited");
        });
    }

    #[test]
    fn a_directory_that_others_can_open_is_closed_to_them() {
        let dir = tempfile::tempdir().unwrap();
        let maps = paths(&dir, "a").maps();
        std::fs::create_dir_all(&maps).unwrap();
        std::fs::set_permissions(&maps, Permissions::from_mode(0o755)).unwrap();
        drop(Lock::switch(&paths(&dir, "a")).unwrap());
        assert_eq!(std::fs::metadata(&maps).unwrap().mode() & 0o7777, 0o700);
    }

    #[test]
    fn a_lock_that_somebody_took_while_others_could_open_it_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("history.lock");
        std::fs::write(&path, "").unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        let stranger = File::open(&path).unwrap();
        assert!(try_lock(&stranger).unwrap());
        let start = Instant::now();
        Lock::history(dir.path()).unwrap();
        assert!(start.elapsed() < Duration::from_secs(1));
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
    }

    #[test]
    fn only_who_records_alone_looks_for_what_nobody_records() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(paths(&dir, "a").programs()).unwrap();
        let first = Recording::begin(&paths(&dir, "a")).unwrap();
        assert_eq!(first.alone(|| 1), Some(1));
        let second = Recording::begin(&paths(&dir, "b")).expect("any number may hold it");
        assert_eq!(second.alone(|| 1), None);
        drop(first);
        assert_eq!(second.alone(|| 1), Some(1));
    }
}
