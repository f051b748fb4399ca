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
//!
//! A change that is not recorded may also be one that its process is about to record. Nobody can tell which it is, unless no process is between a change
//! and its record (the lock `programs`). So while there is one, whoever records a later change of the deployment notes in `live.json` what
//! it has found unrecorded, and the next command that is alone looks in the journal which of that still is.

mod catch_up;
mod change;
mod directory;
mod link;
mod owner;
mod past;
mod pending;
mod recall;
mod running;
mod write;

use std::time::Duration;

use self::running::running;
pub(crate) use self::{
    change::{Change, Past},
    directory::State,
    pending::Pending,
    recall::Recalled,
};
use crate::{
    Error, Paths,
    history::{Action, HistoryError, PATIENCE, Record, ask},
    lock::Recording,
    maps::Words,
};

impl State {
    /// Records changes, and also those that others have made and not recorded.
    pub(crate) fn record(
        &self,
        words: Option<&Words>,
        recording: Option<Recording>,
        changes: &[Change],
    ) -> Result<(), Error> {
        self.record_pending(words, recording, changes, &Pending::of_others(&self.paths))
    }

    /// The same for changes that are written down in the pins.
    pub(crate) fn record_pending(
        &self,
        words: Option<&Words>,
        recording: Option<Recording>,
        changes: &[Change],
        pending: &Pending,
    ) -> Result<(), Error> {
        let recording = recording.or_else(|| Recording::begin(&self.paths));
        // The other process cannot read who made the change, because the environment may be locked by another thread.
        let template = &Record::of_this_process();
        pending.complete(changes, template);
        let keep = recording.as_ref().map(Recording::as_fd);
        let warnings: Vec<String> = ask(&self.home, PATIENCE, keep, || {
            write::Job { state: self, words, recording: recording.as_ref(), changes, pending, template }.run()
        })?;
        pending.tidy();
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

    /// The problems with the state directory, for a command that only reads. Records what nobody has recorded: whoever looks wants to know it, and the
    /// next reboot forgets it.
    pub(crate) fn check(&self, words: &Words) -> Vec<String> {
        let told = |error: Error| format!("{:#}", anyhow::Error::from(error));
        let looked = ask(&self.home, Duration::from_secs(2), None, || recall::check(self, &running(words)));
        let (mut warnings, is_behind) = looked.unwrap_or_else(|error| (vec![told(error)], false));
        if is_behind || !Pending::of_others(&self.paths).left_over.is_empty() {
            let not_recorded = |error| format!("what nobody has recorded yet could not be recorded: {}", told(error));
            self.warn(self.record(Some(words), None, &[]).err().map(not_recorded));
            let more = self.take_warnings().into_iter().filter(|warning| !warnings.contains(warning));
            warnings.extend(more.collect::<Vec<_>>());
        }
        warnings
    }
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
    pub(crate) fn record(
        self,
        action: Action,
        interfaces: Vec<String>,
        done: &str,
        pending: &Pending,
    ) -> Result<(), Error> {
        let change = Change { action, interfaces, ..Change::default() };
        let recorded = self.state.record_pending(self.words.as_ref(), self.recording, &[change], pending);
        recorded.map_err(|source| Error::DoneNotRecorded { done: done.to_owned(), source: Box::new(source) })
    }
}
