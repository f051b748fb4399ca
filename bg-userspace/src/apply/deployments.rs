//! The deployments in an apply: their rows, their testers, the first live words, and the records for the journal.

use std::collections::{BTreeSet, HashMap};

use bg_common::{DeploymentRow, LiveWord, MAX_DEPLOYMENTS, SwitchTerms};
use bytemuck::Zeroable as _;

use super::{request::ApplyRequest, work::Work};
use crate::{
    Error, Room,
    config::{Config, Deployment},
    history::{Action, Moment},
    live::{is_rolled_back, moment, rollback_mark},
    lock::Lock,
    maps::{Words, unless_missing},
    plan::{self, Because, Beginning, Plan},
    running::{Running, deployment_rows, tester_key, text, unsettled_key},
    state::{Change, Recalled},
    time::TickLength,
};

/// Writes rows, new testers, and the live words of new deployments. Returns all indexes by name.
pub(super) fn begin<'c>(
    work: &mut Work<'_>,
    config: &'c Config,
    length: TickLength,
    recalled: &Recalled,
) -> Result<HashMap<&'c str, u16>, Error> {
    let mut indexes = HashMap::new();
    let mut begun = Vec::new();
    for deployment in &config.deployments {
        let current = work.running.deployments.get(&deployment.name);
        let index = match current {
            Some(current) => current.index,
            None => work.deployments.take().ok_or(Error::NoRoom {
                what: Room::Deployments,
                needed: 1,
                free: 0,
                capacity: MAX_DEPLOYMENTS as usize,
            })? as u16,
        };
        indexes.insert(deployment.name.as_str(), index);
        if plan::deployment_needs_work(deployment, current, length) {
            let wanted = plan::deployment_row(deployment, length);
            // Whether the last change was a rollback is not a setting.
            work.words
                .deployments
                .update(index.into(), |row| *row = DeploymentRow { rolled_back: row.rolled_back, ..wanted });
            if current.is_some_and(|current| plan::testers_change(deployment, current)) {
                work.tables
                    .testers
                    .insert(&unsettled_key(index), u32::from(index), 0)
                    .map_err(Error::map("write", "testers"))?;
                work.testers.insert(index, deployment.testers.clone());
            }
            for prefix in &deployment.testers {
                let key = tester_key(index, prefix);
                work.tables.testers.insert(&key, u32::from(index), 0).map_err(Error::map("write", "testers"))?;
            }
        }
        if current.is_none_or(|current| current.word.generation() == 0) {
            begun.push((deployment, index));
        }
    }
    if !begun.is_empty() {
        set_first_words(work, &begun, recalled)?;
    }
    Ok(indexes)
}

/// Sets the live words of new deployments.
fn set_first_words(work: &Work<'_>, begun: &[(&Deployment, u16)], recalled: &Recalled) -> Result<(), Error> {
    let _switch = Lock::switch(work.paths)?;
    for (deployment, index) in begun {
        let row = usize::from(*index);
        let last = recalled.moment(&deployment.name);
        // The words are read again under the lock.
        let word = |index: u16| work.words.live.read(index.into());
        let beginning = Beginning::of(deployment, work.running, word, last);
        work.words.terms.write(row, &[SwitchTerms::default(); 2]);
        let is_rolled_back = match &beginning.because {
            Because::Initial => false,
            Because::LastLive => recalled.deployments.get(&deployment.name).is_some_and(|entry| entry.rolled_back),
            // A renamed deployment keeps the mark of a rollback, which must not be undone by mistake.
            Because::TakenOver { from } => {
                let mut from = from.iter().filter_map(|name| work.running.deployments.get(name));
                from.any(|from| is_rolled_back(&work.words.deployments.read(from.index.into()), word(from.index)))
            }
        };
        let mark = if is_rolled_back { rollback_mark(beginning.generation) } else { 0 };
        work.words.deployments.update(row, |row| row.rolled_back = mark);
        work.words.live.write(row, &beginning.word());
    }
    Ok(())
}

/// Removes the testers and deployments that are no longer configured.
pub(super) fn end(work: &mut Work<'_>, config: &Config) -> Result<(), Error> {
    let wanted = |name: &str| config.deployments.iter().find(|deployment| deployment.name == name);
    let mut removed = Vec::new();
    for (name, running) in &work.running.deployments {
        let kept = wanted(name).map_or(&[][..], |deployment| &deployment.testers);
        for prefix in running.testers.iter().filter(|prefix| !kept.contains(prefix)) {
            let key = tester_key(running.index, prefix);
            work.tables.testers.remove(&key).map_err(Error::map("write", "testers"))?;
        }
        if wanted(name).is_none() {
            removed.push((name, running));
        }
    }
    // From here on, every packet sees what has been published and removed.
    work.wait()?;
    work.sweep_testers()?;
    let unsettled =
        work.running.deployments.values().filter(|running| running.is_unsettled).map(|running| running.index);
    for index in unsettled.chain(work.testers.keys().copied()) {
        unless_missing(work.tables.testers.remove(&unsettled_key(index))).map_err(Error::map("write", "testers"))?;
    }
    {
        let _switch = Lock::switch(work.paths)?;
        for (_, running) in &removed {
            let row = usize::from(running.index);
            work.words.live.write(row, &LiveWord::default());
            work.words.terms.write(row, &[SwitchTerms::default(); 2]);
            work.words.deployments.write(row, &DeploymentRow::zeroed());
        }
    }
    Ok(())
}

/// The records for the deployments that the plan has changed.
pub(super) fn changes(
    words: &Words,
    recalled: &Recalled,
    running: &Running,
    plan: &Plan,
    request: &ApplyRequest,
) -> Vec<Change> {
    let now: HashMap<String, Moment> =
        deployment_rows(words).map(|(index, row)| (text(&row.name), moment(words.live.read(index.into())))).collect();
    let names: BTreeSet<&str> = plan.changes.iter().map(|change| change.deployment.as_str()).collect();
    let change = |name: &str| {
        let from = running.deployments.get(name).map(|running| moment(running.word));
        let to = now.get(name).copied();
        // It existed before a reboot, and continues with its colour.
        let restored = from.is_none() && to.is_some() && recalled.moment(name) == to;
        let action = if restored { Action::Recovered } else { Action::Apply };
        let (deployment, reason) = (name.to_owned(), request.reason.clone());
        let change = Change { deployment, action, from, to, reason, ..Change::default() };
        (from.is_some() || to.is_some()).then_some(change)
    };
    names.into_iter().filter_map(change).collect()
}
