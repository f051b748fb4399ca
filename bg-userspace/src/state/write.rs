//! Writing the state directory: the journal first, then the last live colours.

use std::collections::BTreeMap;

use super::{
    catch_up::{CatchUp, of_this_life},
    change::Change,
    directory::{State, identity_at},
    owner,
    pending::{LeftOver, Pending},
    recall,
    running::{Running, running},
};
use crate::{
    Error,
    history::{Entry, History, LastLive, Record, Unrecorded},
    lock::{Lock, Recording},
    maps::Words,
};

const INTERRUPTED: &str = "interrupted before it was recorded, so it may be incomplete";

/// Everything that is to be recorded.
pub(super) struct Job<'a> {
    pub(super) state: &'a State,
    pub(super) words: Option<&'a Words>,
    pub(super) recording: Option<&'a Recording>,
    pub(super) changes: &'a [Change],
    pub(super) pending: &'a Pending,
    /// A record of this process.
    pub(super) template: &'a Record,
}

/// What is there when the changes are recorded.
#[derive(Clone, Copy)]
struct Seen<'a> {
    history: &'a History,
    /// The last live colours as they are in the file.
    before: &'a LastLive,
    running: &'a [Running],
    /// What was recorded, or can be told by the journal.
    known: &'a BTreeMap<String, Entry>,
    /// Whether no other process is between its exchange and its record.
    is_alone: bool,
    is_other_life: bool,
}

