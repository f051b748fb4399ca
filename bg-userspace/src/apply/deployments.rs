//! Deployments at the beginning and at the end of an apply: rows, testers, first live words, the journal.

use std::collections::HashMap;

use bg_common::{DeploymentRow, LiveWord, MAX_DEPLOYMENTS, SwitchTerms};
use bytemuck::Zeroable as _;

use super::Work;
use crate::{
    ApplyRequest, Error,
    config::{Config, Deployment},
    history::{Action, History, LastLive, Moment, Record},
    live::moment,
    lock::Lock,
    maps::unless_missing,
    plan::{self, Beginning, Plan},
    running::{tester_key, unsettled_key},
    time::TickLength,
};

/// Writes rows, testers that come, and live words of new deployments. Returns all indexes by name.
pub(super) fn begin<'c>(
    work: &mut Work<'_>,
    config: &'c Config,
    length: TickLength,
) -> Result<HashMap<&'c str, u16>, Error> {
    let mut indexes = HashMap::new();
    let mut begun = Vec::new();
    for deployment in &config.deployments {
        let current = work.running.deployments.get(&deployment.name);
        let index = match current {
            Some(current) => current.index,
            None => work.deployments.take().ok_or(Error::NoRoom {
                what: "deployments",
                needed: 1,
                free: 0,
                capacity: MAX_DEPLOYMENTS as usize,
            })? as u16,
        };
        indexes.insert(deployment.name.as_str(), index);
        if plan::deployment_needs_work(deployment, current, length) {
            work.words.deployments.write(index.into(), &plan::deployment_row(deployment, length));
            if current.is_some_and(|current| plan::testers_change(deployment, current)) {
                work.tables
                    .testers
                    .insert(&unsettled_key(index), u32::from(index), 0)
                    .map_err(Error::map("write", "testers"))?;
                work.sweep.testers.insert(index, deployment.testers.clone());
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
        set_first_words(work, &begun)?;
    }
    Ok(indexes)
}

/// Sets the live words of new deployments.
fn set_first_words(work: &Work<'_>, begun: &[(&Deployment, u16)]) -> Result<(), Error> {
    let last = LastLive::load(work.paths.state_dir())?;
    let _switch = Lock::switch(work.paths)?;
    for (deployment, index) in begun {
        let row = usize::from(*index);
        let last = last.deployments.get(&deployment.name).copied();
        // By the words as they are now, under the lock.
        let word = |index: u16| work.words.live.read(index.into());
        let beginning = Beginning::of(deployment, work.running, word, last);
        work.words.terms.write(row, &[SwitchTerms::default(); 2]);
        work.words.live.write(row, &beginning.word());
    }
    Ok(())
}

/// Removes testers and deployments that go, and writes the journal.
pub(super) fn end(work: &mut Work<'_>, config: &Config, plan: &Plan, request: &ApplyRequest) -> Result<(), Error> {
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
    // All that has been published or withdrawn holds for every packet from here on.
    work.fence.wait()?;
    work.sweep.run(work.paths, &work.tables.backends, || work.fence.wait())?;
    let unsettled =
        work.running.deployments.values().filter(|running| running.is_unsettled).map(|running| running.index);
    for index in unsettled.chain(work.sweep.testers.keys().copied()) {
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
    remember(work, plan, request)
}

/// Brings the state directory up to date.
fn remember(work: &Work<'_>, plan: &Plan, request: &ApplyRequest) -> Result<(), Error> {
    let _history = Lock::history(work.paths)?;
    let now: HashMap<String, Moment> = crate::running::deployment_rows(work.words)
        .map(|(index, row)| (crate::running::text(&row.name), moment(work.words.live.read(index.into()))))
        .collect();
    let before = LastLive::load(work.paths.state_dir())?;
    let mut changed: Vec<&str> = plan.changes.iter().map(|change| change.deployment.as_str()).collect();
    changed.dedup();
    changed.sort_unstable();
    changed.dedup();
    let history = History::new(work.paths.state_dir());
    for name in changed {
        let from = work.running.deployments.get(name).map(|running| moment(running.word));
        let to = now.get(name).copied();
        // It was here before a reboot, and goes on where it was.
        let restored = from.is_none() && to.is_some() && before.deployments.get(name) == to.as_ref();
        let action = if restored { Action::Recovered } else { Action::Apply };
        if from.is_some() || to.is_some() {
            history.append(&Record::now(name, action, from, to, request.reason.as_deref()))?;
        }
    }
    LastLive::update(work.paths.state_dir(), |deployments| {
        deployments.retain(|name, _| now.contains_key(name) || !work.running.deployments.contains_key(name));
        for (name, moment) in &now {
            let is_older = deployments.get(name).is_some_and(|known| known.generation > moment.generation);
            if !is_older {
                deployments.insert(name.clone(), *moment);
            }
        }
    })?;
    Ok(())
}
