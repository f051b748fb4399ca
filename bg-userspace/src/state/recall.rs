//! Reading the state directory: the last live colours, and differences from the running state.

use std::{collections::BTreeMap, path::Path};

use serde::{Deserialize, Serialize};

use super::{catch_up::is_new, change::Change, directory::State, owner, running::Running};
use crate::{
    Error,
    history::{Action, Entry, History, LastLive, Moment, Record},
};

/// The entries of an instance's deployments in the state directory.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Recalled {
    /// The entries by name.
    pub(crate) deployments: BTreeMap<String, Entry>,
    /// What could not be parsed.
    pub(super) problems: Vec<String>,
}

impl Recalled {
    /// The last live state of one deployment. A schedule has taken effect at its time, whether or not anybody was there to record it.
    pub(crate) fn moment(&self, name: &str) -> Option<Moment> {
        self.deployments.get(name).map(|entry| entry.at(jiff::Timestamp::now()))
    }

    /// Whether that state has nothing to go back to.
    pub(crate) fn is_rolled_back(&self, name: &str) -> bool {
        let is_last = |entry: &&Entry| Some(entry.moment) == self.moment(name);
        self.deployments.get(name).filter(is_last).is_some_and(|entry| entry.rolled_back)
    }
}

/// Reads the last live colours.
pub(super) fn recall(state: &State) -> Result<Recalled, Error> {
    let mut last = LastLive::load(&state.home)?;
    owner::refuse_shared(state, &last)?;
    salvage(&mut last, &state.home)?;
    Ok(Recalled { deployments: last.deployments, problems: last.problems })
}

/// Takes last live colours that cannot be parsed from the journal.
pub(super) fn salvage(last: &mut LastLive, state_dir: &Path) -> Result<(), Error> {
    if last.damaged.as_ref().is_some_and(Vec::is_empty) {
        return Ok(());
    }
    let journal = History::new(state_dir).read(None)?;
    // A reboot has made the other colour live if nobody had confirmed this one.
    let lasting = |record: &Record| {
        record.to.map(|to| Moment { live: if record.unconfirmed { to.live.other() } else { to.live }, ..to })
    };
    let mut told: BTreeMap<&str, Option<Moment>> = BTreeMap::new();
    for record in &journal.records {
        let says_nothing_new = record.from == record.to && record.action != Action::Confirm;
        if !(says_nothing_new && told.contains_key(&*record.deployment)) {
            told.insert(&record.deployment, lasting(record));
        }
    }
    for (name, moment) in told {
        let name = name.to_owned();
        let is_damaged = last.damaged.as_ref().is_none_or(|names| names.contains(&name));
        if let Some(moment) = moment.filter(|_| is_damaged) {
            let (live, generation) = (moment.live.name(), moment.generation);
            last.problems
                .push(format!("according to the history, {live} of \"{name}\" was live at generation {generation}"));
            last.deployments.insert(name, moment.into());
        }
    }
    Ok(())
}

/// Warnings about the state directory for the operator, and whether something may not be recorded.
pub(super) fn check(state: &State, running: &[Running]) -> Result<(Vec<String>, bool), Error> {
    let mut warnings = Vec::from_iter(owner::mismatch(state));
    let last = LastLive::load(&state.home)?;
    owner::refuse_shared(state, &last)?;
    warnings.extend(last.problems.iter().cloned());
    let is_other_life = is_of_another_life(state, &last);
    if is_other_life && let Some(differences) = differences(&last, running) {
        warnings.push(format!(
            "{} is of another instance or of an earlier life of this one, and in it {differences}; the running state counts, and the next \
             switch or apply writes it there",
            state.home.join(LastLive::FILE).display()
        ));
    }
    let is_behind = |Running { name, past, now, .. }: &Running| {
        last.deployments.get(name).is_some_and(|known| {
            let is_new = |change: &Change| is_new(Some(known), change, now.generation);
            known.moment.generation < now.generation || past.changes.iter().any(is_new)
        })
    };
    let is_behind = !last.unrecorded.is_empty() || running.iter().any(is_behind);
    Ok((warnings, !is_other_life && is_behind))
}

/// Whether another instance has written the file.
pub(super) fn is_of_another_life(state: &State, last: &LastLive) -> bool {
    last.instance.as_ref().is_some_and(|writer| Some(&writer.identity) != state.identity())
}

/// The differences between the file and the running deployments, in words.
pub(super) fn differences(last: &LastLive, running: &[Running]) -> Option<String> {
    let differing = running.iter().filter_map(|Running { name, lasting: now, .. }| {
        let there = last.deployments.get(name).map(|entry| entry.moment).filter(|there| there != now)?;
        let say = |moment: Moment| format!("{} at generation {}", moment.live.name(), moment.generation);
        Some(format!("\"{name}\" is {} and not {}", say(there), say(*now)))
    });
    let differing: Vec<_> = differing.collect();
    (!differing.is_empty()).then(|| differing.join(", "))
}
