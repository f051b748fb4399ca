//! Reading and writing the state directory.
//!
//! A change does not wait for a disk. First the pinned maps are changed, under locks that are pins too. Then another process
//! ([`apart`](crate::sys::apart)) writes the journal and the last live colours, and this one waits a few seconds for it. If that
//! fails, the change is still done, and the error says so.
//!
//! The running state wins. An instance and its state directory name each other: the pin `state` is a link to the directory, and
//! `live.json` has the identity from `meta`. In one life of an instance, generations only grow. So if an entry
//! is behind, the change was not recorded: its process was killed, or a load balancer has flipped the
//! word itself. An entry from another life says nothing about this one, whether it is ahead or behind.

mod link;
mod recall;
mod write;

use std::{
    path::PathBuf,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use bg_common::{ABI_VERSION, Meta};

pub(crate) use self::recall::Recalled;
use crate::{
    Error, Paths,
    history::{Action, HistoryError, Moment, PATIENCE, Record, Writer, ask},
    live::{is_rolled_back, moment},
    lock::Recording,
    maps::Words,
    pins,
    running::{deployment_rows, text},
};

/// The state directory of an instance.
#[derive(Debug)]
pub(crate) struct State {
    paths: Paths,
    /// The instance; `None` if there is none, or it is of another version.
    writer: Option<Writer>,
    /// The directory in which the instance keeps its state, whatever `--state-dir` says.
    home: PathBuf,
    /// Warnings for the operator from successful calls.
    warnings: Mutex<Vec<String>>,
}

/// One change, for the journal.
#[derive(Clone, Debug, Default)]
pub(crate) struct Change {
    /// Name of the deployment; empty if the whole instance was changed.
    pub(crate) deployment: String,
    /// The interfaces that were attached or detached.
    pub(crate) interfaces: Vec<String>,
    /// The kind of change.
    pub(crate) action: Action,
    /// The state before; `None` if the deployment did not exist.
    pub(crate) from: Option<Moment>,
    /// The state after; `None` if the deployment was removed.
    pub(crate) to: Option<Moment>,
    /// The reason.
    pub(crate) reason: Option<String>,
}

/// A deployment according to the maps.
#[derive(Clone, Debug)]
struct Running {
    name: String,
    now: Moment,
    rolled_back: bool,
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

    /// Whether the instance is still pinned there.
    pub(crate) fn is_pinned(&self) -> bool {
        link::identity_at(&self.paths.pin_root).as_ref() == self.identity()
    }

    fn identity(&self) -> Option<&String> {
        self.writer.as_ref().map(|writer| &writer.identity)
    }

    /// Records changes, and also those that others have made and not recorded.
    pub(crate) fn record(
        &self,
        words: Option<&Words>,
        recording: Option<Recording>,
        changes: &[Change],
    ) -> Result<(), Error> {
        let recording = recording.or_else(|| Recording::begin(&self.paths));
        // The other process cannot read who made the change, because the environment may be locked by another thread.
        let template = Record::now("", Action::Recovered, None, None, None);
        let keep = recording.as_ref().map(Recording::as_fd);
        let warnings: Vec<String> = ask(&self.home, PATIENCE, keep, || {
            let job = write::Job { state: self, words, recording: recording.as_ref(), changes, template: &template };
            job.run()
        })?;
        self.warn(warnings);
        Ok(())
    }

    /// Reads the last live colours. It is an error only if another instance keeps its state there. If the files cannot be read, the
    /// deployments still come up, with a warning.
    pub(crate) fn recall(&self) -> Result<Recalled, Error> {
        match ask(&self.home, PATIENCE, None, || recall::recall(self)) {
            Err(error @ Error::History(HistoryError::Shared { .. })) => Err(error),
            Err(error) => {
                let error = anyhow::Error::from(error);
                self.warn([format!(
                    "the last live colours are not known, so new deployments start with `initial`: {error:#}"
                )]);
                Ok(Recalled::default())
            }
            Ok(recalled) => {
                self.warn(recalled.problems.iter().cloned());
                Ok(recalled)
            }
        }
    }

    /// The problems with the state directory, for a command that only reads.
    pub(crate) fn check(&self, words: &Words) -> Vec<String> {
        let looked = ask(&self.home, Duration::from_secs(2), None, || recall::check(self, &running(words)));
        looked.unwrap_or_else(|error| vec![format!("{:#}", anyhow::Error::from(error))])
    }
}

/// All running deployments.
fn running(words: &Words) -> Vec<Running> {
    let rows = deployment_rows(words).map(|(index, row)| {
        let word = words.live.read(index.into());
        Running { name: text(&row.name), now: moment(word), rolled_back: is_rolled_back(&row, word) }
    });
    rows.filter(|running| running.now.generation != 0).collect()
}

/// Keeps the data about an instance that a record needs, while the instance is attached or detached.
pub(crate) struct Witness {
    state: State,
    words: Option<Words>,
    recording: Option<Recording>,
}

impl Witness {
    /// Must be called under the instance's lock: before a detach, which may remove everything, or after an attach.
    pub(crate) fn of(paths: &Paths) -> Self {
        let state = State::of_pins(paths);
        let words = state.writer.is_some().then(|| Words::open(paths).ok()).flatten();
        Self { state, words, recording: Recording::begin(paths) }
    }

    /// Records that interfaces have been attached or detached, afterwards. `done` describes this in words, for the error.
    pub(crate) fn record(self, action: Action, interfaces: Vec<String>, done: &str) -> Result<(), Error> {
        let change = Change { action, interfaces, ..Change::default() };
        let recorded = self.state.record(self.words.as_ref(), self.recording, &[change]);
        recorded.map_err(|source| Error::DoneNotRecorded { done: done.to_owned(), source: Box::new(source) })
    }
}
