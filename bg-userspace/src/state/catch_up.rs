//! Recording what nobody has recorded: what the data path has done by itself, and what a killed process has done.

use super::{
    change::{Change, Past},
    running::Running,
};
use crate::{
    Error,
    history::{Action, Entry, Found, History, Moment, OTHER_LIFE, Record, Unrecorded},
};

const NOT_RECORDED: &str = "found in the kernel, but not recorded. If a bgctl was killed, its switch is done: running it again \
                            without a colour would undo it";
const OVERTAKEN: &str = "found in the kernel, but not recorded until a later change was. A bgctl was probably killed";

/// A deployment whose journal may be behind.
pub(super) struct CatchUp<'a> {
    pub(super) history: &'a History,
    pub(super) template: &'a Record,
    pub(super) name: &'a str,
    /// Its state, unless it has been removed.
    pub(super) running: Option<&'a Running>,
    /// What has been recorded.
    pub(super) known: Option<&'a Entry>,
    /// Whether no other process is between a change and its record.
    pub(super) is_alone: bool,
    /// The change of this process, which is about to be recorded.
    pub(super) own: Option<&'a Change>,
    /// What was not recorded when `known` was.
    pub(super) unrecorded: Option<Unrecorded>,
}

impl CatchUp<'_> {
    /// Records what has happened until `then`. What others may be about to record is noted in `unrecorded`, unless this process is alone. `past` is what a
    /// change of the live word has seen of it, before it may have overwritten the traces.
    pub(super) fn run(&mut self, then: Moment, past: Option<&Past>) -> Result<(), Error> {
        let mut known = self.known.map(|entry| entry.moment);
        // Then everything until `known` is recorded, and nothing after it.
        let is_in_order = self.is_alone && self.unrecorded.is_none();
        // What was seen before a change of the word has happened before it. While others record too, an entry may be ahead of the journal.
        let (is_seen, last) = (past.is_some(), past.map_or(then.generation, |_| u32::MAX));
        let is_until = |change: &Change| change.to.is_some_and(|to| to.generation <= last);
        let is_new = |change: &&Change| match is_in_order {
            true => is_new(self.known, change, last),
            false => is_seen || (self.is_alone && is_until(change)),
        };
        let none = Past::default();
        let past = past.or(self.running.map(|running| &running.past)).unwrap_or(&none);
        let changes: Vec<_> = past.changes.iter().filter(is_new).collect();
        for change in changes {
            let (Some(from), Some(to)) = (change.from, change.to) else { continue };
            if !self.is_recorded(change)? {
                self.reach(known, from, past)?;
                let from = self.recorded_as(from)?;
                let change = Change { from: Some(from), ..change.clone() };
                self.history.append(&change.record(self.template))?;
            }
            known = known.filter(|known| known.generation > to.generation).or(Some(to));
        }
        self.reach(known, then, past)?;
        if self.is_alone { self.close(u32::MAX) } else { Ok(()) }
    }

    /// Records, or notes, a state that `known` may be behind.
    fn reach(&mut self, known: Option<Moment>, moment: Moment, past: &Past) -> Result<(), Error> {
        if self.unrecorded.is_none() && known.is_some_and(|known| known.generation >= moment.generation) {
            return Ok(());
        }
        let noted = self.unrecorded.get_or_insert_with(|| Unrecorded { after: known, found: Vec::new() });
        noted.add(Found { moment, at: past.made(moment.generation) });
        if self.is_alone { self.close(moment.generation) } else { Ok(()) }
    }

    /// Records what has been noted, until this generation, and is not recorded yet. Nobody else is about to do that.
    pub(super) fn close(&mut self, until: u32) -> Result<(), Error> {
        let Some(mut noted) = self.unrecorded.take() else { return Ok(()) };
        let (mut records, own) = (self.records()?, self.own.map(|own| own.record(self.template)));
        // Whoever has recorded a change may have been killed before it noted what it had found.
        let before = records.iter().filter_map(Record::before).chain(own.as_ref().and_then(Record::before));
        before.for_each(|moment| noted.add(Found { moment, at: None }));
        let later = noted.found.split_off(noted.found.partition_point(|found| found.moment.generation <= until));
        for Found { moment, at } in std::mem::take(&mut noted.found) {
            let all = || records.iter().chain(&own);
            if !all().any(|record| record.covers(moment.generation)) {
                let states = all().flat_map(|record| [record.before(), record.to]).flatten().chain(noted.after);
                let earlier = states.filter(|state| state.generation < moment.generation);
                let from = earlier.max_by_key(|state| state.generation);
                let is_later =
                    |record: &Record| record.before().is_some_and(|before| before.generation >= moment.generation);
                let reason = if records.iter().any(is_later) { OVERTAKEN } else { NOT_RECORDED };
                let record = self.found(from, moment, at, reason).record(self.template);
                self.history.append(&record)?;
                records.push(record);
            }
            noted.after = Some(moment);
        }
        self.unrecorded = (!later.is_empty()).then_some(Unrecorded { found: later, ..noted });
        Ok(())
    }

    fn found(&self, from: Option<Moment>, to: Moment, at: Option<jiff::Timestamp>, reason: &str) -> Change {
        let unconfirmed = self.running.is_some_and(|running| running.now == to && running.is_unconfirmed);
        Change {
            deployment: self.name.to_owned(),
            action: Action::Recovered,
            from,
            to: Some(to),
            reason: Some(reason.to_owned()),
            unconfirmed,
            at,
            ..Change::default()
        }
    }

    /// Records the present state if the state directory held that of another life.
    pub(super) fn begin_life(&self, then: Moment) -> Result<(), Error> {
        let known = self.known.map(|entry| entry.moment).filter(|known| *known != then);
        // The process may have been killed after writing the journal and before writing the state file.
        if known.is_none() || self.history.read(Some(self.name))?.records.last().and_then(|last| last.to) == Some(then)
        {
            return Ok(());
        }
        Ok(self.history.append(&self.found(known, then, None, OTHER_LIFE).record(self.template))?)
    }

    /// The records of the deployment in this life, oldest first.
    fn records(&self) -> Result<Vec<Record>, Error> {
        let records = of_this_life(self.history, self.name)?;
        // Another deployment had this name before.
        let is_over = self.running.is_some() && records.iter().any(|record| record.to.is_none());
        Ok(if is_over { Vec::new() } else { records })
    }

    /// A state as its record has it, which knows its colour for certain.
    fn recorded_as(&self, state: Moment) -> Result<Moment, Error> {
        let states = self.records()?.into_iter().rev().filter_map(|record| record.to);
        Ok(states.into_iter().find(|there| there.generation == state.generation).unwrap_or(state))
    }

    /// Whether another process has recorded a change of the data path. This one may have been killed before it wrote the state file.
    fn is_recorded(&self, change: &Change) -> Result<bool, Error> {
        let is_same = |record: &Record| match change.action {
            // It makes no generation.
            Action::Activated => record.action == change.action && record.to == change.to,
            _ => change.to.is_some_and(|to| record.covers(to.generation)),
        };
        Ok(self.records()?.iter().any(is_same))
    }
}

/// The records of a deployment since its generations began anew, oldest first.
pub(super) fn of_this_life(history: &History, name: &str) -> Result<Vec<Record>, Error> {
    let mut records = history.read(Some(name))?.records;
    let first = records.iter().rposition(Record::begins_life).unwrap_or(0);
    Ok(records.split_off(first))
}

/// Whether a change of the data path until the generation `last` may not be recorded yet.
pub(super) fn is_new(known: Option<&Entry>, change: &Change, last: u32) -> bool {
    let Some(to) = change.to.filter(|to| to.generation <= last) else { return false };
    known.is_none_or(|known| {
        let is_activation = change.action == Action::Activated && !known.activated;
        to.generation > known.moment.generation || (to.generation == known.moment.generation && is_activation)
    })
}
