//! Changes that are not recorded yet, each as a symbolic link in the directory `changes` of the pin root.
//!
//! A change of interfaces or of a configuration leaves no generation from which it could be seen later that nobody has recorded it. So it
//! is written down where no disk is needed, before anything is changed, and once more when it is done. Whoever records it removes
//! the link. If the process is killed, or the state directory cannot be written, the next command records it, with
//! the time and the user of the command that made it.
//!
//! Whoever changes interfaces or a configuration holds the instance's lock. So under that lock, every link is of a process that has ended or is
//! done. A link whose change is done may be recorded by anyone. The lock of the history ensures that it is recorded once.

use std::{
    fs::{self, DirBuilder},
    os::unix::fs::{DirBuilderExt as _, symlink},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::change::Change;
use crate::{Paths, history::Record, lock::Lock, pins};

/// The number of changes that are kept while the state directory cannot be written. They take the kernel's memory.
const MOST: usize = 1000;

/// What a link says.
#[derive(Debug, Serialize, Deserialize)]
struct Content {
    is_done: bool,
    record: Record,
}

/// The changes of this process, and those that others have left.
#[derive(Debug)]
pub(crate) struct Pending {
    directory: PathBuf,
    /// By deployment, which is empty for a change of interfaces.
    own: Vec<(String, PathBuf)>,
    pub(super) left_over: Vec<LeftOver>,
}

/// A change that another process has not recorded.
#[derive(Clone, Debug)]
pub(super) struct LeftOver {
    link: PathBuf,
    pub(super) record: Record,
    /// Whether the process has completed it.
    pub(super) is_done: bool,
}

impl Pending {
    /// Writes down changes that are about to be made. The caller holds the instance's lock. What cannot be written is recorded only if
    /// the process lives, which is no reason not to make the change.
    pub(crate) fn begin(paths: &Paths, _lock: &Lock, changes: &[Change]) -> Self {
        let directory = paths.changes();
        let left_over = left_over(&directory, true);
        if changes.is_empty() || left_over.len() >= MOST {
            return Self { directory, own: Vec::new(), left_over };
        }
        let _ = DirBuilder::new().mode(0o700).create(&directory);
        let template = Record::of_this_process();
        // Names of links, too, may contain no dot.
        let began = template.time.as_nanosecond();
        let own = changes.iter().enumerate().filter_map(|(number, change)| {
            let link = directory.join(format!("{began}-{}-{number}", std::process::id()));
            let written = write(&link, &Content { is_done: false, record: change.record(&template) });
            written.then(|| (change.deployment.clone(), link))
        });
        Self { own: own.collect(), left_over, directory }
    }

    /// The changes that others have left, for a process that has none of its own.
    pub(super) fn of_others(paths: &Paths) -> Self {
        let directory = paths.changes();
        let nobody_changes = directory.exists().then(|| Lock::apply_if_free(paths));
        let left_over = nobody_changes.map(|lock| left_over(&directory, lock.is_ok())).unwrap_or_default();
        Self { directory, own: Vec::new(), left_over }
    }

    /// Writes down how the changes have ended. Those that are not among `changes` have changed nothing.
    pub(super) fn complete(&self, changes: &[Change], template: &Record) {
        for (deployment, link) in &self.own {
            match changes.iter().find(|change| change.deployment == *deployment) {
                Some(change) => _ = write(link, &Content { is_done: true, record: change.record(template) }),
                None => _ = pins::remove(link),
            }
        }
    }

    /// Forgets changes that have not been made.
    pub(crate) fn cancel(&self) {
        self.own.iter().for_each(|(_, link)| _ = pins::remove(link));
        self.tidy();
    }

    /// Removes what is left of an instance that is gone.
    pub(crate) fn remove_all(&self) {
        left_links(&self.directory).iter().for_each(|link| _ = pins::remove(link));
        self.tidy();
    }

    /// Removes the directory, if it is empty.
    pub(super) fn tidy(&self) {
        let _ = fs::remove_dir(&self.directory);
    }

    /// Calls `append`, unless another process has recorded the change meanwhile. The caller holds the lock of the history.
    pub(super) fn record<E>(&self, change: &Change, append: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        let link = self.own.iter().find(|(deployment, _)| *deployment == change.deployment).map(|(_, link)| link);
        record_once(link.map(PathBuf::as_path), append)
    }
}

impl LeftOver {
    /// The same for this change.
    pub(super) fn record<E>(&self, append: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        record_once(Some(&self.link), append)
    }
}

fn record_once<E>(link: Option<&Path>, append: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
    if link.is_some_and(|link| fs::read_link(link).is_err()) {
        return Ok(());
    }
    append()?;
    link.iter().for_each(|link| _ = pins::remove(link));
    Ok(())
}

/// Replaces the link by a rename, so that there is always one. Returns whether that was possible.
fn write(link: &Path, content: &Content) -> bool {
    let Ok(target) = serde_json::to_string(content) else { return false };
    let mut temporary = link.as_os_str().to_owned();
    temporary.push(":new");
    symlink(target, &temporary).and_then(|()| fs::rename(&temporary, link)).is_ok()
}

fn left_links(directory: &Path) -> Vec<PathBuf> {
    pins::entries(directory).unwrap_or_default()
}

/// The changes in the directory, oldest first. While another process changes something, only those that are done.
fn left_over(directory: &Path, nobody_changes: bool) -> Vec<LeftOver> {
    let read = |link: PathBuf| {
        let target = fs::read_link(&link).ok()?;
        let Content { is_done, record } = serde_json::from_str(target.to_str()?).ok()?;
        (is_done || nobody_changes).then_some(LeftOver { link, record, is_done })
    };
    left_links(directory).into_iter().filter_map(read).collect()
}
