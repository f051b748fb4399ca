//! Reading the state directory: what was live, and what does not fit to what runs.

use std::{collections::BTreeMap, path::Path};

use serde::{Deserialize, Serialize};

use super::{Running, State, link};
use crate::{
    Error,
    history::{Entry, History, LastLive, Moment, Record},
};

/// What is remembered of an instance's deployments.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Recalled {
    /// By name.
    pub(crate) deployments: BTreeMap<String, Entry>,
    /// What could not be understood.
    pub(super) problems: Vec<String>,
}

impl Recalled {
    /// Of one deployment.
    pub(crate) fn moment(&self, name: &str) -> Option<Moment> {
        self.deployments.get(name).map(|entry| entry.moment)
    }
}

/// Reads the last live colours.
pub(super) fn recall(state: &State) -> Result<Recalled, Error> {
    let mut last = LastLive::load(&state.home)?;
    link::refuse_shared(state, &last)?;
    salvage(&mut last, &state.home)?;
    Ok(Recalled { deployments: last.deployments, problems: last.problems })
}

/// Where the last live colours cannot be understood, the journal tells what they were.
pub(super) fn salvage(last: &mut LastLive, state_dir: &Path) -> Result<(), Error> {
    if last.damaged.as_ref().is_some_and(Vec::is_empty) {
        return Ok(());
    }
    let journal = History::new(state_dir).read(None)?;
    let told: BTreeMap<String, Option<Moment>> =
        journal.records.into_iter().map(|Record { deployment, to, .. }| (deployment, to)).collect();
    for (name, moment) in told {
        let is_damaged = last.damaged.as_ref().is_none_or(|names| names.contains(&name));
        if let Some(moment) = moment.filter(|_| is_damaged) {
            let (live, generation) = (moment.live.name(), moment.generation);
            last.problems.push(format!("by the history, {live} of \"{name}\" was live at generation {generation}"));
            last.deployments.insert(name, moment.into());
        }
    }
    Ok(())
}

/// What an operator must know of the state directory.
pub(super) fn check(state: &State, running: &[Running]) -> Result<Vec<String>, Error> {
    let mut warnings = Vec::from_iter(link::mismatch(state));
    let last = LastLive::load(&state.home)?;
    link::refuse_shared(state, &last)?;
    warnings.extend(last.problems.iter().cloned());
    if is_of_another_life(state, &last)
        && let Some(differences) = differences(&last, running)
    {
        warnings.push(format!(
            "{} is of another instance or of an earlier life of this one, by which {differences}; what runs counts, and the next \
             switch or apply writes it there",
            state.home.join(LastLive::FILE).display()
        ));
    }
    Ok(warnings)
}

/// Whether the file was written by another instance than this one.
pub(super) fn is_of_another_life(state: &State, last: &LastLive) -> bool {
    last.instance.as_ref().is_some_and(|writer| Some(&writer.identity) != state.identity())
}

/// In words, what the file says of deployments that run otherwise.
pub(super) fn differences(last: &LastLive, running: &[Running]) -> Option<String> {
    let differing = running.iter().filter_map(|Running { name, now, .. }| {
        let there = last.deployments.get(name).map(|entry| entry.moment).filter(|there| there != now)?;
        let say = |moment: Moment| format!("{} at generation {}", moment.live.name(), moment.generation);
        Some(format!("\"{name}\" is {} and not {}", say(there), say(*now)))
    });
    let differing: Vec<_> = differing.collect();
    (!differing.is_empty()).then(|| differing.join(", "))
}
