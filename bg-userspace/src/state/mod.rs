//! What a command leaves in the state directory once its change holds, and what it finds there.
//!
//! No change waits for a disk: what is pinned is changed first, under locks that are pinned too, then journal and last
//! live colours are written, by another process ([`apart`](crate::sys::apart)) for which this one waits a few seconds. If it
//! fails, the change is done, and the error says so.
//!
//! What runs wins. An instance and its state directory know each other: the pin `state` is a link to the directory, and
//! `live.json` names the identity that `meta` has. In one life of an instance generations only grow, so an entry
//! that is behind belongs to a change that nobody has recorded: its process was killed, or a load balancer has flipped the
//! word itself. An entry of another life says nothing of this one, be it ahead or behind.

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
    /// The instance; `None` if there is none, or one of another version.
    writer: Option<Writer>,
    /// Where the instance keeps its state, whatever `--state-dir` says.
    home: PathBuf,
    /// What the operator must know, though the call was a success.
    warnings: Mutex<Vec<String>>,
}

/// One change, for the journal.
#[derive(Clone, Debug, Default)]
pub(crate) struct Change {
    /// Name of the deployment; empty if the whole instance was changed.
    pub(crate) deployment: String,
    /// The interfaces that were attached or detached.
    pub(crate) interfaces: Vec<String>,
    /// What was done.
    pub(crate) action: Action,
    /// Before; `None` if the deployment did not exist.
    pub(crate) from: Option<Moment>,
    /// After; `None` if it has been removed.
    pub(crate) to: Option<Moment>,
    /// Why.
    pub(crate) reason: Option<String>,
}

/// A deployment as the kernel has it.
#[derive(Clone, Debug)]
struct Running {
    name: String,
    now: Moment,
    rolled_back: bool,
}

impl State {
    /// The state directory of the instance that says this of itself.
    pub(crate) fn of(paths: &Paths, meta: &Meta) -> Self {
        let identity = meta.identity.map(|word| format!("{word:016x}")).concat();
        Self::new(paths, Some(Writer { identity, pin_root: link::absolute(&paths.pin_root) }))
    }

    /// That of whatever is pinned; none of it need be an instance.
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

    /// What there was to be said since the last call.
    pub(crate) fn take_warnings(&self) -> Vec<String> {
        std::mem::take(&mut *self.warnings.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// An apply reads the directory before it writes there, and may find the same twice.
    pub(crate) fn warn(&self, warnings: impl IntoIterator<Item = String>) {
        let mut told = self.warnings.lock().unwrap_or_else(PoisonError::into_inner);
        for warning in warnings {
            if !told.contains(&warning) {
                told.push(warning);
            }
        }
    }

    /// The directory that the command names, be it the instance's or not yet.
    pub(crate) fn given(&self) -> Self {
        let home = link::absolute(self.paths.state_dir());
        Self { paths: self.paths.clone(), writer: self.writer.clone(), home, warnings: Mutex::default() }
    }

    /// Makes it the instance's. This is kept in the pins, so that nothing of it waits for a disk.
    pub(crate) fn move_in(&self) {
        if let Some(before) = link::read(&self.paths).filter(|before| *before != self.home) {
            let (before, now) = (before.display(), self.home.display());
            self.warn([format!(
                "until now this instance has kept its state in {before}, from now on it does in {now}"
            )]);
        }
        // A file system without links: then nobody can be told of another directory.
        let _ = link::write(&self.paths, &self.home);
    }

    /// Whether the instance is still pinned in its place.
    pub(crate) fn is_pinned(&self) -> bool {
        link::identity_at(&self.paths.pin_root).as_ref() == self.identity()
    }

    fn identity(&self) -> Option<&String> {
        self.writer.as_ref().map(|writer| &writer.identity)
    }

    /// Writes what has been done, and what others have done and not recorded.
    pub(crate) fn record(
        &self,
        words: Option<&Words>,
        recording: Option<Recording>,
        changes: &[Change],
    ) -> Result<(), Error> {
        let recording = recording.or_else(|| Recording::begin(&self.paths));
        // Who it is cannot be asked for there: the environment is locked while another thread writes to it.
        let template = Record::now("", Action::Recovered, None, None, None);
        let keep = recording.as_ref().map(Recording::as_fd);
        let warnings: Vec<String> = ask(&self.home, PATIENCE, keep, || {
            let job = write::Job { state: self, words, recording: recording.as_ref(), changes, template: &template };
            job.run()
        })?;
        self.warn(warnings);
        Ok(())
    }

    /// What the directory remembers. An error only if another instance keeps its state there: what cannot be read is no
    /// reason to serve nobody, and is told as a warning.
    pub(crate) fn recall(&self) -> Result<Recalled, Error> {
        match ask(&self.home, PATIENCE, None, || recall::recall(self)) {
            Err(error @ Error::History(HistoryError::Shared { .. })) => Err(error),
            Err(error) => {
                let error = anyhow::Error::from(error);
                self.warn([format!(
                    "the last live colours are not known, new deployments begin with `initial`: {error:#}"
                )]);
                Ok(Recalled::default())
            }
            Ok(recalled) => {
                self.warn(recalled.problems.iter().cloned());
                Ok(recalled)
            }
        }
    }

    /// What is wrong with the state directory, for a command that only looks.
    pub(crate) fn check(&self, words: &Words) -> Vec<String> {
        let looked = ask(&self.home, Duration::from_secs(2), None, || recall::check(self, &running(words)));
        looked.unwrap_or_else(|error| vec![format!("{:#}", anyhow::Error::from(error))])
    }
}

/// All deployments that run.
fn running(words: &Words) -> Vec<Running> {
    let rows = deployment_rows(words).map(|(index, row)| {
        let word = words.live.read(index.into());
        Running { name: text(&row.name), now: moment(word), rolled_back: is_rolled_back(&row, word) }
    });
    rows.filter(|running| running.now.generation != 0).collect()
}

/// Who keeps in mind what an instance was while it is attached or detached.
pub(crate) struct Witness {
    state: State,
    words: Option<Words>,
    recording: Option<Recording>,
}

impl Witness {
    /// To be called under the instance's lock: before a detach, which may remove everything, or after an attach.
    pub(crate) fn of(paths: &Paths) -> Self {
        let state = State::of_pins(paths);
        let words = state.writer.is_some().then(|| Words::open(paths).ok()).flatten();
        Self { state, words, recording: Recording::begin(paths) }
    }

    /// Records that interfaces have been attached or detached, when it is done. `done` says so in words, for the error.
    pub(crate) fn record(self, action: Action, interfaces: Vec<String>, done: &str) -> Result<(), Error> {
        let change = Change { action, interfaces, ..Change::default() };
        let recorded = self.state.record(self.words.as_ref(), self.recording, &[change]);
        recorded.map_err(|source| Error::DoneNotRecorded { done: done.to_owned(), source: Box::new(source) })
    }
}
