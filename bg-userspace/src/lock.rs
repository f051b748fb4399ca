//! The locks of an instance.
//!
//! `apply.lock` belongs to who changes pins or tables, for as long as that takes. `switch.lock` is held
//! from writing the terms and the live word to the end of the fence, so that a stuck apply never blocks an
//! emergency rollback.
//!
//! Both are files of the state directory, which say who holds them. What they guard is pinned elsewhere, and
//! two processes may come to the same pins with different state directories: so the holder also locks the
//! directory of what it changes, the pin root for an apply, its `maps` for a switch.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::{fs::FlockOperation, io::Errno};

use crate::{
    Error, Paths,
    history::{HistoryError, prepare_state_dir},
};

/// A held lock; dropping it lets go.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
    pins: Option<File>,
}

impl Lock {
    /// The lock of detach and apply. Another holder is an error, after a moment: a thread of this process that
    /// starts a program gives it all open files, and with them a lock that has been let go, until it runs.
    pub(crate) fn apply(paths: &Paths) -> Result<Self, Error> {
        Self::take(paths, "apply.lock", Some(&paths.pin_root), Duration::from_millis(500))
    }

    /// The same for detach, which is worth a wait.
    pub(crate) fn detach(paths: &Paths, patience: Duration) -> Result<Self, Error> {
        Self::take(paths, "apply.lock", Some(&paths.pin_root), patience)
    }

    /// The same for attach, which makes the pin root if there is none.
    pub(crate) fn attach(paths: &Paths, patience: Duration) -> Result<Self, Error> {
        loop {
            std::fs::create_dir_all(&paths.pin_root).map_err(Error::io("make", &paths.pin_root))?;
            let lock = Self::detach(paths, patience)?;
            // A detach that held the lock may have removed the directory meanwhile.
            if lock.pins.is_some() {
                return Ok(lock);
            }
        }
    }

    /// The lock of the journal and of the last live colours: not that of the live words, because a disk may be
    /// slow.
    pub(crate) fn history(paths: &Paths) -> Result<Self, Error> {
        Self::take(paths, "history.lock", None, Duration::from_secs(5))
    }

    /// What a switch holds from before its exchange until it has recorded it, so that nobody takes it for one
    /// that was killed. Any number may hold it; `None` if it cannot be had, which is no reason not to switch.
    pub(crate) fn recording(paths: &Paths) -> Option<Self> {
        let file = Self::recording_file(paths)?;
        let start = Instant::now();
        // Whoever has it for himself reads a few words and lets go.
        while rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared).is_err() {
            if start.elapsed() >= Duration::from_millis(100) {
                return None;
            }
            std::thread::yield_now();
        }
        Some(Self { _file: file, pins: None })
    }

    /// The same for him who looks for switches that nobody will record; `None` while somebody may.
    pub(crate) fn nobody_records(paths: &Paths) -> Option<Self> {
        let file = Self::recording_file(paths)?;
        try_lock(&file).is_ok_and(|ours| ours).then_some(Self { _file: file, pins: None })
    }

    fn recording_file(paths: &Paths) -> Option<File> {
        prepare_state_dir(paths.state_dir()).ok()?;
        let path = paths.state_dir().join("recording.lock");
        OpenOptions::new().write(true).create(true).truncate(false).open(path).ok()
    }

    /// The lock of the live words. Its holders are quick, so it is worth a short wait.
    pub(crate) fn switch(paths: &Paths) -> Result<Self, Error> {
        Self::take(paths, "switch.lock", Some(&paths.maps()), Duration::from_secs(5))
    }

    fn take(paths: &Paths, name: &str, pins: Option<&Path>, patience: Duration) -> Result<Self, Error> {
        prepare_state_dir(paths.state_dir())?;
        let path: PathBuf = paths.state_dir().join(name);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|source| HistoryError::Io { doing: "open", path: path.clone(), source })?;
        let start = Instant::now();
        while !try_lock(&file).map_err(Error::io("lock", &path))? {
            if start.elapsed() >= patience {
                let mut holder = String::new();
                // Who it is only helps the reader of the message.
                let _ = file.read_to_string(&mut holder);
                let holder = if holder.is_empty() { "unknown".to_owned() } else { holder.trim().to_owned() };
                return Err(Error::Busy { path, holder });
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let command: Vec<_> = std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
        let line = format!("process {}: {}\n", std::process::id(), command.join(" "));
        // As above: the lock is ours, whether or not its file says so.
        let _ = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| file.write_all(line.as_bytes()));
        let pins = pins.map(|directory| lock_pins(directory, start, patience)).transpose()?.flatten();
        Ok(Self { _file: file, pins })
    }
}

