//! The deployments in an apply: their rows, their testers, the first live words, and the records for the journal.

use std::collections::HashMap;

use aya::maps::lpm_trie::Key;
use bg_common::{
    Cause, ClockId, DeploymentRow, Hold, LiveWord, MAX_DEPLOYMENTS, SwitchTerms, TesterKey, Timing, Trips,
};
use bytemuck::Zeroable as _;

use super::{request::ApplyRequest, work::Work};
use crate::{
    Error, Room,
    history::{self, Moment},
    live::now,
    lock::Lock,
    maps::{Words, holds, unless_missing},
    plan::{self, Action, Because, Beginning, DeploymentDiff, Diff},
    running::{Running, deployment_rows, tester_key, text, unsettled_key},
    state::{Change, Recalled},
    time::TickLength,
};

/// Writes rows, new testers, and the live words of new deployments. Returns the indexes of all deployments.
pub(super) fn begin(
    work: &mut Work<'_>,
    diff: &mut Diff<'_>,
    length: TickLength,
    recalled: &Recalled,
    changes: &mut [Change],
) -> Result<Vec<u16>, Error> {
    let mut indexes = Vec::new();
    for deployment in &diff.deployments {
        let index = match deployment.current {
            Some(current) => current.index,
            None => work.deployments.take().ok_or(Error::NoRoom {
                what: Room::Deployments,
                needed: 1,
                free: 0,
                capacity: MAX_DEPLOYMENTS as usize,
            })? as u16,
        };
        indexes.push(index);
        if deployment.actions.is_empty() {
            continue;
        }
        let wanted = plan::deployment_row(deployment.wanted, length);
        // What the last split divides by is not a setting, and neither is that a switch is being made. Both share words with settings, and are
        // written under the lock.
        let switch = Lock::switch(work.paths)?;
        work.words.deployments.update(index.into(), |row| {
            *row = DeploymentRow { split_by: row.split_by, receipt: row.receipt, ..wanted };
        });
        drop(switch);
        if deployment.changes_testers() {
            insert_tester(work, index, &unsettled_key(index))?;
            work.testers.insert(index, deployment.wanted.testers.clone());
        }
        for action in &deployment.actions {
            if let Action::AddTester { prefix } = action {
                insert_tester(work, index, &tester_key(index, prefix))?;
            }
        }
    }
    let begun: Vec<_> =
        diff.deployments.iter_mut().zip(&indexes).filter(|(deployment, _)| deployment.begins()).collect();
    if !begun.is_empty() {
        set_first_words(work, begun, recalled, changes)?;
    }
    Ok(indexes)
}

fn insert_tester(work: &mut Work<'_>, index: u16, key: &Key<TesterKey>) -> Result<(), Error> {
    work.tables.testers.insert(key, u32::from(index), 0).map_err(Error::map("write", "testers"))
}

