//! The state directory of an instance: where it is, and what the operator should know about it.

use std::{
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use bg_common::{ABI_VERSION, Meta};

use super::link;
#[cfg(feature = "serve")]
use crate::history::History;
use crate::{Paths, history::Writer, pins};

/// The state directory of an instance.
#[derive(Debug)]
pub(crate) struct State {
    pub(super) paths: Paths,
    /// The instance; `None` if there is none, or it is of another version.
    pub(super) writer: Option<Writer>,
    /// The directory in which the instance keeps its state, whatever `--state-dir` says.
    pub(super) home: PathBuf,
    /// Warnings for the operator from successful calls.
    warnings: Mutex<Vec<String>>,
}

impl State {
    /// The state directory of the instance with this `meta`.
    pub(crate) fn of(paths: &Paths, meta: &Meta) -> Self {
        let identity = meta.identity.map(|word| format!("{word:016x}")).concat();
        Self::new(paths, Some(Writer { identity, pin_root: link::absolute(&paths.pin_root) }))
    }

    /// The state directory of whatever is pinned, which may not be an instance.
    pub(crate) fn of_pins(paths: &Paths) -> Self {
        match pins::read_meta(&paths.map("meta")) {
            Ok(meta) if meta.abi_version == ABI_VERSION => Self::of(paths, &meta),
            _ => Self::new(paths, None),
        }
    }

    fn new(paths: &Paths, writer: Option<Writer>) -> Self {
        let home = link::read(paths).unwrap_or_else(|| link::absolute(paths.state_dir()));
        Self { paths: paths.clone(), writer, home, warnings: Mutex::default() }
    }

    /// The warnings since the last call.
    pub(crate) fn take_warnings(&self) -> Vec<String> {
        std::mem::take(&mut *self.warnings.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Adds warnings. An apply reads the directory before it writes to it, and may find the same problem twice.
    pub(crate) fn warn(&self, warnings: impl IntoIterator<Item = String>) {
        let mut told = self.warnings.lock().unwrap_or_else(PoisonError::into_inner);
        for warning in warnings {
            if !told.contains(&warning) {
                told.push(warning);
            }
        }
    }

    /// The directory that the command names, which may not be the instance's yet.
    pub(crate) fn given(&self) -> Self {
        let home = link::absolute(self.paths.state_dir());
        Self { paths: self.paths.clone(), writer: self.writer.clone(), home, warnings: Mutex::default() }
    }

    /// Where it is.
    pub(crate) fn home(&self) -> &Path {
        &self.home
    }

    /// Makes it the instance's directory. This is recorded in the pins, so it does not wait for a disk.
    pub(crate) fn move_in(&self) {
        if let Some(before) = link::read(&self.paths).filter(|before| *before != self.home) {
            let (before, now) = (before.display(), self.home.display());
            self.warn([format!(
                "this instance kept its state in {before} until now, and keeps it in {now} from now on"
            )]);
        }
        // On a file system without links, there can be no warning about another directory.
        let _ = link::write(&self.paths, &self.home);
    }

    /// The journal's file.
    #[cfg(feature = "serve")]
    pub(crate) fn journal(&self) -> PathBuf {
        self.home.join(History::FILE)
    }

    /// Whether the instance is still pinned there.
    pub(crate) fn is_pinned(&self) -> bool {
        identity_at(&self.paths.pin_root).as_ref() == self.identity()
    }

    pub(super) fn identity(&self) -> Option<&String> {
        self.writer.as_ref().map(|writer| &writer.identity)
    }
}

/// The identity of the instance that is pinned there now.
pub(super) fn identity_at(pin_root: &Path) -> Option<String> {
    let paths = Paths { pin_root: pin_root.to_owned(), ..Paths::default() };
    State::of_pins(&paths).writer.map(|Writer { identity, .. }| identity)
}