impl Job<'_> {
    /// Returns warnings for the operator.
    pub(super) fn run(&self) -> Result<Vec<String>, Error> {
        let state_dir = &self.state.home;
        let _lock = Lock::history(state_dir)?;
        let mut warnings = Vec::from_iter(owner::mismatch(self.state));
        let before = LastLive::load(state_dir)?;
        let mut history = History::new(state_dir);
        if self.state.writer.is_some() && self.state.is_pinned() {
            history = history.with_pin(self.state.paths.head_link());
        }
        if let Err(error) = owner::refuse_shared(self.state, &before) {
            // A change of interfaces is not a change of deployments.
            if self.changes.is_empty() || self.changes.iter().any(|change| !change.deployment.is_empty()) {
                return Err(error);
            }
            warnings.push(error.to_string());
            self.append_changes(&history, &before)?;
            return Ok(warnings);
        }
        warnings.extend(before.problems.iter().cloned());

        // Under the recording lock, no other process is between its exchange and its record.
        let alone = self.recording.and_then(|recording| recording.alone(|| self.words.map(running))).flatten();
        let is_alone = alone.is_some();
        let running = alone.or_else(|| self.words.map(running)).unwrap_or_default();
        self.pending.left_over.iter().try_for_each(|left| self.append_left_over(&history, left, &running))?;
        let is_other_life = recall::is_of_another_life(self.state, &before);
        if is_other_life && let Some(differences) = recall::differences(&before, &self.not_begun_now(&running)) {
            warnings.push(format!(
                "in {} {differences}: it was of another instance or of an earlier life of this one; the running state has been \
                 written there",
                state_dir.join(LastLive::FILE).display()
            ));
        }
        let mut last = before.clone();
        recall::salvage(&mut last, state_dir)?;
        let known = last.deployments.clone();
        let seen =
            Seen { history: &history, before: &before, running: &running, known: &known, is_alone, is_other_life };
        self.catch_up(&seen, &mut last)?;
        self.append_changes(&history, &before)?;
        self.note_states(&seen, &mut last)?;
        for change in self.changes.iter().filter(|change| change.to.is_none()) {
            last.deployments.remove(&change.deployment);
        }
        // An instance that has just been attached has no deployments yet.
        let concerns_deployments = self.changes.iter().any(|change| !change.deployment.is_empty());
        if (concerns_deployments || !running.is_empty()) && self.may_write(&before) {
            last.instance.clone_from(&self.state.writer);
            last.save(&before, state_dir)?;
        }
        Ok(warnings)
    }

    /// Records what others, and the data path, have done before the changes of this process.
    fn catch_up(&self, seen: &Seen<'_>, last: &mut LastLive) -> Result<(), Error> {
        let Seen { before, running, is_alone, is_other_life, .. } = *seen;
        let (of, catch_up) =
            (|name: &str| self.of(name), |name, running, unrecorded| self.catching_up(seen, name, running, unrecorded));
        // What was found of deployments that are gone, or of an earlier life. Their processes are gone, too.
        let is_over = |name: &String| {
            let (change, is_running) = (of(name), running.iter().any(|running| running.name == *name));
            is_other_life || change.is_some_and(Change::begins) || (is_alone && !is_running && change.is_none())
        };
        let (over, noted): (BTreeMap<_, _>, _) =
            std::mem::take(&mut last.unrecorded).into_iter().partition(|(name, _)| is_over(name));
        last.unrecorded = noted;
        for (name, unrecorded) in &over {
            CatchUp { own: None, ..catch_up(name, None, Some(unrecorded.clone())) }.close(u32::MAX)?;
        }
        let is_there = |change: &&Change| running.iter().any(|running| running.name == change.deployment);
        let removed = self.changes.iter().filter(|change| change.to.is_none() && !is_there(change));
        let removed = removed.map(|change| (change.deployment.as_str(), None));
        let all = running.iter().map(|running| (running.name.as_str(), Some(running)));
        for (name, running) in all.chain(removed) {
            let change = of(name);
            let then = match change {
                None => running.map(|running| running.now),
                Some(Change { past: None, to: Some(to), .. }) => Some(*to),
                Some(Change { from, .. }) => *from,
            };
            // This process has created the deployment.
            let Some(then) = then.filter(|_| !change.is_some_and(Change::begins)) else { continue };
            if is_other_life {
                catch_up(name, running, None).begin_life(then)?;
            } else if self.writes(before, change, is_alone) {
                let mut catch_up = catch_up(name, running, last.unrecorded.remove(name));
                catch_up.run(then, change.and_then(|change| change.past.as_ref()))?;
                last.unrecorded.extend(catch_up.unrecorded.map(|unrecorded| (name.to_owned(), unrecorded)));
            }
        }
        Ok(())
    }

    /// Notes the states of the deployments, and records what has happened after the changes of this process.
    fn note_states(&self, seen: &Seen<'_>, last: &mut LastLive) -> Result<(), Error> {
        let Seen { before, running, known, is_alone, is_other_life, .. } = *seen;
        for running in running {
            let Running { name, now, lasting, scheduled, rolled_back, past, .. } = running;
            let change = self.of(name);
            let known = known.get(name);
            if let Some(to) = change.and_then(|change| change.to).filter(|_| is_alone) {
                let activated = change.is_some_and(|change| change.is_in_force);
                let own = Entry { activated, ..Entry::from(to) };
                CatchUp { known: Some(&own), own: None, ..self.catching_up(seen, name, Some(running), None) }
                    .run(*now, None)?;
            }
            let known = known.map(|entry| entry.moment);
            // If an entry stays behind, another process is about to record its change.
            if self.writes(before, change, is_alone) {
                let stale = change.and_then(|change| change.to).filter(|to| to.generation < now.generation);
                let known = known.filter(|known| !is_other_life && known.generation <= now.generation);
                let entry = match stale {
                    // Another process has switched since, and may not have recorded it yet.
                    Some(to) if !is_alone && known.is_none_or(|known| known.generation < to.generation) => {
                        Entry::from(to)
                    }
                    Some(_) if !is_alone => continue,
                    _ => {
                        let is_last = |change: &Change| change.is_in_force && change.to == Some(*now);
                        let activated = change.is_some_and(is_last) || (is_alone && past.is_activated(now.generation));
                        let scheduled = scheduled.clone();
                        Entry { rolled_back: *rolled_back, activated, scheduled, ..Entry::from(*lasting) }
                    }
                };
                let kept = last.deployments.insert(name.clone(), entry);
                if let (Some(kept), Some(entry)) = (kept, last.deployments.get_mut(name)) {
                    entry.other = kept.other;
                }
            }
        }
        Ok(())
    }

    /// The change of this process to a deployment.
    fn of(&self, name: &str) -> Option<&Change> {
        self.changes.iter().find(|change| change.deployment == name)
    }

    fn catching_up<'s>(
        &'s self,
        seen: &Seen<'s>,
        name: &'s str,
        running: Option<&'s Running>,
        unrecorded: Option<Unrecorded>,
    ) -> CatchUp<'s> {
        CatchUp {
            history: seen.history,
            template: self.template,
            name,
            running,
            known: seen.known.get(name),
            is_alone: seen.is_alone,
            own: self.of(name),
            unrecorded,
        }
    }

    /// The entries, except those that are being restored from the file right now.
    fn not_begun_now(&self, running: &[Running]) -> Vec<Running> {
        let begins = |name: &str| self.changes.iter().any(|change| change.deployment == name && change.from.is_none());
        running.iter().filter(|running| !begins(&running.name)).cloned().collect()
    }

    /// Does nothing if this instance has ended while the file system did not respond, and another one was created.
    fn may_write(&self, before: &LastLive) -> bool {
        match identity_at(&self.state.paths.pin_root) {
            Some(pinned) => Some(&pinned) == self.state.identity(),
            None => !recall::is_of_another_life(self.state, before),
        }
    }

    /// Whether the state of a deployment is written. If not, another process is about to record its change.
    fn writes(&self, before: &LastLive, change: Option<&Change>, is_alone: bool) -> bool {
        is_alone || change.is_some() || before.instance.is_none() || recall::is_of_another_life(self.state, before)
    }

    fn append_changes(&self, history: &History, before: &LastLive) -> Result<(), Error> {
        let append = |change: &Change| match self.is_recorded(history, before, change)? {
            true => Ok(()),
            false => Ok(history.append(&change.record(self.template))?),
        };
        self.changes.iter().try_for_each(|change| self.pending.record(change, || append(change)))
    }

    /// Whether somebody else has recorded a change of the live word, because this process could not get the lock by which others know of it.
    fn is_recorded(&self, history: &History, before: &LastLive, change: &Change) -> Result<bool, Error> {
        let (Some(from), Some(to)) = (change.from, change.to) else { return Ok(false) };
        let known = before.deployments.get(&change.deployment).map(|known| known.moment.generation);
        let is_late = from.generation < to.generation && known.is_some_and(|known| known >= to.generation);
        if !is_late || recall::is_of_another_life(self.state, before) {
            return Ok(false);
        }
        Ok(of_this_life(history, &change.deployment)?.iter().any(|record| record.covers(to.generation)))
    }

    /// Records a change that another process has not recorded.
    fn append_left_over(&self, history: &History, left: &LeftOver, running: &[Running]) -> Result<(), Error> {
        let mut record = left.record.clone();
        if !left.is_done {
            let now = running.iter().find(|running| running.name == record.deployment).map(|running| running.now);
            // It has changed no live state but that of a deployment that it has added or removed, whatever others have done since.
            record.to = record.from.or(record.to).or(now).filter(|_| now.is_some());
            let reason = record.reason.take().map(|reason| format!("{reason} ({INTERRUPTED})"));
            record.reason = reason.or_else(|| Some(INTERRUPTED.to_owned()));
        }
        left.record(|| {
            if !record.deployment.is_empty() && record.from.is_none() && record.to.is_none() {
                // It has not come so far as to create the deployment.
                return Ok(());
            }
            // The process may have been killed after writing the journal and before removing the link.
            let is_same = |there: &Record| {
                (there.time, &there.deployment, &there.command) == (record.time, &record.deployment, &record.command)
            };
            match history.read(Some(&record.deployment))?.records.iter().any(is_same) {
                true => Ok(()),
                false => Ok::<(), Error>(history.append(&record)?),
            }
        })
    }
}