/// Sets the live words of new deployments. Their beginnings are decided again under the lock, because a switch may have changed a live
/// word from which they are taken over, and the actions and records then say what has been done.
fn set_first_words(
    work: &Work<'_>,
    begun: Vec<(&mut DeploymentDiff<'_>, &u16)>,
    recalled: &Recalled,
    changes: &mut [Change],
) -> Result<(), Error> {
    let _switch = Lock::switch(work.paths)?;
    for (deployment, index) in begun {
        let row = usize::from(*index);
        let name = &deployment.wanted.name;
        let reading = |index: u16| Some(work.words.reading(index, 0));
        let beginning = Beginning::of(deployment.wanted, work.running, reading, recalled.moment(name));
        work.words.terms.write(row, &[SwitchTerms::default(); 2]);
        let is_rolled_back = match &beginning.because {
            Because::Initial => false,
            Because::LastLive => recalled.is_rolled_back(name),
            // A renamed deployment keeps the mark of a rollback, which must not be undone by mistake.
            Because::TakenOver { from } => {
                let mut from = from.iter().filter_map(|name| work.running.deployments.get(name));
                from.any(|from| work.words.reading(from.index, 0).is_rolled_back())
            }
        };
        let cause = if is_rolled_back { Cause::Rollback } else { Cause::Unknown };
        let timing = Timing {
            generation: beginning.generation,
            cause: cause as u8,
            made_at: now(ClockId::Boot),
            ..Timing::default()
        };
        work.words.timing.write(row, &[timing; 2]);
        work.words.live.write(row, &beginning.word());
        changes_of(name, changes).for_each(|change| change.to = Some(beginning.moment()));
        if let Some(Action::AddDeployment(planned)) = deployment.actions.first_mut() {
            *planned = beginning;
        }
    }
    Ok(())
}

fn changes_of<'a>(name: &'a str, changes: &'a mut [Change]) -> impl Iterator<Item = &'a mut Change> {
    changes.iter_mut().filter(move |change| change.deployment == name)
}

/// Removes the testers and deployments that are no longer configured. Their records get the last state, which a switch may have changed.
pub(super) fn end(work: &mut Work<'_>, diff: &Diff<'_>, changes: &mut [Change]) -> Result<(), Error> {
    let kept = diff.deployments.iter().filter_map(|deployment| Some((deployment.current?.index, &deployment.actions)));
    for (index, actions) in kept {
        for action in actions {
            if let Action::RemoveTester { prefix } = action {
                remove_tester(work, &tester_key(index, prefix))?;
            }
        }
    }
    let removed = || diff.removed_deployments.iter().map(|removed| removed.current);
    for running in removed() {
        running.testers.iter().try_for_each(|prefix| remove_tester(work, &tester_key(running.index, prefix)))?;
    }
    // From here on, every packet sees what has been published and removed.
    work.wait()?;
    work.sweep_testers()?;
    let unsettled =
        work.running.deployments.values().filter(|running| running.is_unsettled).map(|running| running.index);
    let changed: Vec<u16> = unsettled.chain(work.testers.keys().copied()).collect();
    changed.into_iter().try_for_each(|index| remove_tester(work, &unsettled_key(index)))?;
    let holds = holds(work.paths)?;
    let _switch = Lock::switch(work.paths)?;
    for running in removed() {
        let row = usize::from(running.index);
        let last = known(work.words.reading(running.index, 0).moment());
        changes_of(&text(&running.row.name), changes).for_each(|change| change.from = last);
        work.words.live.write(row, &LiveWord::default());
        work.words.terms.write(row, &[SwitchTerms::default(); 2]);
        work.words.timing.write(row, &[Timing::default(); 2]);
        work.words.trips.write(row, &[Trips::default(); 2]);
        work.words.deployments.write(row, &DeploymentRow::zeroed());
        holds.write(row, &Hold::default());
    }
    Ok(())
}

fn remove_tester(work: &mut Work<'_>, key: &Key<TesterKey>) -> Result<(), Error> {
    unless_missing(work.tables.testers.remove(key)).map_err(Error::map("write", "testers"))
}

/// A state, unless a killed apply has not come so far as to set it.
fn known(moment: Moment) -> Option<Moment> {
    Some(moment).filter(|moment| moment.generation != 0)
}

/// The records for the deployments that are about to change. Only those of new ones have a state after it.
pub(super) fn planned(diff: &Diff<'_>, running: &Running, request: &ApplyRequest) -> Vec<Change> {
    let change = |name: &str| Change {
        deployment: name.to_owned(),
        action: history::Action::Apply,
        from: running.deployments.get(name).and_then(|running| known(running.moment())),
        to: diff
            .deployments
            .iter()
            .find(|deployment| deployment.wanted.name == name)
            .and_then(DeploymentDiff::beginning),
        reason: request.reason.clone(),
        ..Change::default()
    };
    diff.changed_deployments().into_iter().map(change).collect()
}

/// The same records after the change. It leaves the live state of a deployment as it is, unless it adds or removes it. If that has
/// another state now, another command has changed it meanwhile, and records that.
pub(super) fn made(words: &Words, recalled: &Recalled, planned: Vec<Change>) -> Vec<Change> {
    let now: HashMap<String, Moment> =
        deployment_rows(words).map(|(index, row)| (text(&row.name), words.reading(index, 0).moment())).collect();
    let complete = |change: Change| {
        let now = now.get(&change.deployment).copied();
        let stays = change.from.is_some() && now.is_some();
        let (from, to) = if stays { (now, now) } else { (change.from, change.to) };
        // It existed before a reboot, and continues with its colour.
        let restored = from.is_none() && to.is_some() && recalled.moment(&change.deployment) == to;
        let action = if restored { history::Action::Recovered } else { change.action };
        (from.is_some() || to.is_some()).then_some(Change { action, from, to, ..change })
    };
    planned.into_iter().filter_map(complete).collect()
}
