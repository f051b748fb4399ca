//! Recording what nobody has recorded: what the data path has done by itself, and what a killed process has done.

use super::{
    change::{Change, Past},
    running::Running,
};
use crate::{
    Error,
    history::{Action, Entry, History, Moment, Record},
};

const NOT_RECORDED: &str = "found in the kernel, but not recorded. If a bgctl was killed, its switch is done: running it again \
                            without a colour would undo it";
pub(super) const OTHER_LIFE: &str = "the state directory held the state of another instance, or of an earlier life of this one; the running state counts";

/// A deployment whose journal may be behind.
pub(super) struct CatchUp<'a> {
    pub(super) history: &'a History,
    pub(super) template: &'a Record,
    pub(super) running: &'a Running,
    /// What has been recorded.
    pub(super) known: Option<&'a Entry>,
    /// Whether no other process is between a change and its record.
    pub(super) is_alone: bool,
}

impl CatchUp<'_> {
    /// Records what has happened until `then`. `past` is what a change of the live word has seen of it, before it may have overwritten the traces.
    pub(super) fn run(&self, then: Moment, past: Option<&Past>) -> Result<(), Error> {
        let mut known = self.known.map(|entry| entry.moment);
        let is_behind = |known: Option<Moment>, moment: Moment| {
            self.is_alone && known.is_none_or(|known| known.generation < moment.generation)
        };
        // What was seen before a change of the word has happened before it. While others record too, an entry may be ahead of the journal.
        let (is_seen, last) = (past.is_some(), past.map_or(then.generation, |_| u32::MAX));
        let is_new = |change: &&Change| if self.is_alone { is_new(self.known, change, last) } else { is_seen };
        let past = past.unwrap_or(&self.running.past);
        for change in past.changes.iter().filter(is_new) {
            let (Some(from), Some(to)) = (change.from, change.to) else { continue };
            if !self.is_recorded(change)? {
                if is_behind(known, from) {
                    self.recover(known, from, past)?;
                }
                let from = self.last()?.filter(|last| last.generation == from.generation).unwrap_or(from);
                let change = Change { from: Some(from), ..change.clone() };
                self.history.append(&change.record(self.template))?;
            }
            known = known.filter(|known| known.generation > to.generation).or(Some(to));
        }
        if is_behind(known, then) {
            self.recover(known, then, past)?;
        }
        Ok(())
    }

    fn recover(&self, known: Option<Moment>, then: Moment, past: &Past) -> Result<(), Error> {
        let made = past.made(then.generation);
        recover(self.history, self.template, self.running, known, then, made, NOT_RECORDED)
    }

    /// The records of the deployment, oldest first.
    fn records(&self) -> Result<Vec<Record>, Error> {
        Ok(self.history.read(Some(&self.running.name))?.records)
    }

    fn last(&self) -> Result<Option<Moment>, Error> {
        Ok(self.records()?.last().and_then(|record| record.to))
    }

    /// Whether another process has recorded a change of the data path. This one may have been killed before it wrote the state file.
    fn is_recorded(&self, change: &Change) -> Result<bool, Error> {
        let records = self.records()?;
        // Generations grow in one life of an instance.
        let is_of_other_life = |record: &&Record| record.from.is_none() || record.reason.as_deref() == Some(OTHER_LIFE);
        let mut of_this_life = records.iter().rev().take_while(|record| !is_of_other_life(record));
        Ok(of_this_life.any(|record| record.action == change.action && record.to == change.to))
    }
}

/// Whether a change of the data path until the generation `last` may not be recorded yet.
pub(super) fn is_new(known: Option<&Entry>, change: &Change, last: u32) -> bool {
    let Some(to) = change.to.filter(|to| to.generation <= last) else { return false };
    known.is_none_or(|known| {
        let is_activation = change.action == Action::Activated && !known.activated;
        to.generation > known.moment.generation || (to.generation == known.moment.generation && is_activation)
    })
}

/// Records the present state of a deployment that is not recorded.
pub(super) fn recover(
    history: &History,
    template: &Record,
    Running { name, now, lasting, .. }: &Running,
    known: Option<Moment>,
    then: Moment,
    at: Option<jiff::Timestamp>,
    reason: &str,
) -> Result<(), Error> {
    // The process may have been killed after writing the journal and before writing the state file.
    let journal = history.read(Some(name))?;
    if journal.records.last().and_then(|record| record.to) == Some(then) {
        return Ok(());
    }
    let (deployment, reason) = (name.clone(), Some(reason.to_owned()));
    let (action, from, to) = (Action::Recovered, known, Some(then));
    let unconfirmed = then == *now && now != lasting;
    let change = Change { deployment, action, from, to, reason, unconfirmed, at, ..Change::default() };
    Ok(history.append(&change.record(template))?)
}