/// Locks a directory of pins. `None` if there is none, and so nothing to be guarded.
fn lock_pins(directory: &Path, start: Instant, patience: Duration) -> Result<Option<File>, Error> {
    loop {
        let opened = match File::open(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(Error::io("open", directory))?,
        };
        let inode = |metadata: io::Result<std::fs::Metadata>| metadata.map(|metadata| metadata.ino());
        let ours = inode(opened.metadata()).map_err(Error::io("look at", directory))?;
        if try_lock(&opened).map_err(Error::io("lock", directory))? {
            // Its holder may have removed it, and somebody may have made it anew.
            if inode(std::fs::metadata(directory)).is_ok_and(|now| now == ours) {
                return Ok(Some(opened));
            }
            continue;
        }
        if start.elapsed() >= patience {
            let holder = holder_of(ours).map_or("a process".to_owned(), |process| format!("process {process}"));
            return Err(Error::Busy {
                path: directory.to_owned(),
                holder: format!("{holder} with another --state-dir"),
            });
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The process that has locked a file, as far as /proc/locks tells.
fn holder_of(inode: u64) -> Option<u32> {
    // 2: FLOCK  ADVISORY  WRITE 1234 00:1e:5678 0 EOF
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    let of_file = |line: &&str| {
        let file = line.split_whitespace().nth(5).and_then(|file| file.rsplit(':').next());
        line.contains("FLOCK") && file.and_then(|number| number.parse().ok()) == Some(inode)
    };
    locks.lines().find(of_file)?.split_whitespace().nth(4)?.parse().ok()
}

/// Locks a file for this process alone; `Ok(false)` if another one holds it. The kernel lets go of the lock
/// when its holder dies, however it dies.
pub(crate) fn try_lock(file: &File) -> std::io::Result<bool> {
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_apply_is_told_who_holds_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths { pin_root: dir.path().join("nowhere"), state_dir: dir.path().to_owned() };
        let held = Lock::apply(&paths).unwrap();
        let error = Lock::apply(&paths).unwrap_err();
        assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
        Lock::switch(&paths).expect("a stuck apply does not block a switch");
        drop(held);
        Lock::apply(&paths).unwrap();
    }

    #[test]
    fn who_has_another_state_directory_is_told_as_well() {
        let dir = tempfile::tempdir().unwrap();
        let paths = |state: &str| Paths { pin_root: dir.path().join("pins"), state_dir: dir.path().join(state) };
        std::fs::create_dir_all(paths("a").maps()).unwrap();
        let held = Lock::apply(&paths("a")).unwrap();
        let error = Lock::apply(&paths("b")).unwrap_err().to_string();
        let process = format!("process {} with another --state-dir", std::process::id());
        assert!(error.contains(&process) && error.contains("pins"), "{error}");
        let switch = Lock::switch(&paths("b")).expect("a stuck apply does not block a switch");
        drop((held, switch));
        Lock::apply(&paths("b")).unwrap();

        let held = Lock::switch(&paths("a")).unwrap();
        let start = Instant::now();
        std::thread::scope(|scope| {
            let other = scope.spawn(|| Lock::switch(&paths("b")).map(|_| start.elapsed()));
            std::thread::sleep(Duration::from_millis(50));
            drop(held);
            assert!(other.join().unwrap().unwrap() >= Duration::from_millis(50), "it has waited");
        });
    }
}
