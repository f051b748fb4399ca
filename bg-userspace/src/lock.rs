//! The locks of an instance.
//!
//! `apply.lock` belongs to who changes pins or tables, for as long as that takes. `switch.lock` is held
//! from writing the terms and the live word to the end of the fence, so that a stuck apply never blocks an
//! emergency rollback.

use std::{
    fs::{File, OpenOptions},
    io::{Read as _, Seek as _, Write as _},
    path::PathBuf,
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
}

impl Lock {
    /// The lock of attach, detach and apply. Another holder is an error at once.
    pub(crate) fn apply(paths: &Paths) -> Result<Self, Error> {
        Self::take(paths, "apply.lock", Duration::ZERO)
    }

    /// The lock of the journal and of the last live colours: not that of the live words, because a disk may be
    /// slow.
    pub(crate) fn history(paths: &Paths) -> Result<Self, Error> {
        Self::take(paths, "history.lock", Duration::from_secs(5))
    }

    /// The lock of the live words. Its holders are quick, so it is worth a short wait.
    pub(crate) fn switch(paths: &Paths) -> Result<Self, Error> {
        Self::take(paths, "switch.lock", Duration::from_secs(5))
    }

    fn take(paths: &Paths, name: &str, patience: Duration) -> Result<Self, Error> {
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
        Ok(Self { _file: file })
    }
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
        let paths = Paths { pin_root: "/nowhere".into(), state_dir: dir.path().to_owned() };
        let held = Lock::apply(&paths).unwrap();
        let error = Lock::apply(&paths).unwrap_err();
        assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
        Lock::switch(&paths).expect("a stuck apply does not block a switch");
        drop(held);
        Lock::apply(&paths).unwrap();
    }
}
